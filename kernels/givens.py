# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
"""Triton device functions: Givens rotations of neighbouring features of a ring.

Groups consist of disjoint pairs. The even group has the pairs whose first feature is even, the odd
group those whose first feature is odd. With an odd number of features, the pair around the end is a
third group. Rows are laid out as in ``ring_rows``, and so are the angles (half turns), at the first
feature of a pair. An angle is at most LARGEST, or the sum of two such angles.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastmsgm import constants

from .maths import sine_cosine_of_half_turns
from .ring_rows import next_quad, of_first_quad, of_last_quad, previous_quad, replace, within

LARGEST = tl.constexpr(constants.LARGEST_ANGLE)
_ROUND = tl.constexpr(constants.ROUND_TO_INTEGER)


@triton.jit
def circle(angle):
    """Cosine and sine of an angle in half turns."""
    rounded = angle + _ROUND
    sine, cosine = sine_cosine_of_half_turns(angle - (rounded - _ROUND))
    odd = rounded.to(tl.uint32, bitcast=True) << 31
    return _flipped(cosine, odd), _flipped(sine, odd)


@triton.jit
def _flipped(x, sign):
    """x, negated where the sign (0 or 2^31) is set.

    An addition fuses with the shift before it into one instruction.
    """
    return (x.to(tl.uint32, bitcast=True) + sign).to(tl.float32, bitcast=True)


@triton.jit
def rotate(a, b, angle):
    """Rotate a pair of features."""
    c, s = circle(angle)
    return c * a + s * b, c * b - s * a


@triton.jit
def rotate_even(x, angles, D: tl.constexpr):
    """Rotate the even group, without the pair around the end of an odd number of features."""
    x0, x1, x2, x3 = x
    a0, _, a2, _ = angles
    x0, x1 = rotate(x0, x1, within(a0, 0, D // 2 * 2))
    x2, x3 = rotate(x2, x3, within(a2, 2, D // 2 * 2))
    return x0, x1, x2, x3


@triton.jit
def rotate_odd(x, angles, lane, D: tl.constexpr):
    """Rotate the odd group."""
    x0, x1, x2, x3 = x
    _, a1, _, a3 = angles
    LAST: tl.constexpr = (D + 3) // 4 - 1
    x4 = next_quad(x0, lane, D)
    # With D % 4 == 2, the last feature is in slot 1 of the last quad, and slot 2 holds the first.
    if D % 4 == 2:
        x2 = replace(x2, x4, LAST)
    x1, x2 = rotate(x1, x2, a1)
    x3, x4 = rotate(x3, x4, a3)
    if D % 4 == 2:
        x4 = replace(x4, x2, LAST)
    return previous_quad(x4, lane, D), x1, x2, x3


@triton.jit
def rotate_wrap(x, angles, lane, D: tl.constexpr):
    """Rotate the pair around the end of an odd number of features."""
    x0, x1, x2, x3 = x
    angle = of_last_quad(angles[(D - 1) % 4], lane, D)
    LAST: tl.constexpr = (D + 3) // 4 - 1
    first = of_first_quad(x0, lane)
    if D % 4 == 1:
        last, first = rotate(of_last_quad(x0, lane, D), first, angle)
        x0 = replace(x0, last, LAST)
    else:
        last, first = rotate(of_last_quad(x2, lane, D), first, angle)
        x2 = replace(x2, last, LAST)
    return replace(x0, first, 0), x1, x2, x3
