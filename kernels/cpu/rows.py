"""Rows of the CPU kernels of rotations: products and sums of vectors of any length, in SIMD code; tiles; row noise.

A range of rows is worked on a tile at a time: as many rows as a block of noise holds, or two rows of more features.
Everything that happens to a row is ``products`` or ``combine`` with numbers of its own; in between, loops over the rows
of the tile turn its dots into the next numbers.
"""

from __future__ import annotations

import numpy as np
from numba import types
from numba.core import cgutils

from .arrays import ABSENT, copy, write
from .compile import allocating, inlined, routine
from .philox import BLOCK, block_noise, extent
from .scalar import NAN, ZERO, intrinsic
from .vectors import I32, constant, fma, load, loops, shuffle, spread, store

CHUNK = 1024  # elements of a long row that several passes share while they lie in the L1 cache
SHORTEST = np.float32(1e-30)  # squared: a shorter vector has no direction
_LANES = (16, 4, 1)  # numbers worked on at a time, and partial sums, whatever the processor's vectors hold


# ---- tiles ----


@routine
def tile(d):
    """Rows of a tile. Where one row fills a block there are two: while one waits for its numbers the other has work."""
    return max(2, BLOCK // ((d + 3) // 4))


@routine
def batch(d):
    """Rows of the tiles that share a block of what each row has one of."""
    return BLOCK // tile(d) * tile(d)


@allocating
def elements(d):
    """Room for one number for each element of a tile."""
    return np.empty(tile(d) * d, np.float32)


@allocating
def row_numbers():
    """Room for one number for each row of a tile."""
    return np.empty(BLOCK, np.float32)


@routine
def row_noise(first, rows, d, stream, kind, step, room, xi, needed_next):
    """The normals of ``rows`` rows from ``first`` on; ``needed_next`` is that of ``block_noise``."""
    quads = (d + 3) // 4
    for quad in range(first * quads, (first + rows) * quads, BLOCK):
        count, start, stop = extent(quad, (first + rows) * quads, d)
        block_noise(quad, count, d, stream, kind, step, room, xi[start - first * d : stop - first * d], needed_next)


@routine
def mark_lost(r, d, new, past, sample, step, bad):
    """Row r of a tile, which is ``sample``, is NaN from now on; an earlier step in ``bad`` stays."""
    new[r * d : r * d + d] = NAN
    past[r * d : r * d + d] = NAN
    if bad[sample] < 0:
        bad[sample] = step


@inlined
def put_tile(size, new, c_in, out, net_dtype, net_in, net_bits):
    """Write the tile out and, times c_in, to the network; ``new`` is used up."""
    copy(size, new, out)
    put_net(size, new, c_in, new, net_dtype, net_in, net_bits)


@inlined
def put_net(size, new, c_in, scaled, net_dtype, net_in, net_bits):
    """Write c_in times the tile to the network, by way of ``scaled``."""
    if net_dtype != ABSENT:
        combine(scaled, (c_in,), (new,), 0, size)
        write(size, net_dtype, scaled, net_in, net_bits)


# ---- a row ----


@inlined(error_model="numpy")
def measure(begin, end, u, f, past, xi):
    """1 / |u| (NaN where |u|^2 is zero or infinite), and f.u, past.u and xi.u; an absent array (empty) gives 0."""
    square, f_u, past_u, xi_u = ZERO, ZERO, ZERO, ZERO
    for i in range(begin, end, CHUNK):
        stop = min(i + CHUNK, end)
        if len(xi):
            parts = products(u, (u, f, xi), i, stop)
            square, f_u, xi_u = square + parts[0], f_u + parts[1], xi_u + parts[2]
        else:
            parts = products(u, (u, f), i, stop)
            square, f_u = square + parts[0], f_u + parts[1]
        if len(past):
            past_u += products(u, (past,), i, stop)[0]
    return np.sqrt(square) / square, f_u, past_u, xi_u


@inlined
def square_of(x, begin, end):
    total = ZERO
    for i in range(begin, end, CHUNK):
        total += products(x, (x,), i, min(i + CHUNK, end))[0]
    return total


@intrinsic
def products(typingctx, y, xs, start, stop):
    """The sum of x[i] y[i] for start <= i < stop, for every x, in an order that depends on stop - start alone."""

    def codegen(context, builder, signature, args):
        data, *others = _pointers(context, builder, signature.args[:2], args[:2])
        zeros = {lanes: constant(0.0, lanes) for lanes in _LANES}
        sums = [{n: cgutils.alloca_once_value(builder, zero) for n, zero in zeros.items()} for _ in others]

        def body(lanes, index):
            y = load(builder, data, index, lanes)
            for x, totals in zip(others, sums, strict=True):
                total = fma(builder, load(builder, x, index, lanes), y, builder.load(totals[lanes]))
                builder.store(total, totals[lanes])

        loops(builder, args[2], args[3], _LANES, body)
        return context.make_tuple(builder, signature.return_type, [_total(builder, totals) for totals in sums])

    return types.UniTuple(types.float32, len(xs))(y, xs, types.intp, types.intp), codegen


@intrinsic
def combine_products(typingctx, out, factors, xs, ys, start, stop):
    """``combine``, and in the same pass ``products`` of out with itself and with every y, which must not be out."""

    def codegen(context, builder, signature, args):
        target, *data = _pointers(context, builder, (signature.args[0], signature.args[2]), (args[0], args[2]))
        _, *others = _pointers(context, builder, (signature.args[0], signature.args[3]), (args[0], args[3]))
        scales = _spread(builder, args[1])
        zeros = {lanes: constant(0.0, lanes) for lanes in _LANES}
        sums = [{n: cgutils.alloca_once_value(builder, zero) for n, zero in zeros.items()} for _ in (target, *others)]

        def body(lanes, index):
            new = _combined(builder, scales[lanes], [load(builder, x, index, lanes) for x in data])
            store(builder, new, target, index)
            for y, totals in zip((new, *(load(builder, y, index, lanes) for y in others)), sums, strict=True):
                builder.store(fma(builder, y, new, builder.load(totals[lanes])), totals[lanes])

        loops(builder, args[4], args[5], _LANES, body)
        return context.make_tuple(builder, signature.return_type, [_total(builder, totals) for totals in sums])

    kinds = types.UniTuple(types.float32, len(factors)), xs, ys, types.intp, types.intp
    return types.UniTuple(types.float32, 1 + len(ys))(out, *kinds), codegen


@intrinsic
def combine(typingctx, out, factors, xs, start, stop):
    """out[i] = the sum of factor x[i] over the pairs of them, for start <= i < stop; out may be an x."""

    def codegen(context, builder, signature, args):
        target, *data = _pointers(context, builder, (signature.args[0], signature.args[2]), (args[0], args[2]))
        scales = _spread(builder, args[1])

        def body(lanes, index):
            new = _combined(builder, scales[lanes], [load(builder, x, index, lanes) for x in data])
            store(builder, new, target, index)

        loops(builder, args[3], args[4], _LANES, body)
        return context.get_dummy_value()

    return types.none(out, types.UniTuple(types.float32, len(factors)), xs, types.intp, types.intp), codegen


def _spread(builder, factors):
    """A tuple of numbers as vectors of every width."""
    scalars = cgutils.unpack_tuple(builder, factors)
    return {lanes: [spread(builder, scalar, lanes) for scalar in scalars] for lanes in _LANES}


def _combined(builder, factors, xs):
    total = builder.fmul(factors[0], xs[0])
    for factor, x in zip(factors[1:], xs[1:], strict=True):
        total = fma(builder, factor, x, total)
    return total


def _pointers(context, builder, kinds, values):
    """Of an array and of those of a tuple of arrays."""
    kinds, values = [kinds[0], *kinds[1]], [values[0], *cgutils.unpack_tuple(builder, values[1])]
    return [context.make_array(k)(context, builder, v).data for k, v in zip(kinds, values, strict=True)]


def _total(builder, totals):
    """Lanes folded in half, again and again; the sums of fewer lanes are added where there are as many left."""
    total = builder.load(totals[_LANES[0]])
    for lanes in _LANES[1:]:
        while total.type.count > lanes:
            half = total.type.count // 2
            low, high = (shuffle(builder, total, range(i, i + half)) for i in (0, half))
            total = builder.fadd(low, high)
        total = builder.fadd(total, builder.load(totals[lanes]))
    return builder.extract_element(total, I32(0))
