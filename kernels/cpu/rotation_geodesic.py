"""Tiles of rotations by the exponential map: steps along a geodesic with transported velocity."""

from __future__ import annotations

import math

import numpy as np

from .compile import routine
from .rows import CHUNK, SHORTEST, combine, measure, products
from .scalar import HALF, INFINITY, ONE, TWO, ZERO, fma, sine_cosine

_HALF_TURNS = np.float32(1 / math.pi)  # in a radian


@routine
def exponential_rows(rows, d, u, f, prev, xi, coeffs, tangent, new, nonfinite, workspace):
    """Compute ``new`` from u, and write the velocity transported there to ``prev``.

    ``tangent`` is workspace for the velocity at u.
    """
    w, drift, noise, back = coeffs[2], coeffs[4], coeffs[5], coeffs[6]
    scale, square, rest, prev_u, prev_square, overlap, a, b, c, a_prev, b_prev, c_prev = workspace
    moving, noisy = len(prev) > 0, len(xi) > 0
    w, back, before = (w, back, prev) if moving else (ZERO, ZERO, u)
    noise, xi = (noise, xi) if noisy else (ZERO, u)
    for r in range(rows):
        begin, end = r * d, r * d + d
        scale[r], f_u, prev_u[r], xi_u = measure(begin, end, u, f, before, xi)
        radial = -(drift * f_u + noise * xi_u + w * prev_u[r]) * scale[r] * scale[r]
        size, product, prev_u[r] = ZERO, ZERO, prev_u[r] * scale[r]
        prev_square[r], overlap[r] = ZERO, ZERO
        for i in range(begin, end, CHUNK):
            j = min(i + CHUNK, end)
            combine(tangent, (drift, radial, w, noise), (f, u, before, xi), i, j)
            parts = products(tangent, (tangent, u, before), i, j)
            size, product, overlap[r] = size + parts[0], product + parts[1], overlap[r] + parts[2]
            if moving:
                prev_square[r] += products(prev, (prev,), i, j)[0]
        rest[r] = product * scale[r]
        square[r] = abs(size - rest[r] * rest[r])  # rounding may leave it below zero
    _exponential_coeffs(
        rows,
        back,
        scale,
        square,
        rest,
        prev_u,
        prev_square,
        overlap,
        nonfinite,
        a,
        b,
        c,
        a_prev,
        b_prev,
        c_prev,
    )
    for r in range(rows):
        for i in range(r * d, r * d + d, CHUNK):
            j = min(i + CHUNK, r * d + d)
            combine(new, (a[r], b[r], c[r]), (u, tangent, before), i, j)
            if moving:
                combine(prev, (a_prev[r], b_prev[r], c_prev[r]), (u, tangent, prev), i, j)


@routine(error_model="numpy")
def _exponential_coeffs(
    rows,
    back,
    scale,
    square,
    rest,
    prev_u,
    prev_square,
    overlap,
    nonfinite,
    a,
    b,
    c,
    a_prev,
    b_prev,
    c_prev,
):
    """Coefficients of u' and of the velocity there.

    u' = a u + b tangent + c prev, and the velocity is a_prev u + b_prev tangent + c_prev prev. The
    coefficients are first those of u, of the velocity at u and of p = -back prev, the tangent
    vector to the start, the latter two without their radial residuals; ``way`` is |p|^2.
    """
    for r in range(rows):
        way = back * back * abs(prev_square[r] - prev_u[r] * prev_u[r])
        cos_way, sinc_way, cosc_way = _circle(way)
        cos, sinc, _ = _circle(square[r])
        on_way = -back * (overlap[r] - rest[r] * prev_u[r])  # velocity.p
        towards = cos * sinc_way - sinc * on_way * cosc_way
        a[r] = (
            cos * cos_way - sinc * on_way * sinc_way - sinc * rest[r] + towards * back * prev_u[r]
        ) * scale[r]
        b[r], c[r] = sinc, -back * towards
        t_sin = square[r] * sinc
        towards = -cos * on_way * cosc_way - t_sin * sinc_way
        a_prev[r] = (
            -cos * on_way * sinc_way - t_sin * cos_way - cos * rest[r] + towards * back * prev_u[r]
        ) * scale[r]
        b_prev[r], c_prev[r] = cos, -back * towards
        nonfinite[r] = not square[r] + way < INFINITY


@routine(error_model="numpy")
def _circle(square):
    """cos t, sin t / t and (1 - cos t) / t^2 from t^2, by the sine and cosine of t / 2."""
    angle = np.sqrt(square)
    quadrant = np.rint(angle * _HALF_TURNS)  # of t / 2
    f = TWO * fma(angle, _HALF_TURNS, -quadrant)
    sine, cosine = sine_cosine(f)
    odd = quadrant != TWO * np.rint(quadrant * HALF)
    versine = TWO * (cosine * cosine if odd else sine * sine)
    product = TWO * (-sine * cosine if odd else sine * cosine)
    small = square <= SHORTEST
    return ONE - versine, ONE if small else product / angle, HALF if small else versine / square
