"""The two samplers of "Dale meets Langevin" (arXiv 2510.02730, algorithms 1 and 2), as tables.

Euler-Maruyama steps of length delta of the reverse SDE, in log x (Dale-Langevin) and in x itself
(sign-agnostic), L of them at each of N noise levels. delta, L and the factor by which the noise
shrinks may change on the way, in stages. ``state.py`` describes the rows.
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fastmsgm.checks import check_int, is_number, positive
from fastmsgm.gbm.preconditioning import GBMPreconditioning
from fastmsgm.gbm.state import GBMPlan, check_family, gbm_plan
from fastmsgm.solver import Solver
from fastmsgm.types import Array


@dataclass(frozen=True)
class Stage:
    """Settings of a part of a run, from the noise level at t = start T down to the next stage.

    Args:
        start: Share of the process's time at which the stage starts: its noise levels have
            t <= start T, in (0, 1].
        delta: Length of an update in time; None is T / N.
        inner: L, the number of updates at each noise level.
        anneal: Factor of the noise from each of its noise levels to the next.

    Raises:
        TypeError: inner is not an int.
        ValueError: An argument is out of range.
    """

    start: float = 1.0
    delta: float | None = None
    inner: int = 1
    anneal: float = 1.0

    def __post_init__(self) -> None:
        if not is_number(self.start) or not 0 < self.start <= 1:
            raise ValueError(f"start must be in (0, 1], got {self.start!r}")
        object.__setattr__(self, "start", float(self.start))
        object.__setattr__(self, "inner", check_int("inner", self.inner, 1))
        if self.delta is not None:
            object.__setattr__(self, "delta", positive("delta", self.delta))
        if not is_number(self.anneal) or not 0 <= self.anneal <= 1:
            raise ValueError(f"anneal must be in [0, 1], got {self.anneal!r}")
        object.__setattr__(self, "anneal", float(self.anneal))


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
            at k = 0 without noise, of the last delta.
        sigma: Volatility to start from; None is the process's own. The largest noise level is
            sigma sqrt(T (N - 1) / N).
        schedule: Stages with falling ``start``, the first of 1.0, which replace delta, inner and
            anneal; () is one stage of these. The factors of the noise multiply up over stages.

    Raises:
        TypeError: inner or tweedie is not an int, or schedule holds something else than stages.
        ValueError: An argument is out of range, or a schedule is given beside delta, inner or
            anneal.

    Example:
        >>> stages = (Stage(1.0, 1e-3), Stage(0.1, 5e-4, inner=2, anneal=0.999))
        >>> preconditioning = GBMPreconditioning(fastmsgm.GBM(0.8), "score", log_std=0.2)
        >>> DaleLangevin(schedule=stages).plan(preconditioning, 100).nfe  # 89 + 2 * 11
        111
    """

    delta: float | None = None
    inner: int = 1
    anneal: float = 1.0
    tweedie: int = 0
    sigma: float | None = None
    schedule: tuple[Stage, ...] = ()

    default_steps: ClassVar[int] = 1000
    sign_agnostic: ClassVar[bool]

    def __post_init__(self) -> None:
        single = Stage(1.0, self.delta, self.inner, self.anneal)
        for name in ("delta", "inner", "anneal"):
            object.__setattr__(self, name, getattr(single, name))
        object.__setattr__(self, "tweedie", check_int("tweedie", self.tweedie, 0))
        if self.sigma is not None:
            object.__setattr__(self, "sigma", positive("sigma", self.sigma))
        if self.schedule != ():
            object.__setattr__(self, "schedule", check_schedule(self.schedule))
            if single != Stage():
                raise ValueError(
                    "schedule must be given without delta, inner and anneal, which it replaces, "
                    f"got {self.delta}, {self.inner} and {self.anneal} beside it: leave them out"
                )

    def plan(self, preconditioning: GBMPreconditioning, steps: int) -> GBMPlan:
        check_family(self, preconditioning)
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
        mu = sigma**2 / 2 + process.log_drift
        k = np.arange(steps - 1, 0 if denoiser else -1, -1)
        delta, inner, anneal = self._by_level(k / steps, process.T / steps)
        sigmas = np.repeat(sigma * np.sqrt(k * process.T / steps), inner)
        passes = np.full(self.tweedie, delta[-1])
        delta = np.repeat(delta, inner)
        noise = np.repeat(anneal, inner) * sigma * np.sqrt(delta)
        sigmas, noise = (np.append(v, np.zeros(self.tweedie)) for v in (sigmas, noise))
        delta = np.append(delta, passes)
        share = delta * sigma**2 / np.where(sigmas > 0, sigmas**2, 1.0)
        drift = self.constant(delta, sigma, mu) + share * process.log_drift * (sigmas / sigma) ** 2
        rows = np.stack((1 - share, share, np.zeros_like(share), drift, noise), axis=1)
        return gbm_plan(
            preconditioning,
            sigmas,
            rows,
            multistep=False,
            sign_agnostic=self.sign_agnostic,
            log_state=denoiser,
        )

    def _by_level(self, shares: Array, default: float) -> tuple[Array, NDArray[np.int64], Array]:
        """Return delta, L and the factor of the noise at each noise level.

        Args:
            shares: t / T of the noise levels, falling.
            default: delta where a stage has none.
        """
        stages = self.schedule or (Stage(1.0, self.delta, self.inner, self.anneal),)
        starts = np.array([stage.start for stage in stages])
        index = (shares[:, None] <= starts).sum(1) - 1
        # A level's noise has one factor of its stage for every earlier level of that stage.
        earlier = [np.append(0, np.cumsum(index == i)[:-1]) for i in range(len(stages))]
        powers = [stage.anneal**count for stage, count in zip(stages, earlier, strict=True)]
        delta = np.array([default if stage.delta is None else stage.delta for stage in stages])
        inner = np.array([stage.inner for stage in stages], dtype=np.int64)
        return delta[index], inner[index], np.prod(powers, axis=0)

    @abstractmethod
    def constant(self, delta: Array, sigma: float, mu: float) -> Array:
        """Return the part of an update that needs no network."""


