"""Geometric Brownian motion on the CPU: ``fill_normal``, ``gbm_perturb`` and ``gbm_step`` as in ``fastmsgm.reference``.

Rows are split over threads; a thread takes its rows a block of quads at a time, and a block goes through a few loops,
each simple enough to become SIMD code, with everything between them in the L1 cache: noise (philox.py), the new state,
what the network sees, copy out. Logarithms are to base 2 within; coefficients are rescaled before they are rounded to
float32.
"""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from fastmsgm import rng

from ..polynomials import LOG2_UNIT
from .arrays import ABSENT, FLOAT, address, copy, flat, network_side, optional, step_arrays, widen, write
from .compile import allocating, routine
from .philox import BLOCK, block_noise, buffers, extent, floats, unsigned_range
from .scalar import NAN, NORMAL, SIGN, exp2, fma, from_bits, is_normal, log2_abs, magnitude, to_bits
from .threads import over_rows

_LN2, _LOG2_E = math.log(2.0), 1 / math.log(2.0)
_UNIT, _LARGEST = np.float32(LOG2_UNIT), np.int32(2**31 - 1)


def fill_normal(out: Tensor, stream: Tensor, kind: int, step: int) -> None:
    """Fill ``out`` (n, d) with the stream's normals."""
    n, d = out.shape
    numbers, step = address(stream, step)
    over_rows(_fill_rows, n, d, d, flat(out), numbers, int(kind), step)


def gbm_perturb(
    x0: Tensor, coefficients: Tensor, stream: Tensor, kind: int, step: int,
    x_t: Tensor | None, net_in: Tensor | None, z: Tensor | None,
) -> None:  # fmt: skip
    """x_t = x0 exp(shift + s z) and the network's input c_in log|x_t|; ``coefficients`` (n, 3) holds shift, s, c_in."""
    n, d = x0.shape
    numbers, step = address(stream, step)
    inputs = flat(x0), coefficients.numpy(), numbers, int(kind), step
    over_rows(_perturb_rows, n, d, d, *inputs, optional(x_t), *network_side(net_in), optional(z))


def gbm_step(
    x: Tensor, f: Tensor, table: Tensor, stream: Tensor, step: int, bad: Tensor, out: Tensor,
    history: Tensor | None, net_in: Tensor | None, stein: bool, linear: bool, log_state: bool,
) -> None:  # fmt: skip
    """One reverse step from ``x`` to ``out``; the arguments and the formula are those of ``reference.gbm_step``."""
    n, d = x.shape
    arrays = step_arrays(x, f, bad, out, history, net_in)
    numbers, step = address(stream, step, len(table))
    row = _row(table[step], linear, log_state)
    over_rows(
        _step_rows, n, d, d, *arrays, row, numbers, step, stein, linear, log_state, x.data_ptr() == out.data_ptr()
    )


def _row(table_row: Tensor, linear: bool, log_state: bool) -> tuple[np.float32, ...]:
    """The row as the loops use it.

    With a logarithm: D = k0 y + k1 g + k2 and t = a y + b D + b_prev D_prev + c + s z; without: t = k1 g + c + s z.
    Here y = log2|x| and t is log2|x'|, log2(x' / x) (no logarithm), or x' / x - 1 (linear).
    """
    a, b, b_prev, c, s, k0, k1, k2, c_in = table_row.tolist()
    unit = 1.0 if linear else _LOG2_E  # of t
    if not log_state:
        c, k1 = b * k2 + c, b * k1 * unit
    a = (a - 1) * _LN2 if linear else a
    return tuple(np.array((a, b * unit, b_prev * unit, c * unit, s * unit, k0 * _LN2, k1, k2, c_in * _LN2), np.float32))


# ---- a range of rows ----


@allocating
def _fill_rows(first, last, d, *arguments):
    _fill_blocks(first, last, d, buffers(d), *arguments)


@routine
def _fill_blocks(first, last, d, room, out, stream, kind, step):
    quads = (d + 3) // 4
    for quad in range(first * quads, last * quads, BLOCK):
        count, start, stop = extent(quad, last * quads, d)
        block_noise(quad, count, d, stream, kind, step, room, out[start:stop], ())


@allocating
def _perturb_rows(first, last, d, *arguments):
    _perturb_blocks(
        first, last, d, buffers(d), (floats(), floats(), floats(), floats(), floats(), floats()), *arguments
    )


@routine
def _perturb_blocks(
    first, last, d, room, space, x0, coefficients, stream, kind, step, x_t, net_dtype, net_in, net_bits, z_out
):
    z, shift_of, s_of, c_in_of, t, y = space
    quads = (d + 3) // 4
    for quad in range(first * quads, last * quads, BLOCK):
        count, start, stop = extent(quad, last * quads, d)
        size = stop - start
        block_noise(quad, count, d, stream, kind, step, room, z, (x0,))
        _per_element(start, size, d, coefficients, shift_of, s_of, c_in_of)
        x = x0[start:stop]
        _perturb_increment(size, z, shift_of, s_of, t)
        if len(x_t):
            _perturb_scale(size, x, t, x_t[start:stop])
        if net_dtype != ABSENT:
            _perturb_log(size, x, t, c_in_of, y)
            write(size, net_dtype, y, net_in[start:stop], net_bits[start:stop])
        if len(z_out):
            copy(size, z, z_out[start:stop])


