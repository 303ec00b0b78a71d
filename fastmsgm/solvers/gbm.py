"""Solvers of the reverse GBM as coefficient tables: computed once in float64 on the host, applied by one kernel.

A plan has one row per network call. With D the denoised log-state at noise level s, s' the next level, a = s'/s and
y = log|x|, the multistep solvers move y by

    Euler (DDIM)       (1 - a) (D - y)
    DPM-Solver++(2M)   (1 - a) (D_h - y),  D_h = D + (D - D_prev) / (2r)                 (Lu et al., 2022)
    with noise eta     (1 - a^(1 + eta)) (D_h - y) + s' sqrt(1 - a^(2 eta)) z
    ER-SDE-2           (1 - R) (D - y) + c (D - D_prev) + sqrt(s'^2 - s^2 R^2) z         (Cui et al., 2023)
    Heun               the trapezoidal rule, two rows per step                            (Karras et al., 2022)

with r the ratio of the last two steps in log s; every step to s' = 0 is y = D. The paper's two samplers (arXiv
2510.02730, algorithms 1 and 2) are Euler-Maruyama steps of length delta of the reverse SDE, in log x (Dale-Langevin)
and in x itself (sign-agnostic), L of them at each of N noise levels.
"""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from dataclasses import dataclass

import numpy as np

from fastmsgm.checks import is_number
from fastmsgm.gbm_model import GBMModel
from fastmsgm.model import ScoreModel
from fastmsgm.solvers.base import Plan, Solver


@dataclass(frozen=True)
class GBMPlan(Plan):
    """What sampling does: one network call and one ``gbm_step`` per row.

    Args:
        levels: (R,) the noise level of each network call; the prior is drawn at the first.
        table: (R, 9) the rows of ``reference.COLUMNS``.
        multistep: D is kept from row to row.
        linear: the sign-agnostic form.
        log_state: rows use log|x|.
    """

    multistep: bool
    linear: bool
    log_state: bool


def karras_levels(steps: int, s_min: float, s_max: float, rho: float = 7.0) -> np.ndarray:
    """``steps`` levels from s_max to s_min, evenly spaced in s^(1/rho), then 0 (Karras et al., 2022, equation 5)."""
    ramp = np.linspace(0, 1, steps) if steps > 1 else np.zeros(1)
    root = s_max ** (1 / rho) + ramp * (s_min ** (1 / rho) - s_max ** (1 / rho))
    return np.append(root**rho, 0.0)