@dataclass(frozen=True)
class DaleLangevin(PaperSolver):
    """Sign-preserving: log x <- log x + delta (sigma^2 q - mu + 3/2 sigma^2) + sigma sqrt(delta) z.

    Arguments and errors as of ``PaperSolver``.
    """

    sign_agnostic = False

    def constant(self, delta: Array, sigma: float, mu: float) -> Array:
        return delta * (sigma**2 / 2 - mu)


@dataclass(frozen=True)
class SignAgnostic(PaperSolver):
    """x <- x (1 + delta (sigma^2 q - mu + 2 sigma^2) + sigma sqrt(delta) z).

    Arguments and errors as of ``PaperSolver``.
    """

    sign_agnostic = True

    def constant(self, delta: Array, sigma: float, mu: float) -> Array:
        return delta * (sigma**2 - mu)


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

# Their settings for the class-average start, whose sign-agnostic sampler differs for two data sets.
PUBLISHED_CLASS_AVERAGE: dict[str, tuple[DaleLangevin, SignAgnostic]] = PUBLISHED | {
    "fashion-mnist": (
        PUBLISHED["fashion-mnist"][0],
        SignAgnostic(2.592944e-4, 3, 0.9995),
    ),
    "kmnist": (
        PUBLISHED["kmnist"][0],
        SignAgnostic(3.359818e-4, 2, 0.995),
    ),
}

# Their schedule that is not constant: at k > 100, 51 .. 100, 26 .. 50 and 0 .. 25 of N = 1000.
PUBLISHED_SCHEDULE = (
    Stage(1.0, 1e-3, 1, 1.0),
    Stage(0.1, 5e-4, 2, 0.9995),
    Stage(0.05, 6e-4, 3, 0.9993),
    Stage(0.025, 5e-4, 3, 0.999),
)


def check_schedule(schedule: object) -> tuple[Stage, ...]:
    """Return stages as a tuple where they start at 1.0 and fall.

    Raises:
        TypeError: schedule is not a tuple or list of stages.
        ValueError: The first stage does not start at 1.0, or a stage not below the one before.
    """
    if not isinstance(schedule, (tuple, list)) or not all(isinstance(s, Stage) for s in schedule):
        raise TypeError(f"schedule must be a tuple of stages (Stage), got {schedule!r}")
    starts = [stage.start for stage in schedule]
    if starts[:1] != [1.0] or any(a <= b for a, b in itertools.pairwise(starts)):
        raise ValueError(
            f"schedule must have stages that start at 1.0 and then at falling shares, got {starts}"
        )
    return tuple(schedule)
