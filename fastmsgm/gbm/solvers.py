"""Solvers of the reverse GBM as coefficient tables, in float64 on the host, for one kernel.

A plan has one row per network call, (A, B, B', C, S, k0, k1, k2, c_in), which does

    D = k0 y + k1 g + k2                         the denoised log-state, g the network's output
    y <- A y + B D + B' D_prev + C + S z         y = log|x|, z a normal
    next network input: c_in y

With s the noise level, s_prev the previous and s' the next one, and a = s'/s, the multistep
solvers move y by

    Euler (DDIM)       (1 - a) (D - y)
    DPM-Solver++(2M)   (1 - a) (D_h - y),  D_h = D + (D - D_prev) / (2r)    (Lu et al., 2022)
    with noise eta     (1 - a^(1 + eta)) (D_h - y) + s' sqrt(1 - a^(2 eta)) z
    ER-SDE-2           (1 - R) (D - y) + c (D - D_prev) + sqrt(s'^2 - s^2 R^2) z
                                                                            (Cui et al., 2023)
    Heun               the trapezoidal rule, two rows per step              (Karras et al., 2022)

with r = log(s_prev/s) / log(s/s'); every step to s' = 0 is y = D. ER-SDE has R = phi(s')/phi(s)
and c = (s' - s + phi(s') int ds/phi) / (s - s_prev). The two samplers of
"Dale meets Langevin" (arXiv 2510.02730, algorithms 1 and 2) are Euler-Maruyama steps of length
delta of the reverse SDE, in log x (Dale-Langevin) and in x itself (sign-agnostic), L of them at
each of N noise levels.
"""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fastmsgm.checks import check_eta, check_int, is_number, positive
from fastmsgm.gbm.preconditioning import GBMPreconditioning
from fastmsgm.gbm.state import GBMPlan, GBMStepFlags
from fastmsgm.solver import Solver, karras_sigmas
from fastmsgm.types import Array


class LogSolver(Solver):
    """A solver of y = log|x| on the Karras grid from the largest noise level to sigma_min, then 0.

    Attributes:
        multistep: Whether D is kept from step to step.
    """

    default_steps: ClassVar[int] = 18
    multistep: ClassVar[bool] = True

    def plan(self, preconditioning: GBMPreconditioning, steps: int) -> GBMPlan:
        _check_family(self, preconditioning)
        steps, process = check_int("steps", steps, 1), preconditioning.process
        if process.log_drift:
            raise ValueError(
                f"{type(self).__name__} needs mu = sigma^2 / 2, got {process}: use DaleLangevin"
            )
        grid = karras_sigmas(steps, preconditioning.sigma_min, process.sigma_max)
        sigmas, rows = self.rows(grid)
        return _plan(
            preconditioning,
            sigmas,
            rows,
            multistep=self.multistep,
            sign_agnostic=False,
            log_state=True,
        )

    @abstractmethod
    def rows(self, grid: Array) -> tuple[Array, Array]:
        """Return noise levels (R,) and A, B, B', C, S (R, 5) of all rows, on a grid ending at 0."""


class MultistepSolver(LogSolver):
    """One row per step: y <- y + towards * (D - y) + slope * (D - D_prev) + noise * z."""

    def rows(self, grid: Array) -> tuple[Array, Array]:
        rows = []
        for i in range(len(grid) - 1):
            if grid[i + 1] == 0:
                towards, slope, noise = 1.0, 0.0, 0.0
            else:
                before = grid[i - 1] if i else None
                towards, slope, noise = self.move(before, grid[i], grid[i + 1])
            rows.append((1 - towards, towards + slope, -slope, 0.0, noise))
        return grid[:-1], np.array(rows)

    @abstractmethod
    def move(self, before: float | None, s: float, after: float) -> tuple[float, float, float]:
        """Return towards, slope and noise of the step s -> after > 0.

        Args:
            before: The previous noise level s_prev, None at the first step.
            s: The noise level of the state.
            after: The next noise level.
        """


@dataclass(frozen=True)
class Euler(MultistepSolver):
    """First order: DDIM in log space."""

    multistep = False

    def move(self, before: float | None, s: float, after: float) -> tuple[float, float, float]:
        return 1 - after / s, 0.0, 0.0


