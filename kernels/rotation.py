# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
"""Triton kernels of rotation: perturb and step, on directions u (rows), every norm exactly one.

The functions have the signatures and the meaning of ``fastmsgm.reference``. A program owns whole rows and keeps them in
registers, as tuples of chunks of QUADS quads (four neighbouring features, which share one Philox counter and lie in one
thread): every array is read once, before anything is written, so the state may be updated in place. Everything that
happens to a row is ``_dot`` or ``_combine`` with numbers of its own. A second projection costs no pass: of a projected
vector q, the rest q.u is measured together with q.q and goes into the numbers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmsgm import rng

from .gbm import _device
from .philox import _COS, _SIN, _box_muller, _polynomial, normal_quads, words

_WARP = 64 if torch.version.hip else 32
_THREADS = 128  # of a program at least: several short rows share it
_MOST_LANES = 512  # of a row: more would leave a lane too few registers; rows of more than 16,384 features spill
_STEP_NOISE, _ANGLE = tl.constexpr(int(rng.Kind.STEP)), tl.constexpr(int(rng.Kind.ANGLE))
_TRAINING_NOISE = tl.constexpr(int(rng.Kind.TRAINING_NOISE))
_TRAINING_ANGLE = tl.constexpr(int(rng.Kind.TRAINING_ANGLE))
_COLUMNS = tl.constexpr(9)  # of a coefficient table
_SHORTEST = tl.constexpr(1e-30)  # squared: a shorter vector has no direction
_Z_MAX = tl.constexpr(6.0)  # angle tables have columns for z = -6 .. 6
_LOG2_E, _HALF_TURNS = tl.constexpr(1.4426950408889634), tl.constexpr(0.3183098861837907)


# ---- rows ----


@triton.jit
def _tile(n, D: tl.constexpr, ROWS: tl.constexpr, QUADS: tl.constexpr):
    """The program's first row, its rows counted from it and which of them exist, and each chunk's offsets and mask."""
    WIDTH: tl.constexpr = 4 * QUADS
    first_row = tl.program_id(0).to(tl.int64) * ROWS
    row = tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, WIDTH)[None, :]
    exists = row < (n - first_row if ROWS > 1 else 1)
    offsets, masks = (), ()
    for start in tl.static_range(0, D, WIDTH):
        offsets += (D * row + column + start,)
        masks += (exists & (column < D - start) if start + WIDTH > D else exists,)
    return first_row, row, exists, offsets, masks


@triton.jit
def _load(ptr, offsets, masks):
    """Rows in float32, 0 beyond their ends."""
    chunks = ()
    for i in tl.static_range(len(offsets)):
        chunks += (tl.load(ptr + offsets[i], mask=masks[i], other=0.0).to(tl.float32),)
    return chunks


@triton.jit
def _store(ptr, offsets, masks, x):
    for i in tl.static_range(len(offsets)):
        tl.store(ptr + offsets[i], x[i], mask=masks[i])


@triton.jit
def _normals(first_row, stream_ptr, kind, step, D: tl.constexpr, ROWS: tl.constexpr, QUADS: tl.constexpr):
    """Rows of normals, 0 beyond their ends."""
    WIDTH: tl.constexpr = 4 * QUADS
    lane = tl.arange(0, ROWS * QUADS)
    chunks = ()
    for start in tl.static_range(0, D, WIDTH):
        z = normal_quads(start // 4 + lane % QUADS, first_row + lane // QUADS, stream_ptr, kind, step)
        z = z.reshape(ROWS, WIDTH)
        chunks += (tl.where(tl.arange(0, WIDTH)[None, :] < D - start, z, 0.0) if start + WIDTH > D else z,)
    return chunks


@triton.jit
def _dot(x, y):
    """One number a row, (ROWS, 1). Products are added up chunk by chunk, so that each is a fused multiply-add."""
    total = x[0] * y[0]
    for i in tl.static_range(1, len(x)):
        total += x[i] * y[i]
    return tl.sum(total, axis=1, keep_dims=True)


@triton.jit
def _combine(factors, rows):
    """The sum of factor row over the pairs of them."""
    chunks = ()
    for i in tl.static_range(len(rows[0])):
        total = rows[0][i] * factors[0]
        for k in tl.static_range(1, len(rows)):
            total += rows[k][i] * factors[k]
        chunks += (total,)
    return chunks


@triton.jit
def _inverse_norm(u):
    """1 / |u|; NaN where |u|^2 is infinite, infinite where it is zero: times a zero u, NaN too."""
    square = _dot(u, u)
    return tl.where(square < float("inf"), tl.rsqrt(square), float("nan"))


@triton.jit
def _measure(q, u, scale):
    """Of q, projected once: its rest along u, and the square of what is tangent (rounded, never negative)."""
    rest = _dot(q, u) * scale
    return rest, tl.abs(_dot(q, q) - rest * rest)


# ---- heat-kernel noise ----


@triton.jit
def _row_normal(sample, stream_ptr, kind, step):
    """The first normal of each sample."""
    word0, word1, _, _ = words(tl.zeros_like(sample), sample, stream_ptr, kind, step)
    z, _ = _box_muller(word0, word1)
    return z


@triton.jit
def _cell(position, nodes):
    """The node below, and the part of the way to the next; NaN is taken for 0."""
    inside = tl.minimum(tl.maximum(position, 0.0), (nodes - 1).to(tl.float32))
    below = tl.minimum(inside.to(tl.int32), nodes - 2)
    return below, inside - below.to(tl.float32)


@triton.jit
def _interpolate(ptr, z, columns):
    """A row of a table at the angle's normal, linearly between its columns."""
    column, part = _cell((z + _Z_MAX) * ((columns - 1).to(tl.float32) * (0.5 / _Z_MAX)), columns)
    low, high = tl.load(ptr + column), tl.load(ptr + column + 1)
    return low + part * (high - low)


