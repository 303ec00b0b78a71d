# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportOperatorIssue=false
"""Triton kernels of rotation: perturb and step, on directions u, rows of norm exactly one.

The functions have the signatures and the meaning of ``fastmsgm.reference``. A program owns whole
rows and keeps them in registers. It reads every array once, before it writes anything, so the state
may be updated in place.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .geodesics import exponential_map, flow
from .heat_noise import between, interpolate, node, rotate, rotation
from .launch import WARP, device
from .nonfinite import mark
from .philox import ANGLE, STEP, TRAINING_ANGLE, TRAINING_NOISE, first_normal, row_of
from .rows import combine, inverse_norm, load, normal_rows, store, tile

_THREADS = 128  # fewest of a program: several short rows share it
# Most lanes of a row: more would leave a lane too few registers. Rows of more than 16,384 features
# spill.
_MOST_LANES = 512
_COLUMNS = tl.constexpr(9)  # of a coefficient table


def launch_shape(d: int) -> tuple[int, int, int]:
    """Rows of a program, lanes of a row, warps.

    Every lane repeats the work on the row's coefficients, so a lane gets a large part of the row:
    up to 13 quads, of which three arrays still fit into its registers. Rows of 16 or more features
    are shared by several lanes nevertheless (by four, if each gets four quads), so that a warp
    reads whole sectors.
    """
    quads = triton.cdiv(d, 4)
    fewest, whole = (triton.next_power_of_2(triton.cdiv(quads, most)) for most in (13, 4))
    lanes = min(max(fewest, min(whole, 4)), _MOST_LANES)
    threads = max(lanes, _THREADS)
    return threads // lanes, lanes, threads // WARP


@triton.jit(do_not_specialize=["n", "step", "nodes", "columns"])
def _rotation_perturb_kernel(
    u0_ptr,
    coefficients_ptr,
    table_ptr,
    stream_ptr,
    u_t_ptr,
    model_input_ptr,
    target_ptr,
    n,
    step,
    nodes,
    columns,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    QUADS: tl.constexpr,
    HAS_U_T: tl.constexpr,
    HAS_MODEL_INPUT: tl.constexpr,
    HAS_TARGET: tl.constexpr,
):
    first_row, row, exists = tile(n, ROWS)
    # Generate the noise before the row is loaded: afterwards it would need more registers.
    xi = normal_rows(first_row, stream_ptr, TRAINING_NOISE, step, D, ROWS, QUADS)
    u0 = load(u0_ptr, n, first_row, D, ROWS, QUADS)
    row_ptr = coefficients_ptr + 4 * first_row + 4 * row
    spread = tl.load(row_ptr + 1, mask=exists, other=0.0)

    z = first_normal(first_row, row, stream_ptr, TRAINING_ANGLE, step)
    table_ptr, part = node(table_ptr, tl.load(row_ptr, mask=exists, other=0.0), nodes, columns)
    v = spread * between(table_ptr, part, z, columns)

    scale = inverse_norm(u0, D)
    xi, rest, square, v = rotation(u0, scale, xi, v, D)
    if HAS_TARGET:
        size = between(table_ptr + nodes * columns, part, z, columns)
        sine = tl.sqrt(v * (2.0 - v))
        gain = tl.load(row_ptr + 2, mask=exists, other=0.0) * size * sine
        b = gain * (v - 1.0) * tl.rsqrt(square)
        store(target_ptr, n, first_row, combine(((gain * sine - b * rest) * scale, b), (u0, xi)), D)
    new = rotate(u0, scale, xi, rest, square, v)
    if HAS_U_T:
        store(u_t_ptr, n, first_row, new, D)
    if HAS_MODEL_INPUT:
        c_in = tl.load(row_ptr + 3, mask=exists, other=0.0)
        store(model_input_ptr, n, first_row, combine((c_in,), (new,)), D)


@triton.jit(do_not_specialize=["n", "step", "columns"])
def _rotation_step_kernel(
    u_ptr,
    model_output_ptr,
    table_ptr,
    angles_ptr,
    stream_ptr,
    first_nonfinite_step_ptr,
    out_ptr,
    prev_denoised_ptr,
    model_input_ptr,
    n,
    step,
    columns,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    QUADS: tl.constexpr,
    GEODESIC: tl.constexpr,
    HAS_ANGLES: tl.constexpr,
    HAS_PREV_DENOISED: tl.constexpr,
    HAS_MODEL_INPUT: tl.constexpr,
):
    first_row, row, exists = tile(n, ROWS)
    u, f = (
        load(u_ptr, n, first_row, D, ROWS, QUADS),
        load(model_output_ptr, n, first_row, D, ROWS, QUADS),
    )
    prev = load(prev_denoised_ptr, n, first_row, D, ROWS, QUADS) if HAS_PREV_DENOISED else None
    table_row = row_of(stream_ptr, step)
    table_ptr += table_row * _COLUMNS
    if GEODESIC:
        xi = normal_rows(first_row, stream_ptr, STEP, step, D, ROWS, QUADS)
        new, memory, nonfinite = exponential_map(u, f, prev, xi, table_ptr, D)
    else:
        new, memory, nonfinite = flow(u, f, prev, table_ptr, D)
    if HAS_PREV_DENOISED:
        store(prev_denoised_ptr, n, first_row, memory, D)
    if HAS_ANGLES:
        z = first_normal(first_row, row, stream_ptr, ANGLE, step)
        v = tl.load(table_ptr + 7) * interpolate(angles_ptr + table_row * columns, z, columns)
        xi = normal_rows(first_row, stream_ptr, STEP, step, D, ROWS, QUADS)
        xi, rest, square, v = rotation(new, 1.0, xi, v, D)
        new = rotate(new, 1.0, xi, rest, square, v)
    store(out_ptr, n, first_row, new, D)
    if HAS_MODEL_INPUT:
        store(model_input_ptr, n, first_row, combine((tl.load(table_ptr + 8),), (new,)), D)
    mark(first_nonfinite_step_ptr + first_row + row, nonfinite & exists, table_row)


def rotation_perturb(
    u0: Tensor,
    coefficients: Tensor,
    table: Tensor,
    stream: Tensor,
    step: int,
    u_t: Tensor | None,
    model_input: Tensor | None,
    target: Tensor | None,
) -> None:
    """Perturb directions as ``reference.rotation_perturb``."""
    n, d = u0.shape
    rows, lanes, warps = launch_shape(d)
    with device(u0):
        _rotation_perturb_kernel[(triton.cdiv(n, rows),)](
            u0,
            coefficients,
            table,
            stream,
            u_t,
            model_input,
            target,
            n,
            step,
            table.shape[1],
            table.shape[2],
            d,
            rows,
            lanes,
            u_t is not None,
            model_input is not None,
            target is not None,
            num_warps=warps,
        )


def rotation_step(
    u: Tensor,
    model_output: Tensor,
    table: Tensor,
    angles: Tensor | None,
    stream: Tensor,
    step: int,
    first_nonfinite_step: Tensor,
    out: Tensor,
    prev_denoised: Tensor | None,
    model_input: Tensor | None,
    geodesic: bool,
) -> None:
    """Take a step as ``reference.rotation_step``."""
    n, d = u.shape
    rows, lanes, warps = launch_shape(d)
    columns = 0 if angles is None else angles.shape[1]
    with device(u):
        _rotation_step_kernel[(triton.cdiv(n, rows),)](
            u,
            model_output,
            table,
            angles,
            stream,
            first_nonfinite_step,
            out,
            prev_denoised,
            model_input,
            n,
            step,
            columns,
            d,
            rows,
            lanes,
            geodesic,
            angles is not None,
            prev_denoised is not None,
            model_input is not None,
            num_warps=warps,
        )
