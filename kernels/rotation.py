# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
"""Triton kernels of rotation: perturb and step, on directions u (rows), every norm exactly one.

The functions have the signatures and the meaning of ``fastmsgm.reference``. A program owns whole rows and keeps them in
registers: every array is read once, before anything is written, so the state may be updated in place.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .geodesics import exponential_map, flow
from .heat_noise import between, interpolate, node, turn, turned
from .launch import WARP, device
from .lost import mark
from .philox import ANGLE, STEP, TRAINING_ANGLE, TRAINING_NOISE, first_normal, row_of
from .rows import combine, inverse_norm, load, normal_rows, store, tile

_THREADS = 128  # of a program at least: several short rows share it
_MOST_LANES = 512  # of a row: more would leave a lane too few registers; rows of more than 16,384 features spill
_COLUMNS = tl.constexpr(9)  # of a coefficient table


def launch_shape(d: int) -> tuple[int, int, int]:
    """Rows of a program, lanes that share a row, warps.

    Every lane repeats the work on its row's numbers, so it has much of the row: up to 13 quads, of which three arrays
    still fit in its registers. Rows of 16 features and more are shared by lanes all the same (by four, if they can have
    four quads each), so that a warp reads whole sectors.
    """
    quads = triton.cdiv(d, 4)
    fewest, whole = (triton.next_power_of_2(triton.cdiv(quads, most)) for most in (13, 4))
    lanes = min(max(fewest, min(whole, 4)), _MOST_LANES)
    threads = max(lanes, _THREADS)
    return threads // lanes, lanes, threads // WARP


@triton.jit(do_not_specialize=["n", "step", "nodes", "columns"])
def _rotation_perturb_kernel(
    u0_ptr, coefficients_ptr, table_ptr, stream_ptr, u_t_ptr, net_in_ptr, target_ptr, n, step, nodes, columns,
    D: tl.constexpr, ROWS: tl.constexpr, QUADS: tl.constexpr,
    HAS_U_T: tl.constexpr, HAS_NET_IN: tl.constexpr, HAS_TARGET: tl.constexpr,
):  # fmt: skip
    first_row, row, exists = tile(n, ROWS)
    # Noise first: with the row in registers by then, it would take more of them.
    xi = normal_rows(first_row, stream_ptr, TRAINING_NOISE, step, D, ROWS, QUADS)
    u0 = load(u0_ptr, n, first_row, D, ROWS, QUADS)
    row_ptr = coefficients_ptr + 4 * first_row + 4 * row
    spread = tl.load(row_ptr + 1, mask=exists, other=0.0)

    z = first_normal(first_row, row, stream_ptr, TRAINING_ANGLE, step)
    table_ptr, part = node(table_ptr, tl.load(row_ptr, mask=exists, other=0.0), nodes, columns)
    v = spread * between(table_ptr, part, z, columns)

    scale = inverse_norm(u0, D)
    xi, rest, square, v = turn(u0, scale, xi, v, D)
    if HAS_TARGET:
        size = between(table_ptr + nodes * columns, part, z, columns)
        sine = tl.sqrt(v * (2.0 - v))
        gain = tl.load(row_ptr + 2, mask=exists, other=0.0) * size * sine
        b = gain * (v - 1.0) * tl.rsqrt(square)
        store(target_ptr, n, first_row, combine(((gain * sine - b * rest) * scale, b), (u0, xi)), D)
    new = turned(u0, scale, xi, rest, square, v)
    if HAS_U_T:
        store(u_t_ptr, n, first_row, new, D)
    if HAS_NET_IN:
        c_in = tl.load(row_ptr + 3, mask=exists, other=0.0)
        store(net_in_ptr, n, first_row, combine((c_in,), (new,)), D)


@triton.jit(do_not_specialize=["n", "step", "columns"])
def _rotation_step_kernel(
    u_ptr, f_ptr, table_ptr, angles_ptr, stream_ptr, bad_ptr, out_ptr, history_ptr, net_in_ptr, n, step, columns,
    D: tl.constexpr, ROWS: tl.constexpr, QUADS: tl.constexpr, GEODESIC: tl.constexpr, HAS_ANGLES: tl.constexpr,
    HAS_HISTORY: tl.constexpr, HAS_NET_IN: tl.constexpr,
):  # fmt: skip
    first_row, row, exists = tile(n, ROWS)
    u, f = load(u_ptr, n, first_row, D, ROWS, QUADS), load(f_ptr, n, first_row, D, ROWS, QUADS)
    past = load(history_ptr, n, first_row, D, ROWS, QUADS) if HAS_HISTORY else None
    table_row = row_of(stream_ptr, step)
    table_ptr += table_row * _COLUMNS
    if GEODESIC:
        xi = normal_rows(first_row, stream_ptr, STEP, step, D, ROWS, QUADS)
        new, memory, lost = exponential_map(u, f, past, xi, table_ptr, D)
    else:
        new, memory, lost = flow(u, f, past, table_ptr, D)
    if HAS_HISTORY:
        store(history_ptr, n, first_row, memory, D)
    if HAS_ANGLES:
        z = first_normal(first_row, row, stream_ptr, ANGLE, step)
        v = tl.load(table_ptr + 7) * interpolate(angles_ptr + table_row * columns, z, columns)
        xi = normal_rows(first_row, stream_ptr, STEP, step, D, ROWS, QUADS)
        xi, rest, square, v = turn(new, 1.0, xi, v, D)
        new = turned(new, 1.0, xi, rest, square, v)
    store(out_ptr, n, first_row, new, D)
    if HAS_NET_IN:
        store(net_in_ptr, n, first_row, combine((tl.load(table_ptr + 8),), (new,)), D)
    mark(bad_ptr + first_row + row, lost & exists, table_row)


def rotation_perturb(
    u0: Tensor, coefficients: Tensor, table: Tensor, stream: Tensor, step: int,
    u_t: Tensor | None, net_in: Tensor | None, target: Tensor | None,
) -> None:  # fmt: skip
    """``reference.rotation_perturb``."""
    n, d = u0.shape
    rows, lanes, warps = launch_shape(d)
    with device(u0):
        _rotation_perturb_kernel[(triton.cdiv(n, rows),)](
            u0, coefficients, table, stream, u_t, net_in, target, n, step, table.shape[1], table.shape[2],
            d, rows, lanes, u_t is not None, net_in is not None, target is not None, num_warps=warps,
        )  # fmt: skip


def rotation_step(
    u: Tensor, f: Tensor, table: Tensor, angles: Tensor | None, stream: Tensor, step: int, bad: Tensor, out: Tensor,
    history: Tensor | None, net_in: Tensor | None, geodesic: bool,
) -> None:  # fmt: skip
    """``reference.rotation_step``."""
    n, d = u.shape
    rows, lanes, warps = launch_shape(d)
    columns = 0 if angles is None else angles.shape[1]
    with device(u):
        _rotation_step_kernel[(triton.cdiv(n, rows),)](
            u, f, table, angles, stream, bad, out, history, net_in, n, step, columns,
            d, rows, lanes, geodesic, angles is not None, history is not None, net_in is not None, num_warps=warps,
        )  # fmt: skip
