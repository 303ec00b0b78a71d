# pyright: reportArgumentType=false, reportGeneralTypeIssues=false
"""Triton device functions: logarithm, sine and cosine in float32, by the polynomials of ``fastmsgm.rng``.

Instead of a maths library's functions: the same arguments to the bit, the same error bounds and no slow path, on every
device and in the interpreter.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastmsgm import rng

LN2, LOG2_E = tl.constexpr(0.6931471805599453), tl.constexpr(1.4426950408889634)
_LOG2, _SIN, _COS = tl.constexpr(rng.LOG2), tl.constexpr(rng.SIN), tl.constexpr(rng.COS)
_SQRT_HALF_BITS = tl.constexpr(rng.SQRT_HALF_BITS)


@triton.jit
def log2(x):
    """log2 x of normal x > 0; meaningless elsewhere."""
    bits = x.to(tl.int32, bitcast=True)
    exponent = (bits - _SQRT_HALF_BITS) & -0x800000  # times 2^23
    f = (bits - exponent).to(tl.float32, bitcast=True) - 1.0
    return exponent.to(tl.float32) * 2.0**-23 + _polynomial(f, _LOG2, 8) * f


@triton.jit
def sine_cosine(f):
    """Sine and cosine of f pi / 4, for f in [-1, 1]."""
    return _polynomial(f * f, _SIN, 3) * f, _polynomial(f * f, _COS, 3)


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
