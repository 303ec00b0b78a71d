"""The heat kernel of the sphere S^{d-1}, and closed forms in the integrated beta.

At an integrated beta B, that is at the time tau = B / (d - 1), Brownian motion from u_0 (with the
generator Laplacian / 2) is at

    u = cos(theta) u_0 + sin(theta) w,    E[u | u_0] = e^{-B/2} u_0,

where w is a uniform unit tangent at u_0. Its density relative to the uniform distribution is
k(theta, tau). Its score at u is W(theta, tau) P_u u_0, with W = -(d log k / d theta) / sin(theta)
> 0. ``log_kernel`` evaluates both at any d, tau and theta. ``angle_distribution.py`` has the
distribution of theta, and ``angle_table.py`` the tables that the kernels use.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from fastmsgm.checks import check_int
from fastmsgm.sde.beta_schedule import check_integrated_beta
from fastmsgm.types import Array

# ---- closed forms in the integrated beta ----


def kappa(B: ArrayLike, d: int) -> Array:
    """Return (d - 1) / (2 sinh(B/2)), the scale of W; inf at B = 0.

    A prediction D of u_0 gives the score kappa (D - alpha u).

    Args:
        B: Integrated betas, any shape.
        d: Dimension.

    Raises:
        TypeError: d is not an int.
        ValueError: d < 2, or B is not in [0, inf).
    """
    b = check_integrated_beta(B)
    with np.errstate(divide="ignore"):
        return (check_dimension(d) - 1) * np.exp(-b / 2) / -np.expm1(-b)


def rho(B: ArrayLike, d: int) -> Array:
    """Return (d - 1) / sqrt(e^B - 1) = kappa sigma, the scale of the score's norm; inf at B = 0.

    Args:
        B: Integrated betas, any shape.
        d: Dimension.

    Raises:
        TypeError: d is not an int.
        ValueError: d < 2, or B is not in [0, inf).
    """
    b = check_integrated_beta(B)
    with np.errstate(divide="ignore"):
        return (check_dimension(d) - 1) * np.exp(-b / 2) / np.sqrt(-np.expm1(-b))


def Lam(B: ArrayLike) -> Array:
    """Return artanh(e^{-B/2}) = -log(tanh(B/4)) / 2; inf at B = 0.

    In this variable the probability flow is du = P_u D dLam. Raises ValueError where B is not in
    [0, inf).
    """
    return _minus_log_tanh(check_integrated_beta(B) / 4) / 2


def inverse_Lam(value: ArrayLike) -> Array:
    """Return the B at which ``Lam`` has the given value; inf at 0.

    Raises:
        ValueError: A value is negative or NaN.
    """
    depth = np.asarray(value, dtype=np.float64)
    if not np.all(depth >= 0):
        raise ValueError(f"Lam must be at least 0, got {depth[~(depth >= 0)][0]}")
    return 2 * _minus_log_tanh(depth)


def _minus_log_tanh(x: Array) -> Array:
    with np.errstate(divide="ignore"):
        return np.where(x < 0.5, -np.log(np.tanh(x)), 2 * np.arctanh(np.exp(-2 * x)))


# ---- the heat kernel ----


def log_kernel(theta: ArrayLike, tau: ArrayLike, d: int) -> tuple[Array, Array]:
    """Return log k(theta, tau) and W(theta, tau) = -(d log k / d theta) / sin(theta).

    For d = 2 they are computed by Jacobi's triple product, and for d >= 3 by the integral in
    ``_sphere``. Both have a small relative error in the tails too, where the eigenfunction series
    cancels.

    Args:
        theta: Angles in [0, pi].
        tau: Brownian times > 0, broadcast against theta.
        d: Dimension.

    Raises:
        TypeError: d is not an int.
        ValueError: d < 2, or an angle or a time is out of range.
    """
    d = check_dimension(d)
    angle, time = np.broadcast_arrays(
        np.asarray(theta, dtype=np.float64), np.asarray(tau, dtype=np.float64)
    )
    if not np.all((angle >= 0) & (angle <= math.pi)):
        raise ValueError(
            f"theta must be in [0, pi], got {angle[~((angle >= 0) & (angle <= math.pi))][0]}"
        )
    if not np.all((time > 0) & (time < math.inf)):
        raise ValueError(
            f"tau must be positive and finite, got {time[~((time > 0) & (time < math.inf))][0]}"
        )
    log_k, w = (
        _circle(angle.ravel(), time.ravel())
        if d == 2
        else _sphere(angle.ravel(), time.ravel(), d / 2 - 1)
    )
    return log_k.reshape(angle.shape), w.reshape(angle.shape)


def _circle(theta: Array, tau: Array) -> tuple[Array, Array]:
    """log k and W for d = 2, the wrapped normal.

    With q = e^{-tau/2}, every factor below is a sum of positive terms:

    k = prod_{n >= 1} (1 - q^{2n}) ((1 - q^{2n-1})^2 + 4 q^{2n-1} cos^2(theta/2)),
    W = sum_{n >= 1} 1 / (cos theta + cosh((2n-1) tau / 2)).

    For tau <= 0.3, all images but those at theta and theta - 2 pi are below float64 precision.
    """
    rest = math.pi - theta
    log_k = 0.5 * np.log(2 * math.pi / tau) + np.logaddexp(
        -(theta**2) / (2 * tau), -((math.pi + rest) ** 2) / (2 * tau)
    )
    gap = np.maximum(rest, 1e-300)
    reflected = (math.pi * np.tanh(math.pi * gap / tau) / gap - 1) / np.sinc(gap / math.pi)
    w = np.where(theta < 1.5, 1 / np.sinc(np.minimum(theta, 1.5) / math.pi), reflected) / tau
    wide = tau > 0.3
    if wide.any():
        t, square = tau[wide, None], np.cos(theta[wide, None] / 2) ** 2
        odd = np.arange(1, 2 * math.ceil(40 / t.min()), 2)
        q = np.exp(-odd * t / 2)
        factors = np.log1p(-np.exp(-(odd + 1) * t / 2)) + np.log((1 - q) ** 2 + 4 * q * square)
        log_k[wide] = factors.sum(1)
        w[wide] = (0.5 / (square + np.sinh(np.minimum(odd * t / 4, 300)) ** 2)).sum(1)
    return log_k, w


def _sphere(theta: Array, tau: Array, lam: float) -> tuple[Array, Array]:
    """log k and W for d >= 3, with lam = (d - 2) / 2.

    k is an inverse Laplace transform of the generating function of the Gegenbauer polynomials:

    k = e^{lam^2 tau/2 - theta^2/(2 tau)} / (lam tau sqrt(2 pi tau))
        * 2 mu Re int_0^inf e^{q/(2 tau)} S(q)^{-lam} (1 - iy) dy,   q = mu (1 - iy)^2,
    S = 2 cos(zeta) - 2 cos(theta),   zeta = sqrt(theta^2 - q) with Im zeta >= 0.

    W is 2 lam times the mean of 1/S under the integrand. The contour passes through the saddle
    point mu, where the integrand is bell-shaped, so the trapezoidal rule converges geometrically.
    Differences of nearly equal numbers are avoided by zeta - theta = -q / (zeta + theta).
    """
    rate = 0.5 / tau
    mu = np.maximum(_saddle(theta, rate, lam), 12 * tau)
    step = np.minimum(0.45 / np.sqrt(mu * rate + lam), 0.16)
    end = 6.4 / np.sqrt(mu * rate)
    if lam > 3:
        end = np.minimum(end, math.sqrt(math.expm1(40 / lam)))
    nodes = np.arange(math.ceil((end / step).max()) + 1)
    p = 1 - 1j * step[:, None] * nodes
    q = mu[:, None] * p * p
    zeta = np.sqrt(theta[:, None] ** 2 - q)
    zeta = np.where(zeta.imag < 0, -zeta, zeta)
    total = zeta + theta[:, None]
    # S = e^{-i zeta} (1 - e^{i (zeta + theta)}) (1 - e^{i (zeta - theta)}). Both brackets have a
    # positive real part, so the logarithm of their product stays on its principal branch.
    brackets = np.expm1(1j * total) * np.expm1(-1j * q / total)
    exponent = rate[:, None] * q - lam * (np.log(brackets) - 1j * zeta)
    largest = exponent.real.max(axis=1)
    integrand = np.exp(exponent - largest[:, None]) * p
    integrand[:, 0] *= 0.5
    integral = integrand.real.sum(axis=1)
    w = 2 * lam * (integrand * np.exp(1j * zeta) / brackets).real.sum(axis=1) / integral
    scale = (
        0.5 * lam**2 * tau
        - theta * theta * rate
        - np.log(lam * tau)
        - 0.5 * np.log(2 * math.pi * tau)
    )
    return scale + largest + np.log(2 * mu * step * integral), w


def _saddle(theta: Array, rate: Array, lam: float) -> Array:
    """The saddle point q > 0 of the contour.

    It solves rate = lam (sin z / z) / (2 cos z - 2 cos theta), with z = sqrt(theta^2 - q). The
    right-hand side decreases nearly as 1/q, so q <- q * right / rate converges fast. Bisection
    safeguards it.
    """
    tau = 0.5 / rate
    log_q = np.log(2 * lam * tau + (lam * tau) ** 2)
    low, high = log_q - 8, log_q + 8
    for _ in range(18):
        q = np.exp(log_q)
        v = theta * theta - q
        z = np.minimum(np.sqrt(np.abs(v)), 300.0)
        total = np.maximum(theta + z, 1e-300)
        half = np.minimum(q / total, 2 * math.pi) / 2
        inside = np.sinc(z / math.pi) / np.maximum(4 * np.sin(total / 2) * np.sin(half), 1e-300)
        sinhc = np.where(z > 1e-3, np.sinh(z) / np.maximum(z, 1e-300), 1 + z * z / 6)
        outside = sinhc / (4 * np.sinh(z / 2) ** 2 + 4 * np.sin(theta / 2) ** 2 + 1e-300)
        right = lam * np.where(v >= 0, inside, outside)
        low, high = np.where(right > rate, log_q, low), np.where(right > rate, high, log_q)
        guess = log_q + np.log(np.maximum(right / rate, 1e-12))
        # The comparison is inclusive: a converged guess is an end of the bracket, and bisection
        # would move away from the root.
        guess = np.where((guess >= low) & (guess <= high), guess, (low + high) / 2)
        log_q, moved = guess, np.abs(guess - log_q).max()
        if moved < 1e-4:  # the contour need not pass exactly through the saddle
            break
    return np.exp(log_q)


# ---- arguments ----


def check_dimension(d: int) -> int:
    """Return d as an int of at least 2: directions in one dimension do not rotate.

    Raises:
        TypeError: d is not an int.
        ValueError: d < 2.
    """
    return check_int("d", d, 2)
