"""Geometric Brownian motion on the CPU: ``fill_normal``, ``gbm_perturb`` and ``gbm_step``.

The functions are as in ``fastmsgm.reference``. Ranges of rows are distributed over threads. A
thread processes its rows a block of quads at a time, by a few loops: noise (philox.py), the new
state, the network's input, copies to the outputs. Each loop is simple enough to become SIMD code,
and all intermediate arrays fit into the L1 cache. Internally, logarithms are to base 2.
Coefficients are rescaled before they are rounded to float32.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from fastmsgm import rng
from fastmsgm.constants import LN2, LOG2_E

from ..polynomials import LOG2_UNIT
from .arrays import (
    ABSENT,
    FLOAT,
    copy,
    counter,
    flat,
    network_side,
    optional,
    step_arrays,
    widen,
    write,
)
from .compile import allocating, routine
from .philox import BLOCK, block_noise, buffers, extent, floats, unsigned_range
from .scalar import NAN, NORMAL, SIGN, exp2, fma, from_bits, is_normal, log2_abs, magnitude, to_bits
from .threads import over_rows

_UNIT, _LARGEST = np.float32(LOG2_UNIT), np.int32(2**31 - 1)


def fill_normal(out: Tensor, stream: Tensor, purpose: int, step: int) -> None:
    """Fill ``out`` (n, d) with the stream's normals."""
    n, d = out.shape
    stream_array, step = counter(stream, step)
    over_rows(_fill_rows, n, d, d, flat(out), stream_array, int(purpose), step)


def gbm_perturb(
    x0: Tensor,
    coefficients: Tensor,
    stream: Tensor,
    purpose: int,
    step: int,
    x_t: Tensor | None,
    model_input: Tensor | None,
    z: Tensor | None,
) -> None:
    """Perturb x0 as ``reference.gbm_perturb``."""
    n, d = x0.shape
    stream_array, step = counter(stream, step)
    inputs = flat(x0), coefficients.numpy(), stream_array, int(purpose), step
    over_rows(
        _perturb_rows, n, d, d, *inputs, optional(x_t), *network_side(model_input), optional(z)
    )


def gbm_step(
    x: Tensor,
    model_output: Tensor,
    table: Tensor,
    stream: Tensor,
    step: int,
    first_nonfinite_step: Tensor,
    out: Tensor,
    prev_denoised: Tensor | None,
    model_input: Tensor | None,
    stein_score: bool,
    sign_agnostic: bool,
    log_state: bool,
) -> None:
    """Take a reverse step from ``x`` to ``out`` as ``reference.gbm_step``."""
    n, d = x.shape
    arrays = step_arrays(x, model_output, first_nonfinite_step, out, prev_denoised, model_input)
    stream_array, step = counter(stream, step, len(table))
    row = _row(table[step], sign_agnostic, log_state)
    over_rows(
        _step_rows,
        n,
        d,
        d,
        *arrays,
        row,
        stream_array,
        step,
        stein_score,
        sign_agnostic,
        log_state,
        x.data_ptr() == out.data_ptr(),
    )


def _row(table_row: Tensor, sign_agnostic: bool, log_state: bool) -> tuple[np.float32, ...]:
    """The coefficients as the loops use them.

    With ``log_state``, D = k0 y + k1 g + k2 and t = a y + b D + b_prev D_prev + c + s z, where
    y = log2|x|. Without it, t = k1 g + c + s z. The new state x' follows from t = log2|x'| with
    ``log_state``, t = log2(x' / x) without, or t = x' / x - 1 if ``sign_agnostic``.
    """
    a, b, b_prev, c, s, k0, k1, k2, c_in = table_row.tolist()
    unit = 1.0 if sign_agnostic else LOG2_E  # of t
    if not log_state:
        c, k1 = b * k2 + c, b * k1 * unit
    a = (a - 1) * LN2 if sign_agnostic else a
    return tuple(
        np.array(
            (a, b * unit, b_prev * unit, c * unit, s * unit, k0 * LN2, k1, k2, c_in * LN2),
            np.float32,
        )
    )


# ---- a range of rows ----


@allocating
def _fill_rows(first, last, d, *arguments):
    _fill_blocks(first, last, d, buffers(d), *arguments)


@routine
def _fill_blocks(first, last, d, noise_buffers, out, stream, purpose, step):
    quads = (d + 3) // 4
    for quad in range(first * quads, last * quads, BLOCK):
        count, start, stop = extent(quad, last * quads, d)
        block_noise(quad, count, d, stream, purpose, step, noise_buffers, out[start:stop], ())


@allocating
def _perturb_rows(first, last, d, *arguments):
    _perturb_blocks(
        first,
        last,
        d,
        buffers(d),
        (floats(), floats(), floats(), floats(), floats(), floats()),
        *arguments,
    )


@routine
def _perturb_blocks(
    first,
    last,
    d,
    noise_buffers,
    workspace,
    x0,
    coefficients,
    stream,
    purpose,
    step,
    x_t,
    input_dtype,
    model_input,
    input_bits,
    z_out,
):
    z, shift_of, s_of, c_in_of, t, y = workspace
    quads = (d + 3) // 4
    for quad in range(first * quads, last * quads, BLOCK):
        count, start, stop = extent(quad, last * quads, d)
        size = stop - start
        block_noise(quad, count, d, stream, purpose, step, noise_buffers, z, (x0,))
        _per_element(start, size, d, coefficients, shift_of, s_of, c_in_of)
        x = x0[start:stop]
        _perturb_increment(size, z, shift_of, s_of, t)
        if len(x_t):
            _perturb_scale(size, x, t, x_t[start:stop])
        if input_dtype != ABSENT:
            _perturb_log(size, x, t, c_in_of, y)
            write(size, input_dtype, y, model_input[start:stop], input_bits[start:stop])
        if len(z_out):
            copy(size, z, z_out[start:stop])


