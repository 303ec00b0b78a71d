# pyright: reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false
"""Triton kernels of geometric Brownian motion: perturb, step, and the plain normals.

The functions have the signatures and the meaning of ``fastmsgm.reference``. Each makes one pass and
generates its noise in registers. A quad is four neighbouring features of a sample, which share one
Philox counter. A program owns a run of QUADS quads of the row-major (n, ceil(d / 4)) array of
quads, so no lane is wasted for any d. Every array is read before it is written, so the state may be
updated in place.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .launch import device
from .maths import LN2, LOG2_E, LOG2_UNIT, NORMAL, flip, log2, magnitude
from .nonfinite import is_normal, mark
from .philox import STEP, normals, row_of

# Quads of a program: eight per thread, which share keys, coefficients and addresses. Without
# sharing, these would be a tenth of all instructions.
QUADS = 1024
_COLUMNS = tl.constexpr(9)  # of a coefficient table


def _grid(n: int, d: int) -> tuple[int]:
    return (triton.cdiv(n * triton.cdiv(d, 4), QUADS),)


@triton.jit
def _tile(n, D: tl.constexpr, QUADS: tl.constexpr):
    """The program's quads.

    Returns the first row, the row of each quad counted from the first, the quad's index in its row,
    which quads exist, the first element, the elements counted from the first, and their mask.
    """
    QUADS_PER_ROW: tl.constexpr = (D + 3) // 4
    PADDING: tl.constexpr = 4 * QUADS_PER_ROW - D
    program = tl.program_id(0)
    first = program.to(tl.int64) * QUADS
    # QUADS_PER_ROW programs have QUADS rows, so all divisions are of 32 bits, except for rows of
    # 2^23 features or more.
    INT: tl.constexpr = tl.int32 if QUADS_PER_ROW * QUADS < 2**31 else tl.int64
    groups = program // QUADS_PER_ROW
    first_quad = (program - groups * QUADS_PER_ROW).to(INT) * QUADS
    whole_rows = first_quad // QUADS_PER_ROW
    first_row = groups.to(tl.int64) * QUADS + whole_rows
    quad = (first_quad - whole_rows * QUADS_PER_ROW).to(tl.int32) + tl.arange(0, QUADS)
    row = (quad.to(tl.uint32) // QUADS_PER_ROW).to(tl.int32)
    quad -= row * QUADS_PER_ROW
    exists = row < tl.minimum(n - first_row, QUADS).to(tl.int32)
    # One mask for the four elements of a quad keeps the accesses 16 bytes wide. Each element has
    # its own only if rows do not end at a whole quad.
    base, offsets = 4 * first, 4 * tl.arange(0, QUADS)[:, None] + tl.arange(0, 4)[None, :]
    mask = exists[:, None]
    if PADDING > 0:
        base -= PADDING * first_row
        offsets -= PADDING * row[:, None]
        mask = mask & (4 * quad[:, None] + tl.arange(0, 4)[None, :] < D)
    return first_row, row, quad, exists, base, offsets, mask


@triton.jit(do_not_specialize=["n", "purpose", "step"])
def _fill_normal_kernel(
    out_ptr, stream_ptr, n, purpose, step, D: tl.constexpr, QUADS: tl.constexpr
):
    first_row, row, quad, _, base, offsets, mask = _tile(n, D, QUADS)
    z = normals(quad, first_row, row, stream_ptr, purpose, step, 1.0)
    tl.store(out_ptr + base + offsets, z, mask=mask)


@triton.jit(do_not_specialize=["n", "purpose", "step"])
def _gbm_perturb_kernel(
    x0_ptr,
    coefficients_ptr,
    stream_ptr,
    x_t_ptr,
    model_input_ptr,
    z_ptr,
    n,
    purpose,
    step,
    D: tl.constexpr,
    QUADS: tl.constexpr,
    HAS_X_T: tl.constexpr,
    HAS_MODEL_INPUT: tl.constexpr,
    HAS_Z: tl.constexpr,
):
    first_row, row, quad, exists, base, offsets, mask = _tile(n, D, QUADS)
    x0 = tl.load(x0_ptr + base + offsets, mask=mask)
    row_ptr = coefficients_ptr + 3 * first_row + 3 * row
    shift = (tl.load(row_ptr, mask=exists) * LOG2_E)[:, None]
    s = (tl.load(row_ptr + 1, mask=exists) * LOG2_E)[:, None]
    if HAS_Z:
        z = normals(quad, first_row, row, stream_ptr, purpose, step, 1.0)
        tl.store(z_ptr + base + offsets, z, mask=mask)
        increment = shift + s * z
    else:
        increment = shift + normals(quad, first_row, row, stream_ptr, purpose, step, s)
    if HAS_X_T:
        tl.store(x_t_ptr + base + offsets, x0 * tl.exp2(increment), mask=mask)
    if HAS_MODEL_INPUT:
        c_in = (tl.load(row_ptr + 2, mask=exists) * LN2)[:, None]
        y = tl.where(is_normal(x0), log2(x0) * LOG2_UNIT, float("nan"))
        tl.store(model_input_ptr + base + offsets, c_in * (y + increment), mask=mask)


@triton.jit(do_not_specialize=["n", "step"])
def _gbm_step_kernel(
    x_ptr,
    model_output_ptr,
    table_ptr,
    stream_ptr,
    first_nonfinite_step_ptr,
    out_ptr,
    prev_denoised_ptr,
    model_input_ptr,
    n,
    step,
    D: tl.constexpr,
    QUADS: tl.constexpr,
    STEIN_SCORE: tl.constexpr,
    SIGN_AGNOSTIC: tl.constexpr,
    LOG_STATE: tl.constexpr,
    HAS_PREV_DENOISED: tl.constexpr,
    HAS_MODEL_INPUT: tl.constexpr,
):
    first_row, row, quad, exists, base, offsets, mask = _tile(n, D, QUADS)
    table_row = row_of(stream_ptr, step)
    table_ptr += table_row * _COLUMNS
    # y is log2|x|. The new logarithm is to base 2 as well, except in the sign-agnostic form. The
    # scalars contain the change of base.
    TO_BASE_2 = 1.0 if SIGN_AGNOSTIC else LOG2_E
    b, k1, k2 = tl.load(table_ptr + 1) * TO_BASE_2, tl.load(table_ptr + 6), tl.load(table_ptr + 7)
    c, s = tl.load(table_ptr + 3) * TO_BASE_2, tl.load(table_ptr + 4) * TO_BASE_2
    noise = normals(quad, first_row, row, stream_ptr, STEP, step, s)
    x = tl.load(x_ptr + base + offsets, mask=mask)
    g = tl.load(model_output_ptr + base + offsets, mask=mask).to(tl.float32)
    if STEIN_SCORE:
        g *= x

    if LOG_STATE:
        a, k0 = tl.load(table_ptr), tl.load(table_ptr + 5)
        y = log2(x)
        # Coefficients of log2|x|: of the direct term, and of the term through the denoised state.
        own, through = ((a - 1.0) * LN2 if SIGN_AGNOSTIC else a) * LOG2_UNIT, k0 * LN2 * LOG2_UNIT
        if HAS_PREV_DENOISED:
            denoised = through * y + (k1 * g + k2)
            b_prev = tl.load(table_ptr + 2) * TO_BASE_2
            prev = tl.load(prev_denoised_ptr + base + offsets, mask=mask)
            tl.store(prev_denoised_ptr + base + offsets, denoised, mask=mask)
            increment = own * y + (b * denoised + (b_prev * prev + (noise + c)))
        else:
            increment = (own + b * through) * y + (b * k1 * g + (noise + (b * k2 + c)))
        new = (
            x * (1.0 + increment)
            if SIGN_AGNOSTIC
            else flip(tl.exp2(increment), x.to(tl.uint32, bitcast=True))
        )
        size = tl.minimum(magnitude(new), magnitude(x))
    else:
        increment = b * k1 * g + (noise + (b * k2 + c))
        new = x * (1.0 + increment) if SIGN_AGNOSTIC else x * tl.exp2(increment)
        size = magnitude(new)
    kept = tl.where(size >= NORMAL, new, float("nan"))
    tl.store(out_ptr + base + offsets, kept, mask=mask)
    if HAS_MODEL_INPUT:
        y = log2(new) if SIGN_AGNOSTIC else increment
        c_in = tl.load(table_ptr + 8) * LN2 * (LOG2_UNIT if SIGN_AGNOSTIC else 1.0)
        # Adding 0.0 * kept gives NaN where the new state is NaN.
        tl.store(model_input_ptr + base + offsets, c_in * (y + 0.0 * kept), mask=mask)

    # One flag per quad, whose four elements lie in the same thread. Quads of one sample may race,
    # but they all write the same value.
    total = tl.sum(tl.abs(tl.where(mask, kept, 0.0) if D % 4 > 0 else kept), 1)
    nonfinite = total != total
    mark(first_nonfinite_step_ptr + first_row + row, nonfinite & exists, table_row)


def fill_normal(out: Tensor, stream: Tensor, purpose: int, step: int) -> None:
    """Fill ``out`` (n, d) with the stream's normals."""
    n, d = out.shape
    with device(out):
        _fill_normal_kernel[_grid(n, d)](out, stream, n, purpose, step, d, QUADS)


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
    """Perturb as ``reference.gbm_perturb``; model_input is NaN where x0 is not a normal number."""
    n, d = x0.shape
    with device(x0):
        _gbm_perturb_kernel[_grid(n, d)](
            x0,
            coefficients,
            stream,
            x_t,
            model_input,
            z,
            n,
            purpose,
            step,
            d,
            QUADS,
            x_t is not None,
            model_input is not None,
            z is not None,
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
    """Take a step as ``reference.gbm_step``; model_input is NaN where the new state is NaN."""
    n, d = x.shape
    with device(x):
        _gbm_step_kernel[_grid(n, d)](
            x,
            model_output,
            table,
            stream,
            first_nonfinite_step,
            out,
            prev_denoised,
            model_input,
            n,
            step,
            d,
            QUADS,
            stein_score,
            sign_agnostic,
            log_state,
            prev_denoised is not None,
            model_input is not None,
        )
