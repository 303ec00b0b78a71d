"""Tiles of rotations, by the heat kernel: the exact flow towards a denoised direction, and noise by a random angle.

A second projection costs no pass: of a projected vector q, the rest q.u is measured together with q.q and goes into
the numbers that scale it.
"""

from __future__ import annotations

import math

import numpy as np

from .compile import routine
from .rows import CHUNK, SHORTEST, combine, combine_products, measure, products
from .scalar import INFINITY, ONE, TWO, ZERO, exp2

_LOG2_E, _LOWEST = np.float32(1 / math.log(2.0)), np.float32(-126.0)
LONG = 64  # features from which on xi is far from parallel to u, so that one projection, in numbers, is enough
_Z_MAX, _Z_RANGE = np.float32(6.0), np.float32(12.0)  # angle tables have columns for z = -6 .. 6


@routine
def flow_rows(rows, d, u, f, past, xi, numbers, angles, z, tangent, new, lost, space):
    """``new``, which may be u, from u; D goes into ``past``. ``tangent`` holds the tangent part of D_w."""
    alpha, sigma, w, length, spread = numbers[0], numbers[1], numbers[2], numbers[3], numbers[7]
    scale, along, square, rest, xi_u, xi_tangent, xi_square, v, a, b, stay, across = space
    multistep, noisy = len(past) > 0, len(xi) > 0
    w = w if multistep else ZERO
    for r in range(rows):
        begin, end = r * d, r * d + d
        scale[r], f_u, past_u, xi_u[r] = measure(begin, end, u, f, past, xi)
        gain = (ONE + w) * sigma
        along[r] = (ONE + w) * alpha - w * past_u * scale[r]
        radial = (w * past_u - gain * f_u) * scale[r] * scale[r]
        kept = (alpha - sigma * f_u * scale[r]) * scale[r]
        size, product, xi_tangent[r], xi_square[r] = ZERO, ZERO, ZERO, ZERO
        for i in range(begin, end, CHUNK):
            j = min(i + CHUNK, end)
            if multistep:
                parts = combine_products(tangent, (gain, radial, -w), (f, u, past), (u,), i, j)
                combine(past, (sigma, kept), (f, u), i, j)
            else:
                parts = combine_products(tangent, (gain, radial), (f, u), (u,), i, j)
            size, product = size + parts[0], product + parts[1]
            if noisy:
                parts = products(xi, (xi, tangent), i, j)
                xi_square[r], xi_tangent[r] = xi_square[r] + parts[0], xi_tangent[r] + parts[1]
        rest[r] = product * scale[r]
        square[r] = size - rest[r] * rest[r]
    _flow_numbers(rows, length, scale, along, square, rest, lost, a, b)
    if not noisy or d < LONG:
        for r in range(rows):
            combine(new, (a[r], b[r]), (u, tangent), r * d, r * d + d)
    if not noisy:
        return
    _linear(rows, angles, spread, z, v)
    for r in range(rows):
        xi_u[r] = a[r] * xi_u[r] + b[r] * xi_tangent[r]
        scale[r] = ONE  # of new
        square[r] = xi_square[r] - xi_u[r] * xi_u[r]
    if d < LONG:
        project(rows, d, xi, new, scale, xi_u, square, rest)
        turn_numbers(rows, v, square, rest, scale, stay, across)
        for r in range(rows):
            combine(new, (stay[r], across[r]), (new, xi), r * d, r * d + d)
    else:
        turn_numbers(rows, v, square, xi_u, scale, stay, across)
        for r in range(rows):
            combine(new, (stay[r] * a[r], stay[r] * b[r], across[r]), (u, tangent, xi), r * d, r * d + d)


