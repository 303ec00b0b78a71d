"""LinearClock: t in [0, 1], beta linear in t, and the clock B(t) = int_0^t beta that processes run by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastmsgm.checks import positive

TIME_MIN = 1e-3  # the papers' truncation of t: score networks are trained at, and asked about, no earlier time


@dataclass(frozen=True, kw_only=True)
class LinearClock:
    """beta from ``beta_min`` at t = 0 to ``beta_max`` at t = 1.

    Raises:
        ValueError: a beta that is not positive and finite.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        for name in ("beta_min", "beta_max"):
            object.__setattr__(self, name, positive(name, getattr(self, name)))

    @property
    def clock_max(self) -> float:
        """The clock at t = 1."""
        return (self.beta_min + self.beta_max) / 2

    def beta(self, t: ArrayLike) -> NDArray[np.float64]:
        """The rate of the clock at times t."""
        return self.beta_min + (self.beta_max - self.beta_min) * np.asarray(t, np.float64)

    def clock(self, t: ArrayLike) -> NDArray[np.float64]:
        """B(t) = beta_min t + (beta_max - beta_min) t^2 / 2."""
        time = np.asarray(t, np.float64)
        return time * (self.beta_min + (self.beta_max - self.beta_min) * time / 2)

    def time(self, clock: ArrayLike) -> NDArray[np.float64]:
        """The time at which the clock shows B."""
        b = np.asarray(clock, np.float64)
        return 2 * b / (self.beta_min + np.sqrt(self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * b))
