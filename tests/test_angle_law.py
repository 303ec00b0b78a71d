"""The law of the angle: its mass and moments, the Wright-Fisher mixture, its quantiles."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
from scipy.stats import beta, norm

from fastmsgm.angle_law import AngleLaw
from fastmsgm.heat_kernel import log_kernel


@pytest.mark.parametrize("clock", [1e-5, 1e-4, 1e-2, 0.3, 1.0, 4.0, 30.0])
@pytest.mark.parametrize("d", [2, 3, 4, 16, 64, 256, 1024, 4096, 16384])
def test_angle_law_has_mass_one_and_the_moments_of_brownian_motion(d: int, clock: float) -> None:
    """E cos = e^{-B/2}, E cos^2 = 1/d + (1 - 1/d) e^{-d tau}, and no mass beyond [low, high]."""
    law = AngleLaw(d, clock)
    assert law.mass == pytest.approx(1, abs=3e-11)
    nodes, weights = np.polynomial.legendre.leggauss(200)
    half = (law.high - law.low) / 2
    theta = law.low + half * (1 + nodes)
    mass = half * weights * law.density(theta)
    v = 2 * np.sin(theta / 2) ** 2
    mean = -math.expm1(-clock / 2)
    assert mass @ v == pytest.approx(mean, rel=1e-10)
    variance = -2 * math.expm1(-clock / 2) + (1 - 1 / d) * math.expm1(-d * law.tau) - mean**2
    assert mass @ (v - mean) ** 2 == pytest.approx(variance, rel=1e-6 if clock < 1e-2 else 1e-9)  # rounding, of both


def test_angle_law_is_the_wright_fisher_mixture() -> None:
    """(1 - cos theta) / 2 ~ sum_m q_m Beta((d-1)/2, (d-1)/2 + m), q_m the law of Kingman's block count."""
    d, clock = 16, 0.5
    law = AngleLaw(d, clock)
    theta = law.quantile(np.linspace(-4, 4, 9))
    x, a = np.sin(theta / 2) ** 2, (d - 1) / 2
    cdf, density, mean = np.zeros(9), np.zeros(9), np.zeros(9)
    with mpmath.workdps(80):
        decay = [mpmath.exp(-k * (k + d - 2) * mpmath.mpf(law.tau) / 2) for k in range(160)]
        for m in range(120):
            terms = [
                (-1) ** (k - m) * (d + 2 * k - 2) * mpmath.rf(d - 1 + m, k - 1) * decay[k] / mpmath.factorial(k - m)
                for k in range(max(m, 1), 160)
            ]
            q = float(mpmath.fsum(terms) / mpmath.factorial(m)) + (m == 0)
            part = q * beta.pdf(x, a, a + m)
            cdf, density, mean = cdf + q * beta.cdf(x, a, a + m), density + part, mean + m * part
    assert law.cdf(theta) == pytest.approx(cdf, abs=1e-10)
    assert law.density(theta) == pytest.approx(density * np.sin(theta) / 2, rel=1e-9)
    assert log_kernel(theta, law.tau, d)[1] == pytest.approx(mean / density / (2 * (1 - x)), rel=1e-9)


@pytest.mark.parametrize(("d", "clock"), [(2, 1e-3), (2, 8.0), (3, 0.8), (16, 1e-4), (1024, 3.0)])
def test_angle_law_quantile_inverts_the_cdf(d: int, clock: float) -> None:
    law = AngleLaw(d, clock)
    z = np.linspace(-6, 6, 61)
    theta = law.quantile(z)
    assert (np.diff(theta) > 0).all()
    assert law.cdf(theta) == pytest.approx(norm.cdf(z), abs=1e-14, rel=1e-12)
    assert 1 - law.cdf(theta[z > 0]) == pytest.approx(norm.sf(z[z > 0]), abs=1e-14, rel=1e-12)


def test_arguments_must_be_in_range() -> None:
    for clock in (-1e-9, 0.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="clock must be positive and finite, got"):
            AngleLaw(3, clock)
    with pytest.raises(ValueError, match="d must be at least 2, got 1"):
        AngleLaw(1, 1.0)
    with pytest.raises(ValueError, match=r"z must be in \[-6, 6\], got 6.5"):
        AngleLaw(3, 1.0).quantile([0.0, 6.5])
