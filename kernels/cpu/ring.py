"""Ring on the CPU: ``ring_step`` as in ``fastmsgm.reference``.

Threads take ranges of rows, and a range is worked on a tile at a time (as ``rotation``): all angles of the tile and
their sines and cosines in loops over its elements, then the groups row by row. Every loop is SIMD code.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from torch import Tensor

from fastmsgm import rng

from .arrays import FLOAT, address, copy, prefetch_step, step_arrays, widen
from .philox import block_noise, buffers, floats, unsigned_range
from .rows import combine, elements, mark_lost, put_tile, row_noise, row_numbers, square_of, tile
from .scalar import HALF, NAN, ONE, ZERO, cosine_sine, fma, from_bits, is_normal, to_bits
from .threads import over_rows

_SQRT_HALF = np.float32(math.sqrt(0.5))
_LARGEST = np.float32(8192.0)  # no larger angle is taken
_QUARTERS = np.float32(2 / math.pi)
# pi/2 in parts of so few bits that their products with the 13 bits of the largest angle's quarter turns are exact.
_HIGH, _MIDDLE, _LOW = np.float32(1.5703125), np.float32(0.0004837512969970703), np.float32(7.54979e-8)
_EIGHTHS = np.float32(4 / math.pi)
_LAST_BITS = np.uint32(16)


def ring_step(
    x: Tensor, f: Tensor, table: Tensor, stream: Tensor, step: int, bad: Tensor, out: Tensor,
    history: Tensor | None, net_in: Tensor | None, restart: bool, strang: bool,
) -> None:  # fmt: skip
    """One reverse step from ``x`` to ``out``; arguments and formula are those of ``reference.ring_step``."""
    n, d = x.shape
    arrays = step_arrays(x, f, bad, out, history, net_in)
    numbers, step = address(stream, step, len(table))
    over_rows(_step_rows, n, d, d, *arrays, table[step].numpy(), numbers, step, restart, strang)


# ---- a range of rows ----


@njit(nogil=True, cache=True)
def _step_rows(
    first, last, d, x_all, f_dtype, f_all, f_bits, bad, out, history, net_dtype, net_in, net_bits, numbers, stream,
    step, restart, strang,
):  # fmt: skip
    drift, noise, c_in = numbers
    uses = 2 if strang else 1
    room, coin_room = buffers(uses * d), buffers(1)
    widened, new, square = elements(d), elements(d), row_numbers()
    xi, cos, sin, coins = elements(uses * d), elements(uses * d), elements(uses * d), floats()
    drift_weights = _weights(d, 1, HALF if strang else ONE)
    noise_weights = _weights(d, uses, _SQRT_HALF if strang else ONE)
    for row in range(first, last, tile(uses * d)):
        rows = min(tile(uses * d), last - row)
        start, stop = row * d, (row + rows) * d
        prefetch_step(start, stop, x_all, f_all, f_bits, history)
        if noise != ZERO:
            row_noise(row, rows, uses * d, stream, rng.Kind.STEP.value, step, room, xi)
        if not strang:
            block_noise(row, rows, 1, stream, rng.Kind.ANGLE.value, step, coin_room, coins)
        if f_dtype == FLOAT:
            f = f_all[start:stop]
        else:
            widen(stop - start, f_dtype, f_bits[start:stop], widened)
            f = widened
        x, past = x_all[start:stop], history[start:stop]
        if len(past) and not restart:
            copy(stop - start, x, past)
        copy(stop - start, past if restart and len(past) else x, new)
        for r in range(rows):
            square[r] = square_of(new, r * d, r * d + d)
        _drift_angles(rows, d, x, f, drift, drift_weights, cos)
        _circles(rows * d, cos, sin)
        _turn_rows(rows, d, d, 0, strang, coins, cos, sin, new)
        if noise != ZERO:
            _noise_angles(rows * uses * d, noise, xi, noise_weights, cos)
            _circles(rows * uses * d, cos, sin)
            _turn_rows(rows, d, uses * d, (uses - 1) * d, strang, coins, cos, sin, new)
        for r in range(rows):
            turned = square_of(new, r * d, r * d + d)
            if is_normal(square[r]) and is_normal(turned):
                combine(new, (np.sqrt(_to_20_bits(square[r]) / turned),), (new,), r * d, r * d + d)
            else:
                mark_lost(r, d, new, past, row + r, step, bad)
        put_tile(stop - start, new, c_in, out[start:stop], net_dtype, net_in[start:stop], net_bits[start:stop])


@njit(nogil=True, cache=True)
def _weights(d, uses, half):
    """Of the angles of a tile: ``half`` but in the middle group, which is the pair around the end, or the odd ones."""
    weights = np.full(tile(uses * d) * uses * d, half, np.float32)
    for r in range(0, len(weights), d):
        for k in range(d - 1 if d % 2 else 1, d, 2):
            weights[r + k] = ONE
    return weights


@njit(nogil=True, cache=True)
def _to_20_bits(square):
    half = np.uint32(_LAST_BITS >> np.uint32(1))
    return from_bits(np.uint32(np.uint32(to_bits(square) + half) & np.uint32(~np.uint32(_LAST_BITS - np.uint32(1)))))


# ---- angles ----


@njit(nogil=True, cache=True)
def _drift_angles(rows, d, x, f, drift, weights, angle):
    for i in range(rows * d - 1):
        angle[i] = weights[i] * (drift * fma(x[i + 1], f[i], -(x[i] * f[i + 1])))
    for r in range(rows):
        i, j = r * d + d - 1, r * d
        angle[i] = weights[i] * (drift * fma(x[j], f[i], -(x[i] * f[j])))


@njit(nogil=True, cache=True)
def _noise_angles(size, noise, xi, weights, angle):
    for i in range(size):
        angle[i] = weights[i] * (noise * xi[i])


@njit(nogil=True, cache=True)
def _circles(size, cos, sin):
    """The cosines of the angles in ``cos``, in their place, and their sines; NaN beyond the largest."""
    for i in range(size):
        angle = cos[i]
        valid = abs(angle) <= _LARGEST
        turns = np.rint((angle if valid else ZERO) * _QUARTERS)
        rest = fma(-turns, _LOW, fma(-turns, _MIDDLE, fma(-turns, _HIGH, angle)))
        x, y = cosine_sine(np.uint32(np.int32(turns)), rest * _EIGHTHS)
        cos[i] = x if valid else NAN
        sin[i] = y if valid else NAN


# ---- groups ----


@njit(nogil=True, cache=True)
def _turn_rows(rows, d, stride, second, strang, coins, cos, sin, x):
    """All groups: in order, in reverse (where a coin is negative), or in order and back from the middle one, with the
    sines and cosines from ``second`` on in a row's ``stride`` of them."""
    for r in range(rows):
        begin, at = r * d, r * stride
        forth, back = strang or coins[r] >= ZERO, strang or coins[r] < ZERO
        if forth:
            _turn_pairs(d, 0, begin, at, cos, sin, x)
            _turn_pairs(d, 1, begin, at, cos, sin, x)
        end = begin + d - 1
        a, b, c, s = x[end], x[begin], cos[at + d - 1], sin[at + d - 1]
        x[end], x[begin] = fma(c, a, s * b), fma(c, b, -(s * a))
        if back:
            if d % 2 or not strang:
                _turn_pairs(d, 1, begin, at + second, cos, sin, x)
            _turn_pairs(d, 0, begin, at + second, cos, sin, x)


@njit(nogil=True, cache=True)
def _turn_pairs(d, first, begin, at, cos, sin, x):
    """The even (``first`` 0) or odd (1) pairs that do not go around the end."""
    begin, at = begin + first, at + first
    for j in unsigned_range(0, (d - first) // 2):
        a, b, c, s = x[begin + 2 * j], x[begin + 2 * j + 1], cos[at + 2 * j], sin[at + 2 * j]
        x[begin + 2 * j], x[begin + 2 * j + 1] = fma(c, a, s * b), fma(c, b, -(s * a))
