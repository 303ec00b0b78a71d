"""Ring on the CPU: ``ring_step`` as in ``fastmsgm.reference``.

Threads take ranges of rows, and a range is worked on a tile at a time (as ``rotation``): all angles of the tile and
their sines and cosines in loops over its elements, then the groups row by row. Every loop is SIMD code.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from fastmsgm import rng

from .arrays import FLOAT, address, copy, prefetch, step_arrays, widen
from .compile import allocating, inlined, routine
from .philox import BLOCK, buffers, odd_words, unsigned_range
from .rows import batch, combine, elements, mark_lost, put_tile, row_noise, row_numbers, square_of, tile
from .scalar import HALF, NAN, ONE, fma, from_bits, half_turns, is_normal, to_bits
from .threads import over_rows

_LARGEST = np.float32(8192.0)  # half turns: no larger phi is taken
_NEXT = np.uint64(1)  # unsigned, as what it is added to: no index needs a test for a negative one
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


@allocating
def _step_rows(first, last, d, *arguments):
    rows = row_numbers(), np.zeros(BLOCK, np.bool_)
    space = buffers(d), buffers(1), elements(d), elements(d), elements(d), elements(d), elements(d), elements(d)
    _step_tiles(first, last, d, rows, space, (_last_group(d), _even_group(d), _halves(d)), *arguments)


@routine
def _step_tiles(
    first, last, d, rows_space, space, weights, x_all, f_dtype, f_all, f_bits, bad, out, history, net_dtype, net_in,
    net_bits, numbers, stream, step, restart, noisy,
):  # fmt: skip
    drift, noise, c_in = numbers
    noise = noise if abs(noise) <= _LARGEST / np.float32(8.0) else NAN
    square, reverses = rows_space
    reverse = reverses  # of a tile; without noise there is none
    room, word_room, widened, new, xi, angle, cos, sin = space
    of_last, of_even, half = weights
    for row in range(first, last, tile(d)):
        rows = min(tile(d), last - row)
        start, stop = row * d, (row + rows) * d
        needed_next = x_all, f_all, f_bits, history
        if noisy:
            row_noise(row, rows, d, stream, rng.Kind.STEP.value, step, room, angle, needed_next)
            within = (row - first) % batch(d)
            if within == 0:
                odd_words(row, min(batch(d), last - row), stream, rng.Kind.STEP.value, step, word_room, reverses)
            reverse = reverses[within:]
            for r in range(rows):
                _noise_angles(d, reverse[r], noise, angle[r * d :], xi[r * d :])
        else:
            prefetch(start, stop, needed_next)
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
            if noisy:
                _add_products(d, xi[r * d :], of_even if reverse[r] else of_last, angle[r * d :])
            else:
                _multiply(d, half, angle[r * d :])
        _circles(rows * d, angle, cos, sin)
        for r in range(rows):
            _turn_there(d, r * d, reverse[r], cos, sin, new)
        if noisy:
            _circles(rows * d, xi, cos, sin)
        for r in range(rows):
            _turn_back(d, r * d, reverse[r], cos, sin, new)
        for r in range(rows):
            turned = square_of(new, r * d, r * d + d)
            if is_normal(square[r]) and is_normal(turned):
                combine(new, (np.sqrt(_to_20_bits(square[r]) / turned),), (new,), r * d, r * d + d)
            else:
                mark_lost(r, d, new, past, row + r, step, bad)
        put_tile(stop - start, new, c_in, out[start:stop], net_dtype, net_in[start:stop], net_bits[start:stop])


@allocating
def _last_group(d):
    """1 for the pairs of the last group, else 0."""
    group = np.zeros(d, np.float32)
    group[d - 1 if d % 2 else 1 :: 2] = ONE
    return group


@allocating
def _even_group(d):
    """1 for the even pairs, else 0."""
    group = np.zeros(d, np.float32)
    group[: d - 1 : 2] = ONE
    return group


@allocating
def _halves(d):
    """What the groups turn by twice, and the last one once."""
    return (HALF + HALF * _last_group(d)).astype(np.float32)


@routine
def _to_20_bits(square):
    half = np.uint32(_LAST_BITS >> np.uint32(1))
    return from_bits(np.uint32(np.uint32(to_bits(square) + half) & np.uint32(~np.uint32(_LAST_BITS - np.uint32(1)))))


# ---- angles ----


@routine
def _flow_angles(rows, d, x, f, drift, angle):
    """phi, NaN beyond the largest."""
    for i in unsigned_range(0, rows * d - 1):
        phi = drift * fma(x[i + _NEXT], f[i], -(x[i] * f[i + _NEXT]))
        angle[i] = phi if abs(phi) <= _LARGEST else NAN
    for r in range(rows):
        i, j = r * d + d - 1, r * d
        phi = drift * fma(x[j], f[i], -(x[i] * f[j]))
        angle[i] = phi if abs(phi) <= _LARGEST else NAN


@inlined
def _multiply(d, weights, angle):
    for k in range(d):
        angle[k] = weights[k] * angle[k]


@inlined
def _noise_angles(d, reverse, noise, z, xi):
    """noise times the pairs' normals, which for even d and in ``reverse`` are those of the pairs before."""
    if d % 2 or not reverse:
        for k in unsigned_range(0, d):
            xi[k] = noise * z[k]
    else:
        ahead = xi[1:d]
        for k in unsigned_range(0, d - 1):
            ahead[k] = noise * z[k]
        xi[0] = noise * z[d - 1]


@inlined
def _add_products(d, xi, weights, angle):
    for k in range(d):
        angle[k] = fma(weights[k], xi[k], angle[k])


@routine
def _circles(size, angle, cos, sin):
    """Cosines and sines of the angles; NaN of NaN."""
    for i in range(size):
        cos[i], sin[i] = half_turns(angle[i])


# ---- groups, of the row that begins at ``begin``; even and odd pairs are those that do not go around the end ----


@inlined
def _turn_there(d, begin, reverse, cos, sin, x):
    """All groups, from the first on or from the last one."""
    if reverse:
        _turn_around(d, begin, cos, sin, x)
        _turn_pairs(d, 1, begin, cos, sin, x)
        _turn_pairs(d, 0, begin, cos, sin, x)
    else:
        _turn_pairs(d, 0, begin, cos, sin, x)
        _turn_pairs(d, 1, begin, cos, sin, x)
        _turn_around(d, begin, cos, sin, x)


@inlined
def _turn_back(d, begin, reverse, cos, sin, x):
    """All groups but the one that came last, the others in reverse."""
    if d % 2 or reverse:
        _turn_pairs(d, 1, begin, cos, sin, x)
    if reverse:
        _turn_around(d, begin, cos, sin, x)
    else:
        _turn_pairs(d, 0, begin, cos, sin, x)


@inlined
def _turn_pairs(d, first, begin, cos, sin, x):
    """The even (``first`` 0) or odd (1) pairs."""
    for j in unsigned_range(0, (d - first) // 2):
        i = np.uint64(begin + first) + np.uint64(2) * j
        a, b, c, s = x[i], x[i + _NEXT], cos[i], sin[i]
        x[i], x[i + _NEXT] = fma(c, a, s * b), fma(c, b, -(s * a))


@inlined
def _turn_around(d, begin, cos, sin, x):
    end = begin + d - 1
    a, b, c, s = x[end], x[begin], cos[end], sin[end]
    x[end], x[begin] = fma(c, a, s * b), fma(c, b, -(s * a))
