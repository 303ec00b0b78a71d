# pyright: reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
"""Triton kernel of the ring step; signature and meaning are those of ``fastmsgm.reference``.

A program owns whole rows (``ring_rows``). Lie's splitting is Strang's with other angles: all of them in the first half,
or, where the order is reversed, in the second one.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl
from torch import Tensor

from .givens import LARGEST, around, turn_even, turn_middle
from .launch import WARP, device
from .lost import is_normal, mark
from .philox import ANGLE, STEP, first_normal, four_normals, row_of
from .ring_rows import largest, load, next_quad, square, store, tile, within

_LANES, _QUADS = 32, 8  # of a row, of a lane: a warp's, unless a lane would have more than fit into its registers
_WARPS = 4  # of a program, at least
_SQRT_HALF = tl.constexpr(math.sqrt(0.5))
_COLUMNS = tl.constexpr(3)  # of a coefficient table


def launch_shape(d: int) -> tuple[int, int, int]:
    """Rows of a program, lanes of a row, warps."""
    quads = triton.cdiv(d, 4)
    lanes = triton.next_power_of_2(max(triton.cdiv(quads, _QUADS), min(quads, _LANES)))
    warps = max(_WARPS, lanes // WARP)
    return WARP * warps // lanes, lanes, warps


@triton.jit
def _drift_angles(x, f, lane, D: tl.constexpr):
    """By which a drift of one turns the pairs, zero behind the last one."""
    x0, x1, x2, x3 = x
    f0, f1, f2, f3 = f
    x4, f4 = next_quad(x0, lane, D), next_quad(f0, lane, D)
    a0, a1 = within(x1 * f0 - x0 * f1, 0, D), within(x2 * f1 - x1 * f2, 1, D)
    a2, a3 = within(x3 * f2 - x2 * f3, 2, D), within(x4 * f3 - x3 * f4, 3, D)
    return a0, a1, a2, a3


@triton.jit
def _noise_angles(noise, first_row, stream_ptr, step, FIRST: tl.constexpr, D: tl.constexpr, lane):
    """noise times the normals of the features from FIRST on, zero behind the last pair."""
    ROWS: tl.constexpr = lane.shape[1]
    LANES: tl.constexpr = lane.shape[2]
    CHUNKS: tl.constexpr = triton.next_power_of_2(triton.cdiv(D, 4 * LANES))
    SHIFT: tl.constexpr = FIRST % 4
    # In the order in which a tensor's elements are dealt out to threads, so that each gets a quad of every chunk.
    index = tl.arange(0, CHUNKS * ROWS * LANES)
    quad, row = index // (ROWS * LANES) * LANES + index % LANES + FIRST // 4, index // LANES % ROWS
    z = four_normals(quad, first_row, row, stream_ptr, STEP, step, noise)
    if SHIFT > 0:
        z += four_normals(quad + 1, first_row, row, stream_ptr, STEP, step, noise)
    a0, a1 = z[SHIFT].reshape(CHUNKS, ROWS, LANES), z[SHIFT + 1].reshape(CHUNKS, ROWS, LANES)
    a2, a3 = z[SHIFT + 2].reshape(CHUNKS, ROWS, LANES), z[SHIFT + 3].reshape(CHUNKS, ROWS, LANES)
    return within(a0, 0, D), within(a1, 1, D), within(a2, 2, D), within(a3, 3, D)


@triton.jit
def _turns(angles, others, whole, half, forth, STRANG: tl.constexpr, lane, D: tl.constexpr):
    """Angles of the groups' turns on the way to the middle one, on the way back, and of the pair around the end.

    Strang: by ``half`` of the angles, back by ``half`` of the others. Lie: by ``whole`` angles on one way or the other.
    The middle group (the odd one, for an even number of features) turns once, by ``whole``.
    """
    a0, a1, a2, a3 = angles
    b0, b1, b2, b3 = others
    if STRANG:
        there, back = (a0 * half, a1 * half, a2 * half, a3 * half), (b0 * half, b1 * half, b2 * half, b3 * half)
    else:
        there, back = _where(forth, angles, whole), _where(~forth, angles, whole)
    if D % 2 == 0:
        t0, _, t2, _ = there
        there = t0, a1 * whole, t2, a3 * whole
    return there, back, around(angles, lane, D) * whole


@triton.jit
def _where(condition, angles, factor):
    a0, a1, a2, a3 = angles
    a0, a1 = tl.where(condition, a0 * factor, 0.0), tl.where(condition, a1 * factor, 0.0)
    a2, a3 = tl.where(condition, a2 * factor, 0.0), tl.where(condition, a3 * factor, 0.0)
    return a0, a1, a2, a3


@triton.jit
def _most(there, back, end, D: tl.constexpr):
    """The largest angle of each thread."""
    a0, a1, a2, a3 = there
    b0, b1, b2, b3 = back
    most = tl.maximum(tl.maximum(tl.abs(a0), tl.abs(a1)), tl.maximum(tl.abs(a2), tl.abs(a3)))
    most = tl.maximum(most, tl.maximum(tl.abs(b0), tl.abs(b2)))
    if D % 2 > 0:
        most = tl.maximum(tl.maximum(most, tl.abs(end)), tl.maximum(tl.abs(b1), tl.abs(b3)))
    return most


@triton.jit(do_not_specialize=["n", "step"])
def _ring_step_kernel(
    x_ptr, f_ptr, table_ptr, stream_ptr, bad_ptr, out_ptr, history_ptr, net_in_ptr, n, step,
    D: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr, HAS_HISTORY: tl.constexpr, HAS_NET_IN: tl.constexpr,
    RESTART: tl.constexpr, STRANG: tl.constexpr,
):  # fmt: skip
    first_row, row, mask, lane = tile(n, ROWS, LANES)
    table_row = row_of(stream_ptr, step)
    table_ptr += table_row * _COLUMNS
    drift, noise, c_in = tl.load(table_ptr), tl.load(table_ptr + 1), tl.load(table_ptr + 2)

    x, f = load(x_ptr, n, first_row, row, lane, D), load(f_ptr, n, first_row, row, lane, D)
    angles = _drift_angles(x, f, lane, D)
    if RESTART:
        x = load(history_ptr, n, first_row, row, lane, D)
    elif HAS_HISTORY:
        store(history_ptr, first_row, row, mask, x, 1.0, D)
    size = square(x, D)
    forth = True if STRANG else first_normal(first_row, row, stream_ptr, ANGLE, step) >= 0.0
    there, back, end = _turns(angles, angles, drift, drift * 0.5, forth, STRANG, lane, D)
    most = _most(there, back, end, D)
    x = turn_middle(turn_even(x, there, D), there, back, end, lane, D)
    if noise != 0.0:
        angles = _noise_angles(noise, first_row, stream_ptr, step, 0, D, lane)
        others = _noise_angles(noise, first_row, stream_ptr, step, D, D, lane) if STRANG else angles
        b0, _, b2, _ = back
        there, back, end = _turns(angles, others, 1.0, _SQRT_HALF, forth, STRANG, lane, D)
        most = tl.maximum(most, _most(there, back, end, D))
        t0, t1, t2, t3 = there
        # The even group's turns back by drift and there by noise are one.
        x = turn_middle(turn_even(x, (b0 + t0, t1, b2 + t2, t3), D), there, back, end, lane, D)
    x = turn_even(x, back, D)
    now = square(x, D)
    to_20_bits = ((size.to(tl.uint32, bitcast=True) + 8) & 0xFFFFFFF0).to(tl.float32, bitcast=True)
    lost = ~(is_normal(size) & is_normal(now) & (largest(most) <= LARGEST))
    scale = tl.where(lost, float("nan"), tl.sqrt(to_20_bits / now))

    store(out_ptr, first_row, row, mask, x, scale, D)
    if HAS_NET_IN:
        store(net_in_ptr, first_row, row, mask, x, c_in * scale, D)
    if HAS_HISTORY:
        store(history_ptr, first_row, row, mask & lost, x, scale, D)
    mark(bad_ptr + first_row + row, mask & lost, table_row)


def ring_step(
    x: Tensor, f: Tensor, table: Tensor, stream: Tensor, step: int, bad: Tensor, out: Tensor,
    history: Tensor | None, net_in: Tensor | None, restart: bool, strang: bool,
) -> None:  # fmt: skip
    """``reference.ring_step``."""
    n, d = x.shape
    rows, lanes, warps = launch_shape(d)
    with device(x):
        _ring_step_kernel[(triton.cdiv(n, rows),)](
            x, f, table, stream, bad, out, history, net_in, n, step,
            d, rows, lanes, history is not None, net_in is not None, restart, strang, num_warps=warps,
        )  # fmt: skip