@triton.jit
def _turn(u, scale, xi, v):
    """The tangent xi, its rest and square; and 1 - cos = v, clamped, by which u turns, 0 where xi has no direction."""
    xi = _combine((1.0, -_dot(xi, u) * scale * scale), (xi, u))
    rest, square = _measure(xi, u, scale)
    v = tl.where(square > _SHORTEST, tl.minimum(tl.maximum(v, 0.0), 2.0), 0.0)
    return xi, rest, tl.maximum(square, _SHORTEST), v


@triton.jit
def _turned(u, scale, xi, rest, square, v):
    """u turned towards the tangent xi, with what ``_turn`` says of it."""
    b = tl.sqrt(v * (2.0 - v)) * tl.rsqrt(square)
    return _combine((((1.0 - v) - b * rest) * scale, b), (u, xi))


@triton.jit(do_not_specialize=["n", "step", "nodes", "columns"])
def _rotation_perturb_kernel(
    u0_ptr, coefficients_ptr, table_ptr, stream_ptr, u_t_ptr, net_in_ptr, target_ptr, n, step, nodes, columns,
    D: tl.constexpr, ROWS: tl.constexpr, QUADS: tl.constexpr,
    HAS_U_T: tl.constexpr, HAS_NET_IN: tl.constexpr, HAS_TARGET: tl.constexpr,
):  # fmt: skip
    first_row, row, exists, offsets, masks = _tile(n, D, ROWS, QUADS)
    base = first_row * D
    u0 = _load(u0_ptr + base, offsets, masks)
    row_ptr = coefficients_ptr + 4 * first_row + 4 * row
    spread = tl.load(row_ptr + 1, mask=exists, other=0.0)

    z = _row_normal(first_row + row, stream_ptr, _TRAINING_ANGLE, step)
    below, part = _cell(tl.load(row_ptr, mask=exists, other=0.0), nodes)
    low_ptr = table_ptr + below * columns
    low, high = _interpolate(low_ptr, z, columns), _interpolate(low_ptr + columns, z, columns)
    v = spread * (low + part * (high - low))

    scale = _inverse_norm(u0)
    xi = _normals(first_row, stream_ptr, _TRAINING_NOISE, step, D, ROWS, QUADS)
    xi, rest, square, v = _turn(u0, scale, xi, v)
    if HAS_TARGET:
        low_ptr += nodes * columns
        low, high = _interpolate(low_ptr, z, columns), _interpolate(low_ptr + columns, z, columns)
        sine = tl.sqrt(v * (2.0 - v))
        gain = tl.load(row_ptr + 2, mask=exists, other=0.0) * (low + part * (high - low)) * sine
        b = gain * (v - 1.0) * tl.rsqrt(square)
        _store(target_ptr + base, offsets, masks, _combine(((gain * sine - b * rest) * scale, b), (u0, xi)))
    new = _turned(u0, scale, xi, rest, square, v)
    if HAS_U_T:
        _store(u_t_ptr + base, offsets, masks, new)
    if HAS_NET_IN:
        c_in = tl.load(row_ptr + 3, mask=exists, other=0.0)
        _store(net_in_ptr + base, offsets, masks, _combine((c_in,), (new,)))


