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
from .philox import BLOCK, buffers, coins, unsigned_range
from .rows import combine, elements, mark_lost, put_tile, row_noise, row_numbers, square_of, tile
from .scalar import HALF, NAN, ONE, ZERO, cosine_sine, fma, from_bits, is_normal, to_bits
from .threads import over_rows

_LARGEST = np.float32(8192.0)  # no larger phi is taken
_QUARTERS = np.float32(2 / math.pi)
# pi/2 in parts, the first of so few bits that its product with the 14 bits of a sum's quarter turns is exact.
_HIGH, _MIDDLE, _LOW = np.float32(1.5703125), np.float32(0.0004837512969970703), np.float32(7.54979e-8)
_EIGHTHS = np.float32(4 / math.pi)
_LAST_BITS = np.uint32(16)


def ring_step(
    x: Tensor, f: Tensor, table: Tensor, stream: Tensor, step: int, bad: Tensor, out: Tensor,
    history: Tensor | None, net_in: Tensor | None, restart: bool, noisy: bool,
) -> None:  # fmt: skip
    """One reverse step from ``x`` to ``out``; arguments and formula are those of ``reference.ring_step``."""
    n, d = x.shape
    arrays = step_arrays(x, f, bad, out, history, net_in)
    numbers, step = address(stream, step, len(table))
    over_rows(_step_rows, n, d, d, *arrays, table[step].numpy(), numbers, step, restart, noisy)


# ---- a range of rows ----


@njit(nogil=True, cache=True)
def _step_rows(
    first, last, d, x_all, f_dtype, f_all, f_bits, bad, out, history, net_dtype, net_in, net_bits, numbers, stream,
    step, restart, noisy,
):  # fmt: skip
    drift, noise, c_in = numbers
    noise = noise if abs(noise) <= _LARGEST / np.float32(8.0) else NAN
    room, coin_room, heads = buffers(d), buffers(1), np.ones(BLOCK, np.bool_)
    widened, new, square = elements(d), elements(d), row_numbers()
    xi, angle, cos, sin = elements(d), elements(d), elements(d), elements(d)
    of_last, of_even, half = _last_group(d), _even_group(d), _halves(d)
    for row in range(first, last, tile(d)):
        rows = min(tile(d), last - row)
        start, stop = row * d, (row + rows) * d
        prefetch_step(start, stop, x_all, f_all, f_bits, history)
        if noisy:
            row_noise(row, rows, d, stream, rng.Kind.STEP.value, step, room, xi)
            coins(row, rows, stream, rng.Kind.ANGLE.value, step, coin_room, heads)
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
        _flow_angles(rows, d, x, f, drift, angle)
        for r in range(rows):
            if not noisy:
                _multiply(d, half, angle[r * d :])
            else:
                _add_products(d, noise, xi[r * d :], of_last if heads[r] else of_even, angle[r * d :])
        _circles(rows * d, angle, cos, sin)
        for r in range(rows):
            _turn_there(d, r * d, heads[r], cos, sin, new)
        if noisy:
            combine(angle, (noise,), (xi,), 0, rows * d)
            _circles(rows * d, angle, cos, sin)
        for r in range(rows):
            _turn_back(d, r * d, heads[r], cos, sin, new)
        for r in range(rows):
            turned = square_of(new, r * d, r * d + d)
            if is_normal(square[r]) and is_normal(turned):
                combine(new, (np.sqrt(_to_20_bits(square[r]) / turned),), (new,), r * d, r * d + d)
            else:
                mark_lost(r, d, new, past, row + r, step, bad)
        put_tile(stop - start, new, c_in, out[start:stop], net_dtype, net_in[start:stop], net_bits[start:stop])


@njit(nogil=True, cache=True)
def _last_group(d):
    """1 for the pairs of the last group, else 0."""
    group = np.zeros(d, np.float32)
    group[d - 1 if d % 2 else 1 :: 2] = ONE
    return group


