"""Float32 arithmetic for the loops of the CPU kernels: fused multiply-add, bit casts, log2, exp2, the 16-bit floats.

Every function is branch-free, so that a loop that calls it becomes SIMD code, and rounds as written (``fma`` is one rounding
wherever it runs), so that an element's bits do not depend on its place in a vector.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from fastmsgm import rng

SIGN = np.uint32(0x80000000)
NAN = np.float32(np.nan)
_ABS = np.uint32(0x7FFFFFFF)
_ONE = np.float32(1.0)
_TINY_BITS = np.uint32(0x00800000)  # of the smallest normal number
NORMALS = np.uint32(0x7F800000 - 0x00800000)  # so many bit patterns are positive normal numbers
_MANTISSA = np.uint32(23)  # bits
_LOG2 = tuple(np.float32(c) for c in rng.LOG2)
_SQRT_HALF_BITS = np.uint32(rng.SQRT_HALF_BITS)
# 2^f for f in [-1/2, 1/2], minimax, lowest degree first: 2e-9 relative.
_EXP2 = (
    1.0, 0.6931471824645996, 0.24022646248340607, 0.05550328642129898, 0.009618489071726799,
    0.0013399930903688073, 0.0001534581242594868,
)  # fmt: skip
_EXP2 = tuple(np.float32(c) for c in _EXP2)
_LOW, _HIGH = np.float32(-127.0), np.float32(128.0)


@intrinsic
def fma(typingctx, a, b, c):  # noqa: ANN001, ANN201
    """a b + c, rounded once."""

    def codegen(context, builder, signature, args):  # noqa: ANN001, ANN202
        return builder.fma(*args)

    return types.float32(types.float32, types.float32, types.float32), codegen


@intrinsic
def polynomial(typingctx, coefficients, x):  # noqa: ANN001, ANN201
    """Horner's rule on a tuple of float32, lowest degree first."""

    def codegen(context, builder, signature, args):  # noqa: ANN001, ANN202
        *lower, result = cgutils.unpack_tuple(builder, args[0])
        for c in reversed(lower):
            result = builder.fma(result, args[1], c)
        return result

    return types.float32(coefficients, types.float32), codegen


@intrinsic
def to_bits(typingctx, x):  # noqa: ANN001, ANN201
    def codegen(context, builder, signature, args):  # noqa: ANN001, ANN202
        return builder.bitcast(args[0], ir.IntType(32))

    return types.uint32(types.float32), codegen


@intrinsic
def from_bits(typingctx, bits):  # noqa: ANN001, ANN201
    def codegen(context, builder, signature, args):  # noqa: ANN001, ANN202
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.uint32), codegen


@intrinsic
def from_half(typingctx, bits):  # noqa: ANN001, ANN201
    """float16 (its bits) to float32."""

    def codegen(context, builder, signature, args):  # noqa: ANN001, ANN202
        return builder.fpext(builder.bitcast(args[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), codegen


@intrinsic
def to_half(typingctx, x):  # noqa: ANN001, ANN201
    """float32 to float16 (its bits), to nearest even."""

    def codegen(context, builder, signature, args):  # noqa: ANN001, ANN202
        return builder.bitcast(builder.fptrunc(args[0], ir.HalfType()), ir.IntType(16))

    return types.uint16(types.float32), codegen


@njit(nogil=True, cache=True)
def from_bfloat(bits):
    return from_bits(np.uint32(np.uint32(bits) << np.uint32(16)))


@njit(nogil=True, cache=True)
def to_bfloat(x):
    """float32 to bfloat16 (its bits), to nearest even; NaN stays NaN."""
    bits = to_bits(x)
    odd = np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(1))
    rounded = np.uint16(np.uint32(bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))
    return rounded if x == x else np.uint16(0x7FC0)


@njit(nogil=True, cache=True)
def above_tiny(x):
    """How many steps |x| lies above the smallest normal number: x is a normal number where this is below ``NORMALS``."""
    return np.uint32(np.uint32(to_bits(x) & _ABS) - _TINY_BITS)


@njit(nogil=True, cache=True)
def is_normal(x):
    return above_tiny(x) < NORMALS


@njit(nogil=True, cache=True)
def log2(x):
    """log2 of a positive normal number."""
    bits = to_bits(x)
    exponent = np.int32(np.int32(bits - _SQRT_HALF_BITS) >> np.int32(23))
    f = from_bits(np.uint32(bits - np.uint32(np.uint32(exponent) << _MANTISSA))) - _ONE
    return fma(f, polynomial(_LOG2, f), np.float32(exponent))


@njit(nogil=True, cache=True)
def log2_abs(x):
    """log2|x|, NaN unless x is a normal number."""
    y = log2(from_bits(to_bits(x) & _ABS))
    return y if is_normal(x) else NAN


@njit(nogil=True, cache=True)
def exp2(t):
    """2^t; 0 where 2^t would be subnormal, infinite for a NaN: what callers turn into NaN either way."""
    t = t if t < _HIGH else _HIGH
    t = t if t > _LOW else _LOW
    whole = np.rint(t)
    bits = to_bits(polynomial(_EXP2, np.float32(t - whole)))
    return from_bits(np.uint32(bits + np.uint32(np.uint32(np.int32(whole)) << _MANTISSA)))