class LogSolver(Solver):
    """A solver of y = log|x| on the Karras grid from the process's largest noise level to s_min and then 0."""

    default_steps = 18
    multistep = True

    def plan(self, model: ScoreModel, steps: int) -> GBMPlan:
        model = _gbm(self, model)
        if model.process.drift:
            raise ValueError(f"{type(self).__name__} needs mu = sigma^2 / 2, got {model.process}: use DaleLangevin")
        grid = karras_levels(steps, model.s_min, model.process.sigma_max)
        levels, updates = self.updates(grid)
        return _plan(model, levels, updates, self.multistep, linear=False, log_state=True)

    @abstractmethod
    def updates(self, grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Levels (R,) and columns A, B, B', C, S (R, 5) on a grid that ends with 0."""


class MultistepSolver(LogSolver):
    """One row per step: y moves by towards (D - y) + slope (D - D_prev) + noise z."""

    def updates(self, grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows = []
        for i in range(len(grid) - 1):
            if grid[i + 1] == 0:
                towards, slope, noise = 1.0, 0.0, 0.0
            else:
                towards, slope, noise = self.move(grid[i - 1] if i else None, grid[i], grid[i + 1])
            rows.append((1 - towards, towards + slope, -slope, 0.0, noise))
        return grid[:-1], np.array(rows)

    @abstractmethod
    def move(self, before: float | None, s: float, after: float) -> tuple[float, float, float]:
        """towards, slope and noise of the step s -> after > 0; ``before`` is the previous level, None at first."""


@dataclass(frozen=True)
class Euler(MultistepSolver):
    """First order: DDIM in log space."""

    multistep = False

    def move(self, before: float | None, s: float, after: float) -> tuple[float, float, float]:
        return 1 - after / s, 0.0, 0.0


@dataclass(frozen=True)
class DPMSolverPP2M(MultistepSolver):
    """DPM-Solver++(2M), second order, of dy = -(1 + eta) (y - D) |ds| / s + sqrt(2 eta s |ds|) z, backwards in s.

    Args:
        eta: 0 the probability-flow ODE, 1 the reverse SDE; more is more noise, and more of it taken away again. All
            have the same marginals; noise forgets what the network got wrong before.

    Raises:
        ValueError: eta is negative or not finite.
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        if not is_number(self.eta) or self.eta < 0:
            raise ValueError(f"eta must be at least 0 (0 the ODE, 1 the SDE), got {self.eta!r}")

    def move(self, before: float | None, s: float, after: float) -> tuple[float, float, float]:
        a = after / s
        towards, noise = 1 - a ** (1 + self.eta), after * math.sqrt(1 - a ** (2 * self.eta))
        slope = 0.0 if before is None else towards / 2 * math.log(s / after) / math.log(before / s)
        return towards, slope, noise


@dataclass(frozen=True)
class ERSDE2(MultistepSolver):
    """ER-SDE-Solver of second order (Cui et al., 2023) with phi(s) = s (exp(s^0.3) + 10)."""

    def move(self, before: float | None, s: float, after: float) -> tuple[float, float, float]:
        def phi(u: np.ndarray) -> np.ndarray:
            return u * (np.exp(u**0.3) + 10)

        nodes, weights = np.polynomial.legendre.leggauss(64)
        half = math.log(s / after) / 2
        u = after * np.exp(half * (nodes + 1))
        integral = float(np.sum(weights * half * u / phi(u)))
        phi_after, ratio = float(phi(np.array(after))), float(phi(np.array(after)) / phi(np.array(s)))
        slope = 0.0 if before is None else (after - s + phi_after * integral) / (s - before)
        return 1 - ratio, slope, math.sqrt(max(after**2 - (s * ratio) ** 2, 0.0))


@dataclass(frozen=True)
class Heun(LogSolver):
    """Heun's method, second order: 2 steps - 1 network calls."""

    def updates(self, grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        levels, rows = [], []
        for s, after in itertools.pairwise(grid):
            a = after / s
            levels.append(s)
            rows.append((a, 1 - a, 0.0, 0.0, 0.0))
            if after > 0:
                half = (1 - a) / (2 * a)
                levels.append(after)
                rows.append((1.0, half, -half, 0.0, 0.0))
        return np.array(levels), np.array(rows)


@dataclass(frozen=True)
class PaperSolver(Solver):
    """The paper's samplers: ``steps`` = N noise levels t = k T / N, k = N - 1 .. 0, with ``inner`` updates at each.

    Args:
        delta: length of an update in time; None is T / N.
        inner: L, updates per level.
        anneal: the noise of the i-th level visited is multiplied by anneal^i.
        tweedie: denoising passes at the end: updates at k = 0 without noise.
        sigma: start at this noise level; None is the process's own. A denoiser knows no k = 0, so there its levels end
            at k = 1.
    """

    delta: float | None = None
    inner: int = 1
    anneal: float = 1.0
    tweedie: int = 0
    sigma: float | None = None

    default_steps = 1000

    def __post_init__(self) -> None:
        for name, value, good, allowed in (
            ("delta", self.delta, self.delta is None or (is_number(self.delta) and self.delta > 0), "positive or None"),
            ("inner", self.inner, isinstance(self.inner, int) and self.inner >= 1, "an int, at least 1"),
            ("anneal", self.anneal, is_number(self.anneal) and 0 <= self.anneal <= 1, "in [0, 1]"),
            ("tweedie", self.tweedie, isinstance(self.tweedie, int) and self.tweedie >= 0, "an int, at least 0"),
            ("sigma", self.sigma, self.sigma is None or (is_number(self.sigma) and self.sigma > 0), "positive or None"),
        ):
            if not good:
                raise ValueError(f"{name} must be {allowed}, got {value!r}")

    def plan(self, model: ScoreModel, steps: int) -> GBMPlan:
        model = _gbm(self, model)
        process, denoiser = model.process, model.prediction == "denoiser"
        sigma = self.sigma or process.sigma
        if not denoiser and sigma != process.sigma:
            raise ValueError(f"sigma must be the process's own, {process.sigma}, for a score network, got {sigma}")
        if sigma > process.sigma:
            raise ValueError(f"sigma must be at most the process's, {process.sigma}, got {sigma}")
        if denoiser and (self.tweedie or steps < 2):
            raise ValueError(f"a denoiser needs tweedie=0 and steps >= 2, got tweedie={self.tweedie}, steps={steps}")
        delta = process.T / steps if self.delta is None else self.delta
        mu = sigma**2 / 2 + process.drift
        k = np.arange(steps - 1, 0 if denoiser else -1, -1)
        levels = np.repeat(sigma * np.sqrt(k * process.T / steps), self.inner)
        noise = np.repeat(self.anneal ** np.arange(len(k)), self.inner) * sigma * math.sqrt(delta)
        levels, noise = (np.append(v, np.zeros(self.tweedie)) for v in (levels, noise))
        share = delta * sigma**2 / np.where(levels > 0, levels**2, 1.0)
        drift = self.constant(delta, sigma, mu) + share * process.drift * (levels / sigma) ** 2
        updates = np.stack((1 - share, share, np.zeros_like(share), drift, noise), axis=1)
        return _plan(model, levels, updates, multistep=False, linear=self.linear(), log_state=denoiser)

    @abstractmethod
    def constant(self, delta: float, sigma: float, mu: float) -> float:
        """The part of an update that needs no network."""

    @abstractmethod
    def linear(self) -> bool:
        """Whether the update adds to x rather than to log x."""


@dataclass(frozen=True)
class DaleLangevin(PaperSolver):
    """Sign-preserving: log x <- log x + delta (sigma^2 q - mu + 3/2 sigma^2) + sigma sqrt(delta) z."""

    def constant(self, delta: float, sigma: float, mu: float) -> float:
        return delta * (sigma**2 / 2 - mu)

    def linear(self) -> bool:
        return False


@dataclass(frozen=True)
class SignAgnostic(PaperSolver):
    """x <- x (1 + delta (sigma^2 q - mu + 2 sigma^2) + sigma sqrt(delta) z)."""

    def constant(self, delta: float, sigma: float, mu: float) -> float:
        return delta * (sigma**2 - mu)

    def linear(self) -> bool:
        return True


# The authors' configurations (their repository; N = 1000, sigma = 0.8, images + 1): Dale-Langevin, then sign-agnostic.
PUBLISHED: dict[str, tuple[DaleLangevin, SignAgnostic]] = {
    "mnist": (DaleLangevin(6.165455e-4, 1, 0.995), SignAgnostic(1.438450e-4, 4, 0.995)),
    "fashion-mnist": (DaleLangevin(5.862727e-4, 1, 0.995), SignAgnostic(1.467799e-3, 3, 0.9995)),
    "kmnist": (DaleLangevin(2.113158e-4, 3, 0.995), SignAgnostic(2.113158e-4, 3, 1.0)),
    "cifar-10": (DaleLangevin(1.142105e-4, 6, 0.9995, 25), SignAgnostic(1.438450e-4, 5, 0.9995, 25)),
}


def _plan(
    model: GBMModel, levels: np.ndarray, updates: np.ndarray, multistep: bool, linear: bool, log_state: bool
) -> GBMPlan:
    k = model.preconditioning(levels)
    next_c_in = np.append(k[1:, 3], 0.0)  # each row prepares the next one's input
    table = np.column_stack((updates, k[:, :3], next_c_in))
    return GBMPlan(levels, table, multistep, linear, log_state)


def _gbm(solver: Solver, model: ScoreModel) -> GBMModel:
    if not isinstance(model, GBMModel):
        raise TypeError(f"solver {solver!r} is for geometric Brownian motion, got a {type(model).__name__}")
    return model
