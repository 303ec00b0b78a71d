# pyright: reportArgumentType=false, reportAssignmentType=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
"""Triton device functions: rows of a ring in registers, each feature beside its neighbours.

A row is divided into chunks of LANES quads. A quad is four neighbouring features, which share one
Philox counter. A thread holds one quad of each chunk. Rows are four tensors (chunks, ROWS, LANES),
one for each feature of the quads. The number of chunks is a power of two. The compiler knows that
the chunks after a row's last are empty and drops the work on them. ``lane`` (1, ROWS, LANES)
numbers the lanes. Up to 32 lanes lie in one warp, so a feature of the next quad is one shuffle
away.

If d % 4 != 0, the slots after the last feature of a row repeat its first features, so that the pair
around the end lies in the last quad.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .rows import NOTHING, block


@triton.jit
def tile(n, ROWS: tl.constexpr, LANES: tl.constexpr):
    """The program's first row; its rows, counted from the first; which exist; and the lanes.

    The rows and the mask of those that exist are (1, ROWS, 1).
    """
    first_row = tl.program_id(0).to(tl.int64) * ROWS
    row = tl.arange(0, ROWS)[None, :, None]
    lane = tl.broadcast_to(tl.arange(0, LANES)[None, None, :], (1, ROWS, LANES))
    return first_row, row, row < n - first_row, lane


@triton.jit
def load(ptr, n, first_row, lane, D: tl.constexpr):
    """Load rows in float32, with their first features repeated after the last.

    Rows that do not exist are copies of the last row. A mask for them would cost an instruction per
    register.
    """
    ROWS: tl.constexpr = lane.shape[1]
    LANES: tl.constexpr = lane.shape[2]
    row, feature = block(D, ROWS, LANES)
    source = tl.where(feature < D, feature, feature - D) if D % 4 > 0 else feature
    row = first_row + tl.minimum(row, n - 1 - first_row)
    x = tl.load(ptr + row * D + source, mask=feature < triton.cdiv(D, 4) * 4, other=0.0)
    even, odd = tl.split(x.to(tl.float32).reshape(feature.shape[0], ROWS, LANES, 2, 2))
    x0, x2 = tl.split(even)
    x1, x3 = tl.split(odd)
    return x0, x1, x2, x3


@triton.jit
def store(ptr, first_row, mask, x, factor, D: tl.constexpr):
    """Store factor x in the dtype that ptr points to."""
    x0, x1, x2, x3 = x
    CHUNKS: tl.constexpr = x0.shape[0]
    ROWS: tl.constexpr = x0.shape[1]
    LANES: tl.constexpr = x0.shape[2]
    row, feature = block(D, ROWS, LANES)
    even, odd = tl.join(x0 * factor, x2 * factor), tl.join(x1 * factor, x3 * factor)
    quads = tl.join(even, odd).reshape(CHUNKS, 4 * ROWS * LANES)
    # The mask takes the same reshapes as the quads. Triton does not see through them that it is
    # constant within a quad, so ``max_constancy`` states it.
    mask = tl.broadcast_to(mask, (1, ROWS, LANES)).to(tl.int32)
    mask = tl.join(tl.join(mask, mask), tl.join(mask, mask)).reshape(1, 4 * ROWS * LANES)
    tl.store(
        ptr + (first_row + row) * D + feature,
        quads,
        mask=tl.max_constancy(mask > 0, (1, 4)) & (feature < D),
    )


@triton.jit
def within(x, SLOT: tl.constexpr, END: tl.constexpr):
    """x, which holds a slot of every quad, with zero from feature END on."""
    LANES: tl.constexpr = x.shape[2]
    if 4 * LANES * x.shape[0] > END:
        chunk = tl.arange(0, x.shape[0])[:, None, None]
        x = tl.where(4 * (chunk * LANES + tl.arange(0, LANES)) + SLOT < END, x, 0.0)
    return x


@triton.jit
def square(x, D: tl.constexpr):
    """|x|^2 of every row, (1, ROWS, 1)."""
    x0, x1, x2, x3 = x
    total = (
        within(x0 * x0, 0, D)
        + within(x1 * x1, 1, D)
        + within(x2 * x2, 2, D)
        + within(x3 * x3, 3, D)
    )
    return tl.sum(tl.sum(total, 0, keep_dims=True), 2, keep_dims=True)


@triton.jit
def largest(x):
    """The largest value of every row, (1, ROWS, 1); none may be negative."""
    return tl.max(tl.max(x, 0, keep_dims=True), 2, keep_dims=True)


# ---- neighbours; x holds one feature of every quad ----


@triton.jit
def next_quad(x, lane, D: tl.constexpr):
    """The x of the next quad; the row's last quad is followed by its first."""
    LANES: tl.constexpr = lane.shape[2]
    parts = _apart(x)
    LAST: tl.constexpr = triton.cdiv(D, 4 * LANES) - 1
    ahead = parts[1 : LAST + 1] + parts[:1] + parts[LAST + 1 :]
    end = tl.where(
        tl.arange(0, x.shape[0])[:, None, None] == LAST, (D + 3) // 4 - 1 - LANES * LAST, LANES - 1
    )
    return tl.gather(
        tl.where(lane == 0, _together(ahead), x), tl.where(lane >= end, 0, lane + 1), 2
    )


