"""LinearBetaSchedule: t in [0, 1], beta linear in t, and the integrated beta B(t) = int_0^t beta.

B is the noise level of the families that use it: their marginals keep the share alpha = e^{-B/2} of
the signal and have noise of standard deviation sigma = sqrt(1 - e^{-B}).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from fastmsgm.checks import positive
from fastmsgm.types import Array

# The usual truncation of t: by default score networks are trained and evaluated at no earlier time.
TIME_MIN = 1e-3
B_LIMIT = 700.0  # beyond it e^-B leaves the float64 numbers


@dataclass(frozen=True, kw_only=True)
class LinearBetaSchedule:
    """Beta from ``beta_min`` at t = 0 to ``beta_max`` at t = 1.

    Args:
        beta_min: Beta at t = 0, > 0.
        beta_max: Beta at t = 1, > 0.

    Raises:
        ValueError: A beta that is not positive and finite, or an integrated beta beyond 700 at
            t = 1.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        for name in ("beta_min", "beta_max"):
            object.__setattr__(self, name, positive(name, getattr(self, name)))
        if self.B_max > B_LIMIT:
            raise ValueError(
                f"the integrated beta at t = 1 must be at most {B_LIMIT:g}, got {self.B_max:g}: "
                "lower beta_max"
            )

    @property
    def B_max(self) -> float:
        """The integrated beta at t = 1."""
        return (self.beta_min + self.beta_max) / 2

    def beta(self, t: ArrayLike) -> Array:
        """Return beta at times t."""
        return self.beta_min + (self.beta_max - self.beta_min) * np.asarray(t, np.float64)

    def integrated_beta(self, t: ArrayLike) -> Array:
        """Return B(t) = beta_min t + (beta_max - beta_min) t^2 / 2."""
        time = np.asarray(t, np.float64)
        return time * (self.beta_min + (self.beta_max - self.beta_min) * time / 2)

    def time(self, B: ArrayLike) -> Array:
        """Return the times at which the integrated beta is B."""
        b = np.asarray(B, np.float64)
        slope = self.beta_max - self.beta_min
        return 2 * b / (self.beta_min + np.sqrt(self.beta_min**2 + 2 * slope * b))


def alpha(B: ArrayLike) -> Array:
    """Return e^{-B/2}, the share of the signal; ValueError where B is not in [0, inf)."""
    return np.exp(-check_integrated_beta(B) / 2)


def sigma(B: ArrayLike) -> Array:
    """Return sqrt(1 - e^{-B}), so that alpha^2 + sigma^2 = 1; ValueError as ``alpha``."""
    return np.sqrt(-np.expm1(-check_integrated_beta(B)))


def check_integrated_beta(B: ArrayLike) -> Array:
    """Return B as float64; ValueError where it is not in [0, inf)."""
    b = np.asarray(B, dtype=np.float64)
    wrong = ~((b >= 0) & (b < math.inf))
    if wrong.any():
        raise ValueError(f"the integrated beta must be in [0, inf), got {b[wrong][0]}")
    return b
