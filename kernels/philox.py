# pyright: reportArgumentType=false, reportGeneralTypeIssues=false
"""Triton device functions: the stream ``philox-v1`` of ``fastmsgm.rng``, and base-2 logarithms.

``normal_quads`` maps counters to Philox4x32-10 words, four a quad of features, and the words to four normals by
Box-Muller. The polynomials are those of ``fastmsgm.rng`` instead of a maths library's functions: the same arguments to
the bit, the same error bounds and no slow path, on every device and in the interpreter.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastmsgm import rng

_ROUNDS = tl.constexpr(rng.ROUNDS)
_M0, _M1 = tl.constexpr(rng.PHILOX_M0), tl.constexpr(rng.PHILOX_M1)
_W0, _W1 = tl.constexpr(rng.PHILOX_W0), tl.constexpr(rng.PHILOX_W1)
_LOG2, _SIN, _COS = tl.constexpr(rng.LOG2), tl.constexpr(rng.SIN), tl.constexpr(rng.COS)
_SQRT_HALF_BITS = tl.constexpr(rng.SQRT_HALF_BITS)
_MINUS_2_LN2 = tl.constexpr(rng.MINUS_2_LN2)


@triton.jit
def philox(c0, c1, c2, c3, k0, k1):
    """Ten rounds of Philox4x32 on uint32 counters and keys: four uint32 words."""
    for _ in tl.static_range(_ROUNDS):
        # One 32 x 32 -> 64 product a word: a single instruction, where the two halves taken separately are two.
        p0, p1 = c0.to(tl.uint64) * _M0, c2.to(tl.uint64) * _M1
        c0, c2 = (p1 >> 32).to(tl.uint32) ^ c1 ^ k0, (p0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c1, c3 = p1.to(tl.uint32), p0.to(tl.uint32)
        k0, k1 = k0 + _W0, k1 + _W1
    return c0, c1, c2, c3


@triton.jit
def words(quad, sample, stream_ptr, kind, step):
    """The Philox words of the quads (int32) of features of the samples (int64, counted from the stream's first)."""
    seed = tl.load(stream_ptr)
    sample += tl.load(stream_ptr + 1)
    w0, w1, w3 = quad.to(tl.uint32), sample.to(tl.uint32), step.to(tl.uint32)
    w2 = (sample >> 32).to(tl.uint32) + (kind << 24)
    return philox(w0, w1, w2, w3, seed.to(tl.uint32), (seed >> 32).to(tl.uint32))


@triton.jit
def normal_quads(quad, sample, stream_ptr, kind, step):
    """Normals of shape (len(quad), 4)."""
    word0, word1, word2, word3 = words(quad, sample, stream_ptr, kind, step)
    x, y = _box_muller(tl.join(word0, word2), tl.join(word1, word3))
    return tl.join(x, y).reshape(quad.shape[0], 4)


@triton.jit
def _box_muller(radius_word, angle_word):
    u = radius_word.to(tl.float32) * 2.0**-32 + 2.0**-33
    radius = tl.sqrt(log2(u) * _MINUS_2_LN2)
    # Quarter turns: angle = pi/2 * (quadrant + f/2) with the quadrant the nearest one, so f is the low 30 bits, signed.
    f = (angle_word << 2).to(tl.int32).to(tl.float32) * 2.0**-31
    sine, cosine = _polynomial(f * f, _SIN, 3) * f, _polynomial(f * f, _COS, 3)
    # The top two bits of ``turn`` are the quadrant: the lower says whether sine and cosine swap, the upper is a sign.
    turn = angle_word + (1 << 29)
    swap = (turn & (1 << 30)) != 0
    x = flip(tl.where(swap, sine, cosine), turn + (1 << 30))
    y = flip(tl.where(swap, cosine, sine), turn)
    return radius * x, radius * y


@triton.jit
def flip(x, bits):
    """x, negated where bit 31 of ``bits`` (uint32) is set."""
    return (x.to(tl.uint32, bitcast=True) ^ (bits & 0x80000000)).to(tl.float32, bitcast=True)


@triton.jit
def log2(x):
    """log2 x of normal x > 0; meaningless elsewhere."""
    bits = x.to(tl.int32, bitcast=True)
    exponent = (bits - _SQRT_HALF_BITS) & -0x800000  # times 2^23
    f = (bits - exponent).to(tl.float32, bitcast=True) - 1.0
    return exponent.to(tl.float32) * 2.0**-23 + _polynomial(f, _LOG2, 8) * f


@triton.jit
def is_normal(x):
    """Not NaN, infinite, zero or denormal: the exponent bits are neither all set nor all clear (one comparison)."""
    return (x.to(tl.uint32, bitcast=True) << 1) - 0x01000000 < 0xFE000000


@triton.jit
def _polynomial(x, COEFFICIENTS: tl.constexpr, DEGREE: tl.constexpr):
    result = x * COEFFICIENTS[DEGREE] + COEFFICIENTS[DEGREE - 1]
    for i in tl.static_range(2, DEGREE + 1):
        result = result * x + COEFFICIENTS[DEGREE - i]
    return result
