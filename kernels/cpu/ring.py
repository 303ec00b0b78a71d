"""Ring on the CPU: ``ring_step`` as in ``fastmsgm.reference``.

Threads take ranges of rows, and a range is processed a tile at a time, as in ``rotation``. Loops
over the elements of a tile compute all angles, sines and cosines. Then the groups rotate row by
row. Every loop is SIMD code.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from fastmsgm import rng
from fastmsgm.constants import LARGEST_ANGLE

from .arrays import FLOAT, copy, counter, prefetch_range, step_arrays, widen
from .compile import allocating, inlined, routine
from .philox import BLOCK, buffers, odd_words, unsigned_range
from .rows import (
    batch,
    combine,
    elements,
    mark_nonfinite,
    put_tile,
    row_noise,
    row_workspace,
    square_of,
    tile,
)
from .scalar import HALF, NAN, ONE, fma, from_bits, half_turns, is_normal, to_bits
from .threads import over_rows

_LARGEST = np.float32(LARGEST_ANGLE)
_NEXT = np.uint64(1)  # unsigned like the indices: so no index is tested for being negative
_LAST_BITS = np.uint32(16)


def ring_step(
    x: Tensor,
    model_output: Tensor,
    table: Tensor,
    stream: Tensor,
    step: int,
    first_nonfinite_step: Tensor,
    out: Tensor,
    step_start: Tensor | None,
    model_input: Tensor | None,
    restart: bool,
    noisy: bool,
) -> None:
    """Take a reverse step from ``x`` to ``out`` as ``reference.ring_step``."""
    n, d = x.shape
    arrays = step_arrays(x, model_output, first_nonfinite_step, out, step_start, model_input)
    stream_array, step = counter(stream, step, len(table))
    coeffs = table[step].numpy()
    over_rows(_step_rows, n, d, d, *arrays, coeffs, stream_array, step, restart, noisy)


# ---- a range of rows ----


@allocating
def _step_rows(first, last, d, *arguments):
    row_arrays = row_workspace(), np.zeros(BLOCK, np.bool_)
    workspace = (
        buffers(d),
        buffers(1),
        elements(d),
        elements(d),
        elements(d),
        elements(d),
        elements(d),
        elements(d),
    )
    weights = _last_group(d), _even_group(d), _halves(d)
    _step_tiles(first, last, d, row_arrays, workspace, weights, *arguments)


@routine
def _step_tiles(
    first,
    last,
    d,
    row_arrays,
    workspace,
    weights,
    x_all,
    output_dtype,
    output_floats,
    output_bits,
    first_nonfinite_step,
    out,
    step_start,
    input_dtype,
    model_input,
    input_bits,
    coeffs,
    stream,
    step,
    restart,
    noisy,
):
    drift, noise, c_in = coeffs
    noise = noise if abs(noise) <= _LARGEST / np.float32(8.0) else NAN
    square, reverses = row_arrays
    reverse = reverses  # of a tile: all False without noise
    noise_buffers, word_buffers, widened, new, xi, angle, cos, sin = workspace
    of_last, of_even, half = weights
    for row in range(first, last, tile(d)):
        rows = min(tile(d), last - row)
        start, stop = row * d, (row + rows) * d
        prefetch = x_all, output_floats, output_bits, step_start
        if noisy:
            row_noise(
                row, rows, d, stream, rng.Purpose.STEP.value, step, noise_buffers, angle, prefetch
            )
            within = (row - first) % batch(d)
            if within == 0:
                odd_words(
                    row,
                    min(batch(d), last - row),
                    stream,
                    rng.Purpose.STEP.value,
                    step,
                    word_buffers,
                    reverses,
                )
            reverse = reverses[within:]
            for r in range(rows):
                _noise_angles(d, reverse[r], noise, angle[r * d :], xi[r * d :])
        else:
            prefetch_range(start, stop, prefetch)
        if output_dtype == FLOAT:
            f = output_floats[start:stop]
        else:
            widen(stop - start, output_dtype, output_bits[start:stop], widened)
            f = widened
        x, start_state = x_all[start:stop], step_start[start:stop]
        if len(start_state) and not restart:
            copy(stop - start, x, start_state)
        copy(stop - start, start_state if restart and len(start_state) else x, new)
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
            _rotate_forwards(d, r * d, reverse[r], cos, sin, new)
        if noisy:
            _circles(rows * d, xi, cos, sin)
        for r in range(rows):
            _rotate_backwards(d, r * d, reverse[r], cos, sin, new)
        for r in range(rows):
            rotated = square_of(new, r * d, r * d + d)
            if is_normal(square[r]) and is_normal(rotated):
                combine(new, (np.sqrt(_to_20_bits(square[r]) / rotated),), (new,), r * d, r * d + d)
            else:
                mark_nonfinite(r, d, new, start_state, row + r, step, first_nonfinite_step)
        put_tile(
            stop - start,
            new,
            c_in,
            out[start:stop],
            input_dtype,
            model_input[start:stop],
            input_bits[start:stop],
        )


@allocating
def _last_group(d):
    """Weights of 1 for the pairs of the last group, else 0."""
    group = np.zeros(d, np.float32)
    group[d - 1 if d % 2 else 1 :: 2] = ONE
    return group


@allocating
def _even_group(d):
    """Weights of 1 for the even pairs, else 0."""
    group = np.zeros(d, np.float32)
    group[: d - 1 : 2] = ONE
    return group


@allocating
def _halves(d):
    """Weights of 1/2 for the groups that rotate twice, and 1 for the last group."""
    return (HALF + HALF * _last_group(d)).astype(np.float32)


@routine
def _to_20_bits(square):
    """Round to 20 significant bits."""
    half = np.uint32(_LAST_BITS >> np.uint32(1))
    return from_bits(
        np.uint32(
            np.uint32(to_bits(square) + half) & np.uint32(~np.uint32(_LAST_BITS - np.uint32(1)))
        )
    )


# ---- angles ----


@routine
def _flow_angles(rows, d, x, f, drift, angle):
    """Angles phi of the flow; NaN beyond the largest angle."""
    for i in unsigned_range(0, rows * d - 1):
        phi = drift * fma(x[i + _NEXT], f[i], -(x[i] * f[i + _NEXT]))
        angle[i] = phi if abs(phi) <= _LARGEST else NAN
    for r in range(rows):
        i, j = r * d + d - 1, r * d
        phi = drift * fma(x[j], f[i], -(x[i] * f[j]))
        angle[i] = phi if abs(phi) <= _LARGEST else NAN


@inlined
def _multiply(d, weights, angle):
    """Multiply the angles by weights."""
    for k in range(d):
        angle[k] = weights[k] * angle[k]


@inlined
def _noise_angles(d, reverse, noise, z, xi):
    """Angles of the noise: the coefficient times the normals of the pairs.

    For even d and in ``reverse``, a pair uses the normal of the pair before it.
    """
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
    """Add the weighted noise to the angles."""
    for k in range(d):
        angle[k] = fma(weights[k], xi[k], angle[k])


@routine
def _circles(size, angle, cos, sin):
    """Cosines and sines of the angles; NaN for NaN."""
    for i in range(size):
        cos[i], sin[i] = half_turns(angle[i])


# ---- groups of a row from ``begin`` on; even and odd pairs exclude the pair around the end ----


@inlined
def _rotate_forwards(d, begin, reverse, cos, sin, x):
    """Rotate all groups, starting with the first or, in ``reverse``, with the last."""
    if reverse:
        _rotate_wrap(d, begin, cos, sin, x)
        _rotate_pairs(d, 1, begin, cos, sin, x)
        _rotate_pairs(d, 0, begin, cos, sin, x)
    else:
        _rotate_pairs(d, 0, begin, cos, sin, x)
        _rotate_pairs(d, 1, begin, cos, sin, x)
        _rotate_wrap(d, begin, cos, sin, x)


@inlined
def _rotate_backwards(d, begin, reverse, cos, sin, x):
    """Rotate all groups but the final one of ``_rotate_forwards``, in reverse order."""
    if d % 2 or reverse:
        _rotate_pairs(d, 1, begin, cos, sin, x)
    if reverse:
        _rotate_wrap(d, begin, cos, sin, x)
    else:
        _rotate_pairs(d, 0, begin, cos, sin, x)


@inlined
def _rotate_pairs(d, first, begin, cos, sin, x):
    """Rotate the even (``first`` 0) or odd (``first`` 1) pairs."""
    for j in unsigned_range(0, (d - first) // 2):
        i = np.uint64(begin + first) + np.uint64(2) * j
        a, b, c, s = x[i], x[i + _NEXT], cos[i], sin[i]
        x[i], x[i + _NEXT] = fma(c, a, s * b), fma(c, b, -(s * a))


@inlined
def _rotate_wrap(d, begin, cos, sin, x):
    """Rotate the pair around the end."""
    end = begin + d - 1
    a, b, c, s = x[end], x[begin], cos[end], sin[end]
    x[end], x[begin] = fma(c, a, s * b), fma(c, b, -(s * a))
