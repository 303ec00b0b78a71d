"""AngleDistribution: its mass and moments, the Wright-Fisher mixture, its quantiles."""

from __future__ import annotations

import math
from typing import Any

import mpmath
import numpy as np
import pytest
from scipy.stats import beta, norm

from fastmsgm.rotation.angle_distribution import AngleDistribution
from fastmsgm.rotation.heat_kernel import log_kernel


@pytest.mark.parametrize("B", [1e-5, 1e-4, 1e-2, 0.3, 1.0, 4.0, 30.0])
@pytest.mark.parametrize("d", [2, 3, 4, 16, 64, 256, 1024, 4096, 16384])
def test_mass_and_moments_are_those_of_brownian_motion(d: int, B: float) -> None:
    """E cos = e^{-B/2}, E cos^2 = 1/d + (1 - 1/d) e^{-d tau}, and no mass beyond [low, high]."""
    angle = AngleDistribution(d, B)
    assert angle.mass == pytest.approx(1, abs=3e-11)
    nodes, weights = np.polynomial.legendre.leggauss(200)
    half = (angle.high - angle.low) / 2
    theta = angle.low + half * (1 + nodes)
    mass = half * weights * angle.density(theta)
    v = 2 * np.sin(theta / 2) ** 2
    mean = -math.expm1(-B / 2)
    assert mass @ v == pytest.approx(mean, rel=1e-10)
    variance = -2 * math.expm1(-B / 2) + (1 - 1 / d) * math.expm1(-d * angle.tau) - mean**2
    rounding = 1e-6 if B < 1e-2 else 1e-9  # of both
    assert mass @ (v - mean) ** 2 == pytest.approx(variance, rel=rounding)


def test_the_distribution_is_the_wright_fisher_mixture() -> None:
    """(1 - cos theta) / 2 ~ sum_m q_m Beta((d-1)/2, (d-1)/2 + m).

    The weights q_m are the distribution of the number of blocks of Kingman's coalescent.
    """
    d, B = 16, 0.5
    angle = AngleDistribution(d, B)
    theta = angle.quantile(np.linspace(-4, 4, 9))
    x, a = np.sin(theta / 2) ** 2, (d - 1) / 2
    cdf, density, mean = np.zeros(9), np.zeros(9), np.zeros(9)
    with mpmath.workdps(80):
        decay = [mpmath.exp(-k * (k + d - 2) * mpmath.mpf(angle.tau) / 2) for k in range(160)]
        for m in range(120):
            terms = [
                (-1) ** (k - m)
                * (d + 2 * k - 2)
                * mpmath.rf(d - 1 + m, k - 1)
                * decay[k]
                / mpmath.factorial(k - m)
                for k in range(max(m, 1), 160)
            ]
            q = float(mpmath.fsum(terms) / mpmath.factorial(m)) + (m == 0)
            part = q * beta.pdf(x, a, a + m)
            cdf, density, mean = cdf + q * beta.cdf(x, a, a + m), density + part, mean + m * part
    assert angle.cdf(theta) == pytest.approx(cdf, abs=1e-10)
    assert angle.density(theta) == pytest.approx(density * np.sin(theta) / 2, rel=1e-9)
    assert log_kernel(theta, angle.tau, d)[1] == pytest.approx(
        mean / density / (2 * (1 - x)), rel=1e-9
    )


@pytest.mark.parametrize(("d", "B"), [(2, 1e-3), (2, 8.0), (3, 0.8), (16, 1e-4), (1024, 3.0)])
def test_the_quantile_inverts_the_cdf(d: int, B: float) -> None:
    angle = AngleDistribution(d, B)
    z = np.linspace(-6, 6, 61)
    theta = angle.quantile(z)
    assert (np.diff(theta) > 0).all()
    assert angle.cdf(theta) == pytest.approx(norm.cdf(z), abs=1e-14, rel=1e-12)
    assert 1 - angle.cdf(theta[z > 0]) == pytest.approx(norm.sf(z[z > 0]), abs=1e-14, rel=1e-12)


def test_arguments_must_be_in_range() -> None:
    for B in (-1e-9, 0.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="B must be positive and finite, got"):
            AngleDistribution(3, B)
    with pytest.raises(ValueError, match="d must be at least 2, got 1"):
        AngleDistribution(1, 1.0)
    dimension: Any = 3.0
    with pytest.raises(TypeError, match=r"d must be an int, got 3\.0 \(float\)"):
        AngleDistribution(dimension, 1.0)
    with pytest.raises(ValueError, match=r"z must be in \[-6, 6\], got 6.5"):
        AngleDistribution(3, 1.0).quantile([0.0, 6.5])
