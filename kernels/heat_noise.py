# pyright: reportOperatorIssue=false
"""Triton device functions: heat-kernel noise, a turn by a random angle towards a random direction.

What belongs to the angle's normal z, 1 - cos among them, is looked up in tables of ``fastmsgm.heat_kernel``.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .rows import SHORTEST, combine, dot, measure

_LONG = tl.constexpr(64)  # features from which on noise is far from parallel to a direction
_Z_MAX = tl.constexpr(6.0)  # tables have columns for z = -6 .. 6


@triton.jit
def _cell(position, nodes):
    """The node below, and the part of the way to the next; NaN is taken for 0."""
    inside = tl.minimum(tl.maximum(position, 0.0), (nodes - 1).to(tl.float32))
    below = tl.minimum(inside.to(tl.int32), nodes - 2)
    return below, inside - below.to(tl.float32)


@triton.jit
def interpolate(ptr, z, columns):
    """A row of a table at the angle's normal, linearly between its columns."""
    column, part = _cell((z + _Z_MAX) * ((columns - 1).to(tl.float32) * (0.5 / _Z_MAX)), columns)
    low, high = tl.load(ptr + column), tl.load(ptr + column + 1)
    return low + part * (high - low)


@triton.jit
def node(table_ptr, position, nodes, columns):
    """Where a table's row below the position begins, and the part of the way to the next."""
    below, part = _cell(position, nodes)
    return table_ptr + below * columns, part


@triton.jit
def between(ptr, part, z, columns):
    """Linearly between the row at ptr and the next, at the angle's normal."""
    low, high = interpolate(ptr, z, columns), interpolate(ptr + columns, z, columns)
    return low + part * (high - low)


@triton.jit
def turn(u, scale, xi, v, D: tl.constexpr):
    """xi, its part along u and the square of the other; and 1 - cos = v, clamped, by which u turns, 0 where xi has no
    direction. In few features, where xi may be nearly parallel to u, that part is taken off beforehand."""
    if D < _LONG:
        xi = combine((1.0, -dot(xi, u, D) * scale * scale), (xi, u))
    rest, square = measure(xi, u, scale, D)
    v = tl.where(square > SHORTEST, tl.minimum(tl.maximum(v, 0.0), 2.0), 0.0)
    return xi, rest, tl.maximum(square, SHORTEST), v


@triton.jit
def turned(u, scale, xi, rest, square, v):
    """u turned towards xi, with what ``turn`` says of it."""
    b = tl.sqrt(v * (2.0 - v)) * tl.rsqrt(square)
    return combine((((1.0 - v) - b * rest) * scale, b), (u, xi))
