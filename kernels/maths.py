# pyright: reportArgumentType=false, reportGeneralTypeIssues=false
"""Triton device functions: logarithm, sine and cosine in float32, by polynomials.

Unlike a maths library's functions, these have a bounded error and no slow path, and reduce their
arguments bit for bit alike on every device and in the interpreter.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

from fastmsgm import constants, rng

from . import polynomials

LN2, LOG2_E = tl.constexpr(constants.LN2), tl.constexpr(constants.LOG2_E)
HALF_TURNS = tl.constexpr(1 / math.pi)  # in a radian
# The noise's sine and cosine are polynomials in F^2 with F = 2^31 f, scaled by CIRCLE: the smallest
# power of 2 for which no coefficient is denormal.
CIRCLE = tl.constexpr(2.0**106)
_SIN = tl.constexpr(tuple(c * 2.0 ** (75 - 62 * i) for i, c in enumerate(rng.SIN)))
_COS = tl.constexpr(tuple(c * 2.0 ** (106 - 62 * i) for i, c in enumerate(rng.COS)))
_SIN_OF_HALF_TURNS = tl.constexpr(polynomials.SIN_OF_HALF_TURNS)
_COS_OF_HALF_TURNS = tl.constexpr(polynomials.COS_OF_HALF_TURNS)
LOG2_UNIT = tl.constexpr(polynomials.LOG2_UNIT)
_LOG2_MINUS_LINE = tl.constexpr(polynomials.LOG2_MINUS_LINE)
_MINUS_LOG2 = tl.constexpr(polynomials.MINUS_LOG2)
MINUS_2_LN_UNIT = tl.constexpr(polynomials.MINUS_2_LN_UNIT)
_SQRT_HALF_BITS = tl.constexpr(rng.SQRT_HALF_BITS)
NORMAL = tl.constexpr(constants.NORMAL)


@triton.jit
def magnitude(x):
    """2^24 (e + f) for |x| = 2^e (1 + f), as int32; below NORMAL if x is not a normal number."""
    return (x.to(tl.int32, bitcast=True) << 1) - 0x7F000000


@triton.jit
def log2(x):
    """log2|x| in units of LOG2_UNIT for a normal number x; meaningless for others."""
    mantissa = (x.to(tl.int32, bitcast=True) & 0x007FFFFF) | 0x3F800000
    f = mantissa.to(tl.float32, bitcast=True) - 1.0
    return magnitude(x).to(tl.float32) + _polynomial(f, _LOG2_MINUS_LINE, 7) * f


@triton.jit
def minus_2_ln(x):
    """-2 ln x in units of MINUS_2_LN_UNIT, for a normal x in (0, 1]."""
    bits = x.to(tl.int32, bitcast=True)
    exponent = (bits - _SQRT_HALF_BITS) & -0x800000
    f = (bits - exponent).to(tl.float32, bitcast=True) - 1.0
    return _polynomial(f, _MINUS_LOG2, 8) * f - exponent.to(tl.float32)


@triton.jit
def sine_cosine(f):
    """CIRCLE times the sine and cosine of f 2^-31 eighths of a turn, for f in [-2^31, 2^31]."""
    return _polynomial(f * f, _SIN, 3) * f, _polynomial(f * f, _COS, 3)


@triton.jit
def sine_cosine_of_half_turns(f):
    """Sine and cosine of pi f, for f in [-1/2, 1/2]."""
    return _polynomial(f * f, _SIN_OF_HALF_TURNS, 4) * f, _polynomial(f * f, _COS_OF_HALF_TURNS, 4)


@triton.jit
def flip(x, bits):
    """x, negated where bit 31 of ``bits`` (uint32) is set."""
    return (x.to(tl.uint32, bitcast=True) ^ (bits & 0x80000000)).to(tl.float32, bitcast=True)


@triton.jit
def _polynomial(x, COEFFICIENTS: tl.constexpr, DEGREE: tl.constexpr):
    result = x * COEFFICIENTS[DEGREE] + COEFFICIENTS[DEGREE - 1]
    for i in tl.static_range(2, DEGREE + 1):
        result = result * x + COEFFICIENTS[DEGREE - i]
    return result
