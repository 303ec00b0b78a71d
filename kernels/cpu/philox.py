"""Noise on the CPU: the stream ``philox-v1`` of ``fastmsgm.rng``, a block of quads at a time, in SIMD loops.

A sample is a row of ceil(d / 4) quads (a quad is one Philox call: four words, four normals); a block is any range of
the flat list of quads, so that samples of few features fill SIMD vectors too. The words of a block lie in two arrays,
in the order of its pairs of normals: words 0 and 2 of every quad give the radii, words 1 and 3 the angles.

Of the first three rounds, five products of six depend on the quad alone or on the sample alone; what they give is kept
in tables by quad, and one number a sample.
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
LONG_ROW = 4096  # quads of a row, above which its tables are made for each block
# Quads at a time: four vectors of 64-bit lanes where there are 32 registers of 512 bits, else what 16 of 256 bits hold.
VECTOR = 32 if "+avx512f" in codegen.get_host_cpu_features() else 8
_TABLE = LONG_ROW + BLOCK + VECTOR  # room for one table

_LOW_HALF, _HALF, _KIND = np.uint64(0xFFFFFFFF), np.uint64(32), np.uint64(24)
_M0, _M1 = np.uint64(rng.PHILOX_M0), np.uint64(rng.PHILOX_M1)
_KEYS0 = tuple(np.uint64(i * rng.PHILOX_W0 % 2**32) for i in range(rng.ROUNDS))
_KEYS1 = tuple(np.uint64(i * rng.PHILOX_W1 % 2**32) for i in range(rng.ROUNDS))


@routine
def unsigned_range(start, stop):
    """A range whose indices need no test for a negative one."""
    return range(np.uint64(start), np.uint64(stop))


@allocating
def floats():
    """Room for one number for each element of a block."""
    return np.empty(4 * BLOCK, np.float32)


@allocating
def words():
    """Room for one 64-bit word for each quad of a block."""
    return np.empty(BLOCK + VECTOR, np.uint64)


@allocating
def buffers(d):
    """Room for the noise of rows of d features, of one kind and step: tables by quad and the upper word of the samples
    that they are for (-1: none yet), products by sample, the words for radii and for angles, padded normals."""
    tables = np.empty(4 * _TABLE, np.uint64)
    return tables, np.full(1, -1, np.int64), words(), words(), words(), floats()


@routine
def block_noise(first, count, d, stream, kind, step, room, z, needed_next):
    """Fill z with the normals of ``count`` quads from ``first`` on, in the elements' order.

    Meanwhile about the same elements of ``needed_next``, a tuple of flat (n, d) arrays, come from memory.
    """
    block_words(first, count, d, stream, kind, step, room)
    radius, angle, padded = room[3].view(np.uint32), room[4].view(np.uint32), room[5]
    element = _element(first, d)
    if d % 4 == 0:
        normals(2 * count, radius, angle, z, element, needed_next)
    else:
        normals(2 * count, radius, angle, padded, element, needed_next)
        pack(first, count, (d + 3) // 4, d, padded, z)


@routine
def odd_words(first, count, stream, kind, step, room, odd):
    """Whether the second word of each of ``count`` samples from ``first`` on, the first one for angles, is odd."""
    block_words(first, count, 1, stream, kind, step, room)
    words = room[4].view(np.uint32)
    for r in range(count):
        odd[r] = np.uint32(words[2 * r] & np.uint32(1)) != 0


@routine
def block_words(first, count, d, stream, kind, step, room):
    """Fill the room's words with those of ``count`` quads from ``first`` on."""
    tables, upper, products, radius_words, angle_words, _ = room
    quads, done = (d + 3) // 4, 0
    while done < count:  # once, but where the upper word of the sample's number changes within the block
        quad, sample = (first + done) % quads, stream[1] + (first + done) // quads
        stop = min(count, done + (((sample >> 32) + 1 << 32) - sample) * quads - quad)
        rounds_of_samples(quad, stop - done, quads, sample, kind, stream[0], products)
        if quads > LONG_ROW:
            rounds_of_quads(quad, stop - done, quads, sample >> 32, kind, step, stream[0], tables)
            quad = 0
        elif upper[0] != sample >> 32:
            rounds_of_quads(0, quads + BLOCK, quads, sample >> 32, kind, step, stream[0], tables)
            upper[0] = sample >> 32
        seed, size = np.uint64(stream[0]), stop - done
        philox(size, tables, quad, products, seed, radius_words[done:], angle_words[done:])
        done = stop


