# pyright: reportOperatorIssue=false
"""Triton device functions: heat-kernel noise, a rotation by a random angle in a random direction.

The angle is a function of a normal z. Its 1 - cos and the score's length are looked up in the
tables of ``fastmsgm.rotation.angle_table``.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastmsgm import constants

from .rows import SHORTEST, combine, dot, measure

_MANY_FEATURES = tl.constexpr(constants.MANY_FEATURES)
_Z_MAX = tl.constexpr(constants.Z_MAX)


@triton.jit
def _cell(position, nodes):
    """The node below a fractional position and the fraction above it; NaN counts as 0."""
    inside = tl.minimum(tl.maximum(position, 0.0), (nodes - 1).to(tl.float32))
    below = tl.minimum(inside.to(tl.int32), nodes - 2)
    return below, inside - below.to(tl.float32)


@triton.jit
def interpolate(ptr, z, columns):
    """A table row at the angle's normal z, by linear interpolation between columns."""
    column, part = _cell((z + _Z_MAX) * ((columns - 1).to(tl.float32) * (0.5 / _Z_MAX)), columns)
    low, high = tl.load(ptr + column), tl.load(ptr + column + 1)
    return low + part * (high - low)


@triton.jit
def node(table_ptr, position, nodes, columns):
    """The start of the table row below a fractional position, and the fraction above it."""
    below, part = _cell(position, nodes)
    return table_ptr + below * columns, part


@triton.jit
def between(ptr, part, z, columns):
    """Linear interpolation between the row at ptr and the next, at the angle's normal z."""
    low, high = interpolate(ptr, z, columns), interpolate(ptr + columns, z, columns)
    return low + part * (high - low)


@triton.jit
def rotation(u, scale, xi, v, D: tl.constexpr):
    """What ``rotate`` needs: xi, its part along u, the square of its tangent part, and v = 1 - cos.

    v is clamped to 0 .. 2, and 0 where xi has no direction. With few features xi may be nearly
    parallel to u, so its part along u is subtracted first and measured again.
    """
    if D < _MANY_FEATURES:
        xi = combine((1.0, -dot(xi, u, D) * scale * scale), (xi, u))
    rest, square = measure(xi, u, scale, D)
    v = tl.where(square > SHORTEST, tl.minimum(tl.maximum(v, 0.0), 2.0), 0.0)
    return xi, rest, tl.maximum(square, SHORTEST), v


@triton.jit
def rotate(u, scale, xi, rest, square, v):
    """u rotated towards xi, with the results of ``rotation``."""
    b = tl.sqrt(v * (2.0 - v)) * tl.rsqrt(square)
    return combine((((1.0 - v) - b * rest) * scale, b), (u, xi))
