# pyright: reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false
"""Triton kernel of the ring step, with the signature and meaning of ``reference.ring_step``.

A program owns whole rows (``ring_rows``) and executes the same code for all of them, although with
noise the groups of a row rotate in one of two orders. With an even number of features, rows in
reverse order are shifted by one feature and shifted back afterwards. With an odd number, the even
and the odd group rotate twice, and either the first or the last time by zero.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .givens import LARGEST, rotate_even, rotate_odd, rotate_wrap
from .launch import WARP, device
from .nonfinite import is_normal, mark
from .philox import STEP, box_muller, row_of, words
from .ring_rows import ahead, behind, largest, load, next_quad, square, store, tile, within

_LANES = 16  # of a row that has at least so many quads
# Most quads of a lane: what fits into its registers, and fewer if other things need registers.
_QUADS, _FEW_QUADS = 13, 8
_WARPS = 4  # fewest of a program
_COLUMNS = tl.constexpr(3)  # of a coefficient table


def launch_shape(d: int) -> tuple[int, int, int]:
    """Rows of a program, lanes of a row, warps.

    A row stays within a warp if possible. A row that does not, or whose last quad is partly empty,
    needs registers for the exchange between lanes.
    """
    quads = triton.cdiv(d, 4)
    few = quads > _QUADS * WARP or (d % 4 > 0 and quads <= _FEW_QUADS * WARP)
    fewest = triton.next_power_of_2(triton.cdiv(quads, _FEW_QUADS if few else _QUADS))
    lanes = max(fewest, triton.next_power_of_2(min(quads, _LANES)))
    warps = max(_WARPS, lanes // WARP)
    return WARP * warps // lanes, lanes, warps


@triton.jit
def _products(x, f, lane, D: tl.constexpr):
    """Angles by which a flow with a drift of one rotates the pairs; zero after the last pair."""
    x0, x1, x2, x3 = x
    f0, f1, f2, f3 = f
    x4, f4 = next_quad(x0, lane, D), next_quad(f0, lane, D)
    a0, a1 = within(x1 * f0 - x0 * f1, 0, D), within(x2 * f1 - x1 * f2, 1, D)
    a2, a3 = within(x3 * f2 - x2 * f3, 2, D), within(x4 * f3 - x3 * f4, 3, D)
    return a0, a1, a2, a3


@triton.jit
def _noise(noise, first_row, stream_ptr, step, D: tl.constexpr, lane):
    """Noise angles, zero after the last pair, and whether a row rotates its last group first."""
    ROWS: tl.constexpr = lane.shape[1]
    LANES: tl.constexpr = lane.shape[2]
    CHUNKS: tl.constexpr = triton.next_power_of_2(triton.cdiv(D, 4 * LANES))
    # In the order in which Triton distributes elements to threads, so that each thread gets a quad
    # of every chunk.
    index = tl.arange(0, CHUNKS * ROWS * LANES)
    quad, row = index // (ROWS * LANES) * LANES + index % LANES, index // LANES % ROWS
    word0, word1, word2, word3 = words(quad, first_row, row, stream_ptr, STEP, step)
    reverse = (
        largest(tl.where(quad == 0, (word1 & 1).to(tl.float32), 0.0).reshape(CHUNKS, ROWS, LANES))
        > 0.0
    )
    z0, z1 = box_muller(word0, word1, noise)
    z2, z3 = box_muller(word2, word3, noise)
    a0, a1 = z0.reshape(CHUNKS, ROWS, LANES), z1.reshape(CHUNKS, ROWS, LANES)
    a2, a3 = z2.reshape(CHUNKS, ROWS, LANES), z3.reshape(CHUNKS, ROWS, LANES)
    return (within(a0, 0, D), within(a1, 1, D), within(a2, 2, D), within(a3, 3, D)), reverse


@triton.jit
def _where(condition, a, b):
    a0, a1, a2, a3 = a
    b0, b1, b2, b3 = b
    return (
        tl.where(condition, a0, b0),
        tl.where(condition, a1, b1),
        tl.where(condition, a2, b2),
        tl.where(condition, a3, b3),
    )


@triton.jit
def _scaled(a, factor):
    a0, a1, a2, a3 = a
    return a0 * factor, a1 * factor, a2 * factor, a3 * factor


@triton.jit
def _sum(a, b):
    a0, a1, a2, a3 = a
    b0, b1, b2, b3 = b
    return a0 + b0, a1 + b1, a2 + b2, a3 + b3


@triton.jit
def _largest(a):
    """The largest absolute value of every row."""
    a0, a1, a2, a3 = a
    return largest(
        tl.maximum(tl.maximum(tl.abs(a0), tl.abs(a1)), tl.maximum(tl.abs(a2), tl.abs(a3)))
    )


@triton.jit
def _rotated_by_flow(x, a, drift, lane, D: tl.constexpr):
    """Rotate all groups by the flow: Strang splitting with the last group in the middle."""
    whole, half = _scaled(a, drift), _scaled(a, drift * 0.5)
    x = rotate_even(x, half, D)
    if D % 2 == 0:
        x = rotate_odd(x, whole, lane, D)
    else:
        x = rotate_odd(rotate_wrap(rotate_odd(x, half, lane, D), whole, lane, D), half, lane, D)
    return rotate_even(x, half, D)


@triton.jit
def _rotated_by_both(x, a, drift, xi, reverse, lane, D: tl.constexpr):
    """Rotate all groups by the flow and then, in reverse order, by noise.

    The flow starts with the first group or, where ``reverse`` is set, with the last.
    """
    if D % 2 == 0:
        # Shifted by one feature, the odd group becomes the even group.
        x, a = _where(reverse, ahead(x, lane, D), x), _where(reverse, ahead(a, lane, D), a)
        flow = _scaled(a, drift)
        x = rotate_even(x, flow, D)
        x = rotate_odd(x, _sum(flow, xi), lane, D)
        x = rotate_even(x, xi, D)
        return _where(reverse, behind(x, lane, D), x)
    in_order, in_reverse = tl.where(reverse, 0.0, 1.0), tl.where(reverse, 1.0, 0.0)
    before, after = _scaled(a, drift * in_order), _scaled(a, drift * in_reverse)
    xi_before, xi_after = _scaled(xi, in_reverse), _scaled(xi, in_order)
    x = rotate_odd(rotate_even(x, before, D), before, lane, D)
    x = rotate_wrap(x, _sum(_scaled(a, drift), xi_after), lane, D)
    x = rotate_even(rotate_odd(x, _sum(after, xi_after), lane, D), _sum(after, xi), D)
    return rotate_wrap(rotate_odd(x, xi_before, lane, D), xi_before, lane, D)


@triton.jit(do_not_specialize=["n", "step"])
def _ring_step_kernel(
    x_ptr,
    model_output_ptr,
    table_ptr,
    stream_ptr,
    first_nonfinite_step_ptr,
    out_ptr,
    step_start_ptr,
    model_input_ptr,
    n,
    step,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    HAS_STEP_START: tl.constexpr,
    HAS_MODEL_INPUT: tl.constexpr,
    RESTART: tl.constexpr,
    NOISY: tl.constexpr,
):
    first_row, row, mask, lane = tile(n, ROWS, LANES)
    table_row = row_of(stream_ptr, step)
    table_ptr += table_row * _COLUMNS

    # Generate the noise before the rows are loaded: on sm_100 it would otherwise lack a register.
    noise = tl.load(table_ptr + 1)
    xi, reverse = _noise(noise, first_row, stream_ptr, step, D, lane) if NOISY else (None, None)
    x, f = load(x_ptr, n, first_row, lane, D), load(model_output_ptr, n, first_row, lane, D)
    drift, a = tl.load(table_ptr), _products(x, f, lane, D)
    if RESTART:
        x = load(step_start_ptr, n, first_row, lane, D)
    elif HAS_STEP_START:
        store(step_start_ptr, first_row, mask, x, 1.0, D)
    size = square(x, D)
    most = _largest(a) * tl.abs(drift)
    if NOISY:
        most = tl.maximum(most, 8.0 * tl.abs(noise))
        x = _rotated_by_both(x, a, drift, xi, reverse, lane, D)
    else:
        x = _rotated_by_flow(x, a, drift, lane, D)
    now = square(x, D)
    to_20_bits = ((size.to(tl.uint32, bitcast=True) + 8) & 0xFFFFFFF0).to(tl.float32, bitcast=True)
    nonfinite = ~(is_normal(size) & is_normal(now) & (most <= LARGEST))
    scale = tl.where(nonfinite, float("nan"), tl.sqrt(to_20_bits / now))

    store(out_ptr, first_row, mask, x, scale, D)
    if HAS_MODEL_INPUT:
        store(model_input_ptr, first_row, mask, x, tl.load(table_ptr + 2) * scale, D)
    if HAS_STEP_START:
        nan = tl.full(x[0].shape, float("nan"), tl.float32)
        store(step_start_ptr, first_row, mask & nonfinite, (nan, nan, nan, nan), 1.0, D)
    mark(first_nonfinite_step_ptr + first_row + row, mask & nonfinite, table_row)


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
    """Take a step as ``reference.ring_step``."""
    n, d = x.shape
    rows, lanes, warps = launch_shape(d)
    with device(x):
        _ring_step_kernel[(triton.cdiv(n, rows),)](
            x,
            model_output,
            table,
            stream,
            first_nonfinite_step,
            out,
            step_start,
            model_input,
            n,
            step,
            d,
            rows,
            lanes,
            step_start is not None,
            model_input is not None,
            restart,
            noisy,
            num_warps=warps,
        )
