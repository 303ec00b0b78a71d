# pyright: reportArgumentType=false, reportGeneralTypeIssues=false
"""Triton device functions: logarithm, sine and cosine in float32, by polynomials.

Instead of a maths library's functions: the same arguments to the bit, bounded errors and no slow path, on every device
and in the interpreter.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastmsgm import rng

from . import polynomials

LN2, LOG2_E = tl.constexpr(0.6931471805599453), tl.constexpr(1.4426950408889634)
HALF_TURNS = tl.constexpr(0.3183098861837907)  # of a radian
# Polynomials in F^2, F = 2^31 f, instead of f^2, with results of CIRCLE: the least by which no coefficient is denormal.
CIRCLE = tl.constexpr(2.0**106)
_SIN = tl.constexpr(tuple(c * 2.0 ** (75 - 62 * i) for i, c in enumerate(rng.SIN)))
_COS = tl.constexpr(tuple(c * 2.0 ** (106 - 62 * i) for i, c in enumerate(rng.COS)))
_SIN_OF_HALF_TURNS = tl.constexpr(polynomials.SIN_OF_HALF_TURNS)
_COS_OF_HALF_TURNS = tl.constexpr(polynomials.COS_OF_HALF_TURNS)
LOG2_UNIT, _LOG2_MINUS_LINE = tl.constexpr(polynomials.LOG2_UNIT), tl.constexpr(polynomials.LOG2_MINUS_LINE)
_MINUS_LOG2 = tl.constexpr(tuple(-(2.0**23) * c for c in rng.LOG2))
MINUS_2_LN_UNIT = tl.constexpr(-(2.0**-23) * rng.MINUS_2_LN2)
_SQRT_HALF_BITS = tl.constexpr(rng.SQRT_HALF_BITS)
# Of a number's magnitude: what those of zero, denormal and infinite numbers and NaN are below.
NORMAL = tl.constexpr(-0x7E000000)


@triton.jit
def magnitude(x):
    """2^24 (e + f) of |x| = 2^e (1 + f) in int32, below NORMAL where x is not a normal number."""
    return (x.to(tl.int32, bitcast=True) << 1) - 0x7F000000


@triton.jit
def log2(x):
    """log2|x| in LOG2_UNIT, of a normal number; meaningless elsewhere."""
    mantissa = (x.to(tl.int32, bitcast=True) & 0x007FFFFF) | 0x3F800000
    f = mantissa.to(tl.float32, bitcast=True) - 1.0
    return magnitude(x).to(tl.float32) + _polynomial(f, _LOG2_MINUS_LINE, 7) * f


@triton.jit
def minus_2_ln(x):
    """-2 ln x in MINUS_2_LN_UNIT, of normal x in (0, 1]."""
    bits = x.to(tl.int32, bitcast=True)
    exponent = (bits - _SQRT_HALF_BITS) & -0x800000
    f = (bits - exponent).to(tl.float32, bitcast=True) - 1.0
    return _polynomial(f, _MINUS_LOG2, 8) * f - exponent.to(tl.float32)


@triton.jit
def sine_cosine(f):
    """Sine and cosine, times CIRCLE, of f 2^-31 eighths of a turn, for f in [-2^31, 2^31]."""
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