@routine(error_model="numpy")
def _flow_numbers(rows, length, scale, along, square, rest, lost, a, b):
    """u+ = a u + b tangent, by the tangent of half the angle; ``along`` is D_w.u."""
    for r in range(rows):
        whole = square[r] + along[r] * along[r]
        size, width = np.sqrt(whole), np.sqrt(square[r])
        still = square[r] <= SHORTEST * (whole if whole > ONE else ONE)
        half = width / (size + along[r]) if along[r] >= ZERO else (size - along[r]) / width
        power = -size * length * _LOG2_E
        left = exp2(power if power > _LOWEST else _LOWEST)
        turned = half * (ONE - left) / (ONE + half * half * left)
        share = ONE / (ONE + turned * turned)
        b[r] = ZERO if still else TWO * turned * share / width
        a[r] = ((ONE if still else (ONE - turned * turned) * share) - b[r] * rest[r]) * scale[r]
        lost[r] = not whole < INFINITY


@routine
def project(rows, d, xi, u, scale, xi_u, square, rest):
    """xi <- its tangent part; the square of that, and its rest along u."""
    for r in range(rows):
        begin, end = r * d, r * d + d
        radial, size, product = -xi_u[r] * scale[r] * scale[r], ZERO, ZERO
        for i in range(begin, end, CHUNK):
            j = min(i + CHUNK, end)
            parts = combine_products(xi, (ONE, radial), (xi, u), (u,), i, j)
            size, product = size + parts[0], product + parts[1]
        rest[r] = product * scale[r]
        square[r] = size - rest[r] * rest[r]


@routine(error_model="numpy")
def turn_numbers(rows, v, square, rest, scale, a, b):
    """u' = a u + b xi turns u by 1 - cos = v, which is clamped; where xi has no direction, v becomes 0."""
    for r in range(rows):
        versine = min(max(v[r], ZERO), TWO) if square[r] > SHORTEST else ZERO
        b[r] = np.sqrt(versine * (TWO - versine)) / np.sqrt(max(square[r], SHORTEST))
        a[r] = ((ONE - versine) - b[r] * rest[r]) * scale[r]
        v[r] = versine


@routine(error_model="numpy")
def back_numbers(rows, coefficients, v, g, square, rest, scale, a, b):
    """The target, a u + b xi: what points back from u', times its coefficients."""
    for r in range(rows):
        sine = np.sqrt(v[r] * (TWO - v[r]))
        gain = coefficients[r, 2] * g[r] * sine
        b[r] = -gain * (ONE - v[r]) / np.sqrt(max(square[r], SHORTEST))
        a[r] = (gain * sine - b[r] * rest[r]) * scale[r]


# ---- angles from a table ----


@routine
def _linear(rows, angles, spread, z, v):
    for r in range(rows):
        column, part = _column(z[r], len(angles))
        v[r] = spread * (angles[column] + part * (angles[column + 1] - angles[column]))


@routine
def bilinear(rows, coefficients, table, z, v, g):
    for r in range(rows):
        i, between = _cell(coefficients[r, 0], table.shape[1])
        j, part = _column(z[r], table.shape[2])
        v_low = table[0, i, j] + part * (table[0, i, j + 1] - table[0, i, j])
        v_high = table[0, i + 1, j] + part * (table[0, i + 1, j + 1] - table[0, i + 1, j])
        g_low = table[1, i, j] + part * (table[1, i, j + 1] - table[1, i, j])
        g_high = table[1, i + 1, j] + part * (table[1, i + 1, j + 1] - table[1, i + 1, j])
        v[r] = coefficients[r, 1] * (v_low + between * (v_high - v_low))
        g[r] = g_low + between * (g_high - g_low)


@routine(error_model="numpy")
def _column(z, columns):
    return _cell((z + _Z_MAX) * (np.float32(columns - 1) / _Z_RANGE), columns)


@routine
def _cell(position, nodes):
    """The node below, and the part of the way to the next; NaN is taken for 0."""
    inside = min(position, np.float32(nodes - 1)) if position > ZERO else ZERO
    below = min(np.int64(inside), nodes - 2)
    return below, inside - np.float32(below)
