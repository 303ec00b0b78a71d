"""The law of Brownian motion's angle on the sphere: its density integrated and inverted.

With the heat kernel k of ``heat_kernel.py``, the angle theta between u and u_0 after a clock B has the density

    f = k(theta, tau) sin^{d-2}(theta) Gamma(d/2) / (sqrt(pi) Gamma((d-1)/2)),    tau = B / (d - 1).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.polynomial.chebyshev import Chebyshev, chebvander
from numpy.typing import ArrayLike

from fastmsgm.heat_kernel import Array, check_dimension, log_kernel

Z_MAX = 6.0  # of quantiles: the tails beyond weigh 2e-9
_DEGREE = 160  # of the polynomial that stands for a density


class AngleLaw:
    """The law of the angle theta between u and u_0 after a clock B > 0.

    A Chebyshev interpolant of the density on [low, high], which leaves out a mass below 1e-12: theta is a
    1-Lipschitz function on a sphere of Ricci curvature d - 2, hence sub-Gaussian with variance
    (1 - e^{-(d-2) tau}) / (d - 2), and its mean is within about one such deviation of arccos(e^{-B/2}).

    Raises:
        TypeError, ValueError: d is not an int, d < 2, or the clock is not positive and finite.
    """

    def __init__(self, d: int, clock: float) -> None:
        self.d = check_dimension(d)
        if not 0 < clock < math.inf:
            raise ValueError(f"clock must be positive and finite, got {clock}: at clock 0 the angle is 0")
        self.tau = clock / (d - 1)
        deviation = math.sqrt(self.tau if d == 2 else -math.expm1(-(d - 2) * self.tau) / (d - 2))
        centre = 2 * math.asin(math.sqrt(-math.expm1(-clock / 2) / 2))
        self.low, self.high = max(centre - 8.5 * deviation, 0.0), min(centre + 8.5 * deviation, math.pi)
        self._density = Chebyshev.interpolate(self.density, _DEGREE, domain=[self.low, self.high])
        self._cdf = self._density.integ(lbnd=self.low)
        self.mass = float(self._cdf(self.high))  # 1 up to the error of log_kernel

    def density(self, theta: ArrayLike) -> Array:
        """f(theta), theta in [0, pi]."""
        log_k, _ = log_kernel(theta, self.tau, self.d)
        sphere = math.lgamma(self.d / 2) - math.lgamma((self.d - 1) / 2) - 0.5 * math.log(math.pi)
        if self.d == 2:
            return np.exp(log_k + sphere)
        with np.errstate(divide="ignore"):
            return np.exp(log_k + sphere + (self.d - 2) * np.log(np.sin(theta)))

    def cdf(self, theta: ArrayLike) -> Array:
        """P(angle <= theta)."""
        return np.clip(self._cdf(np.clip(theta, self.low, self.high)) / self.mass, 0.0, 1.0)

    def quantile(self, z: ArrayLike) -> Array:
        """The angle below which the probability is Phi(z), for |z| <= 6.

        Newton's iteration on the logarithm of the nearer tail over the logarithm of the distance to its end, 0 or pi:
        a straight line where the density vanishes there like a power.
        """
        z = np.asarray(z, dtype=np.float64)
        if not np.all(np.abs(z) <= Z_MAX):
            raise ValueError(f"z must be in [-{Z_MAX:g}, {Z_MAX:g}], got {z[~(np.abs(z) <= Z_MAX)][0]}")
        shape, z = z.shape, np.atleast_1d(z)
        goal = torch.special.ndtr(torch.from_numpy(-np.abs(z))).numpy()
        upper = z > 0
        end = np.where(upper, math.pi, 0.0)
        grid = np.linspace(self.low, self.high, 402)[1:-1]
        below = np.clip(self._evaluate(grid)[0], 1e-13, 1 - 1e-13)
        theta = np.interp(z, torch.special.ndtri(torch.from_numpy(below)).numpy(), grid)
        for _ in range(5):
            cdf, density = self._evaluate(theta)
            tail = np.maximum(np.where(upper, 1 - cdf, cdf), 1e-14)
            distance = np.abs(theta - end)
            theta = np.abs(end - distance * (goal / tail) ** (tail / (density * distance)))
        return theta.reshape(shape)

    def _evaluate(self, theta: Array) -> tuple[Array, Array]:
        """Distribution function and density, from one matrix of Chebyshev polynomials."""
        basis = chebvander((2 * theta - self.low - self.high) / (self.high - self.low), _DEGREE + 1)
        return basis @ self._cdf.coef / self.mass, basis[:, :-1] @ self._density.coef / self.mass
