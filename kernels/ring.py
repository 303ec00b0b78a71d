# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
"""Triton kernel of the ring step; signature and meaning are those of ``fastmsgm.reference``.

A program owns whole rows, and a lane one quad of features (four neighbours, which share one Philox counter) in each of
CHUNKS runs of LANES quads. A run of ``LANES <= 32`` lies in a warp, so that the one feature that a quad's last pair
needs of the next quad is a shuffle away. Lie's splitting is Strang's with other angles: all of them in the first half,
or, where the order is reversed, in the second one.

A quad is a tuple of its features, and a row a tuple of CHUNKS quads. The slots behind the last feature of a row of
d % 4 != 0 hold its first ones again, so that the pair around the end lies in the last quad.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl
from torch import Tensor

from fastmsgm import rng

from .gbm import _device
from .philox import _box_muller, _polynomial, flip, is_normal, words

_LANES, _CHUNKS = 32, 8  # of a row: a warp's, unless a lane would have more quads than fit into its registers
_WARPS = 4  # of a program, at least
_STEP_NOISE, _COIN = tl.constexpr(int(rng.Kind.STEP)), tl.constexpr(int(rng.Kind.ANGLE))
_SIN, _COS = tl.constexpr(rng.SIN), tl.constexpr(rng.COS)
_SQRT_HALF = tl.constexpr(math.sqrt(0.5))
_LARGEST = tl.constexpr(8192.0)  # no larger angle is taken
_QUARTERS, _EIGHTHS = tl.constexpr(2 / math.pi), tl.constexpr(4 / math.pi)
# pi/2 in parts of so few bits that their products with the 13 bits of the largest angle's quarter turns are exact.
_HIGH, _MIDDLE, _LOW = tl.constexpr(1.5703125), tl.constexpr(0.0004837512969970703), tl.constexpr(7.54979e-8)
_COLUMNS = tl.constexpr(3)  # of a coefficient table


@triton.jit
def _circle(angle):
    """Cosine and sine; NaN beyond the largest angle."""
    turns = tl.floor(angle * _QUARTERS + 0.5)
    f = (((angle - turns * _HIGH) - turns * _MIDDLE) - turns * _LOW) * _EIGHTHS
    f = tl.where(tl.abs(angle) <= _LARGEST, f, float("nan"))
    quadrant = turns.to(tl.int32).to(tl.uint32)
    sine, cosine = _polynomial(f * f, _SIN, 3) * f, _polynomial(f * f, _COS, 3)
    swap = (quadrant & 1) != 0
    x = flip(tl.where(swap, sine, cosine), (quadrant + 1) << 30)
    y = flip(tl.where(swap, cosine, sine), quadrant << 30)
    return x, y


@triton.jit
def _turn(a, b, angle):
    """A pair of features."""
    c, s = _circle(angle)
    return c * a + s * b, c * b - s * a


# ---- the row's quads, and their neighbours ----


@triton.jit
def _split(x, ROWS: tl.constexpr, LANES: tl.constexpr):
    even, odd = tl.split(x.reshape(ROWS, LANES, 2, 2))
    x0, x2 = tl.split(even)
    x1, x3 = tl.split(odd)
    return x0, x1, x2, x3


@triton.jit
def _join(x0, x1, x2, x3, ROWS: tl.constexpr, LANES: tl.constexpr):
    return tl.join(tl.join(x0, x2), tl.join(x1, x3)).reshape(ROWS, LANES, 4)


@triton.jit
def _features(mask, I: tl.constexpr, D: tl.constexpr, LANES: tl.constexpr):
    """Of chunk I, and a mask of those of whole quads."""
    feature = (4 * LANES) * I + 4 * tl.arange(0, LANES)[None, :, None] + tl.arange(0, 4)[None, None, :]
    quad_mask = mask[:, :, None]
    if (4 * LANES) * (I + 1) > D:
        quad_mask = quad_mask & (feature < (D + 3) // 4 * 4)
    return feature, quad_mask


@triton.jit
def _load(ptr, base, mask, D: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr, CHUNKS: tl.constexpr):
    """Rows, and behind their last features the first ones."""
    x0, x1, x2, x3 = (), (), (), ()
    for i in tl.static_range(CHUNKS):
        feature, quad_mask = _features(mask, i, D, LANES)
        if D % 4 > 0:
            feature = tl.where(feature < D, feature, feature - D)
        x = tl.load(ptr + base[:, :, None] + feature, mask=quad_mask, other=0.0).to(tl.float32)
        a, b, c, d = _split(x, ROWS, LANES)
        x0 += (a,)
        x1 += (b,)
        x2 += (c,)
        x3 += (d,)
    return x0, x1, x2, x3


@triton.jit
def _store(ptr, base, mask, x, factor, D: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr, CHUNKS: tl.constexpr):
    x0, x1, x2, x3 = x
    for i in tl.static_range(CHUNKS):
        feature, quad_mask = _features(mask, i, D, LANES)
        if D % 4 > 0:
            quad_mask = quad_mask & (feature < D)
        quad = _join(x0[i] * factor, x1[i] * factor, x2[i] * factor, x3[i] * factor, ROWS, LANES)
        tl.store(ptr + base[:, :, None] + feature, quad, mask=quad_mask)


@triton.jit
def _within(angle, SLOT: tl.constexpr, I: tl.constexpr, END: tl.constexpr, LANES: tl.constexpr):
    """The angles of a slot of chunk I, zero from the feature END on."""
    if (4 * LANES) * (I + 1) > END:
        feature = (4 * LANES) * I + 4 * tl.arange(0, LANES)[None, :] + SLOT
        angle = tl.where(feature < END, angle, 0.0)
    return angle


@triton.jit
def _next(x, lane, D: tl.constexpr, LANES: tl.constexpr, CHUNKS: tl.constexpr):
    """The x of the next quad, for every chunk; behind the row's last quad comes its first."""
    LAST: tl.constexpr = ((D + 3) // 4 - 1) % LANES
    result = ()
    for i in tl.static_range(CHUNKS):
        end = LAST if i == CHUNKS - 1 else LANES - 1
        source = tl.where(lane == 0, x[(i + 1) % CHUNKS], x[i])
        result += (tl.gather(source, tl.where(lane >= end, 0, lane + 1), 1),)
    return result


@triton.jit
def _previous(x, lane, D: tl.constexpr, LANES: tl.constexpr, CHUNKS: tl.constexpr):
    """The x of the quad before, for every chunk; before the row's first quad comes its last."""
    LAST: tl.constexpr = ((D + 3) // 4 - 1) % LANES
    around = tl.gather(x[CHUNKS - 1], lane * 0 + LAST, 1)
    result = (tl.where(lane == 0, around, tl.gather(x[0], tl.maximum(lane - 1, 0), 1)),)
    for i in tl.static_range(1, CHUNKS):
        source = tl.where(lane == LANES - 1, x[i - 1], x[i])
        result += (tl.gather(source, tl.where(lane == 0, LANES - 1, lane - 1), 1),)
    return result


# ---- groups ----


@triton.jit
def _turn_even(x, angles, factor, D: tl.constexpr, LANES: tl.constexpr, CHUNKS: tl.constexpr):
    x0, x1, x2, x3 = x
    a0, _, a2, _ = angles
    y0, y1, y2, y3 = (), (), (), ()
    PAIRED: tl.constexpr = D // 2 * 2  # without the one that goes around the end
    for i in tl.static_range(CHUNKS):
        a, b = _turn(x0[i], x1[i], _within(a0[i] * factor, 0, i, PAIRED, LANES))
        c, d = _turn(x2[i], x3[i], _within(a2[i] * factor, 2, i, PAIRED, LANES))
        y0 += (a,)
        y1 += (b,)
        y2 += (c,)
        y3 += (d,)
    return y0, y1, y2, y3


@triton.jit
def _turn_odd(x, angles, factor, lane, D: tl.constexpr, LANES: tl.constexpr, CHUNKS: tl.constexpr):
    x0, x1, x2, x3 = x
    _, a1, _, a3 = angles
    x4 = _next(x0, lane, D, LANES, CHUNKS)
    last = lane == ((D + 3) // 4 - 1) % LANES
    if D % 4 == 2:  # the last feature is in slot 1 of the last quad, so its slot 2 is the first feature
        x2 = _replace(x2, tl.where(last, x4[CHUNKS - 1], x2[CHUNKS - 1]), CHUNKS - 1, CHUNKS)
    y1, y2, y3, y4 = (), (), (), ()
    for i in tl.static_range(CHUNKS):
        a, b = _turn(x1[i], x2[i], a1[i] * factor)
        c, d = _turn(x3[i], x4[i], a3[i] * factor)
        y1 += (a,)
        y2 += (b,)
        y3 += (c,)
        y4 += (d,)
    if D % 4 == 2:
        y4 = _replace(y4, tl.where(last, y2[CHUNKS - 1], y4[CHUNKS - 1]), CHUNKS - 1, CHUNKS)
    return _previous(y4, lane, D, LANES, CHUNKS), y1, y2, y3


@triton.jit
def _turn_around(x, angles, lane, D: tl.constexpr, LANES: tl.constexpr, CHUNKS: tl.constexpr):
    """The pair around the end of an odd number of features."""
    x0, x1, x2, x3 = x
    a0, _, a2, _ = angles
    LAST: tl.constexpr = ((D + 3) // 4 - 1) % LANES
    if D % 4 == 1:
        end, angle = x0[CHUNKS - 1], a0[CHUNKS - 1]
    else:
        end, angle = x2[CHUNKS - 1], a2[CHUNKS - 1]
    a, b = _turn(end, tl.gather(x0[0], lane * 0, 1), angle)
    end = tl.where(lane == LAST, a, end)
    if D % 4 == 1:
        x0 = _replace(x0, end, CHUNKS - 1, CHUNKS)
    else:
        x2 = _replace(x2, end, CHUNKS - 1, CHUNKS)
    first = tl.where(lane == 0, tl.gather(b, lane * 0 + LAST, 1), x0[0])
    return _replace(x0, first, 0, CHUNKS), x1, x2, x3


@triton.jit
def _replace(x, new, I: tl.constexpr, CHUNKS: tl.constexpr):
    result = ()
    for i in tl.static_range(CHUNKS):
        result += (new if i == I else x[i],)
    return result


@triton.jit
def _turn_all(
    x, first, second, before, behind, lane, D: tl.constexpr, LANES: tl.constexpr, CHUNKS: tl.constexpr
):  # fmt: skip
    """The angles of ``first`` in order, then those of ``second`` in reverse order, times ``before`` and ``behind``
    but in the middle group."""
    x = _turn_even(x, first, before, D, LANES, CHUNKS)
    if D % 2 == 0:
        x = _turn_odd(x, first, 1.0, lane, D, LANES, CHUNKS)
    else:
        x = _turn_odd(x, first, before, lane, D, LANES, CHUNKS)
        x = _turn_around(x, first, lane, D, LANES, CHUNKS)
        x = _turn_odd(x, second, behind, lane, D, LANES, CHUNKS)
    return _turn_even(x, second, behind, D, LANES, CHUNKS)


@triton.jit
def _square(x, D: tl.constexpr, LANES: tl.constexpr, CHUNKS: tl.constexpr):
    """|x|^2 of every row, (ROWS, 1)."""
    x0, x1, x2, x3 = x
    total = x0[0] * 0.0
    for i in tl.static_range(CHUNKS):
        total += _within(x0[i] * x0[i], 0, i, D, LANES) + _within(x1[i] * x1[i], 1, i, D, LANES)
        total += _within(x2[i] * x2[i], 2, i, D, LANES) + _within(x3[i] * x3[i], 3, i, D, LANES)
    return tl.sum(total, 1, keep_dims=True)


# ---- angles ----


@triton.jit
def _drift_angles(x, f, drift, lane, D: tl.constexpr, LANES: tl.constexpr, CHUNKS: tl.constexpr):
    """Zero behind the last pair."""
    x0, x1, x2, x3 = x
    f0, f1, f2, f3 = f
    x4, f4 = _next(x0, lane, D, LANES, CHUNKS), _next(f0, lane, D, LANES, CHUNKS)
    a0, a1, a2, a3 = (), (), (), ()
    for i in tl.static_range(CHUNKS):
        a0 += (_within(drift * (x1[i] * f0[i] - x0[i] * f1[i]), 0, i, D, LANES),)
        a1 += (_within(drift * (x2[i] * f1[i] - x1[i] * f2[i]), 1, i, D, LANES),)
        a2 += (_within(drift * (x3[i] * f2[i] - x2[i] * f3[i]), 2, i, D, LANES),)
        a3 += (_within(drift * (x4[i] * f3[i] - x3[i] * f4[i]), 3, i, D, LANES),)
    return a0, a1, a2, a3


@triton.jit
def _quad_normals(quad, sample, stream_ptr, kind, step):
    word0, word1, word2, word3 = words(quad, sample, stream_ptr, kind, step)
    z0, z1 = _box_muller(word0, word1)
    z2, z3 = _box_muller(word2, word3)
    return z0, z1, z2, z3


@triton.jit
def _noise_angles(
    noise, sample, lane, stream_ptr, step, FIRST: tl.constexpr, D: tl.constexpr, LANES: tl.constexpr,
    CHUNKS: tl.constexpr,
):  # fmt: skip
    """noise times the normals of the features from FIRST on, zero behind the last pair."""
    SHIFT: tl.constexpr = FIRST % 4
    a0, a1, a2, a3 = (), (), (), ()
    for i in tl.static_range(CHUNKS):
        z = _quad_normals(lane + (FIRST // 4 + i * LANES), sample, stream_ptr, _STEP_NOISE, step)
        if SHIFT > 0:
            z += _quad_normals(lane + (FIRST // 4 + i * LANES + 1), sample, stream_ptr, _STEP_NOISE, step)
        a0 += (_within(noise * z[SHIFT], 0, i, D, LANES),)
        a1 += (_within(noise * z[SHIFT + 1], 1, i, D, LANES),)
        a2 += (_within(noise * z[SHIFT + 2], 2, i, D, LANES),)
        a3 += (_within(noise * z[SHIFT + 3], 3, i, D, LANES),)
    return a0, a1, a2, a3


# ---- the step ----


@triton.jit(do_not_specialize=["n", "step"])
def _ring_step_kernel(
    x_ptr, f_ptr, table_ptr, stream_ptr, bad_ptr, out_ptr, history_ptr, net_in_ptr, n, step,
    D: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr, CHUNKS: tl.constexpr, HAS_HISTORY: tl.constexpr,
    HAS_NET_IN: tl.constexpr, RESTART: tl.constexpr, STRANG: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    lane = tl.broadcast_to(tl.arange(0, LANES)[None, :], (ROWS, LANES))
    base, mask = row * D, row < n
    table_ptr += step.to(tl.int64) * _COLUMNS
    drift, noise, c_in = tl.load(table_ptr), tl.load(table_ptr + 1), tl.load(table_ptr + 2)
    if STRANG:
        before, behind = 0.5, 0.5
    else:
        coin, _, _, _ = _quad_normals(lane * 0, row, stream_ptr, _COIN, step)
        before, behind = tl.where(coin < 0.0, 0.0, 1.0), tl.where(coin < 0.0, 1.0, 0.0)

    x = _load(x_ptr, base, mask, D, ROWS, LANES, CHUNKS)
    f = _load(f_ptr, base, mask, D, ROWS, LANES, CHUNKS)
    angles = _drift_angles(x, f, drift, lane, D, LANES, CHUNKS)
    if RESTART:
        x = _load(history_ptr, base, mask, D, ROWS, LANES, CHUNKS)
    elif HAS_HISTORY:
        _store(history_ptr, base, mask, x, 1.0, D, ROWS, LANES, CHUNKS)
    square = _square(x, D, LANES, CHUNKS)
    x = _turn_all(x, angles, angles, before, behind, lane, D, LANES, CHUNKS)
    if noise != 0.0:
        angles = _noise_angles(noise, row, lane, stream_ptr, step, 0, D, LANES, CHUNKS)
        if STRANG:
            second = _noise_angles(noise, row, lane, stream_ptr, step, D, D, LANES, CHUNKS)
            x = _turn_all(x, angles, second, _SQRT_HALF, _SQRT_HALF, lane, D, LANES, CHUNKS)
        else:
            x = _turn_all(x, angles, angles, before, behind, lane, D, LANES, CHUNKS)
    turned = _square(x, D, LANES, CHUNKS)
    to_20_bits = ((square.to(tl.uint32, bitcast=True) + 8) & 0xFFFFFFF0).to(tl.float32, bitcast=True)
    lost = ~(is_normal(square) & is_normal(turned))
    scale = tl.where(lost, float("nan"), tl.sqrt(to_20_bits / turned))

    _store(out_ptr, base, mask, x, scale, D, ROWS, LANES, CHUNKS)
    if HAS_NET_IN:
        _store(net_in_ptr, base, mask, x, c_in * scale, D, ROWS, LANES, CHUNKS)
    if HAS_HISTORY:
        _store(history_ptr, base, mask & lost, x, scale, D, ROWS, LANES, CHUNKS)
    marked = mask & lost
    tl.store(bad_ptr + row, step, mask=marked & (tl.load(bad_ptr + row, mask=marked, other=0) < 0))


def ring_step(
    x: Tensor, f: Tensor, table: Tensor, stream: Tensor, step: int, bad: Tensor, out: Tensor,
    history: Tensor | None, net_in: Tensor | None, restart: bool, strang: bool,
) -> None:  # fmt: skip
    """``reference.ring_step``."""
    n, d = x.shape
    rows, lanes, chunks, warps = _shape(d)
    with _device(x):
        _ring_step_kernel[(triton.cdiv(n, rows),)](
            x, f, table, stream, bad, out, history, net_in, n, step,
            d, rows, lanes, chunks, history is not None, net_in is not None, restart, strang, num_warps=warps,
        )  # fmt: skip


def _shape(d: int) -> tuple[int, int, int, int]:
    """Rows of a program, lanes and chunks of a row, warps."""
    quads = triton.cdiv(d, 4)
    lanes = triton.next_power_of_2(max(triton.cdiv(quads, _CHUNKS), min(quads, _LANES)))
    warps = max(_WARPS, lanes // 32)
    return 32 * warps // lanes, lanes, triton.cdiv(quads, lanes), warps
