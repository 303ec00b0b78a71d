"""Float32 arithmetic for the loops of the CPU kernels.

It has a fused multiply-add, bit casts, log2, exp2, sine and cosine, and 16-bit floats. Every
function is branch-free, so that a loop that calls it becomes SIMD code. Every function rounds as
written (``fma`` rounds once on every processor), so the bits of an element do not depend on its
place in a vector.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import extending, types
from numba.core import cgutils

from fastmsgm import constants, rng

from ..polynomials import COS_OF_HALF_TURNS, LOG2_MINUS_LINE, SIN_OF_HALF_TURNS
from .compile import routine

SIGN = np.uint32(0x80000000)
NAN, INFINITY = np.float32(np.nan), np.float32(np.inf)
ZERO, HALF, ONE, TWO = np.float32(0.0), np.float32(0.5), np.float32(1.0), np.float32(2.0)
_ABS = np.uint32(0x7FFFFFFF)
_INFINITE = np.uint32(0x7F800000)
_HALF_INFINITE = np.uint32(0x7C00 << 13)
_FRACTION = np.uint32(0x007FFFFF)
_ONE_BITS = np.uint32(0x3F800000)
_TWICE_ONE = np.uint32(0x7F000000)
NORMAL = np.int32(constants.NORMAL)
_MANTISSA = np.uint32(23)  # bits
_LOG2_MINUS_LINE = tuple(np.float32(c) for c in LOG2_MINUS_LINE)
_SIN = tuple(np.float32(c) for c in rng.SIN)
_COS = tuple(np.float32(c) for c in rng.COS)
_SIN_OF_HALF_TURNS = tuple(np.float32(c) for c in SIN_OF_HALF_TURNS)
_COS_OF_HALF_TURNS = tuple(np.float32(c) for c in COS_OF_HALF_TURNS)
_ROUND = np.float32(constants.ROUND_TO_INTEGER)
# 2^f for f in [-1/2, 1/2]: minimax with a relative error of 2e-9, lowest degree first.
_EXP2 = (
    1.0, 0.6931471824645996, 0.24022646248340607, 0.05550328642129898, 0.009618489071726799,
    0.0013399930903688073, 0.0001534581242594868,
)  # fmt: skip
_EXP2 = tuple(np.float32(c) for c in _EXP2)
# 2^t is a normal number for LOWEST <= t < _HIGHEST.
LOWEST, _HIGHEST = np.float32(-126.0), np.float32(128.0)


def intrinsic(build: Callable[..., Any]) -> Callable[..., Any]:
    """Numba's decorator, typed so that callers may omit ``typingctx``."""
    return extending.intrinsic(build)


@intrinsic
def fma(typingctx, a, b, c):
    """a b + c, rounded once."""

    def codegen(context, builder, signature, args):
        return builder.fma(*args)

    return types.float32(types.float32, types.float32, types.float32), codegen


@intrinsic
def polynomial(typingctx, coefficients, x):
    """Horner's rule on a tuple of float32, lowest degree first."""

    def codegen(context, builder, signature, args):
        *lower, result = cgutils.unpack_tuple(builder, args[0])
        for c in reversed(lower):
            result = builder.fma(result, args[1], c)
        return result

    return types.float32(coefficients, types.float32), codegen


@intrinsic
def to_bits(typingctx, x):
    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.IntType(32))

    return types.uint32(types.float32), codegen


@intrinsic
def from_bits(typingctx, bits):
    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.uint32), codegen


@routine
def from_bfloat(bits):
    return from_bits(np.uint32(np.uint32(bits) << np.uint32(16)))


@routine
def to_bfloat(x):
    """Convert float32 to the bits of a bfloat16, rounding to nearest even; NaN stays NaN."""
    bits = to_bits(x)
    odd = np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(1))
    rounded = np.uint16(np.uint32(bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))
    return rounded if x == x else np.uint16(0x7FC0)


@routine
def from_half(bits):
    """Convert the bits of a float16 to float32; not every processor has an instruction for it."""
    bits = np.uint32(bits)
    sign = np.uint32(np.uint32(bits & np.uint32(0x8000)) << np.uint32(16))
    size = np.uint32(np.uint32(bits & np.uint32(0x7FFF)) << np.uint32(13))
    finite = to_bits(from_bits(size) * np.float32(2.0**112))  # the exponent biases differ by 112
    return from_bits((finite if size < _HALF_INFINITE else size | _INFINITE) | sign)


@routine
def to_half(x):
    """Convert float32 to the bits of a float16, rounding to nearest even; NaN stays NaN."""
    size = np.uint32(to_bits(x) & _ABS)
    sign = np.uint32(np.uint32(to_bits(x) & SIGN) >> np.uint32(16))
    odd = np.uint32(np.uint32(size >> np.uint32(13)) & np.uint32(1))
    normal = np.uint32(
        np.uint32(size + np.uint32(0x0FFF) + odd - np.uint32(112 << 23)) >> np.uint32(13)
    )
    # Below 2^-14, adding 1/2 rounds to multiples of 2^-24, as float16 does, and leaves the multiple
    # in the low bits.
    small = np.uint32(to_bits(from_bits(size) + np.float32(0.5)) - to_bits(np.float32(0.5)))
    special = np.uint32(0x7C00) if size <= _INFINITE else np.uint32(0x7E00)
    finite = small if size < np.uint32(113 << 23) else normal
    return np.uint16((finite if size < np.uint32(143 << 23) else special) | sign)


@routine
def magnitude(x):
    """2^24 (e + f) for |x| = 2^e (1 + f), as int32; below NORMAL if x is not a normal number."""
    bits = to_bits(x)
    return np.int32(np.uint32(bits + bits) - _TWICE_ONE)


@routine
def is_normal(x):
    """Whether x is a normal number: not NaN, infinite, zero or denormal."""
    return magnitude(x) >= NORMAL


@routine
def log2_abs(x):
    """log2|x| in units of LOG2_UNIT; NaN unless x is a normal number."""
    f = from_bits(np.uint32(np.uint32(to_bits(x) & _FRACTION) | _ONE_BITS)) - ONE
    size = magnitude(x)
    y = fma(f, polynomial(_LOG2_MINUS_LINE, f), np.float32(size))
    return y if size >= NORMAL else NAN


@routine
def exp2(t):
    """2^t; NaN unless it is a normal number."""
    whole = np.rint(t)
    bits = to_bits(polynomial(_EXP2, np.float32(t - whole)))
    power = from_bits(np.uint32(bits + np.uint32(np.uint32(np.int32(whole)) << _MANTISSA)))
    return power if LOWEST <= t < _HIGHEST else NAN


@routine
def sine_cosine(f):
    """Sine and cosine of f eighths of a turn, |f| <= 1."""
    return f * polynomial(_SIN, f * f), polynomial(_COS, f * f)


@routine
def half_turns(angle):
    """Cosine and sine of up to 2^22 half turns; NaN for NaN."""
    shifted = angle + _ROUND  # its last bit is set if the rounded angle is odd
    f = angle - (shifted - _ROUND)
    sign = np.uint32(to_bits(shifted) << np.uint32(31))
    cosine, sine = polynomial(_COS_OF_HALF_TURNS, f * f), f * polynomial(_SIN_OF_HALF_TURNS, f * f)
    return from_bits(to_bits(cosine) ^ sign), from_bits(to_bits(sine) ^ sign)
