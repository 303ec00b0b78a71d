# pyright: reportArgumentType=false, reportAssignmentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false
"""Triton device functions: whole rows in registers.

A program owns ROWS rows, a tensor (chunks, ROWS, 4 QUADS). A chunk of a row is QUADS quads (four neighbouring features,
which share one Philox counter and lie in one thread); a thread holds a quad of each chunk. The number of chunks is a
power of two, but no row is padded to one: that those after the last are empty is known to the compiler, which drops
whatever is done to them. Everything that happens to a row is ``dot`` or ``combine`` with numbers of its own,
(1, ROWS, 1). A second projection costs no pass: of a projected vector q, the rest q.u is measured together with q.q and
goes into the numbers.

No tensor is taken apart into its chunks by reshaping it: Triton 3.6 would do that through shared memory.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .philox import normals

SHORTEST = tl.constexpr(1e-30)  # squared: a shorter vector has no direction
NOTHING = tl.constexpr(-1e-99)  # -0.0 in float32, to add which is no instruction; -0.0 itself is taken for 0.0


@triton.jit
def tile(n, ROWS: tl.constexpr):
    """The program's first row, its rows counted from it and which of them exist."""
    first_row = tl.program_id(0).to(tl.int64) * ROWS
    row = tl.arange(0, ROWS)[None, :, None]
    return first_row, row, row < (n - first_row if ROWS > 1 else 1)


@triton.jit
def load(ptr, n, first_row, D: tl.constexpr, ROWS: tl.constexpr, QUADS: tl.constexpr):
    """Rows in float32, 0 beyond their ends.

    Rows that do not exist are copies of the last: a mask for them would cost an instruction for every register.
    """
    row, column = block(D, ROWS, QUADS)
    row = first_row + tl.minimum(row, n - 1 - first_row)
    x = tl.load(ptr + row * D + column, mask=column < D, other=0.0).to(tl.float32)
    return _without_empty(x.reshape(column.shape[0], ROWS, 4 * QUADS), D)


@triton.jit
def store(ptr, n, first_row, x, D: tl.constexpr):
    """Rows in the dtype that ptr points to."""
    ROWS: tl.constexpr = x.shape[1]
    row, column = block(D, ROWS, x.shape[2] // 4)
    mask = (row < (n - first_row if ROWS > 1 else 1)) & (column < D)
    x = _without_empty(x, D).reshape(column.shape[0], column.shape[1])
    tl.store(ptr + (first_row + row) * D + column, x, mask=mask)


@triton.jit
def block(D: tl.constexpr, ROWS: tl.constexpr, QUADS: tl.constexpr):
    """Rows and columns as memory is accessed, (chunks, 4 ROWS QUADS).

    With two dimensions there is one way to deal them out: the second one to the threads, and the first to registers.
    Columns are written so that no more than four are seen to be neighbours, or a thread gets eight of 16 bits.
    """
    chunk = tl.arange(0, triton.next_power_of_2(triton.cdiv(D, 4 * QUADS)))[:, None]
    element = tl.arange(0, 4 * ROWS * QUADS)[None, :]
    return element // (4 * QUADS), 4 * (chunk * QUADS + element // 4 % QUADS) + element % 4


@triton.jit
def _without_empty(x, D: tl.constexpr):
    """x, and zero in the empty chunks."""
    return tl.where(tl.arange(0, x.shape[0])[:, None, None] < triton.cdiv(D, x.shape[2]), x, 0.0)


@triton.jit
def normal_rows(first_row, stream_ptr, kind, step, D: tl.constexpr, ROWS: tl.constexpr, QUADS: tl.constexpr):
    """Rows of normals, 0 beyond their ends."""
    CHUNKS: tl.constexpr = triton.next_power_of_2(triton.cdiv(D, 4 * QUADS))
    # In the order in which a tensor's elements are dealt out to threads, so that each gets a quad of every chunk.
    lane = tl.arange(0, CHUNKS * ROWS * QUADS)
    quad = lane // (ROWS * QUADS) * QUADS + lane % QUADS
    z = normals(quad, first_row, lane // QUADS % ROWS, stream_ptr, kind, step, 1.0)
    column = tl.arange(0, CHUNKS)[:, None, None] * (4 * QUADS) + tl.arange(0, 4 * QUADS)
    return tl.where(column < D, z.reshape(CHUNKS, ROWS, 4 * QUADS), 0.0)


@triton.jit
def dot(x, y, D: tl.constexpr):
    """One number a row."""
    return _total(x * y, _last_chunk(x, D))


@triton.jit
def _total(x, last):
    """Sums over the first and the third axis. Chunks are added one by one, so that with a product each is a fused
    multiply-add: the last of running sums, where every Triton's order is that one."""
    return tl.sum(tl.sum(tl.where(last, tl.cumsum(x, 0), NOTHING), 0, keep_dims=True), 2, keep_dims=True)


@triton.jit
def _last_chunk(x, D: tl.constexpr):
    return tl.arange(0, x.shape[0])[:, None, None] == triton.cdiv(D, x.shape[2]) - 1


@triton.jit
def combine(factors, rows):
    """The sum of factor row over the pairs of them."""
    total = rows[0] * factors[0]
    for k in tl.static_range(1, len(rows)):
        total += rows[k] * factors[k]
    return total


@triton.jit
def inverse_norm(u, D: tl.constexpr):
    """1 / |u|; NaN where |u|^2 is infinite, infinite where it is zero: times a zero u, NaN too."""
    square = dot(u, u, D)
    return tl.where(square < float("inf"), tl.rsqrt(square), float("nan"))


@triton.jit
def measure(q, u, scale, D: tl.constexpr):
    """The part of q along u and the square of the other one (rounded, never negative).

    Both sums are one, so that q, if it is noise, comes to lie in the threads that hold u.
    """
    along, square = tl.split(_total(tl.join(q * u, q * q), _last_chunk(q, D)[:, :, :, None]))
    rest = along * scale
    return rest, tl.abs(square - rest * rest)
