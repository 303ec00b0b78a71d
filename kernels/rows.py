# pyright: reportArgumentType=false, reportAssignmentType=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
"""Triton device functions: whole rows in registers.

A program owns ROWS rows, as a tensor (chunks, ROWS, 4 QUADS). A chunk of a row is QUADS quads. A
quad is four neighbouring features, which share one Philox counter and lie in one thread. A thread
holds one quad of each chunk. The number of chunks is a power of two, but this costs no padding: the
compiler knows that the chunks after the last are empty and drops the work on them.

Rows are only processed by ``dot`` and by ``combine`` with coefficients per row, (1, ROWS, 1). A
second projection needs no further pass: the residual q.u of a projected vector q is measured
together with q.q and corrected through the coefficients.

Tensors are not split into chunks by a reshape, which in Triton 3.6 would go through shared memory.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastmsgm import constants

from .philox import normals

SHORTEST = tl.constexpr(constants.SHORTEST)
# This is -0.0 in float32. Adding it takes no instruction. Triton treats a literal -0.0 as 0.0.
NOTHING = tl.constexpr(-1e-99)


@triton.jit
def tile(n, ROWS: tl.constexpr):
    """The program's first row; its rows, counted from the first; and which of them exist."""
    first_row = tl.program_id(0).to(tl.int64) * ROWS
    row = tl.arange(0, ROWS)[None, :, None]
    return first_row, row, row < (n - first_row if ROWS > 1 else 1)


@triton.jit
def load(ptr, n, first_row, D: tl.constexpr, ROWS: tl.constexpr, QUADS: tl.constexpr):
    """Load rows in float32, 0 beyond their ends.

    Rows that do not exist are copies of the last row. A mask for them would cost an instruction per
    register.
    """
    row, column = block(D, ROWS, QUADS)
    row = first_row + tl.minimum(row, n - 1 - first_row)
    x = tl.load(ptr + row * D + column, mask=column < D, other=0.0).to(tl.float32)
    return _without_empty(x.reshape(column.shape[0], ROWS, 4 * QUADS), D)


@triton.jit
def store(ptr, n, first_row, x, D: tl.constexpr):
    """Store rows in the dtype that ptr points to."""
    ROWS: tl.constexpr = x.shape[1]
    row, column = block(D, ROWS, x.shape[2] // 4)
    mask = (row < (n - first_row if ROWS > 1 else 1)) & (column < D)
    x = _without_empty(x, D).reshape(column.shape[0], column.shape[1])
    tl.store(ptr + (first_row + row) * D + column, x, mask=mask)


@triton.jit
def block(D: tl.constexpr, ROWS: tl.constexpr, QUADS: tl.constexpr):
    """Rows and columns in the order of memory accesses, (chunks, 4 ROWS QUADS).

    With two dimensions, Triton has a single way to distribute elements: the second dimension over
    threads, the first over registers. The expression for columns shows Triton at most four
    neighbours; otherwise a thread would get eight elements of 16 bits.
    """
    chunk = tl.arange(0, triton.next_power_of_2(triton.cdiv(D, 4 * QUADS)))[:, None]
    element = tl.arange(0, 4 * ROWS * QUADS)[None, :]
    return element // (4 * QUADS), 4 * (chunk * QUADS + element // 4 % QUADS) + element % 4


@triton.jit
def _without_empty(x, D: tl.constexpr):
    """x, with zero in the empty chunks."""
    return tl.where(tl.arange(0, x.shape[0])[:, None, None] < triton.cdiv(D, x.shape[2]), x, 0.0)


@triton.jit
def normal_rows(
    first_row, stream_ptr, purpose, step, D: tl.constexpr, ROWS: tl.constexpr, QUADS: tl.constexpr
):
    """Rows of normals, 0 beyond their ends."""
    CHUNKS: tl.constexpr = triton.next_power_of_2(triton.cdiv(D, 4 * QUADS))
    # In the order in which Triton distributes elements to threads, so that each thread gets a quad
    # of every chunk.
    lane = tl.arange(0, CHUNKS * ROWS * QUADS)
    quad = lane // (ROWS * QUADS) * QUADS + lane % QUADS
    z = normals(quad, first_row, lane // QUADS % ROWS, stream_ptr, purpose, step, 1.0)
    column = tl.arange(0, CHUNKS)[:, None, None] * (4 * QUADS) + tl.arange(0, 4 * QUADS)
    return tl.where(column < D, z.reshape(CHUNKS, ROWS, 4 * QUADS), 0.0)


@triton.jit
def dot(x, y, D: tl.constexpr):
    """The dot product of each row of x with that of y."""
    return _total(x * y, _last_chunk(x, D))


@triton.jit
def _total(x, last):
    """Sums over the first and the third axis.

    Chunks are added one by one, so each addition of a product is a fused multiply-add. The sum is
    the last element of a cumulative sum, whose order is the same in every version of Triton.
    """
    return tl.sum(
        tl.sum(tl.where(last, tl.cumsum(x, 0), NOTHING), 0, keep_dims=True), 2, keep_dims=True
    )


@triton.jit
def _last_chunk(x, D: tl.constexpr):
    return tl.arange(0, x.shape[0])[:, None, None] == triton.cdiv(D, x.shape[2]) - 1


@triton.jit
def combine(factors, rows):
    """The linear combination sum_k factors[k] rows[k]."""
    total = rows[0] * factors[0]
    for k in tl.static_range(1, len(rows)):
        total += rows[k] * factors[k]
    return total


@triton.jit
def inverse_norm(u, D: tl.constexpr):
    """1 / |u|: NaN if |u|^2 is infinite; infinite if u is zero, and its product with u is NaN."""
    square = dot(u, u, D)
    return tl.where(square < float("inf"), tl.rsqrt(square), float("nan"))


@triton.jit
def measure(q, u, scale, D: tl.constexpr):
    """The part of q along u, and the square of its tangent part (rounded, never negative).

    Both are computed by one reduction, so that if q is noise, it is laid out in the threads that
    hold u.
    """
    along, square = tl.split(_total(tl.join(q * u, q * q), _last_chunk(q, D)[:, :, :, None]))
    rest = along * scale
    return rest, tl.abs(square - rest * rest)