@dataclass(frozen=True)
class DPMSolverPP2M(MultistepSolver):
    """DPM-Solver++(2M), second order (Lu et al., 2022).

    It solves dy = -(1 + eta) (y - D) |ds| / s + sqrt(2 eta s |ds|) z, backwards in s.

    Args:
        eta: 0 is the probability-flow ODE, 1 the reverse SDE; more adds more noise and removes
            more. All have the same marginals; noise corrects earlier errors of the network.

    Raises:
        ValueError: eta is negative or not finite.
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "eta", check_eta(self.eta, most=math.inf))

    def move(self, before: float | None, s: float, after: float) -> tuple[float, float, float]:
        a = after / s
        towards = 1 - a ** (1 + self.eta)
        noise = after * math.sqrt(1 - a ** (2 * self.eta))
        slope = 0.0
        if before is not None:
            slope = towards / 2 * math.log(s / after) / math.log(before / s)
        return towards, slope, noise


@dataclass(frozen=True)
class ERSDE2(MultistepSolver):
    """ER-SDE-Solver of second order (Cui et al., 2023) with phi(s) = s (exp(s^0.3) + 10)."""

    def move(self, before: float | None, s: float, after: float) -> tuple[float, float, float]:
        def phi(u: Array) -> Array:
            return u * (np.exp(u**0.3) + 10)

        nodes, weights = np.polynomial.legendre.leggauss(64)
        half = math.log(s / after) / 2
        u = after * np.exp(half * (nodes + 1))
        integral = float(np.sum(weights * half * u / phi(u)))
        phi_after = float(phi(np.array(after)))
        ratio = float(phi(np.array(after)) / phi(np.array(s)))
        slope = 0.0 if before is None else (after - s + phi_after * integral) / (s - before)
        return 1 - ratio, slope, math.sqrt(max(after**2 - (s * ratio) ** 2, 0.0))


@dataclass(frozen=True)
class Heun(LogSolver):
    """Heun's method, second order: 2 steps - 1 network calls (Karras et al., 2022)."""

    def rows(self, grid: Array) -> tuple[Array, Array]:
        sigmas, rows = [], []
        for s, after in itertools.pairwise(grid):
            a = after / s
            sigmas.append(s)
            rows.append((a, 1 - a, 0.0, 0.0, 0.0))
            if after > 0:
                half = (1 - a) / (2 * a)
                sigmas.append(after)
                rows.append((1.0, half, -half, 0.0, 0.0))
        return np.array(sigmas), np.array(rows)


@dataclass(frozen=True)
class PaperSolver(Solver):
    """The samplers of "Dale meets Langevin" (arXiv 2510.02730, algorithms 1 and 2).

    ``steps`` is N, the number of noise levels, at t = k T / N for k = N - 1 .. 0, with ``inner``
    updates at each. A denoiser is not defined at k = 0, so its noise levels end at k = 1.

    Args:
        delta: Length of an update in time; None is T / N.
        inner: L, the number of updates at each noise level.
        anneal: The noise at the i-th noise level is multiplied by anneal^i.
        tweedie: Number of denoising passes at the end, which the paper names after Tweedie: updates
            at k = 0 without noise.
        sigma: Volatility to start from; None is the process's own. The largest noise level is
            sigma sqrt(T (N - 1) / N).

    Raises:
        TypeError: inner or tweedie is not an int.
        ValueError: An argument is out of range.
    """

    delta: float | None = None
    inner: int = 1
    anneal: float = 1.0
    tweedie: int = 0
    sigma: float | None = None

    default_steps: ClassVar[int] = 1000
    sign_agnostic: ClassVar[bool]

    def __post_init__(self) -> None:
        for name, least in (("inner", 1), ("tweedie", 0)):
            object.__setattr__(self, name, check_int(name, getattr(self, name), least))
        for name in ("delta", "sigma"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, positive(name, getattr(self, name)))
        if not is_number(self.anneal) or not 0 <= self.anneal <= 1:
            raise ValueError(f"anneal must be in [0, 1], got {self.anneal!r}")
        object.__setattr__(self, "anneal", float(self.anneal))

    def plan(self, preconditioning: GBMPreconditioning, steps: int) -> GBMPlan:
        _check_family(self, preconditioning)
        steps = check_int("steps", steps, 1)
        process, denoiser = preconditioning.process, preconditioning.denoiser
        sigma = self.sigma or process.sigma
        if not denoiser and sigma != process.sigma:
            raise ValueError(
                f"sigma must be the process's own, {process.sigma}, for a score network, got "
                f"{sigma}"
            )
        if sigma > process.sigma:
            raise ValueError(f"sigma must be at most the process's, {process.sigma}, got {sigma}")
        if denoiser and (self.tweedie or steps < 2):
            raise ValueError(
                f"a denoiser needs tweedie=0 and steps >= 2, got tweedie={self.tweedie}, "
                f"steps={steps}"
            )
        delta = process.T / steps if self.delta is None else self.delta
        mu = sigma**2 / 2 + process.log_drift
        k = np.arange(steps - 1, 0 if denoiser else -1, -1)
        sigmas = np.repeat(sigma * np.sqrt(k * process.T / steps), self.inner)
        noise = np.repeat(self.anneal ** np.arange(len(k)), self.inner) * sigma * math.sqrt(delta)
        sigmas, noise = (np.append(v, np.zeros(self.tweedie)) for v in (sigmas, noise))
        share = delta * sigma**2 / np.where(sigmas > 0, sigmas**2, 1.0)
        drift = self.constant(delta, sigma, mu) + share * process.log_drift * (sigmas / sigma) ** 2
        rows = np.stack((1 - share, share, np.zeros_like(share), drift, noise), axis=1)
        return _plan(
            preconditioning,
            sigmas,
            rows,
            multistep=False,
            sign_agnostic=self.sign_agnostic,
            log_state=denoiser,
        )

    @abstractmethod
    def constant(self, delta: float, sigma: float, mu: float) -> float:
        """Return the part of an update that needs no network."""


