"""Box-Muller on the CPU: pairs of Philox words become pairs of normals, as in ``fastmsgm.rng``."""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types

from fastmsgm import rng

from ..polynomials import MINUS_2_LN_UNIT, MINUS_LOG2
from .arrays import prefetch_some
from .scalar import intrinsic
from .vectors import F32, I32, constant, fma, load, loops, polynomial, shuffle, sqrt, store

# Pairs at a time: enough to hide the latency of the logarithm and the square root. Every row ends
# at a whole quad, that is two pairs.
_LANES = (32, 8, 2)
_MINUS_LOG2 = tuple(float(np.float32(c)) for c in MINUS_LOG2)
_MINUS_2_LN_UNIT = float(np.float32(MINUS_2_LN_UNIT))
_SIN = tuple(float(np.float32(c)) for c in rng.SIN)
_COS = tuple(float(np.float32(c)) for c in rng.COS)
_SIGN, _EXPONENT = -(2**31), -(2**23)  # bits


@intrinsic
def normals(typingctx, count, radius_words, angle_words, z, element, prefetch):
    """Fill z with two normals for each of ``count`` pairs of 32-bit words; ``count`` is even.

    With every vector, as many elements of each array in ``prefetch`` are prefetched, from
    ``element`` on. These are few enough not to stall the computation.
    """

    def codegen(context, builder, signature, args):
        radius, angle, out = (
            context.make_array(array_type)(context, builder, value).data
            for array_type, value in zip(signature.args[1:4], args[1:4], strict=True)
        )

        def body(lanes, index):
            size = _radius(builder, load(builder, radius, index, lanes))
            x, y = _rotated(builder, size, load(builder, angle, index, lanes))
            pairs = shuffle(builder, x, [i for k in range(lanes) for i in (k, lanes + k)], y)
            first = builder.shl(index, ir.Constant(index.type, 1))
            store(builder, pairs, out, first)
            prefetch_some(
                context, builder, signature.args[5], args[5], builder.add(args[4], first), 2 * lanes
            )

        loops(builder, ir.Constant(args[0].type, 0), args[0], _LANES, body)
        return context.get_dummy_value()

    return types.none(types.int64, radius_words, angle_words, z, types.int64, prefetch), codegen


def _radius(builder, word):
    """sqrt(-2 ln u) for the uniform u of each word."""
    lanes = word.type.count
    floats = ir.VectorType(F32, lanes)
    u = fma(
        builder, builder.uitofp(word, floats), constant(2.0**-32, lanes), constant(2.0**-33, lanes)
    )
    bits = builder.bitcast(u, word.type)
    above = builder.sub(bits, constant(rng.SQRT_HALF_BITS, lanes, I32))
    exponent = builder.and_(above, constant(_EXPONENT, lanes, I32))
    f = builder.fsub(builder.bitcast(builder.sub(bits, exponent), floats), constant(1.0, lanes))
    whole = builder.fneg(builder.sitofp(exponent, floats))
    minus_log2 = fma(builder, f, polynomial(builder, _MINUS_LOG2, f), whole)  # in units of 2^-23
    return sqrt(builder, builder.fmul(constant(_MINUS_2_LN_UNIT, lanes), minus_log2))


def _rotated(builder, radius, word):
    """The coordinates of points at a radius, rotated by the angle of each word."""
    lanes = word.type.count

    def flip(x, sign):
        return builder.bitcast(builder.xor(builder.bitcast(x, word.type), sign), x.type)

    # The angle is pi/2 (quadrant + f/2) with the nearest quadrant, so f is the low 30 bits as a
    # signed number.
    low = builder.sitofp(builder.shl(word, constant(2, lanes, I32)), radius.type)
    f = builder.fmul(low, constant(2.0**-31, lanes))
    square = builder.fmul(f, f)
    sine, cosine = (
        builder.fmul(f, polynomial(builder, _SIN, square)),
        polynomial(builder, _COS, square),
    )
    # The top two bits of ``shifted`` are the quadrant. The upper bit negates both coordinates. The
    # lower bit rotates (cosine, sine) by a quarter turn.
    shifted = builder.add(word, constant(2**29, lanes, I32))
    ahead = builder.icmp_signed(
        "<", builder.shl(shifted, constant(1, lanes, I32)), constant(0, lanes, I32)
    )
    radius = flip(radius, builder.and_(shifted, constant(_SIGN, lanes, I32)))
    x, y = builder.select(ahead, builder.fneg(sine), cosine), builder.select(ahead, cosine, sine)
    return builder.fmul(radius, x), builder.fmul(radius, y)