# ---- a step ----


@triton.jit
def _flow(u, f, past, table_ptr):
    """u after the exact flow to D_w, D, and which rows were lost; no ``past`` leaves its terms out."""
    alpha, sigma, length = tl.load(table_ptr), tl.load(table_ptr + 1), tl.load(table_ptr + 3)
    scale = _inverse_norm(u)
    f_u = _dot(f, u) * scale
    gain, along, radial = sigma, alpha, -sigma * f_u
    if len(past) > 0:
        w, past_u = tl.load(table_ptr + 2), _dot(past, u) * scale
        gain, along, radial = gain + w * gain, along + w * (along - past_u), radial + w * (radial + past_u)
        tangent = _combine((gain, radial * scale, -w), (f, u, past))
    else:
        tangent = _combine((gain, radial * scale), (f, u))

    # By the tangent of half the angle between u and D_w, and of half the angle by which u turns.
    rest, square = _measure(tangent, u, scale)
    whole = square + along * along
    size, width = tl.sqrt(whole), tl.sqrt(square)
    still = square <= tl.maximum(whole, 1.0) * _SHORTEST
    ahead = along >= 0.0
    half = tl.where(ahead, width, size - along) / tl.where(ahead, size + along, width)
    left = tl.exp2(-size * length * _LOG2_E)
    turned = half * (1.0 - left) / (1.0 + half * half * left)
    share = 1.0 / (1.0 + turned * turned)
    b = tl.where(still, 0.0, 2.0 * turned * share * tl.rsqrt(square))
    a = (tl.where(still, 1.0, (1.0 - turned * turned) * share) - b * rest) * scale

    lost = ~(whole < float("inf"))
    kept = (alpha - sigma * f_u) * scale
    a, kept = tl.where(lost, float("nan"), a), tl.where(lost, float("nan"), kept)
    return _combine((a, b), (u, tangent)), _combine((sigma, kept), (f, u)), lost


@triton.jit
def _circle(square):
    """cos t, sin t / t, (1 - cos t) / t^2 for t^2, by sine and cosine of t / 2."""
    angle = tl.sqrt(square)
    turns = tl.floor(angle * _HALF_TURNS + 0.5)
    f = 2.0 * (angle * _HALF_TURNS - turns)
    sine, cosine = _polynomial(f * f, _SIN, 3) * f, _polynomial(f * f, _COS, 3)
    odd = turns != 2.0 * tl.floor(turns * 0.5)
    versine = 2.0 * tl.where(odd, cosine * cosine, sine * sine)
    product = 2.0 * tl.where(odd, -sine * cosine, sine * cosine)
    small = square <= _SHORTEST
    return 1.0 - versine, tl.where(small, 1.0, product / angle), tl.where(small, 0.5, versine / square)


@triton.jit
def _exponential(u, f, past, xi, table_ptr):
    """u after the geodesic step, the velocity there, and which rows were lost; no ``past`` leaves its terms out.

    With way = -back past: first the factors of u, of the velocity at u (without its rest) and of the way.
    """
    drift, noise = tl.load(table_ptr + 4), tl.load(table_ptr + 5)
    scale = _inverse_norm(u)
    if len(past) > 0:
        velocity = _combine((drift, noise, tl.load(table_ptr + 2)), (f, xi, past))
    else:
        velocity = _combine((drift, noise), (f, xi))
    velocity = _combine((1.0, -_dot(velocity, u) * scale * scale), (velocity, u))
    rest, square = _measure(velocity, u, scale)
    cos, sinc, _ = _circle(square)
    if len(past) > 0:
        back = tl.load(table_ptr + 6)
        past_u, overlap = _dot(past, u) * scale, _dot(past, velocity)
        way = back * back * tl.abs(_dot(past, past) - past_u * past_u)
        cos_way, sinc_way, fall = _circle(way)
        on_way, swing = -back * (overlap - rest * past_u), square * sinc
        a = cos * cos_way - sinc * on_way * sinc_way
        a_past = -cos * on_way * sinc_way - swing * cos_way
        c = -back * (cos * sinc_way - sinc * on_way * fall)
        c_past = back * (cos * on_way * fall + swing * sinc_way)
        lost = ~(square + way < float("inf"))
        a = tl.where(lost, float("nan"), (a - sinc * rest - c * past_u) * scale)
        a_past = tl.where(lost, float("nan"), (a_past - cos * rest - c_past * past_u) * scale)
        rows = (u, velocity, past)
        return _combine((a, sinc, c), rows), _combine((a_past, cos, c_past), rows), lost
    else:
        lost = ~(square < float("inf"))
        a = tl.where(lost, float("nan"), (cos - sinc * rest) * scale)
        return _combine((a, sinc), (u, velocity)), velocity, lost


