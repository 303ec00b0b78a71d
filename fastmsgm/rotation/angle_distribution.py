"""AngleDistribution: the distribution of the angle of Brownian motion on the sphere.

With the heat kernel k of ``heat_kernel.py``, the angle theta between u and u_0 at the integrated
beta B has the density

    f = k(theta, tau) sin^{d-2}(theta) Gamma(d/2) / (sqrt(pi) Gamma((d-1)/2)),    tau = B / (d - 1).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.polynomial.chebyshev import Chebyshev, chebvander
from numpy.typing import ArrayLike

from fastmsgm.constants import Z_MAX
from fastmsgm.rotation.heat_kernel import check_dimension, log_kernel
from fastmsgm.types import Array

_DEGREE = 160  # of the polynomial that approximates a density


class AngleDistribution:
    """The distribution of the angle theta between u and u_0 at an integrated beta B > 0.

    It holds a Chebyshev interpolant of the density on [low, high]. The mass outside is below 1e-12:
    theta is a 1-Lipschitz function on a sphere of Ricci curvature d - 2, hence sub-Gaussian with
    variance (1 - e^{-(d-2) tau}) / (d - 2), and its mean is within about one such standard
    deviation of arccos(e^{-B/2}).

    Args:
        d: Dimension, at least 2.
        B: Integrated beta.

    Raises:
        TypeError: d is not an int.
        ValueError: d < 2, or B is not positive and finite.
    """

    def __init__(self, d: int, B: float) -> None:
        self.d = check_dimension(d)
        if not 0 < B < math.inf:
            raise ValueError(f"B must be positive and finite, got {B}: at B = 0 the angle is 0")
        self.tau = B / (d - 1)
        deviation = math.sqrt(self.tau if d == 2 else -math.expm1(-(d - 2) * self.tau) / (d - 2))
        mean = 2 * math.asin(math.sqrt(-math.expm1(-B / 2) / 2))
        self.low, self.high = max(mean - 8.5 * deviation, 0.0), min(mean + 8.5 * deviation, math.pi)
        self._density = Chebyshev.interpolate(self.density, _DEGREE, domain=[self.low, self.high])
        self._cdf = self._density.integ(lbnd=self.low)
        self.mass = float(self._cdf(self.high))  # 1 up to the error of log_kernel

    def density(self, theta: ArrayLike) -> Array:
        """Return the density f at angles theta in [0, pi]."""
        log_k, _ = log_kernel(theta, self.tau, self.d)
        sphere = math.lgamma(self.d / 2) - math.lgamma((self.d - 1) / 2) - 0.5 * math.log(math.pi)
        if self.d == 2:
            return np.exp(log_k + sphere)
        with np.errstate(divide="ignore"):
            return np.exp(log_k + sphere + (self.d - 2) * np.log(np.sin(theta)))

    def cdf(self, theta: ArrayLike) -> Array:
        """Return the probability of an angle of at most theta."""
        return np.clip(self._cdf(np.clip(theta, self.low, self.high)) / self.mass, 0.0, 1.0)

    def quantile(self, z: ArrayLike) -> Array:
        """Return the angle below which the probability is Phi(z), for |z| <= 6.

        It is found by Newton's method for the logarithm of the nearer tail as a function of the
        logarithm of the distance to its end, 0 or pi. This function is linear where the density
        vanishes like a power.

        Raises:
            ValueError: A z is beyond -6 .. 6.
        """
        z = np.asarray(z, dtype=np.float64)
        if not np.all(np.abs(z) <= Z_MAX):
            raise ValueError(
                f"z must be in [-{Z_MAX:g}, {Z_MAX:g}], got {z[~(np.abs(z) <= Z_MAX)][0]}"
            )
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
        """Return the cdf and the density, from one matrix of Chebyshev polynomials."""
        basis = chebvander((2 * theta - self.low - self.high) / (self.high - self.low), _DEGREE + 1)
        return basis @ self._cdf.coef / self.mass, basis[:, :-1] @ self._density.coef / self.mass
