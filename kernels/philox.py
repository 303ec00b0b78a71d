# pyright: reportArgumentType=false, reportGeneralTypeIssues=false
"""Triton device functions: the stream ``philox-v1`` of ``fastmsgm.rng``.

Philox4x32-10 turns the counter of a quad of features into four words, and Box-Muller turns the
words into four normals.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastmsgm import rng

from .maths import CIRCLE, MINUS_2_LN_UNIT, flip, minus_2_ln, sine_cosine

STEP, ANGLE = tl.constexpr(int(rng.Purpose.STEP)), tl.constexpr(int(rng.Purpose.ANGLE))
TRAINING_NOISE = tl.constexpr(int(rng.Purpose.TRAINING_NOISE))
TRAINING_ANGLE = tl.constexpr(int(rng.Purpose.TRAINING_ANGLE))
_ROUNDS = tl.constexpr(rng.ROUNDS)
_M0, _M1 = tl.constexpr(rng.PHILOX_M0), tl.constexpr(rng.PHILOX_M1)
# The product with a scale below 0.002 is denormal, an error of 1e-9 at most. No compiler flushes
# denormals by default.
_UNIT = tl.constexpr(MINUS_2_LN_UNIT.value**0.5 / CIRCLE.value)
_W0, _W1 = tl.constexpr(rng.PHILOX_W0), tl.constexpr(rng.PHILOX_W1)


@triton.jit
def philox(c0, c1, c2, c3, k0, k1):
    """Ten rounds of Philox4x32 on uint32 counter words and keys: four uint32 words."""
    for _ in tl.static_range(_ROUNDS):
        # A 32 x 32 -> 64 bit product is a single instruction. Computing its halves separately
        # would take two.
        p0, p1 = c0.to(tl.uint64) * _M0, c2.to(tl.uint64) * _M1
        c0, c2 = (p1 >> 32).to(tl.uint32) ^ c1 ^ k0, (p0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c1, c3 = p1.to(tl.uint32), p0.to(tl.uint32)
        k0, k1 = k0 + _W0, k1 + _W1
    return c0, c1, c2, c3


@triton.jit
def row_of(stream_ptr, step):
    """The absolute step, ``step`` after the stream's first: a table row and a counter word."""
    return tl.load(stream_ptr + 2) + step


@triton.jit
def words(quad, first_row, row, stream_ptr, purpose, step):
    """The Philox words of quads (int32) of rows (int32) counted from first_row (int64)."""
    sample = (
        tl.load(stream_ptr + 1)
        + first_row
        + (tl.full((), purpose, tl.int64) << 56)
        + row.to(tl.uint32).to(tl.int64)
    )
    w0, w1, w2 = quad.to(tl.uint32), sample.to(tl.uint32), (sample >> 32).to(tl.uint32)
    w3 = row_of(stream_ptr, step).to(tl.uint32)
    # Load the halves of the seed separately. Extracting them from one 64-bit number would turn the
    # first round into 64-bit arithmetic.
    seed_ptr = stream_ptr.to(tl.pointer_type(tl.uint32))
    return philox(w0, w1, w2, w3, tl.load(seed_ptr), tl.load(seed_ptr + 1))


@triton.jit
def box_muller(radius_word, angle_word, scale):
    """Two normals from two words, times ``scale``."""
    u = radius_word.to(tl.float32) * 2.0**-32 + 2.0**-33
    radius = tl.sqrt(minus_2_ln(u)) * (scale * _UNIT)
    # The angle is pi/2 * (quadrant + f/2) with the nearest quadrant, so f is the low 30 bits as a
    # signed number.
    sine, cosine = sine_cosine((angle_word << 2).to(tl.int32).to(tl.float32))
    # The top two bits of ``shifted`` are the quadrant. The upper bit negates both coordinates. The
    # lower bit rotates (cosine, sine) by a quarter turn.
    shifted = angle_word + (1 << 29)
    ahead = (shifted & (1 << 30)) != 0
    radius = flip(radius, shifted)
    return radius * tl.where(ahead, -sine, cosine), radius * tl.where(ahead, cosine, sine)


@triton.jit
def first_normal(first_row, row, stream_ptr, purpose, step):
    """The first normal of each row."""
    word0, word1, _, _ = words(tl.zeros_like(row), first_row, row, stream_ptr, purpose, step)
    z, _ = box_muller(word0, word1, 1.0)
    return z


@triton.jit
def normals(quad, first_row, row, stream_ptr, purpose, step, scale):
    """Normals (quads, 4) times ``scale``, a scalar or (quads, 1)."""
    word0, word1, word2, word3 = words(quad, first_row, row, stream_ptr, purpose, step)
    x, y = box_muller(tl.join(word0, word2), tl.join(word1, word3), scale)
    return tl.join(x, y).reshape(quad.shape[0], 4)