@allocating
def _step_rows(first, last, d, *arguments):
    _step_blocks(first, last, d, buffers(d), (floats(), floats(), floats(), floats()), *arguments)


@routine
def _step_blocks(
    first, last, d, room, space, x_all, f_dtype, f_all, f_bits, bad, out, history, net_dtype, net_in, net_bits, row,
    stream, step, stein, linear, log_state, in_place,
):  # fmt: skip
    z, widened, y, t = space
    quads = (d + 3) // 4
    for quad in range(first * quads, last * quads, BLOCK):
        count, start, stop = extent(quad, last * quads, d)
        size = stop - start
        block_noise(quad, count, d, stream, rng.Kind.STEP.value, step, room, z, (x_all, f_all, f_bits, history))
        x = out[start:stop]
        if not in_place:
            copy(size, x_all[start:stop], x)
        if f_dtype == FLOAT:
            f = f_all[start:stop]
        else:
            widen(size, f_dtype, f_bits[start:stop], widened)
            f = widened
        if not log_state:
            _score_increment(size, x, f, z, row, stein, t)
        else:
            _log(size, x, _UNIT, y)
            if len(history):
                _multistep_increment(size, x, y, f, z, row, stein, history[start:stop], t)
            else:
                _log_increment(size, x, y, f, z, row, stein, t)
        good = _move(size, t, linear, log_state, x)
        if net_dtype != ABSENT:
            if linear:
                _log(size, x, row[8] * _UNIT, t)
            else:
                _scale(size, row[8], t)
            write(size, net_dtype, t, net_in[start:stop], net_bits[start:stop])
        if not good:
            _poison(size, x)
            _mark(start, size, d, x, step, bad)


# ---- the loops of a block: one pass each, no branch within ----


@routine
def _scale(size, factor, x):
    for i in range(size):
        x[i] = factor * x[i]


@routine
def _log(size, x, factor, y):
    for i in range(size):
        y[i] = factor * log2_abs(x[i])


@routine
def _denoised(x, y, f, k0, k1, k2, stein):
    gain = k1 * x if stein else k1
    return fma(k0, y, fma(gain, f, k2))


@routine
def _log_increment(size, x, y, f, z, row, stein, t):
    a, b, _, c, s, k0, k1, k2, _ = row
    for i in range(size):
        denoised = _denoised(x[i], y[i], f[i], k0, k1, k2, stein)
        t[i] = fma(a, y[i], fma(b, denoised, fma(s, z[i], c)))


@routine
def _multistep_increment(size, x, y, f, z, row, stein, history, t):
    """``_log_increment`` with D read from ``history`` and written to it."""
    a, b, b_prev, c, s, k0, k1, k2, _ = row
    for i in range(size):
        denoised = _denoised(x[i], y[i], f[i], k0, k1, k2, stein)
        t[i] = fma(b_prev, history[i], fma(a, y[i], fma(b, denoised, fma(s, z[i], c))))
        history[i] = denoised


@routine
def _score_increment(size, x, f, z, row, stein, t):
    """t where no logarithm is needed."""
    c, s, k1 = row[3], row[4], row[6]
    for i in range(size):
        gain = k1 * x[i] if stein else k1
        t[i] = fma(gain, f[i], fma(s, z[i], c))


@routine
def _move(size, t, linear, log_state, x):
    """The new state; whether all of it is normal numbers."""
    worst = _LARGEST
    for i in range(size):
        if linear:
            x[i] = fma(x[i], t[i], x[i])
        elif log_state:
            x[i] = from_bits(to_bits(exp2(t[i])) | np.uint32(to_bits(x[i]) & SIGN))
        else:
            x[i] = x[i] * exp2(t[i])
        worst = min(worst, magnitude(x[i]))
    return worst >= NORMAL


@routine
def _poison(size, new):
    for i in range(size):
        new[i] = new[i] if is_normal(new[i]) else NAN


@routine
def _mark(start, size, d, new, step, bad):
    """Write the step into ``bad`` for the samples that left the normal numbers, unless an earlier one is there."""
    for row in range(start // d, (start + size - 1) // d + 1):
        if bad[row] < 0:
            for i in range(max(row * d - start, 0), min((row + 1) * d - start, size)):
                if not is_normal(new[i]):
                    bad[row] = step
                    break


@routine
def _per_element(start, size, d, coefficients, shift_of, s_of, c_in_of):
    """The coefficients of each element's sample, the first two in powers of two, the last for a logarithm to base 2."""
    row, column, i = start // d, start % d, 0
    while i < size:
        shift, s, c_in = coefficients[row, 0] * _LOG2_E, coefficients[row, 1] * _LOG2_E, coefficients[row, 2] * _LN2
        end = min(i + d - column, size)
        for j in unsigned_range(i, end):
            shift_of[j] = shift
            s_of[j] = s
            c_in_of[j] = c_in
        i, row, column = end, row + 1, 0


@routine
def _perturb_increment(size, z, shift_of, s_of, t):
    for i in range(size):
        t[i] = fma(s_of[i], z[i], shift_of[i])


@routine
def _perturb_scale(size, x, t, x_t):
    for i in range(size):
        x_t[i] = x[i] * exp2(t[i])


@routine
def _perturb_log(size, x, t, c_in_of, y):
    for i in range(size):
        y[i] = c_in_of[i] * fma(log2_abs(x[i]), _UNIT, t[i])