@dataclass(frozen=True)
class DaleLangevin(PaperSolver):
    """Sign-preserving: log x <- log x + delta (sigma^2 q - mu + 3/2 sigma^2) + sigma sqrt(delta) z.

    Arguments and errors as of ``PaperSolver``.
    """

    sign_agnostic = False

    def constant(self, delta: float, sigma: float, mu: float) -> float:
        return delta * (sigma**2 / 2 - mu)


@dataclass(frozen=True)
class SignAgnostic(PaperSolver):
    """x <- x (1 + delta (sigma^2 q - mu + 2 sigma^2) + sigma sqrt(delta) z).

    Arguments and errors as of ``PaperSolver``.
    """

    sign_agnostic = True

    def constant(self, delta: float, sigma: float, mu: float) -> float:
        return delta * (sigma**2 - mu)


SOLVERS: dict[str, Callable[[], Solver]] = {
    "euler": Euler,
    "heun": Heun,
    "dpm++2m": DPMSolverPP2M,
    "sde-dpm++2m": lambda: DPMSolverPP2M(eta=1.0),
    "er-sde-2": ERSDE2,
    "dale-langevin": DaleLangevin,
    "sign-agnostic": SignAgnostic,
    "dls": DaleLangevin,
    "ums": SignAgnostic,
}

# The authors' settings (their repository; N = 1000, sigma = 0.8, images + 1), by data set:
# Dale-Langevin, then sign-agnostic; in order delta, inner, anneal, tweedie.
PUBLISHED: dict[str, tuple[DaleLangevin, SignAgnostic]] = {
    "mnist": (
        DaleLangevin(6.165455e-4, 1, 0.995),
        SignAgnostic(1.438450e-4, 4, 0.995),
    ),
    "fashion-mnist": (
        DaleLangevin(5.862727e-4, 1, 0.995),
        SignAgnostic(1.467799e-3, 3, 0.9995),
    ),
    "kmnist": (
        DaleLangevin(2.113158e-4, 3, 0.995),
        SignAgnostic(2.113158e-4, 3, 1.0),
    ),
    "cifar-10": (
        DaleLangevin(1.142105e-4, 6, 0.9995, 25),
        SignAgnostic(1.438450e-4, 5, 0.9995, 25),
    ),
}


def _plan(
    preconditioning: GBMPreconditioning,
    sigmas: Array,
    rows: Array,
    *,
    multistep: bool,
    sign_agnostic: bool,
    log_state: bool,
) -> GBMPlan:
    k = preconditioning.coefficients(sigmas)
    next_c_in = np.append(k[1:, 3], 0.0)  # each row prepares the next one's input
    stein_score = preconditioning.prediction == "score"
    return GBMPlan(
        noise_levels=sigmas,
        table=np.column_stack((rows, k[:, :3], next_c_in)),
        c_noise=preconditioning.c_noise(sigmas),
        preconditioning=preconditioning,
        multistep=multistep,
        flags=GBMStepFlags(stein_score, sign_agnostic, log_state),
    )


def _check_family(solver: Solver, preconditioning: object) -> None:
    if not isinstance(preconditioning, GBMPreconditioning):
        raise TypeError(
            f"solver {solver!r} is for geometric Brownian motion, got a "
            f"{type(preconditioning).__name__}"
        )
