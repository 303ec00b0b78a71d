"""Tiles of rotations, by the exponential map: along a geodesic, with the velocity transported there."""

from __future__ import annotations

import math

import numpy as np

from .compile import routine
from .rows import CHUNK, SHORTEST, combine, measure, products
from .scalar import HALF, INFINITY, ONE, TWO, ZERO, fma, sine_cosine

_HALF_TURNS = np.float32(1 / math.pi)  # half an angle in quarter turns


@routine
def exponential_rows(rows, d, u, f, past, xi, numbers, tangent, new, lost, space):
    """``new`` from u; the velocity transported there goes into ``past``. ``tangent`` holds the velocity at u."""
    w, drift, noise, back = numbers[2], numbers[4], numbers[5], numbers[6]
    scale, square, rest, past_u, past_square, overlap, a, b, c, a_past, b_past, c_past = space
    moving, noisy = len(past) > 0, len(xi) > 0
    w, back, before = (w, back, past) if moving else (ZERO, ZERO, u)
    noise, xi = (noise, xi) if noisy else (ZERO, u)
    for r in range(rows):
        begin, end = r * d, r * d + d
        scale[r], f_u, past_u[r], xi_u = measure(begin, end, u, f, before, xi)
        radial = -(drift * f_u + noise * xi_u + w * past_u[r]) * scale[r] * scale[r]
        size, product, past_u[r] = ZERO, ZERO, past_u[r] * scale[r]
        past_square[r], overlap[r] = ZERO, ZERO
        for i in range(begin, end, CHUNK):
            j = min(i + CHUNK, end)
            combine(tangent, (drift, radial, w, noise), (f, u, before, xi), i, j)
            parts = products(tangent, (tangent, u, before), i, j)
            size, product, overlap[r] = size + parts[0], product + parts[1], overlap[r] + parts[2]
            if moving:
                past_square[r] += products(past, (past,), i, j)[0]
        rest[r] = product * scale[r]
        square[r] = abs(size - rest[r] * rest[r])  # rounding may leave it below zero
    _exponential_numbers(
        rows, back, scale, square, rest, past_u, past_square, overlap, lost, a, b, c, a_past, b_past, c_past
    )
    for r in range(rows):
        for i in range(r * d, r * d + d, CHUNK):
            j = min(i + CHUNK, r * d + d)
            combine(new, (a[r], b[r], c[r]), (u, tangent, before), i, j)
            if moving:
                combine(past, (a_past[r], b_past[r], c_past[r]), (u, tangent, past), i, j)


@routine(error_model="numpy")
def _exponential_numbers(
    rows, back, scale, square, rest, past_u, past_square, overlap, lost, a, b, c, a_past, b_past, c_past
):
    """u' = a u + b tangent + c past, and the velocity there = a_past u + b_past tangent + c_past past.

    Within: first of u, the velocity at u (without its rest) and the way to the start, p = -back past (the same).
    """
    for r in range(rows):
        way = back * back * abs(past_square[r] - past_u[r] * past_u[r])
        cos_way, sinc_way, fall = _circle(way)
        cos, sinc, _ = _circle(square[r])
        on_way = -back * (overlap[r] - rest[r] * past_u[r])  # velocity.p
        towards = cos * sinc_way - sinc * on_way * fall
        a[r] = (cos * cos_way - sinc * on_way * sinc_way - sinc * rest[r] + towards * back * past_u[r]) * scale[r]
        b[r], c[r] = sinc, -back * towards
        swing = square[r] * sinc
        towards = -cos * on_way * fall - swing * sinc_way
        a_past[r] = (
            -cos * on_way * sinc_way - swing * cos_way - cos * rest[r] + towards * back * past_u[r]
        ) * scale[r]  # fmt: skip
        b_past[r], c_past[r] = cos, -back * towards
        lost[r] = not square[r] + way < INFINITY


@routine(error_model="numpy")
def _circle(square):
    """cos t, sin t / t, (1 - cos t) / t^2 for t^2, by sine and cosine of t / 2."""
    angle = np.sqrt(square)
    turns = np.rint(angle * _HALF_TURNS)
    f = TWO * fma(angle, _HALF_TURNS, -turns)
    sine, cosine = sine_cosine(f)
    odd = turns != TWO * np.rint(turns * HALF)
    versine = TWO * (cosine * cosine if odd else sine * sine)
    product = TWO * (-sine * cosine if odd else sine * cosine)
    small = square <= SHORTEST
    return ONE - versine, ONE if small else product / angle, HALF if small else versine / square
