# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
"""Triton device functions: Givens rotations of the pairs of neighbours of a ring, in groups of disjoint pairs.

The even group has the pairs whose first feature is even, the odd group those whose first is odd. For an odd number of
features, the pair around the end is a third group. Rows, and angles (half turns) by the first feature of a pair, are as
in ``ring_rows``. No angle is larger than LARGEST, or the sum of two such.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .maths import sine_cosine_of_half_turns
from .ring_rows import next_quad, of_first_quad, of_last_quad, previous_quad, replace, within

LARGEST = tl.constexpr(8192.0)  # half turns: no larger angle is taken
_ROUND = tl.constexpr(1.5 * 2**23)  # a sum with it is rounded to an integer, which its last bits are


@triton.jit
def circle(angle):
    """Cosine and sine of half turns."""
    rounded = angle + _ROUND
    sine, cosine = sine_cosine_of_half_turns(angle - (rounded - _ROUND))
    odd = rounded.to(tl.uint32, bitcast=True) << 31
    return _flipped(cosine, odd), _flipped(sine, odd)


@triton.jit
def _flipped(x, sign):
    """x, negated where the sign (0 or 2^31) is set: by a sum, which with the shift before it is one instruction."""
    return (x.to(tl.uint32, bitcast=True) + sign).to(tl.float32, bitcast=True)


@triton.jit
def turn(a, b, angle):
    """A pair of features."""
    c, s = circle(angle)
    return c * a + s * b, c * b - s * a


@triton.jit
def turn_even(x, angles, D: tl.constexpr):
    """The even group, but for the pair around the end of an odd number of features."""
    x0, x1, x2, x3 = x
    a0, _, a2, _ = angles
    x0, x1 = turn(x0, x1, within(a0, 0, D // 2 * 2))
    x2, x3 = turn(x2, x3, within(a2, 2, D // 2 * 2))
    return x0, x1, x2, x3


@triton.jit
def turn_odd(x, angles, lane, D: tl.constexpr):
    """The odd group."""
    x0, x1, x2, x3 = x
    _, a1, _, a3 = angles
    LAST: tl.constexpr = (D + 3) // 4 - 1
    x4 = next_quad(x0, lane, D)
    if D % 4 == 2:  # the last feature is in slot 1 of the last quad, so its slot 2 is the first feature
        x2 = replace(x2, x4, LAST)
    x1, x2 = turn(x1, x2, a1)
    x3, x4 = turn(x3, x4, a3)
    if D % 4 == 2:
        x4 = replace(x4, x2, LAST)
    return previous_quad(x4, lane, D), x1, x2, x3


@triton.jit
def turn_around(x, angles, lane, D: tl.constexpr):
    """The pair around the end of an odd number of features."""
    x0, x1, x2, x3 = x
    angle = of_last_quad(angles[(D - 1) % 4], lane, D)
    LAST: tl.constexpr = (D + 3) // 4 - 1
    first = of_first_quad(x0, lane)
    if D % 4 == 1:
        last, first = turn(of_last_quad(x0, lane, D), first, angle)
        x0 = replace(x0, last, LAST)
    else:
        last, first = turn(of_last_quad(x2, lane, D), first, angle)
        x2 = replace(x2, last, LAST)
    return replace(x0, first, 0), x1, x2, x3
