"""The two samplers of "Dale meets Langevin" (arXiv 2510.02730, algorithms 1 and 2), as tables.

Euler-Maruyama steps of length delta of the reverse SDE, in log x (Dale-Langevin) and in x itself
(sign-agnostic), L of them at each of N noise levels. ``state.py`` describes the rows.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fastmsgm.checks import check_int, is_number, positive
from fastmsgm.gbm.preconditioning import GBMPreconditioning
from fastmsgm.gbm.state import GBMPlan, check_family, gbm_plan
from fastmsgm.solver import Solver


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
        delta = process.T / steps if self.delta is None else self.delta
        mu = sigma**2 / 2 + process.log_drift
        k = np.arange(steps - 1, 0 if denoiser else -1, -1)
        sigmas = np.repeat(sigma * np.sqrt(k * process.T / steps), self.inner)
        noise = np.repeat(self.anneal ** np.arange(len(k)), self.inner) * sigma * math.sqrt(delta)
        sigmas, noise = (np.append(v, np.zeros(self.tweedie)) for v in (sigmas, noise))
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