@triton.jit
def previous_quad(x, lane, D: tl.constexpr):
    """The x of the previous quad; the row's first quad is preceded by its last."""
    LANES: tl.constexpr = lane.shape[2]
    parts = _apart(x)
    LAST: tl.constexpr = triton.cdiv(D, 4 * LANES) - 1
    behind = (of_last_quad(x, lane, D),)
    behind += parts[:LAST] + parts[LAST + 1 :]
    source = tl.where(lane == LANES - 1, _together(behind), x)
    index = tl.where(lane == 0, LANES - 1, lane - 1)
    return tl.gather(source, tl.broadcast_to(index, x.shape), 2)


@triton.jit
def ahead(x, lane, D: tl.constexpr):
    """The next feature of every feature, in whole rows of an even number of features."""
    x0, x1, x2, x3 = x
    x4 = next_quad(x0, lane, D)
    if D % 4 == 2:
        x2, x4 = replace(x2, x4, (D + 3) // 4 - 1), within(x4, 3, D)
    return x1, x2, x3, x4


@triton.jit
def behind(x, lane, D: tl.constexpr):
    """The previous feature of every feature, in whole rows of an even number of features."""
    x0, x1, x2, x3 = x
    last = replace(x3, x1, (D + 3) // 4 - 1) if D % 4 == 2 else x3
    return previous_quad(last, lane, D), x0, x1, x2


@triton.jit
def of_first_quad(x, lane):
    """The x of the row's first quad, in every lane: (1, ROWS, LANES)."""
    return tl.gather(_apart(x)[0], lane * 0, 2)


@triton.jit
def of_last_quad(x, lane, D: tl.constexpr):
    """The x of the row's last quad, in every lane: (1, ROWS, LANES)."""
    LANES: tl.constexpr = lane.shape[2]
    LAST: tl.constexpr = triton.cdiv(D, 4 * LANES) - 1
    return tl.gather(_apart(x)[LAST], lane * 0 + ((D + 3) // 4 - 1 - LANES * LAST), 2)


@triton.jit
def replace(x, new, QUAD: tl.constexpr):
    """x, with the value of the row's quad QUAD taken from ``new``."""
    LANES: tl.constexpr = x.shape[2]
    quad = tl.arange(0, x.shape[0])[:, None, None] * LANES + tl.arange(0, LANES)
    return tl.where(quad == QUAD, new, x)


@triton.jit
def _apart(x):
    """The chunks of x, each (1, ROWS, LANES)."""
    parts = ()
    for k in tl.static_range(x.shape[0]):
        of_chunk = tl.arange(0, x.shape[0])[:, None, None] == k
        parts += (tl.sum(tl.where(of_chunk, x, NOTHING), 0, keep_dims=True),)
    return parts


@triton.jit
def _together(parts):
    """The inverse of ``_apart``."""
    CHUNKS: tl.constexpr = len(parts)
    whole = tl.broadcast_to(parts[0], (CHUNKS, parts[0].shape[1], parts[0].shape[2]))
    for k in tl.static_range(1, CHUNKS):
        whole = tl.where(tl.arange(0, CHUNKS)[:, None, None] == k, parts[k], whole)
    return whole
