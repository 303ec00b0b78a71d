"""The heat kernel of the sphere against series in high precision, and its closed forms."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import mpmath
import numpy as np
import pytest

from fastmsgm.rotation import heat_kernel
from fastmsgm.rotation.angle_distribution import AngleDistribution
from fastmsgm.rotation.heat_kernel import log_kernel


def gegenbauer_series(theta: float, tau: float, d: int, digits: int) -> tuple[float, float]:
    """Return log k and W = (dk/dx) / k, x = cos theta, by the series of eigenfunctions.

    k = sum_l (l + lam) / lam C_l^lam(x) e^{-l (l + 2 lam) tau / 2}; for d = 2 it is
    k = 1 + 2 sum_l T_l(x) e^{-l^2 tau / 2}.
    """
    with mpmath.workdps(digits):
        x, t, lam = mpmath.cos(mpmath.mpf(theta)), mpmath.mpf(tau), mpmath.mpf(d - 2) / 2
        before, value = (mpmath.mpf(1), x) if d == 2 else (mpmath.mpf(1), 2 * lam * x)
        slope_before, slope = mpmath.mpf(0), mpmath.mpf(1) if d == 2 else 2 * lam
        k, dk, size, l = mpmath.mpf(1), mpmath.mpf(0), mpmath.mpf(1), 1
        while True:
            weight = (2 if d == 2 else (l + lam) / lam) * mpmath.exp(-l * (l + 2 * lam) * t / 2)
            k, dk = k + weight * value, dk + weight * slope
            largest = weight * (abs(value) + abs(slope))
            size = max(size, largest)
            if l * (l + 2 * lam) * t > 4 and largest < size * mpmath.mpf(10) ** (5 - digits):
                return float(mpmath.log(k)), float(dk / k)
            l += 1
            a, b = (2, 1) if d == 2 else (2 * (l + lam - 1) / l, (l + 2 * lam - 2) / l)
            before, value, slope_before, slope = (
                value,
                a * x * value - b * before,
                slope,
                a * (value + x * slope) - b * slope_before,
            )


# ---- closed forms in the integrated beta ----


def test_closed_forms_agree_with_their_definitions() -> None:
    b = np.geomspace(0.01, 30, 50)
    assert heat_kernel.kappa(b, 7) == pytest.approx(6 / (2 * np.sinh(b / 2)))
    assert heat_kernel.rho(b, 7) == pytest.approx(6 / np.sqrt(np.exp(b) - 1))
    assert heat_kernel.Lam(b) == pytest.approx(-0.5 * np.log(np.tanh(b / 4)))


def test_closed_forms_are_stable_at_both_ends() -> None:
    assert heat_kernel.rho(1e-20, 3) == pytest.approx(2e10, rel=1e-14)
    assert heat_kernel.kappa(1e-20, 3) == pytest.approx(2e20, rel=1e-14)
    assert heat_kernel.kappa(2000.0, 3) == 0
    assert heat_kernel.Lam(80.0) == pytest.approx(math.exp(-40), rel=1e-14, abs=0)
    assert heat_kernel.Lam(1e-20) == pytest.approx(math.log(4e20) / 2, rel=1e-14)
    assert np.isinf(
        [heat_kernel.Lam(0.0), heat_kernel.kappa(0.0, 3), heat_kernel.rho(0.0, 3)]
    ).all()


def test_inverse_Lam() -> None:
    b = np.geomspace(1e-12, 60, 100)
    assert heat_kernel.inverse_Lam(heat_kernel.Lam(b)) == pytest.approx(b, rel=1e-13, abs=0)
    assert heat_kernel.inverse_Lam(0.0) == math.inf


# ---- the heat kernel ----


@pytest.mark.parametrize(
    ("d", "B", "digits"),
    [
        (2, 0.1, 30),
        (2, 0.29, 30),
        (2, 0.31, 30),
        (2, 2.0, 30),
        (2, 20.0, 30),
        (3, 1e-3, 40),
        (3, 0.5, 40),
        (3, 20.0, 30),
        (4, 1e-2, 40),
        (4, 10.0, 30),
        (16, 0.1, 60),
        (16, 5.0, 30),
        (64, 0.5, 80),
        (256, 1.0, 160),
        (1024, 2.0, 250),
        (4096, 4.0, 330),
    ],
)
def test_log_kernel_equals_its_series(d: int, B: float, digits: int) -> None:
    tau = B / (d - 1)
    theta = AngleDistribution(d, B).quantile(np.array([-4.0, 0.0, 4.0]))
    log_k, w = log_kernel(theta, tau, d)
    exact = np.array([gegenbauer_series(angle, tau, d, digits) for angle in theta])
    assert np.abs(log_k - exact[:, 0]).max() < 3e-11
    assert np.abs(w / exact[:, 1] - 1).max() < 1e-10


@pytest.mark.parametrize("d", [2, 3, 16])
def test_log_kernel_at_the_ends(d: int) -> None:
    tau = 0.2
    ends = np.array([0.0, math.pi])
    exact = np.array([gegenbauer_series(angle, tau, d, 40) for angle in ends])
    log_k, w = log_kernel(ends, tau, d)
    assert log_k == pytest.approx(exact[:, 0], abs=1e-10)
    assert w == pytest.approx(exact[:, 1], rel=1e-9)


@pytest.mark.parametrize("d", [3, 64, 1024, 4096, 16384])
def test_log_kernel_at_small_times(d: int) -> None:
    """Against Minakshisundaram and Pleijel to second order in tau, 1e-9 off at B = 0.01."""
    B = 0.01
    tau, m = B / (d - 1), d - 2
    with mpmath.workdps(30):
        theta = mpmath.mpf(float(AngleDistribution(d, B).quantile(0.0)))
        correction = mpmath.diff(lambda x: mpmath.cot(x) / x - 1 / x**2, theta)
        slope = (
            -theta / tau
            + m * (1 / theta - mpmath.cot(theta)) / 2
            + tau * m * (m - 2) * correction / 8
        )
        expected = float(-slope / mpmath.sin(theta))
    assert log_kernel(float(theta), tau, d)[1] == pytest.approx(expected, rel=3e-9)


def test_log_kernel_broadcasts() -> None:
    log_k, w = log_kernel(np.full((3, 1), 0.5), np.array([0.1, 0.2]), 5)
    assert log_k.shape == w.shape == (3, 2)
    assert log_k[2, 1] == log_kernel(0.5, 0.2, 5)[0]


# ---- errors ----


def test_arguments_must_be_in_range() -> None:
    with pytest.raises(ValueError, match=r"theta must be in \[0, pi\], got 3.2"):
        log_kernel([0.1, 3.2], 0.1, 3)
    with pytest.raises(ValueError, match="tau must be positive and finite, got nan"):
        log_kernel(0.1, math.nan, 3)
    with pytest.raises(ValueError, match="d must be at least 2, got 1"):
        log_kernel(0.5, 0.1, 1)
    with pytest.raises(ValueError, match=r"Lam must be at least 0, got -0\.5"):
        heat_kernel.inverse_Lam(-0.5)


@pytest.mark.parametrize("d", [3.0, True, "3"])
def test_the_dimension_must_be_an_integer(d: Any) -> None:
    with pytest.raises(TypeError, match=f"d must be an int, got {d!r}"):
        log_kernel(0.5, 0.1, d)


@pytest.mark.parametrize("B", [-1e-9, math.nan, math.inf])
def test_an_integrated_beta_must_be_in_range(B: float) -> None:
    for call in (heat_kernel.Lam, partial(heat_kernel.kappa, d=3), partial(heat_kernel.rho, d=3)):
        with pytest.raises(
            ValueError, match=rf"the integrated beta must be in \[0, inf\), got {B}"
        ):
            call([1.0, B])
