"""Rows of the CPU kernels of rotations: tiles, noise, products and sums of vectors in SIMD code.

A range of rows is processed a tile at a time. A tile has as many rows as a block of noise holds, or
two longer rows. Rows are only processed by ``products`` and by ``combine`` with coefficients per
row. In between, loops over the rows of a tile compute the next coefficients from the products.
"""

from __future__ import annotations

import numpy as np
from numba import types
from numba.core import cgutils

from fastmsgm import constants

from .arrays import ABSENT, copy, write
from .compile import allocating, inlined, routine
from .philox import BLOCK, block_noise, extent
from .scalar import NAN, ZERO, intrinsic
from .vectors import I32, constant, fma, load, loops, shuffle, spread, store

# Elements of a long row that several passes process while they are in the L1 cache.
CHUNK = 1024
SHORTEST = np.float32(constants.SHORTEST)
# Elements processed at a time, and so the partial sums: independent of the processor's vectors.
_LANES = (16, 4, 1)


# ---- tiles ----


@routine
def tile(d):
    """Rows of a tile.

    Rows that fill a block are processed two at a time, which hides the latency of the coefficients.
    """
    return max(2, BLOCK // ((d + 3) // 4))


@routine
def batch(d):
    """Rows of the tiles that share a block of per-row values, such as a normal for each row."""
    return BLOCK // tile(d) * tile(d)


@allocating
def elements(d):
    """Allocate workspace for one number per element of a tile."""
    return np.empty(tile(d) * d, np.float32)


@allocating
def row_workspace():
    """Allocate workspace for one number per row of a tile."""
    return np.empty(BLOCK, np.float32)


@routine
def row_noise(first, rows, d, stream, purpose, step, workspace, xi, prefetch):
    """Fill xi with the normals of ``rows`` rows from ``first`` on, as ``block_noise``."""
    quads = (d + 3) // 4
    for quad in range(first * quads, (first + rows) * quads, BLOCK):
        count, start, stop = extent(quad, (first + rows) * quads, d)
        block_noise(
            quad,
            count,
            d,
            stream,
            purpose,
            step,
            workspace,
            xi[start - first * d : stop - first * d],
            prefetch,
        )


@routine
def mark_nonfinite(r, d, new, prev, sample, step, first_nonfinite_step):
    """Set row r of a tile to NaN and record the step, unless an earlier one is recorded.

    ``sample`` is the index of the row in ``first_nonfinite_step``.
    """
    new[r * d : r * d + d] = NAN
    prev[r * d : r * d + d] = NAN
    if first_nonfinite_step[sample] < 0:
        first_nonfinite_step[sample] = step


@inlined
def put_tile(size, new, c_in, out, input_dtype, model_input, input_bits):
    """Write a tile to ``out`` and c_in times the tile to ``model_input``; overwrites ``new``."""
    copy(size, new, out)
    put_model_input(size, new, c_in, new, input_dtype, model_input, input_bits)


@inlined
def put_model_input(size, new, c_in, scaled, input_dtype, model_input, input_bits):
    """Write c_in times a tile to ``model_input``, using ``scaled`` as workspace."""
    if input_dtype != ABSENT:
        combine(scaled, (c_in,), (new,), 0, size)
        write(size, input_dtype, scaled, model_input, input_bits)


# ---- a row ----


@inlined(error_model="numpy")
def measure(begin, end, u, f, prev, xi):
    """1 / |u| (NaN where |u|^2 is zero or infinite), f.u, prev.u and xi.u.

    An absent (empty) array gives 0.
    """
    square, f_u, prev_u, xi_u = ZERO, ZERO, ZERO, ZERO
    for i in range(begin, end, CHUNK):
        stop = min(i + CHUNK, end)
        if len(xi):
            parts = products(u, (u, f, xi), i, stop)
            square, f_u, xi_u = square + parts[0], f_u + parts[1], xi_u + parts[2]
        else:
            parts = products(u, (u, f), i, stop)
            square, f_u = square + parts[0], f_u + parts[1]
        if len(prev):
            prev_u += products(u, (prev,), i, stop)[0]
    return np.sqrt(square) / square, f_u, prev_u, xi_u


@inlined
def square_of(x, begin, end):
    """The sum of x[i]^2 for begin <= i < end."""
    total = ZERO
    for i in range(begin, end, CHUNK):
        total += products(x, (x,), i, min(i + CHUNK, end))[0]
    return total


@intrinsic
def products(typingctx, y, xs, start, stop):
    """The sum of x[i] y[i] for start <= i < stop, for every x.

    The order of summation depends on stop - start alone.
    """

    def codegen(context, builder, signature, args):
        data, *others = _pointers(context, builder, signature.args[:2], args[:2])
        zeros = {lanes: constant(0.0, lanes) for lanes in _LANES}
        sums = [
            {n: cgutils.alloca_once_value(builder, zero) for n, zero in zeros.items()}
            for _ in others
        ]

        def body(lanes, index):
            y = load(builder, data, index, lanes)
            for x, totals in zip(others, sums, strict=True):
                total = fma(builder, load(builder, x, index, lanes), y, builder.load(totals[lanes]))
                builder.store(total, totals[lanes])

        loops(builder, args[2], args[3], _LANES, body)
        return context.make_tuple(
            builder, signature.return_type, [_total(builder, totals) for totals in sums]
        )

    return types.UniTuple(types.float32, len(xs))(y, xs, types.intp, types.intp), codegen


@intrinsic
def combine_products(typingctx, out, factors, xs, ys, start, stop):
    """``combine``, and in the same pass ``products`` of out with itself and with every y.

    No y may be out.
    """

    def codegen(context, builder, signature, args):
        target, *data = _pointers(
            context, builder, (signature.args[0], signature.args[2]), (args[0], args[2])
        )
        _, *others = _pointers(
            context, builder, (signature.args[0], signature.args[3]), (args[0], args[3])
        )
        scales = _spread(builder, args[1])
        zeros = {lanes: constant(0.0, lanes) for lanes in _LANES}
        sums = [
            {n: cgutils.alloca_once_value(builder, zero) for n, zero in zeros.items()}
            for _ in (target, *others)
        ]

        def body(lanes, index):
            new = _combined(builder, scales[lanes], [load(builder, x, index, lanes) for x in data])
            store(builder, new, target, index)
            for y, totals in zip(
                (new, *(load(builder, y, index, lanes) for y in others)), sums, strict=True
            ):
                builder.store(fma(builder, y, new, builder.load(totals[lanes])), totals[lanes])

        loops(builder, args[4], args[5], _LANES, body)
        return context.make_tuple(
            builder, signature.return_type, [_total(builder, totals) for totals in sums]
        )

    arguments = types.UniTuple(types.float32, len(factors)), xs, ys, types.intp, types.intp
    return types.UniTuple(types.float32, 1 + len(ys))(out, *arguments), codegen


@intrinsic
def combine(typingctx, out, factors, xs, start, stop):
    """out[i] = sum_k factors[k] xs[k][i] for start <= i < stop; out may be one of the xs."""

    def codegen(context, builder, signature, args):
        target, *data = _pointers(
            context, builder, (signature.args[0], signature.args[2]), (args[0], args[2])
        )
        scales = _spread(builder, args[1])

        def body(lanes, index):
            new = _combined(builder, scales[lanes], [load(builder, x, index, lanes) for x in data])
            store(builder, new, target, index)

        loops(builder, args[3], args[4], _LANES, body)
        return context.get_dummy_value()

    return types.none(
        out, types.UniTuple(types.float32, len(factors)), xs, types.intp, types.intp
    ), codegen


def _spread(builder, factors):
    """A tuple of scalars as vectors of every width."""
    scalars = cgutils.unpack_tuple(builder, factors)
    return {lanes: [spread(builder, scalar, lanes) for scalar in scalars] for lanes in _LANES}


def _combined(builder, factors, xs):
    total = builder.fmul(factors[0], xs[0])
    for factor, x in zip(factors[1:], xs[1:], strict=True):
        total = fma(builder, factor, x, total)
    return total


def _pointers(context, builder, array_types, values):
    """Data pointers of an array and of the arrays of a tuple."""
    array_types = [array_types[0], *array_types[1]]
    values = [values[0], *cgutils.unpack_tuple(builder, values[1])]
    return [
        context.make_array(array_type)(context, builder, value).data
        for array_type, value in zip(array_types, values, strict=True)
    ]


def _total(builder, totals):
    """Reduce the sums of all widths to a scalar by repeatedly adding the halves of a vector.

    The sums of fewer lanes are added when the vector has that width.
    """
    total = builder.load(totals[_LANES[0]])
    for lanes in _LANES[1:]:
        while total.type.count > lanes:
            half = total.type.count // 2
            low, high = (shuffle(builder, total, range(i, i + half)) for i in (0, half))
            total = builder.fadd(low, high)
        total = builder.fadd(total, builder.load(totals[lanes]))
    return builder.extract_element(total, I32(0))
