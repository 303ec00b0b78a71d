# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
"""Triton device functions: Givens rotations of the pairs of neighbours of a ring, in groups of disjoint pairs.

The even group has the pairs whose first feature is even, the odd group those whose first is odd. For an odd number of
features, the pair around the end is a third group. Rows, and angles by the first feature of a pair, are as in
``ring_rows``.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

from .maths import flip, sine_cosine
from .ring_rows import next_quad, of_first_quad, of_last_quad, previous_quad, replace_first, replace_last, within

_LARGEST = tl.constexpr(8192.0)  # no larger angle is taken
_QUARTERS, _EIGHTHS = tl.constexpr(2 / math.pi), tl.constexpr(4 / math.pi)
# pi/2 in parts of so few bits that their products with the 13 bits of the largest angle's quarter turns are exact.
_HIGH, _MIDDLE, _LOW = tl.constexpr(1.5703125), tl.constexpr(0.0004837512969970703), tl.constexpr(7.54979e-8)


@triton.jit
def turn_all(x, first, second, before, behind, lane, D: tl.constexpr):
    """x turned by the angles of ``first``, group after group, then by those of ``second`` in reverse order.

    They are taken times ``before`` and ``behind``, but for the middle group, which turns once, by ``first``.
    """
    x = _turn_even(x, first, before, D)
    if D % 2 == 0:
        x = _turn_odd(x, first, 1.0, lane, D)
    else:
        x = _turn_odd(x, first, before, lane, D)
        x = _turn_around(x, first, lane, D)
        x = _turn_odd(x, second, behind, lane, D)
    return _turn_even(x, second, behind, D)


@triton.jit
def _turn_even(x, angles, factor, D: tl.constexpr):
    x0, x1, x2, x3 = x
    a0, _, a2, _ = angles
    y0, y1, y2, y3 = (), (), (), ()
    PAIRED: tl.constexpr = D // 2 * 2  # without the one that goes around the end
    for i in tl.static_range(len(x0)):
        a, b = _turn(x0[i], x1[i], within(a0[i] * factor, 0, i, PAIRED))
        c, d = _turn(x2[i], x3[i], within(a2[i] * factor, 2, i, PAIRED))
        y0 += (a,)
        y1 += (b,)
        y2 += (c,)
        y3 += (d,)
    return y0, y1, y2, y3


@triton.jit
def _turn_odd(x, angles, factor, lane, D: tl.constexpr):
    x0, x1, x2, x3 = x
    _, a1, _, a3 = angles
    x4 = next_quad(x0, lane, D)
    if D % 4 == 2:  # the last feature is in slot 1 of the last quad, so its slot 2 is the first feature
        x2 = replace_last(x2, x4[-1], lane, D)
    y1, y2, y3, y4 = (), (), (), ()
    for i in tl.static_range(len(x0)):
        a, b = _turn(x1[i], x2[i], a1[i] * factor)
        c, d = _turn(x3[i], x4[i], a3[i] * factor)
        y1 += (a,)
        y2 += (b,)
        y3 += (c,)
        y4 += (d,)
    if D % 4 == 2:
        y4 = replace_last(y4, y2[-1], lane, D)
    return previous_quad(y4, lane, D), y1, y2, y3


@triton.jit
def _turn_around(x, angles, lane, D: tl.constexpr):
    """The pair around the end of an odd number of features."""
    x0, x1, x2, x3 = x
    a0, _, a2, _ = angles
    first = of_first_quad(x0[0], lane)
    if D % 4 == 1:
        a, b = _turn(x0[-1], first, a0[-1])
        x0 = replace_last(x0, a, lane, D)
    else:
        a, b = _turn(x2[-1], first, a2[-1])
        x2 = replace_last(x2, a, lane, D)
    return replace_first(x0, of_last_quad(b, lane, D), lane), x1, x2, x3


@triton.jit
def _turn(a, b, angle):
    """A pair of features."""
    c, s = _circle(angle)
    return c * a + s * b, c * b - s * a


@triton.jit
def _circle(angle):
    """Cosine and sine; NaN beyond the largest angle."""
    turns = tl.floor(angle * _QUARTERS + 0.5)
    f = (((angle - turns * _HIGH) - turns * _MIDDLE) - turns * _LOW) * _EIGHTHS
    f = tl.where(tl.abs(angle) <= _LARGEST, f, float("nan"))
    quadrant = turns.to(tl.int32).to(tl.uint32)
    sine, cosine = sine_cosine(f)
    swap = (quadrant & 1) != 0
    x = flip(tl.where(swap, sine, cosine), (quadrant + 1) << 30)
    y = flip(tl.where(swap, cosine, sine), quadrant << 30)
    return x, y
