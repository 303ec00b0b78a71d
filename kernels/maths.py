# pyright: reportArgumentType=false, reportGeneralTypeIssues=false
"""Triton device functions: logarithm, sine and cosine in float32, by the polynomials of ``fastmsgm.rng``.

Instead of a maths library's functions: the same arguments to the bit, the same error bounds and no slow path, on every
device and in the interpreter.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

from fastmsgm import rng

LN2, LOG2_E = tl.constexpr(0.6931471805599453), tl.constexpr(1.4426950408889634)
_SIN, _COS = tl.constexpr(rng.SIN), tl.constexpr(rng.COS)
_SIN_OF_ANGLE = tl.constexpr(tuple(c * (4 / math.pi) ** (2 * i + 1) for i, c in enumerate(rng.SIN)))
_COS_OF_ANGLE = tl.constexpr(tuple(c * (4 / math.pi) ** (2 * i) for i, c in enumerate(rng.COS)))
# As rng.LOG2 for a state's logarithm, one degree less: log2(1 + f) is off by 6e-8 at most, no more than is rounded off.
_LOG2 = tl.constexpr((
    1.4426947832107544, -0.7213566303253174, 0.48093846440315247, -0.3601038157939911, 0.2867273986339569,
    -0.249923974275589, 0.23674564063549042, -0.14598917961120605,
))  # fmt: skip
_MINUS_2_LN = tl.constexpr(tuple(c * rng.MINUS_2_LN2 for c in rng.LOG2))
_EXPONENT_TO_MINUS_2_LN = tl.constexpr(rng.MINUS_2_LN2 * 2.0**-23)
_SQRT_HALF_BITS = tl.constexpr(rng.SQRT_HALF_BITS)


@triton.jit
def log2(x):
    """log2 x of normal x > 0; meaningless elsewhere."""
    exponent, f = _exponent_and_rest(x)
    return exponent * 2.0**-23 + _polynomial(f, _LOG2, 7) * f


@triton.jit
def minus_2_ln(x):
    """-2 ln x of normal x in (0, 1]."""
    exponent, f = _exponent_and_rest(x)
    return exponent * _EXPONENT_TO_MINUS_2_LN + _polynomial(f, _MINUS_2_LN, 8) * f


@triton.jit
def _exponent_and_rest(x):
    """2^23 e and f of x = 2^e (1 + f), 1 + f in [sqrt(1/2), sqrt(2))."""
    bits = x.to(tl.int32, bitcast=True)
    exponent = (bits - _SQRT_HALF_BITS) & -0x800000
    return exponent.to(tl.float32), (bits - exponent).to(tl.float32, bitcast=True) - 1.0


@triton.jit
def sine_cosine(f):
    """Sine and cosine of f pi / 4, for f in [-1, 1]."""
    return _polynomial(f * f, _SIN, 3) * f, _polynomial(f * f, _COS, 3)


@triton.jit
def sine_cosine_of_angle(f):
    """Sine and cosine of f in [-pi/4, pi/4]."""
    return _polynomial(f * f, _SIN_OF_ANGLE, 3) * f, _polynomial(f * f, _COS_OF_ANGLE, 3)


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
