# pyright: reportArgumentType=false, reportAssignmentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false
"""Triton device functions: whole rows in registers.

A program owns ROWS rows, each a tuple of chunks of QUADS quads (four neighbouring features, which share one Philox
counter and lie in one thread), of which the last may be part empty: no row is padded to a power of two. Everything that
happens to a row is ``dot`` or ``combine`` with numbers of its own. A second projection costs no pass: of a projected
vector q, the rest q.u is measured together with q.q and goes into the numbers.

Noise is made and memory is accessed for a block of all chunks at once, (chunks, ROWS, QUADS, 4), with as many after the
last as make their number a power of two. That they are empty is known to the compiler, which drops whatever is done to
them; a copy of the code for every chunk would take it ten times as long.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .philox import normals

SHORTEST = tl.constexpr(1e-30)  # squared: a shorter vector has no direction
_POWERS = tl.constexpr(10)  # of two: more than the number of chunks has


@triton.jit
def tile(n, D: tl.constexpr, ROWS: tl.constexpr, QUADS: tl.constexpr):
    """The program's first row, its rows counted from it and which of them exist, and the block's columns."""
    CHUNKS: tl.constexpr = triton.cdiv(D, 4 * QUADS)
    first_row = tl.program_id(0).to(tl.int64) * ROWS
    row = tl.arange(0, ROWS)
    exists = row < (n - first_row if ROWS > 1 else 1)
    chunk = tl.arange(0, triton.next_power_of_2(CHUNKS))[:, None, None, None]
    column = 4 * (chunk * QUADS + tl.arange(0, QUADS)[:, None]) + tl.arange(0, 4)
    return first_row, row[:, None], exists[:, None], column


@triton.jit
def load(ptr, n, first_row, row, column, D: tl.constexpr):
    """Rows in float32, 0 beyond their ends.

    Rows that do not exist are copies of the last: a mask for them would cost an instruction for every register.
    """
    row = first_row + tl.minimum(row, n - 1 - first_row)
    x = tl.load(ptr + (row * D)[:, :, None] + column, mask=column < D, other=0.0)
    return _apart(x.to(tl.float32), D)


@triton.jit
def store(ptr, first_row, row, exists, column, x, D: tl.constexpr):
    """Rows in the dtype that ptr points to."""
    mask = exists[:, :, None] & (column < D)
    ROWS: tl.constexpr = exists.shape[0]
    QUADS: tl.constexpr = column.shape[2]
    parts = ()
    for k in tl.static_range(column.shape[0]):
        parts += (x[k if k < len(x) else 0].reshape(ROWS, QUADS, 4, 1),)
    for power in tl.static_range(_POWERS):
        if 2**power < column.shape[0]:
            pairs = ()
            for k in tl.static_range(0, len(parts), 2):
                pair = tl.join(parts[k], parts[k + 1]).permute(0, 1, 2, 4, 3)
                pairs += (pair.reshape(ROWS, QUADS, 4, 2 * parts[k].shape[3]),)
            parts = pairs
    tl.store(ptr + ((first_row + row) * D)[:, :, None] + column, parts[0].permute(3, 0, 1, 2), mask=mask)


@triton.jit
def _apart(block, D: tl.constexpr):
    """The chunks of a block, each (ROWS, 4 QUADS)."""
    ROWS: tl.constexpr = block.shape[1]
    QUADS: tl.constexpr = block.shape[2]
    parts = (block.permute(1, 2, 3, 0),)
    for power in tl.static_range(_POWERS):
        if 2**power < block.shape[0]:
            halves = ()
            for k in tl.static_range(len(parts)):
                pair = parts[k].reshape(ROWS, QUADS, 4, 2, parts[k].shape[3] // 2)
                halves += tl.split(pair.permute(0, 1, 2, 4, 3))
            parts = halves
    chunks = ()
    for k in tl.static_range(triton.cdiv(D, 4 * QUADS)):
        chunks += (parts[k].reshape(ROWS, 4 * QUADS),)
    return chunks


@triton.jit
def normal_rows(first_row, stream_ptr, kind, step, D: tl.constexpr, ROWS: tl.constexpr, QUADS: tl.constexpr):
    """Rows of normals, 0 beyond their ends."""
    CHUNKS: tl.constexpr = triton.next_power_of_2(triton.cdiv(D, 4 * QUADS))
    # In the order in which a tensor's elements are dealt out to threads, so that each gets a quad of every chunk.
    lane = tl.arange(0, CHUNKS * ROWS * QUADS)
    quad = lane // (ROWS * QUADS) * QUADS + lane % QUADS
    z = normals(quad, first_row, lane // QUADS % ROWS, stream_ptr, kind, step, 1.0)
    chunks = _apart(z.reshape(CHUNKS, ROWS, QUADS, 4), D)
    if D % (4 * QUADS) > 0:
        end = tl.where(tl.arange(0, 4 * QUADS)[None, :] < D % (4 * QUADS), chunks[-1], 0.0)
        chunks = chunks[:-1]
        chunks += (end,)
    return chunks


@triton.jit
def dot(x, y):
    """One number a row, (ROWS, 1). Products are added up chunk by chunk, so that each is a fused multiply-add."""
    total = x[0] * y[0]
    for i in tl.static_range(1, len(x)):
        total += x[i] * y[i]
    return tl.sum(total, axis=1, keep_dims=True)


@triton.jit
def combine(factors, rows):
    """The sum of factor row over the pairs of them."""
    chunks = ()
    for i in tl.static_range(len(rows[0])):
        total = rows[0][i] * factors[0]
        for k in tl.static_range(1, len(rows)):
            total += rows[k][i] * factors[k]
        chunks += (total,)
    return chunks


@triton.jit
def inverse_norm(u):
    """1 / |u|; NaN where |u|^2 is infinite, infinite where it is zero: times a zero u, NaN too."""
    square = dot(u, u)
    return tl.where(square < float("inf"), tl.rsqrt(square), float("nan"))


@triton.jit
def measure(q, u, scale):
    """Of q, projected once: its rest along u, and the square of what is tangent (rounded, never negative)."""
    rest = dot(q, u) * scale
    return rest, tl.abs(dot(q, q) - rest * rest)
