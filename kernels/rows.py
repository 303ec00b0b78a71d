# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
"""Triton device functions: whole rows in registers.

A program owns ROWS rows, each a tuple of chunks of QUADS quads (four neighbouring features, which share one Philox
counter and lie in one thread), of which the last may be part empty: no row is padded to a power of two. Everything that
happens to a row is ``dot`` or ``combine`` with numbers of its own. A second projection costs no pass: of a projected
vector q, the rest q.u is measured together with q.q and goes into the numbers.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .philox import normal_quads

SHORTEST = tl.constexpr(1e-30)  # squared: a shorter vector has no direction


@triton.jit
def tile(n, D: tl.constexpr, ROWS: tl.constexpr, QUADS: tl.constexpr):
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
def load(ptr, offsets, masks):
    """Rows in float32, 0 beyond their ends."""
    chunks = ()
    for i in tl.static_range(len(offsets)):
        chunks += (tl.load(ptr + offsets[i], mask=masks[i], other=0.0).to(tl.float32),)
    return chunks


@triton.jit
def store(ptr, offsets, masks, x):
    """Rows in the dtype that ptr points to."""
    for i in tl.static_range(len(offsets)):
        tl.store(ptr + offsets[i], x[i], mask=masks[i])


@triton.jit
def normal_rows(first_row, stream_ptr, kind, step, D: tl.constexpr, ROWS: tl.constexpr, QUADS: tl.constexpr):
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
