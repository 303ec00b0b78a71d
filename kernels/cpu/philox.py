"""Noise on the CPU: the stream ``philox-v1`` of ``fastmsgm.rng``, by SIMD loops over quads.

A quad is one Philox call: four words and four normals. A sample is a row of ceil(d / 4) quads. A
block is any range of the flat list of quads, so samples with few features fill SIMD vectors too.
The words of a block lie in two arrays, in the order of its pairs of normals: words 0 and 2 of every
quad give the radii, words 1 and 3 the angles.

Five of the six products of rounds 1-3 depend on the feature or on the sample alone and are
precomputed. The results are kept in tables by quad and in one number per sample.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils, codegen

from fastmsgm import rng

from .box_muller import normals
from .compile import allocating, routine
from .scalar import intrinsic
from .vectors import I32, I64, constant, load, shuffle, spread, store

BLOCK = 256  # quads: every buffer of a block fits into the L1 cache
LONG_ROW = 4096  # quads: the tables of longer rows are recomputed for each block
# Quads at a time: four vectors of 64-bit lanes with AVX-512 (32 registers of 512 bits), else what
# fits into 16 registers of 256 bits.
VECTOR = 32 if "+avx512f" in codegen.get_host_cpu_features() else 8
_TABLE = LONG_ROW + BLOCK + VECTOR  # size of one table

_LOW_HALF, _HALF, _PURPOSE = np.uint64(0xFFFFFFFF), np.uint64(32), np.uint64(24)
_M0, _M1 = np.uint64(rng.PHILOX_M0), np.uint64(rng.PHILOX_M1)
_KEYS0 = tuple(np.uint64(i * rng.PHILOX_W0 % 2**32) for i in range(rng.ROUNDS))
_KEYS1 = tuple(np.uint64(i * rng.PHILOX_W1 % 2**32) for i in range(rng.ROUNDS))


@routine
def unsigned_range(start, stop):
    """A range of unsigned indices, which need no test for being negative."""
    return range(np.uint64(start), np.uint64(stop))


@allocating
def floats():
    """Allocate workspace for one number per element of a block."""
    return np.empty(4 * BLOCK, np.float32)


@allocating
def words():
    """Allocate workspace for one 64-bit word per quad of a block."""
    return np.empty(BLOCK + VECTOR, np.uint64)


@allocating
def buffers(d):
    """Allocate workspace for the noise of rows of d features, of one purpose and step.

    Its parts are the tables by quad, the upper word of the sample indices that the tables are for
    (-1: none yet), the products by sample, the words for radii, the words for angles, and the
    padded normals.
    """
    tables = np.empty(4 * _TABLE, np.uint64)
    return tables, np.full(1, -1, np.int64), words(), words(), words(), floats()


@routine
def block_noise(first, count, d, stream, purpose, step, workspace, z, prefetch):
    """Fill z with the normals of ``count`` quads from ``first`` on, in the order of the elements.

    Meanwhile, about the same elements of ``prefetch``, a tuple of flat (n, d) arrays, are
    prefetched.
    """
    block_words(first, count, d, stream, purpose, step, workspace)
    radius, angle, padded = (
        workspace[3].view(np.uint32),
        workspace[4].view(np.uint32),
        workspace[5],
    )
    element = _element(first, d)
    if d % 4 == 0:
        normals(2 * count, radius, angle, z, element, prefetch)
    else:
        normals(2 * count, radius, angle, padded, element, prefetch)
        pack(first, count, (d + 3) // 4, d, padded, z)


@routine
def odd_words(first, count, stream, purpose, step, workspace, odd):
    """Whether the second word of each of ``count`` samples from ``first`` on is odd.

    It is the first of the words for angles.
    """
    block_words(first, count, 1, stream, purpose, step, workspace)
    words = workspace[4].view(np.uint32)
    for r in range(count):
        odd[r] = np.uint32(words[2 * r] & np.uint32(1)) != 0


@routine
def block_words(first, count, d, stream, purpose, step, workspace):
    """Fill the words in the workspace with those of ``count`` quads from ``first`` on."""
    tables, upper, products, radius_words, angle_words, _ = workspace
    quads, done = (d + 3) // 4, 0
    # This runs once, unless the upper word of the sample index changes within the block.
    while done < count:
        quad, sample = (first + done) % quads, stream[1] + (first + done) // quads
        stop = min(count, done + (((sample >> 32) + 1 << 32) - sample) * quads - quad)
        rounds_of_samples(quad, stop - done, quads, sample, purpose, stream[0], products)
        if quads > LONG_ROW:
            rounds_of_quads(
                quad, stop - done, quads, sample >> 32, purpose, step, stream[0], tables
            )
            quad = 0
        elif upper[0] != sample >> 32:
            rounds_of_quads(0, quads + BLOCK, quads, sample >> 32, purpose, step, stream[0], tables)
            upper[0] = sample >> 32
        seed, size = np.uint64(stream[0]), stop - done
        philox(size, tables, quad, products, seed, radius_words[done:], angle_words[done:])
        done = stop


@routine
def extent(quad, end, d):
    """The size of the block from ``quad`` on, and the start and stop of its elements.

    The block ends at the quad ``end`` at the latest. Elements are indices of the flat (n, d) array.
    """
    count = min(BLOCK, end - quad)
    return count, _element(quad, d), _element(quad + count, d)


@routine
def _element(quad, d):
    """The index in the flat (n, d) array of the first element of a quad of the flat list."""
    quads = (d + 3) // 4
    return quad // quads * d + 4 * (quad % quads)


# ---- Philox4x32-10, with 32-bit words in 64-bit lanes ----

# So products need no widening. The upper half of a lane (the high word of a product) is masked off
# before the next multiplication. A round computes p0 = c0 M0 and p1 = c2 M1, and then
#     c0, c1, c2, c3 = high(p1) ^ c1 ^ k0, low(p1), high(p0) ^ c3 ^ k1, low(p0).
# Initially c0 is the quad, c1 the sample, c2 the purpose and the sample's upper word, c3 the step.


@routine
def rounds_of_quads(quad, count, quads, upper, purpose, step, seed, tables):
    """Precompute the parts of rounds 1-3 that depend on the quad, for ``count`` quads.

    The first is ``quad``. After the last quad of a row comes its first again. The tables hold, in
    order: c3 ^ k1 of round 2; c1 ^ k0 of round 3; high(p0) ^ k1 of round 3; and p0 of round 3.
    """
    seed0, seed1 = np.uint64(seed) & _LOW_HALF, np.uint64(seed) >> _HALF
    # c1 after round 1:
    common = (((np.uint64(purpose) << _PURPOSE) + np.uint64(upper)) & _LOW_HALF) * _M1 & _LOW_HALF
    w3, i = np.uint64(step) & _LOW_HALF, 0
    while i < count:
        end = min(i + quads - quad, count)
        for j in unsigned_range(i, end):
            p0 = np.uint64(quad + (j - i)) * _M0
            p1 = ((p0 >> _HALF) ^ w3 ^ ((seed1 + _KEYS1[0]) & _LOW_HALF)) * _M1
            tables[j] = p0 ^ (seed1 + _KEYS1[1])
            tables[_TABLE + j] = p1 ^ (seed0 + _KEYS0[2])
            p0 = (((p1 >> _HALF) ^ common ^ (seed0 + _KEYS0[1])) & _LOW_HALF) * _M0
            tables[2 * _TABLE + j] = (p0 >> _HALF) ^ (seed1 + _KEYS1[2])
            tables[3 * _TABLE + j] = p0
        i, quad = end, 0


@routine
def rounds_of_samples(quad, count, quads, sample, purpose, seed, products):
    """Precompute p0 of round 2, which depends on the sample, for ``count`` quads.

    The first is the quad ``quad`` of the sample ``sample``.
    """
    seed0 = np.uint64(seed) & _LOW_HALF
    p1 = (((np.uint64(purpose) << _PURPOSE) + np.uint64(sample >> 32)) & _LOW_HALF) * _M1
    i = 0
    while i < count:
        end = min(i + quads - quad, count)
        product = (((p1 >> _HALF) ^ np.uint64(sample) ^ (seed0 + _KEYS0[0])) & _LOW_HALF) * _M0
        for j in unsigned_range(i, end):
            products[j] = product
        i, quad, sample = end, 0, sample + 1


@intrinsic
def philox(typingctx, count, tables, quad, products, seed, radius_words, angle_words):
    """Compute the words of ``count`` quads, rounded up to whole vectors.

    The tables of the quads start at index ``quad``. Two 32-bit words are stored as one 64-bit word,
    the first one in the low half.
    """
    lanes = VECTOR

    def codegen(context, builder, signature, args):
        table, product, radius, angle = (
            context.make_array(signature.args[i])(context, builder, args[i]).data
            for i in (1, 3, 5, 6)
        )
        low, half, m0, m1 = (constant(int(c), lanes, I64) for c in (_LOW_HALF, _HALF, _M0, _M1))
        seed0 = builder.and_(args[4], ir.Constant(I64, int(_LOW_HALF)))
        seed1 = builder.lshr(args[4], ir.Constant(I64, int(_HALF)))
        keys = [
            [
                spread(builder, builder.add(part, ir.Constant(I64, int(bump))), lanes)
                for bump in bumps[3:]
            ]
            for part, bumps in ((seed0, _KEYS0), (seed1, _KEYS1))
        ]
        halves = ir.VectorType(I32, 2 * lanes)
        # The low halves of two vectors, interleaved.
        low_halves = [word for i in range(0, 2 * lanes, 2) for word in (i, 2 * lanes + i)]

        def row(i, index):
            offset = builder.add(builder.add(args[2], index), ir.Constant(I64, i * _TABLE))
            return load(builder, table, offset, lanes)

        def high(p):
            return builder.lshr(p, half)

        zero, step = ir.Constant(I64, 0), ir.Constant(I64, lanes)
        with cgutils.for_range_slice(builder, zero, args[0], step) as (k, _):
            p0 = load(builder, product, k, lanes)
            p1 = builder.mul(builder.and_(builder.xor(high(p0), row(0, k)), low), m1)
            c0, c1 = builder.xor(high(p1), row(1, k)), p1
            c2, c3 = builder.xor(row(2, k), p0), row(3, k)
            for k0, k1 in zip(*keys, strict=True):
                p0, p1 = (
                    builder.mul(builder.and_(c0, low), m0),
                    builder.mul(builder.and_(c2, low), m1),
                )
                c0 = builder.xor(builder.xor(high(p1), c1), k0)
                c2 = builder.xor(builder.xor(high(p0), c3), k1)
                c1, c3 = p1, p0
            for data, first, second in ((radius, c0, c2), (angle, c1, c3)):
                first, second = builder.bitcast(first, halves), builder.bitcast(second, halves)
                pairs = shuffle(builder, first, low_halves, second)
                store(builder, builder.bitcast(pairs, m0.type), data, k)
        return context.get_dummy_value()

    return types.none(
        types.int64, tables, types.int64, products, types.uint64, radius_words, angle_words
    ), codegen


@routine
def pack(first, count, quads, d, z, packed):
    """Copy z to ``packed`` without the normals that pad every row to whole quads."""
    source, target, quad = 0, 0, first % quads
    while source < 4 * count:
        end = min(target + d - 4 * quad, target + 4 * count - source)
        for i in unsigned_range(target, end):
            packed[i] = z[source + (i - target)]
        source, target, quad = source + 4 * (quads - quad), end, 0
