"""Tiles of rotations by the heat kernel: exact flow to a denoised direction, and random rotation.

A second projection needs no further pass: the residual q.u of a projected vector q is measured
together with q.q and corrected through the coefficients.
"""

from __future__ import annotations

import numpy as np

from fastmsgm.constants import LOG2_E, MANY_FEATURES, Z_MAX

from .compile import routine
from .rows import CHUNK, SHORTEST, combine, combine_products, measure, products
from .scalar import INFINITY, LOWEST, ONE, TWO, ZERO, exp2

_LOG2_E = np.float32(LOG2_E)
_Z_MAX, _Z_RANGE = np.float32(Z_MAX), np.float32(2 * Z_MAX)


@routine
def flow_rows(rows, d, u, f, prev, xi, coeffs, angles, z, tangent, new, nonfinite, workspace):
    """Compute ``new`` from u, and write D to ``prev``.

    ``new`` may be u. ``tangent`` is workspace for the tangent part of D_w.
    """
    alpha, sigma, w, length, spread = coeffs[0], coeffs[1], coeffs[2], coeffs[3], coeffs[7]
    scale, along, square, rest, xi_u, xi_tangent, xi_square, v, a, b, stay, across = workspace
    multistep, noisy = len(prev) > 0, len(xi) > 0
    w = w if multistep else ZERO
    for r in range(rows):
        begin, end = r * d, r * d + d
        scale[r], f_u, prev_u, xi_u[r] = measure(begin, end, u, f, prev, xi)
        gain = (ONE + w) * sigma
        along[r] = (ONE + w) * alpha - w * prev_u * scale[r]
        radial = (w * prev_u - gain * f_u) * scale[r] * scale[r]
        kept = (alpha - sigma * f_u * scale[r]) * scale[r]
        size, product, xi_tangent[r], xi_square[r] = ZERO, ZERO, ZERO, ZERO
        for i in range(begin, end, CHUNK):
            j = min(i + CHUNK, end)
            if multistep:
                parts = combine_products(tangent, (gain, radial, -w), (f, u, prev), (u,), i, j)
                combine(prev, (sigma, kept), (f, u), i, j)
            else:
                parts = combine_products(tangent, (gain, radial), (f, u), (u,), i, j)
            size, product = size + parts[0], product + parts[1]
            if noisy:
                parts = products(xi, (xi, tangent), i, j)
                xi_square[r], xi_tangent[r] = xi_square[r] + parts[0], xi_tangent[r] + parts[1]
        rest[r] = product * scale[r]
        square[r] = size - rest[r] * rest[r]
    _flow_coeffs(rows, length, scale, along, square, rest, nonfinite, a, b)
    if not noisy or d < MANY_FEATURES:
        for r in range(rows):
            combine(new, (a[r], b[r]), (u, tangent), r * d, r * d + d)
    if not noisy:
        return
    _linear(rows, angles, spread, z, v)
    for r in range(rows):
        xi_u[r] = a[r] * xi_u[r] + b[r] * xi_tangent[r]
        scale[r] = ONE  # of new
        square[r] = xi_square[r] - xi_u[r] * xi_u[r]
    if d < MANY_FEATURES:
        project(rows, d, xi, new, scale, xi_u, square, rest)
        rotation_coeffs(rows, v, square, rest, scale, stay, across)
        for r in range(rows):
            combine(new, (stay[r], across[r]), (new, xi), r * d, r * d + d)
    else:
        rotation_coeffs(rows, v, square, xi_u, scale, stay, across)
        for r in range(rows):
            combine(
                new, (stay[r] * a[r], stay[r] * b[r], across[r]), (u, tangent, xi), r * d, r * d + d
            )


@routine(error_model="numpy")
def _flow_coeffs(rows, length, scale, along, square, rest, nonfinite, a, b):
    """Coefficients of u+ = a u + b tangent; ``along`` is D_w.u.

    ``half`` is the tangent of half the angle between u and D_w, ``moved_half`` that of half the
    angle by which u moves.
    """
    for r in range(rows):
        whole = square[r] + along[r] * along[r]
        size, width = np.sqrt(whole), np.sqrt(square[r])
        still = square[r] <= SHORTEST * (whole if whole > ONE else ONE)
        half = width / (size + along[r]) if along[r] >= ZERO else (size - along[r]) / width
        power = -size * length * _LOG2_E
        left = exp2(power if power > LOWEST else LOWEST)
        moved_half = half * (ONE - left) / (ONE + half * half * left)
        share = ONE / (ONE + moved_half * moved_half)
        b[r] = ZERO if still else TWO * moved_half * share / width
        a[r] = (
            (ONE if still else (ONE - moved_half * moved_half) * share) - b[r] * rest[r]
        ) * scale[r]
        nonfinite[r] = not whole < INFINITY


@routine
def project(rows, d, xi, u, scale, xi_u, square, rest):
    """Replace xi by its tangent part, and measure its square and its residual along u."""
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
def rotation_coeffs(rows, v, square, rest, scale, a, b):
    """Coefficients of u' = a u + b xi, which is u rotated by the angle with 1 - cos = v.

    v is clamped to 0 .. 2 in place, and set to 0 where xi has no direction.
    """
    for r in range(rows):
        versine = min(max(v[r], ZERO), TWO) if square[r] > SHORTEST else ZERO
        b[r] = np.sqrt(versine * (TWO - versine)) / np.sqrt(max(square[r], SHORTEST))
        a[r] = ((ONE - versine) - b[r] * rest[r]) * scale[r]
        v[r] = versine


@routine(error_model="numpy")
def target_coeffs(rows, coefficients, v, g, square, rest, scale, a, b):
    """Coefficients of the target a u + b xi, the scaled tangent at u' that points back to u."""
    for r in range(rows):
        sine = np.sqrt(v[r] * (TWO - v[r]))
        gain = coefficients[r, 2] * g[r] * sine
        b[r] = -gain * (ONE - v[r]) / np.sqrt(max(square[r], SHORTEST))
        a[r] = (gain * sine - b[r] * rest[r]) * scale[r]


# ---- angles from a table ----


@routine
def _linear(rows, angles, spread, z, v):
    """v by linear interpolation between the columns of the step's row."""
    for r in range(rows):
        column, part = _column(z[r], len(angles))
        v[r] = spread * (angles[column] + part * (angles[column + 1] - angles[column]))


@routine
def bilinear(rows, coefficients, table, z, v, g):
    """v and g by bilinear interpolation in the table of each row's coefficients."""
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
    """The node below a fractional position and the fraction above it; NaN counts as 0."""
    inside = min(position, np.float32(nodes - 1)) if position > ZERO else ZERO
    below = min(np.int64(inside), nodes - 2)
    return below, inside - np.float32(below)