@triton.jit(do_not_specialize=["n", "step", "columns"])
def _rotation_step_kernel(
    u_ptr, f_ptr, table_ptr, angles_ptr, stream_ptr, bad_ptr, out_ptr, history_ptr, net_in_ptr, n, step, columns,
    D: tl.constexpr, ROWS: tl.constexpr, QUADS: tl.constexpr, GEODESIC: tl.constexpr, HAS_ANGLES: tl.constexpr,
    HAS_HISTORY: tl.constexpr, HAS_NET_IN: tl.constexpr,
):  # fmt: skip
    first_row, row, exists, offsets, masks = _tile(n, D, ROWS, QUADS)
    base = first_row * D
    u, f = _load(u_ptr + base, offsets, masks), _load(f_ptr + base, offsets, masks)
    past = ()
    if HAS_HISTORY:
        past = _load(history_ptr + base, offsets, masks)
    table_ptr += step.to(tl.int64) * _COLUMNS
    if GEODESIC:
        xi = _normals(first_row, stream_ptr, _STEP_NOISE, step, D, ROWS, QUADS)
        new, memory, lost = _exponential(u, f, past, xi, table_ptr)
    else:
        new, memory, lost = _flow(u, f, past, table_ptr)
    if HAS_HISTORY:
        _store(history_ptr + base, offsets, masks, memory)
    if HAS_ANGLES:
        z = _row_normal(first_row + row, stream_ptr, _ANGLE, step)
        v = tl.load(table_ptr + 7) * _interpolate(angles_ptr + step.to(tl.int64) * columns, z, columns)
        xi = _normals(first_row, stream_ptr, _STEP_NOISE, step, D, ROWS, QUADS)
        xi, rest, square, v = _turn(new, 1.0, xi, v)
        new = _turned(new, 1.0, xi, rest, square, v)
    _store(out_ptr + base, offsets, masks, new)
    if HAS_NET_IN:
        _store(net_in_ptr + base, offsets, masks, _combine((tl.load(table_ptr + 8),), (new,)))

    # Both accesses are off unless a row was lost.
    bad_ptrs, lost = bad_ptr + first_row + row, lost & exists
    tl.store(bad_ptrs, step, mask=lost & (tl.load(bad_ptrs, mask=lost, other=0) < 0))


# ---- launches ----


def rotation_perturb(
    u0: Tensor, coefficients: Tensor, table: Tensor, stream: Tensor, step: int,
    u_t: Tensor | None, net_in: Tensor | None, target: Tensor | None,
) -> None:  # fmt: skip
    """``reference.rotation_perturb``."""
    n, d = u0.shape
    rows, lanes, warps = _shape(d)
    with _device(u0):
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
    rows, lanes, warps = _shape(d)
    columns = 0 if angles is None else angles.shape[1]
    with _device(u):
        _rotation_step_kernel[(triton.cdiv(n, rows),)](
            u, f, table, angles, stream, bad, out, history, net_in, n, step, columns,
            d, rows, lanes, geodesic, angles is not None, history is not None, net_in is not None, num_warps=warps,
        )  # fmt: skip


def _shape(d: int) -> tuple[int, int, int]:
    """Rows of a program, lanes that share a row, warps.

    Every lane repeats the work on its row's numbers, so it has much of the row: up to 13 quads, of which three arrays
    still fit in its registers. Rows of 16 features and more are shared by lanes all the same (by four, if they can have
    four quads each), so that a warp reads whole sectors.
    """
    quads = triton.cdiv(d, 4)
    fewest, whole = (triton.next_power_of_2(triton.cdiv(quads, most)) for most in (13, 4))
    lanes = min(max(fewest, min(whole, 4)), _MOST_LANES)
    threads = max(lanes, _THREADS)
    return threads // lanes, lanes, threads // _WARP