@njit(nogil=True, cache=True)
def _even_group(d):
    """1 for the even pairs, else 0."""
    group = np.zeros(d, np.float32)
    group[: d - 1 : 2] = ONE
    return group


@njit(nogil=True, cache=True)
def _halves(d):
    """What the groups turn by twice, and the last one once."""
    return (HALF + HALF * _last_group(d)).astype(np.float32)


@njit(nogil=True, cache=True)
def _to_20_bits(square):
    half = np.uint32(_LAST_BITS >> np.uint32(1))
    return from_bits(np.uint32(np.uint32(to_bits(square) + half) & np.uint32(~np.uint32(_LAST_BITS - np.uint32(1)))))


# ---- angles ----


@njit(nogil=True, cache=True)
def _flow_angles(rows, d, x, f, drift, angle):
    """phi, NaN beyond the largest."""
    for i in range(rows * d - 1):
        phi = drift * fma(x[i + 1], f[i], -(x[i] * f[i + 1]))
        angle[i] = phi if abs(phi) <= _LARGEST else NAN
    for r in range(rows):
        i, j = r * d + d - 1, r * d
        phi = drift * fma(x[j], f[i], -(x[i] * f[j]))
        angle[i] = phi if abs(phi) <= _LARGEST else NAN


@njit(nogil=True, cache=True)
def _multiply(d, weights, angle):
    for k in range(d):
        angle[k] = weights[k] * angle[k]


@njit(nogil=True, cache=True)
def _add_products(d, noise, xi, weights, angle):
    for k in range(d):
        angle[k] = fma(weights[k], noise * xi[k], angle[k])


@njit(nogil=True, cache=True)
def _circles(size, angle, cos, sin):
    """Cosines and sines of the angles; NaN of NaN."""
    for i in range(size):
        valid = angle[i] == angle[i]
        turns = np.rint((angle[i] if valid else ZERO) * _QUARTERS)
        rest = fma(-turns, _LOW, fma(-turns, _MIDDLE, fma(-turns, _HIGH, angle[i])))
        x, y = cosine_sine(np.uint32(np.int32(turns)), rest * _EIGHTHS)
        cos[i] = x if valid else NAN
        sin[i] = y if valid else NAN


# ---- groups, of the row that begins at ``begin``; even and odd pairs are those that do not go around the end ----


@njit(nogil=True, cache=True)
def _turn_there(d, begin, forth, cos, sin, x):
    """All groups, from the first on (``forth``) or from the last one."""
    if forth:
        _turn_pairs(d, 0, begin, cos, sin, x)
        _turn_pairs(d, 1, begin, cos, sin, x)
        _turn_around(d, begin, cos, sin, x)
    else:
        _turn_around(d, begin, cos, sin, x)
        _turn_pairs(d, 1, begin, cos, sin, x)
        _turn_pairs(d, 0, begin, cos, sin, x)


@njit(nogil=True, cache=True)
def _turn_back(d, begin, forth, cos, sin, x):
    """All groups but the one that came last, the others in reverse."""
    if d % 2 or not forth:
        _turn_pairs(d, 1, begin, cos, sin, x)
    if forth:
        _turn_pairs(d, 0, begin, cos, sin, x)
    else:
        _turn_around(d, begin, cos, sin, x)


@njit(nogil=True, cache=True)
def _turn_pairs(d, first, begin, cos, sin, x):
    """The even (``first`` 0) or odd (1) pairs."""
    begin += first
    for j in unsigned_range(0, (d - first) // 2):
        i = begin + 2 * j
        a, b, c, s = x[i], x[i + 1], cos[i], sin[i]
        x[i], x[i + 1] = fma(c, a, s * b), fma(c, b, -(s * a))


@njit(nogil=True, cache=True)
def _turn_around(d, begin, cos, sin, x):
    end = begin + d - 1
    a, b, c, s = x[end], x[begin], cos[end], sin[end]
    x[end], x[begin] = fma(c, a, s * b), fma(c, b, -(s * a))
