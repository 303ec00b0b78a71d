"""Noise on the CPU: the stream ``philox-v1`` of ``fastmsgm.rng``, a block of quads at a time, in SIMD loops.

A sample is a row of ceil(d / 4) quads (a quad is one Philox call: four words, four normals); a block is any range of
the flat list of quads, so that samples of few features fill SIMD vectors too. The words of a block lie in two arrays,
in the order of its pairs of normals: words 0 and 2 of every quad give the radii, words 1 and 3 the angles.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from fastmsgm import rng

from .scalar import cosine_sine, fma, log2

BLOCK = 256  # quads: every buffer of a block fits into the L1 cache

_LOW_HALF, _HALF, _KIND = np.uint64(0xFFFFFFFF), np.uint64(32), np.uint64(24)
_M0, _M1 = np.uint64(rng.PHILOX_M0), np.uint64(rng.PHILOX_M1)
_KEYS0 = tuple(np.uint64(i * rng.PHILOX_W0 % 2**32) for i in range(rng.ROUNDS))
_KEYS1 = tuple(np.uint64(i * rng.PHILOX_W1 % 2**32) for i in range(rng.ROUNDS))
_MINUS_2_LN2 = np.float32(rng.MINUS_2_LN2)
_UNIFORM_SCALE, _UNIFORM_SHIFT, _ANGLE_SCALE = np.float32(2.0**-32), np.float32(2.0**-33), np.float32(2.0**-29)
_EIGHTH, _QUADRANT = np.uint32(2**29), np.uint32(30)  # of a turn; the shift that leaves the quadrant


@njit(nogil=True, cache=True)
def unsigned_range(start, stop):
    """A range whose indices need no test for a negative one."""
    return range(np.uint64(start), np.uint64(stop))


@njit(nogil=True, cache=True)
def floats():
    """Room for one number for each element of a block. Every buffer is an allocation of its own:
    LLVM then knows that they do not overlap."""
    return np.empty(4 * BLOCK, np.float32)


@njit(nogil=True, cache=True)
def words():
    """Room for one 64-bit word for each quad of a block."""
    return np.empty(BLOCK, np.uint64)


@njit(nogil=True, cache=True)
def buffers():
    """Room for the noise of a block: quad_of, sample_of, radius_words, angle_words, z, and z without padding."""
    return words(), words(), words(), words(), floats(), floats()


@njit(nogil=True, cache=True)
def block_noise(first, count, d, stream, kind, step, room):
    """Normals of ``count`` quads from ``first`` on, in the elements' order; valid until ``room`` is used again."""
    quad_of, sample_of, radius_words, angle_words, z, packed = room
    quads = (d + 3) // 4
    addresses(first, count, quads, stream[1], quad_of, sample_of)
    philox(count, quad_of, sample_of, kind, step, stream[0], radius_words, angle_words)
    normals(2 * count, radius_words.view(np.uint32), angle_words.view(np.uint32), z)
    if d % 4 == 0:
        return z
    pack(first, count, quads, d, z, packed)
    return packed


@njit(nogil=True, cache=True)
def extent(quad, end, d):
    """Of the block of quads from ``quad`` to ``end`` at most: how many it has, and where in the flat (n, d) array its
    elements start and stop."""
    count = min(BLOCK, end - quad)
    return count, _element(quad, d), _element(quad + count, d)


@njit(nogil=True, cache=True)
def _element(quad, d):
    """Index, in the flat (n, d) array, of the first element of a quad of the flat list."""
    quads = (d + 3) // 4
    return quad // quads * d + 4 * (quad % quads)


@njit(nogil=True, cache=True)
def addresses(first, count, quads, sample, quad_of, sample_of):
    """Quad and sample of each of ``count`` quads from ``first`` of the flat list on, whose row 0 is ``sample``."""
    k, quad = 0, first % quads
    sample += first // quads
    while k < count:
        end = min(k + quads - quad, count)
        for i in unsigned_range(k, end):
            quad_of[i] = quad + (i - k)
            sample_of[i] = sample
        k, quad, sample = end, 0, sample + 1


@njit(nogil=True, cache=True)
def philox(count, quad_of, sample_of, kind, step, seed, radius_words, angle_words):
    """Ten rounds of Philox4x32; a pair of 32-bit words goes out as one 64-bit word, the first one low.

    32-bit words are kept in 64-bit lanes: their products then need no widening, and what lies in the upper half of a
    lane (the high word of a product) is dropped when the lane is next multiplied.
    """
    kind_word, w3 = np.uint64(kind) << _KIND, np.uint64(step) & _LOW_HALF
    seed0, seed1 = np.uint64(seed) & _LOW_HALF, np.uint64(seed) >> _HALF
    for k in range(count):
        c0, c1, c2, c3 = quad_of[k], sample_of[k], kind_word + (sample_of[k] >> _HALF), w3
        for i in range(rng.ROUNDS):
            p0, p1 = (c0 & _LOW_HALF) * _M0, (c2 & _LOW_HALF) * _M1
            c0 = (p1 >> _HALF) ^ c1 ^ (seed0 + _KEYS0[i])
            c2 = (p0 >> _HALF) ^ c3 ^ (seed1 + _KEYS1[i])
            c1, c3 = p1, p0
        radius_words[k] = (c0 & _LOW_HALF) | (c2 << _HALF)
        angle_words[k] = (c1 & _LOW_HALF) | (c3 << _HALF)


@njit(nogil=True, cache=True)
def normals(count, radius_words, angle_words, z):
    """Box-Muller on ``count`` pairs of 32-bit words; two normals each."""
    for k in range(count):
        u = fma(np.float32(radius_words[k]), _UNIFORM_SCALE, _UNIFORM_SHIFT)
        radius = np.sqrt(_MINUS_2_LN2 * log2(u))
        angle = angle_words[k]
        quadrant = np.uint32(np.uint32(angle + _EIGHTH) >> _QUADRANT)
        f = np.float32(np.int32(np.uint32(angle - np.uint32(quadrant << _QUADRANT)))) * _ANGLE_SCALE
        x, y = cosine_sine(quadrant, f)
        z[2 * k] = radius * x
        z[2 * k + 1] = radius * y


@njit(nogil=True, cache=True)
def pack(first, count, quads, d, z, packed):
    """Leave out the normals that pad every row to whole quads."""
    source, target, quad = 0, 0, first % quads
    while source < 4 * count:
        end = min(target + d - 4 * quad, target + 4 * count - source)
        for i in unsigned_range(target, end):
            packed[i] = z[source + (i - target)]
        source, target, quad = source + 4 * (quads - quad), end, 0
