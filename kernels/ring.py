# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
"""Triton kernel of the ring step; signature and meaning are those of ``fastmsgm.reference``.

A program owns whole rows (``ring_rows``). Lie's splitting is Strang's with other angles: all of them in the first half,
or, where the order is reversed, in the second one.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl
from torch import Tensor

from .givens import turn_all
from .launch import WARP, device
from .lost import is_normal, mark
from .philox import ANGLE, STEP, first_normal, four_normals, row_of
from .ring_rows import load, next_quad, square, store, within

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
def _drift_angles(x, f, drift, lane, D: tl.constexpr):
    """Zero behind the last pair."""
    x0, x1, x2, x3 = x
    f0, f1, f2, f3 = f
    x4, f4 = next_quad(x0, lane, D), next_quad(f0, lane, D)
    a0, a1, a2, a3 = (), (), (), ()
    for i in tl.static_range(len(x0)):
        a0 += (within(drift * (x1[i] * f0[i] - x0[i] * f1[i]), 0, i, D),)
        a1 += (within(drift * (x2[i] * f1[i] - x1[i] * f2[i]), 1, i, D),)
        a2 += (within(drift * (x3[i] * f2[i] - x2[i] * f3[i]), 2, i, D),)
        a3 += (within(drift * (x4[i] * f3[i] - x3[i] * f4[i]), 3, i, D),)
    return a0, a1, a2, a3


@triton.jit
def _noise_angles(noise, sample, lane, stream_ptr, step, FIRST: tl.constexpr, D: tl.constexpr):
    """noise times the normals of the features from FIRST on, zero behind the last pair."""
    LANES: tl.constexpr = lane.shape[1]
    SHIFT: tl.constexpr = FIRST % 4
    a0, a1, a2, a3 = (), (), (), ()
    for i in tl.static_range(((D + 3) // 4 + LANES - 1) // LANES):
        quad = lane + (FIRST // 4 + i * LANES)
        z = four_normals(quad, sample, stream_ptr, STEP, step)
        if SHIFT > 0:
            z += four_normals(quad + 1, sample, stream_ptr, STEP, step)
        a0 += (within(noise * z[SHIFT], 0, i, D),)
        a1 += (within(noise * z[SHIFT + 1], 1, i, D),)
        a2 += (within(noise * z[SHIFT + 2], 2, i, D),)
        a3 += (within(noise * z[SHIFT + 3], 3, i, D),)
    return a0, a1, a2, a3


@triton.jit(do_not_specialize=["n", "step"])
def _ring_step_kernel(
    x_ptr, f_ptr, table_ptr, stream_ptr, bad_ptr, out_ptr, history_ptr, net_in_ptr, n, step,
    D: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr, HAS_HISTORY: tl.constexpr, HAS_NET_IN: tl.constexpr,
    RESTART: tl.constexpr, STRANG: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    lane = tl.broadcast_to(tl.arange(0, LANES)[None, :], (ROWS, LANES))
    base, mask = row * D, row < n
    table_row = row_of(stream_ptr, step)
    table_ptr += table_row * _COLUMNS
    drift, noise, c_in = tl.load(table_ptr), tl.load(table_ptr + 1), tl.load(table_ptr + 2)
    if STRANG:
        before, behind = 0.5, 0.5
    else:
        coin = first_normal(row, stream_ptr, ANGLE, step)
        before, behind = tl.where(coin < 0.0, 0.0, 1.0), tl.where(coin < 0.0, 1.0, 0.0)

    x = load(x_ptr, base, mask, lane, D)
    f = load(f_ptr, base, mask, lane, D)
    angles = _drift_angles(x, f, drift, lane, D)
    if RESTART:
        x = load(history_ptr, base, mask, lane, D)
    elif HAS_HISTORY:
        store(history_ptr, base, mask, x, 1.0, D)
    size = square(x, D)
    x = turn_all(x, angles, angles, before, behind, lane, D)
    if noise != 0.0:
        angles = _noise_angles(noise, row, lane, stream_ptr, step, 0, D)
        if STRANG:
            second = _noise_angles(noise, row, lane, stream_ptr, step, D, D)
            x = turn_all(x, angles, second, _SQRT_HALF, _SQRT_HALF, lane, D)
        else:
            x = turn_all(x, angles, angles, before, behind, lane, D)
    now = square(x, D)
    to_20_bits = ((size.to(tl.uint32, bitcast=True) + 8) & 0xFFFFFFF0).to(tl.float32, bitcast=True)
    lost = ~(is_normal(size) & is_normal(now))
    scale = tl.where(lost, float("nan"), tl.sqrt(to_20_bits / now))

    store(out_ptr, base, mask, x, scale, D)
    if HAS_NET_IN:
        store(net_in_ptr, base, mask, x, c_in * scale, D)
    if HAS_HISTORY:
        store(history_ptr, base, mask & lost, x, scale, D)
    mark(bad_ptr + row, mask & lost, table_row)


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