@routine
def extent(quad, end, d):
    """Of the block of quads from ``quad`` to ``end`` at most: how many it has, and where in the flat (n, d) array its
    elements start and stop."""
    count = min(BLOCK, end - quad)
    return count, _element(quad, d), _element(quad + count, d)


@routine
def _element(quad, d):
    """Index, in the flat (n, d) array, of the first element of a quad of the flat list."""
    quads = (d + 3) // 4
    return quad // quads * d + 4 * (quad % quads)


# ---- Philox4x32-10, with 32-bit words in 64-bit lanes ----

# Products then need no widening, and what lies in the upper half of a lane (the high word of a product) is dropped when
# the lane is next multiplied. A round is p0 = c0 M0, p1 = c2 M1, then c0, c1, c2, c3 = high(p1) ^ c1 ^ k0, low(p1),
# high(p0) ^ c3 ^ k1, low(p0). At first c0 is the quad, c1 the sample, c2 the kind and the sample's upper word.


@routine
def rounds_of_quads(quad, count, quads, upper, kind, step, seed, tables):
    """What rounds 1 to 3 have of the quads: of ``count`` from ``quad`` on, after the last of a row its first again. In
    order: c3 ^ k1 of round 2, c1 ^ k0 of round 3, the upper half of its p0 ^ k1, and that p0."""
    seed0, seed1 = np.uint64(seed) & _LOW_HALF, np.uint64(seed) >> _HALF
    common = (((np.uint64(kind) << _KIND) + np.uint64(upper)) & _LOW_HALF) * _M1 & _LOW_HALF  # c1 after round 1
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
def rounds_of_samples(quad, count, quads, sample, kind, seed, products):
    """p0 of round 2, which depends on the sample alone, for ``count`` quads from ``quad`` of this sample on."""
    seed0 = np.uint64(seed) & _LOW_HALF
    p1 = (((np.uint64(kind) << _KIND) + np.uint64(sample >> 32)) & _LOW_HALF) * _M1
    i = 0
    while i < count:
        end = min(i + quads - quad, count)
        product = (((p1 >> _HALF) ^ np.uint64(sample) ^ (seed0 + _KEYS0[0])) & _LOW_HALF) * _M0
        for j in unsigned_range(i, end):
            products[j] = product
        i, quad, sample = end, 0, sample + 1


@intrinsic
def philox(typingctx, count, tables, quad, products, seed, radius_words, angle_words):
    """The words of ``count`` quads, rounded up to whole vectors, whose tables begin at ``quad``; a pair of 32-bit words
    goes out as one 64-bit word, the first one low."""
    lanes = VECTOR

    def codegen(context, builder, signature, args):
        table, product, radius, angle = (
            context.make_array(kind)(context, builder, value).data
            for kind, value in ((signature.args[i], args[i]) for i in (1, 3, 5, 6))
        )
        low, half, m0, m1 = (constant(int(c), lanes, I64) for c in (_LOW_HALF, _HALF, _M0, _M1))
        seed0 = builder.and_(args[4], ir.Constant(I64, int(_LOW_HALF)))
        seed1 = builder.lshr(args[4], ir.Constant(I64, int(_HALF)))
        keys = [
            [spread(builder, builder.add(part, ir.Constant(I64, int(bump))), lanes) for bump in bumps[3:]]
            for part, bumps in ((seed0, _KEYS0), (seed1, _KEYS1))
        ]
        halves = ir.VectorType(I32, 2 * lanes)
        lower_halves = [word for i in range(0, 2 * lanes, 2) for word in (i, 2 * lanes + i)]  # in turn

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
                p0, p1 = builder.mul(builder.and_(c0, low), m0), builder.mul(builder.and_(c2, low), m1)
                c0 = builder.xor(builder.xor(high(p1), c1), k0)
                c2 = builder.xor(builder.xor(high(p0), c3), k1)
                c1, c3 = p1, p0
            for data, first, second in ((radius, c0, c2), (angle, c1, c3)):
                first, second = builder.bitcast(first, halves), builder.bitcast(second, halves)
                pairs = shuffle(builder, first, lower_halves, second)
                store(builder, builder.bitcast(pairs, m0.type), data, k)
        return context.get_dummy_value()

    return types.none(types.int64, tables, types.int64, products, types.uint64, radius_words, angle_words), codegen


@routine
def pack(first, count, quads, d, z, packed):
    """Leave out the normals that pad every row to whole quads."""
    source, target, quad = 0, 0, first % quads
    while source < 4 * count:
        end = min(target + d - 4 * quad, target + 4 * count - source)
        for i in unsigned_range(target, end):
            packed[i] = z[source + (i - target)]
        source, target, quad = source + 4 * (quads - quad), end, 0
