# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
"""Triton device functions: rows of a ring in registers, each feature beside its neighbours.

A lane holds one quad of features (four neighbours, which share one Philox counter) in each of a row's chunks, runs of
LANES quads. A quad is a tuple of its features, each (ROWS, LANES), so a row is four tuples of chunks. ``lane``
(ROWS, LANES) numbers the lanes. LANES <= 32 lie in a warp, so that a feature of the next quad is a shuffle away.

The slots behind the last feature of a row of d % 4 != 0 hold its first ones again, so that the pair around the end lies
in the last quad.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load(ptr, base, mask, lane, D: tl.constexpr):
    """Rows in float32, and behind their last features the first ones."""
    ROWS: tl.constexpr = lane.shape[0]
    LANES: tl.constexpr = lane.shape[1]
    x0, x1, x2, x3 = (), (), (), ()
    for i in tl.static_range(0, D, 4 * LANES):
        feature, quad_mask = _features(mask, i, D, LANES)
        if D % 4 > 0:
            feature = tl.where(feature < D, feature, feature - D)
        x = tl.load(ptr + base[:, :, None] + feature, mask=quad_mask, other=0.0).to(tl.float32)
        even, odd = tl.split(x.reshape(ROWS, LANES, 2, 2))
        a, c = tl.split(even)
        b, d = tl.split(odd)
        x0 += (a,)
        x1 += (b,)
        x2 += (c,)
        x3 += (d,)
    return x0, x1, x2, x3


@triton.jit
def store(ptr, base, mask, x, factor, D: tl.constexpr):
    """factor x."""
    x0, x1, x2, x3 = x
    ROWS: tl.constexpr = x0[0].shape[0]
    LANES: tl.constexpr = x0[0].shape[1]
    for i in tl.static_range(len(x0)):
        feature, quad_mask = _features(mask, 4 * LANES * i, D, LANES)
        if D % 4 > 0:
            quad_mask = quad_mask & (feature < D)
        even, odd = tl.join(x0[i] * factor, x2[i] * factor), tl.join(x1[i] * factor, x3[i] * factor)
        tl.store(ptr + base[:, :, None] + feature, tl.join(even, odd).reshape(ROWS, LANES, 4), mask=quad_mask)


@triton.jit
def _features(mask, START: tl.constexpr, D: tl.constexpr, LANES: tl.constexpr):
    """Of the chunk from feature START on, and a mask of those of whole quads."""
    feature = 4 * tl.arange(0, LANES)[None, :, None] + tl.arange(0, 4)[None, None, :] + START
    quad_mask = mask[:, :, None]
    if START + 4 * LANES > D:
        quad_mask = quad_mask & (feature < (D + 3) // 4 * 4)
    return feature, quad_mask


@triton.jit
def within(x, SLOT: tl.constexpr, I: tl.constexpr, END: tl.constexpr):
    """x, which belongs to a slot of chunk I, and zero from the feature END on."""
    LANES: tl.constexpr = x.shape[1]
    if 4 * LANES * (I + 1) > END:
        feature = 4 * tl.arange(0, LANES)[None, :] + (4 * LANES * I + SLOT)
        x = tl.where(feature < END, x, 0.0)
    return x


@triton.jit
def square(x, D: tl.constexpr):
    """|x|^2 of every row, (ROWS, 1)."""
    x0, x1, x2, x3 = x
    total = x0[0] * 0.0
    for i in tl.static_range(len(x0)):
        total += within(x0[i] * x0[i], 0, i, D) + within(x1[i] * x1[i], 1, i, D)
        total += within(x2[i] * x2[i], 2, i, D) + within(x3[i] * x3[i], 3, i, D)
    return tl.sum(total, 1, keep_dims=True)


# ---- neighbours: x is one feature of every quad, a tuple of chunks ----


@triton.jit
def next_quad(x, lane, D: tl.constexpr):
    """The x of the next quad; behind the row's last quad comes its first."""
    LANES: tl.constexpr = lane.shape[1]
    result = ()
    for i in tl.static_range(len(x)):
        end = _last(D, LANES) if i == len(x) - 1 else LANES - 1
        source = tl.where(lane == 0, x[(i + 1) % len(x)], x[i])
        result += (tl.gather(source, tl.where(lane >= end, 0, lane + 1), 1),)
    return result


@triton.jit
def previous_quad(x, lane, D: tl.constexpr):
    """The x of the quad before; before the row's first quad comes its last."""
    LANES: tl.constexpr = lane.shape[1]
    around = of_last_quad(x[-1], lane, D)
    result = (tl.where(lane == 0, around, tl.gather(x[0], tl.maximum(lane - 1, 0), 1)),)
    for i in tl.static_range(1, len(x)):
        source = tl.where(lane == LANES - 1, x[i - 1], x[i])
        result += (tl.gather(source, tl.where(lane == 0, LANES - 1, lane - 1), 1),)
    return result


@triton.jit
def of_first_quad(x, lane):
    """The x of the row's first quad, in every lane; x is of the first chunk."""
    return tl.gather(x, lane * 0, 1)


@triton.jit
def of_last_quad(x, lane, D: tl.constexpr):
    """The x of the row's last quad, in every lane; x is of the last chunk."""
    return tl.gather(x, lane * 0 + _last(D, lane.shape[1]), 1)


@triton.jit
def replace_last(x, new, lane, D: tl.constexpr):
    """x, with the last quad's from ``new``, (ROWS, LANES)."""
    result = x[:-1]
    result += (tl.where(lane == _last(D, lane.shape[1]), new, x[-1]),)
    return result


@triton.jit
def replace_first(x, new, lane):
    """x, with the first quad's from ``new``, (ROWS, LANES)."""
    result = (tl.where(lane == 0, new, x[0]),)
    result += x[1:]
    return result


@triton.jit
def _last(D: tl.constexpr, LANES: tl.constexpr):
    """The lane of a row's last quad."""
    LAST: tl.constexpr = (D + 3) // 4 - 1
    return LAST - LAST // LANES * LANES