@allocating
def _step_rows(first, last, d, *arguments):
    _step_blocks(first, last, d, buffers(d), (floats(), floats(), floats(), floats()), *arguments)


@routine
def _step_blocks(
    first,
    last,
    d,
    noise_buffers,
    workspace,
    x_all,
    output_dtype,
    output_floats,
    output_bits,
    first_nonfinite_step,
    out,
    prev_denoised,
    input_dtype,
    model_input,
    input_bits,
    row,
    stream,
    step,
    stein_score,
    sign_agnostic,
    log_state,
    in_place,
):
    z, widened, y, t = workspace
    quads = (d + 3) // 4
    for quad in range(first * quads, last * quads, BLOCK):
        count, start, stop = extent(quad, last * quads, d)
        size = stop - start
        block_noise(
            quad,
            count,
            d,
            stream,
            rng.Purpose.STEP.value,
            step,
            noise_buffers,
            z,
            (x_all, output_floats, output_bits, prev_denoised),
        )
        x = out[start:stop]
        if not in_place:
            copy(size, x_all[start:stop], x)
        if output_dtype == FLOAT:
            f = output_floats[start:stop]
        else:
            widen(size, output_dtype, output_bits[start:stop], widened)
            f = widened
        if not log_state:
            _score_increment(size, x, f, z, row, stein_score, t)
        else:
            _log(size, x, _UNIT, y)
            if len(prev_denoised):
                _multistep_increment(
                    size, x, y, f, z, row, stein_score, prev_denoised[start:stop], t
                )
            else:
                _log_increment(size, x, y, f, z, row, stein_score, t)
        good = _move(size, t, sign_agnostic, log_state, x)
        if input_dtype != ABSENT:
            if sign_agnostic:
                _log(size, x, row[8] * _UNIT, t)
            else:
                _scale(size, row[8], t)
            write(size, input_dtype, t, model_input[start:stop], input_bits[start:stop])
        if not good:
            _poison(size, x)
            _mark(start, size, d, x, step, first_nonfinite_step)


# ---- the loops of a block: each is one pass without branches ----


@routine
def _scale(size, factor, x):
    for i in range(size):
        x[i] = factor * x[i]


@routine
def _log(size, x, factor, y):
    for i in range(size):
        y[i] = factor * log2_abs(x[i])


@routine
def _denoised(x, y, f, k0, k1, k2, stein_score):
    gain = k1 * x if stein_score else k1
    return fma(k0, y, fma(gain, f, k2))


@routine
def _log_increment(size, x, y, f, z, row, stein_score, t):
    a, b, _, c, s, k0, k1, k2, _ = row
    for i in range(size):
        denoised = _denoised(x[i], y[i], f[i], k0, k1, k2, stein_score)
        t[i] = fma(a, y[i], fma(b, denoised, fma(s, z[i], c)))


@routine
def _multistep_increment(size, x, y, f, z, row, stein_score, prev_denoised, t):
    """``_log_increment`` with D read from ``prev_denoised`` and written to it."""
    a, b, b_prev, c, s, k0, k1, k2, _ = row
    for i in range(size):
        denoised = _denoised(x[i], y[i], f[i], k0, k1, k2, stein_score)
        t[i] = fma(b_prev, prev_denoised[i], fma(a, y[i], fma(b, denoised, fma(s, z[i], c))))
        prev_denoised[i] = denoised


@routine
def _score_increment(size, x, f, z, row, stein_score, t):
    """t without the logarithm of the state."""
    c, s, k1 = row[3], row[4], row[6]
    for i in range(size):
        gain = k1 * x[i] if stein_score else k1
        t[i] = fma(gain, f[i], fma(s, z[i], c))


@routine
def _move(size, t, sign_agnostic, log_state, x):
    """Update the state; return whether all its values are normal numbers."""
    worst = _LARGEST
    for i in range(size):
        if sign_agnostic:
            x[i] = fma(x[i], t[i], x[i])
        elif log_state:
            x[i] = from_bits(to_bits(exp2(t[i])) | np.uint32(to_bits(x[i]) & SIGN))
        else:
            x[i] = x[i] * exp2(t[i])
        worst = min(worst, magnitude(x[i]))
    return worst >= NORMAL


@routine
def _poison(size, new):
    """Replace values that are not normal numbers by NaN."""
    for i in range(size):
        new[i] = new[i] if is_normal(new[i]) else NAN


@routine
def _mark(start, size, d, new, step, first_nonfinite_step):
    """Record the step for non-finite samples, unless an earlier one is recorded."""
    for row in range(start // d, (start + size - 1) // d + 1):
        if first_nonfinite_step[row] < 0:
            for i in range(max(row * d - start, 0), min((row + 1) * d - start, size)):
                if not is_normal(new[i]):
                    first_nonfinite_step[row] = step
                    break


@routine
def _per_element(start, size, d, coefficients, shift_of, s_of, c_in_of):
    """Expand the coefficients of samples to elements, rescaled for logarithms to base 2."""
    row, column, i = start // d, start % d, 0
    while i < size:
        shift, s, c_in = (
            coefficients[row, 0] * LOG2_E,
            coefficients[row, 1] * LOG2_E,
            coefficients[row, 2] * LN2,
        )
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
