"""Rotation on the CPU: ``rotation_perturb`` and ``rotation_step`` as in ``fastmsgm.reference``.

Threads take ranges of rows, and a range is worked on a tile at a time: as many rows as a block of noise holds, or one
row of more features. Everything that happens to a row is ``products`` or ``combine`` with numbers of its own (SIMD code
for rows of any length); in between, loops over the rows of the tile turn its dots into the next numbers. A second
projection costs no pass: of a projected vector q, the rest q.u is measured together with q.q and goes into the numbers.
"""

from __future__ import annotations

import math

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from torch import Tensor

from fastmsgm import rng

from .gbm import _ABSENT, _FLOAT, _copy, _flat, _network_side, _optional, _widen, _write
from .philox import BLOCK, block_noise, buffers, element
from .scalar import NAN, _intrinsic, exp2, fma, polynomial, prefetch
from .threads import over_rows

_LANES = (16, 4, 1)  # numbers worked on at a time, and partial sums, whatever the processor's vectors hold
_CHUNK = 1024  # elements of a long row that several passes share while they lie in the L1 cache
_ZERO, _HALF, _ONE, _TWO = np.float32(0.0), np.float32(0.5), np.float32(1.0), np.float32(2.0)
_SHORTEST = np.float32(1e-30)  # squared: a shorter vector has no direction
_INFINITE = np.float32(np.inf)
_LOG2_E, _LOWEST = np.float32(1 / math.log(2.0)), np.float32(-126.0)
_HALF_TURNS = np.float32(1 / math.pi)  # half an angle in quarter turns
_SIN = tuple(np.float32(c) for c in rng.SIN)
_COS = tuple(np.float32(c) for c in rng.COS)
_Z_MAX, _Z_RANGE = np.float32(6.0), np.float32(12.0)  # angle tables have columns for z = -6 .. 6
_NO_ANGLES = np.empty(0, np.float32)


def rotation_perturb(
    u0: Tensor, coefficients: Tensor, table: Tensor, stream: Tensor, step: int,
    u_t: Tensor | None, net_in: Tensor | None, target: Tensor | None,
) -> None:  # fmt: skip
    """Noise u0 once; the arguments and the formula are those of ``reference.rotation_perturb``."""
    n, d = u0.shape
    arrays = _optional(u_t), *_network_side(net_in), _optional(target)
    over_rows(
        _perturb_rows, n, d, d, _flat(u0), coefficients.numpy(), table.numpy(), stream.numpy(), step, *arrays
    )  # fmt: skip


def rotation_step(
    u: Tensor, f: Tensor, table: Tensor, angles: Tensor | None, stream: Tensor, step: int, bad: Tensor, out: Tensor,
    history: Tensor | None, net_in: Tensor | None, geodesic: bool,
) -> None:  # fmt: skip
    """One reverse step from ``u`` to ``out``; arguments and formula are those of ``reference.rotation_step``."""
    n, d = u.shape
    angle_row = _NO_ANGLES if angles is None else angles[step].numpy()
    arrays = *_network_side(f), bad.numpy(), _flat(out), _optional(history), *_network_side(net_in)
    over_rows(
        _step_rows, n, d, d, _flat(u), *arrays, table[step].numpy(), angle_row, stream.numpy(), step, geodesic
    )  # fmt: skip


# ---- a row: every product and every sum ----


@_intrinsic
def products(typingctx, y, xs, start, stop):
    """The sum of x[i] y[i] for start <= i < stop, for every x, in an order that depends on stop - start alone."""

    def codegen(context, builder, signature, args):
        data, *others = _pointers(context, builder, signature.args[:2], args[:2])
        zeros = {lanes: ir.Constant(_vector(lanes), [0.0] * lanes) for lanes in _LANES}
        sums = [{n: cgutils.alloca_once_value(builder, zero) for n, zero in zeros.items()} for _ in others]

        def body(lanes, index):
            y = _load(builder, data, index, lanes)
            for x, totals in zip(others, sums, strict=True):
                total = _fma(builder, _load(builder, x, index, lanes), y, builder.load(totals[lanes]))
                builder.store(total, totals[lanes])

        _vector_loops(builder, args[2], args[3], body)
        return context.make_tuple(builder, signature.return_type, [_total(builder, totals) for totals in sums])

    return types.UniTuple(types.float32, len(xs))(y, xs, types.intp, types.intp), codegen


@_intrinsic
def combine(typingctx, out, factors, xs, start, stop):
    """out[i] = the sum of factor x[i] over the pairs of them, for start <= i < stop; out may be an x."""

    def codegen(context, builder, signature, args):
        target, *data = _pointers(context, builder, (signature.args[0], signature.args[2]), (args[0], args[2]))
        scalars = [
            builder.insert_element(ir.Constant(_vector(1), ir.Undefined), factor, ir.IntType(32)(0))
            for factor in cgutils.unpack_tuple(builder, args[1])
        ]
        spread = {lanes: [_lanes(builder, scalar, [0] * lanes) for scalar in scalars] for lanes in _LANES}

        def body(lanes, index):
            terms = zip(spread[lanes], [_load(builder, x, index, lanes) for x in data], strict=True)
            total = builder.fmul(*next(terms))
            for factor, x in terms:
                total = _fma(builder, factor, x, total)
            builder.store(total, _at(builder, target, index, lanes), align=4)

        _vector_loops(builder, args[3], args[4], body)
        return context.get_dummy_value()

    return types.none(out, types.UniTuple(types.float32, len(factors)), xs, types.intp, types.intp), codegen


def _pointers(context, builder, kinds, values):
    """Of an array and of those of a tuple of arrays."""
    kinds, values = [kinds[0], *kinds[1]], [values[0], *cgutils.unpack_tuple(builder, values[1])]
    return [context.make_array(k)(context, builder, v).data for k, v in zip(kinds, values, strict=True)]


def _vector_loops(builder, start, stop, body):
    """``body(lanes, index)`` for whole vectors of the most lanes from ``start`` on, then of fewer, to the end."""
    for lanes in _LANES:
        whole = builder.and_(builder.sub(stop, start), ir.Constant(start.type, -lanes))
        end = builder.add(start, whole)
        with cgutils.for_range_slice(builder, start, end, ir.Constant(start.type, lanes)) as (index, _):
            body(lanes, index)
        start = end


def _total(builder, totals):
    """Lanes folded in half, again and again; the sums of fewer lanes are added where there are as many left."""
    total = builder.load(totals[_LANES[0]])
    for lanes in _LANES[1:]:
        while total.type.count > lanes:
            half = total.type.count // 2
            low, high = (_lanes(builder, total, list(range(i, i + half))) for i in (0, half))
            total = builder.fadd(low, high)
        total = builder.fadd(total, builder.load(totals[lanes]))
    return builder.extract_element(total, ir.IntType(32)(0))


def _vector(lanes):
    return ir.VectorType(ir.FloatType(), lanes)


def _lanes(builder, vector, indices):
    mask = ir.Constant(ir.VectorType(ir.IntType(32), len(indices)), indices)
    return builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), mask)


def _at(builder, data, index, lanes):
    return builder.bitcast(builder.gep(data, [index]), _vector(lanes).as_pointer())


def _load(builder, data, index, lanes):
    return builder.load(_at(builder, data, index, lanes), align=4)


def _fma(builder, *arguments):
    kind = arguments[0].type
    function = ir.FunctionType(kind, [kind] * 3)
    return builder.call(
        cgutils.get_or_insert_function(builder.module, function, f"llvm.fma.v{kind.count}f32"), arguments
    )


# ---- a range of rows ----


@njit(nogil=True, cache=True)
def _tile(d):
    """Rows of a tile."""
    return max(1, BLOCK // ((d + 3) // 4))


@njit(nogil=True, cache=True)
def _elements(d):
    """Room for one number for each element of a tile."""
    return np.empty(_tile(d) * d, np.float32)


@njit(nogil=True, cache=True)
def _number():
    """Room for one number for each row of a tile."""
    return np.empty(BLOCK, np.float32)


@njit(nogil=True, cache=True)
def _numbers():
    """Room for the numbers of a tile, allocated once."""
    return (
        _number(), _number(), _number(), _number(), _number(), _number(),
        _number(), _number(), _number(), _number(), _number(), _number(),
    )  # fmt: skip


@njit(nogil=True, cache=True)
def _noise(first, rows, d, stream, kind, step, room, xi):
    """The normals of ``rows`` rows from ``first`` on."""
    quads = (d + 3) // 4
    start, end = first * quads, (first + rows) * quads
    for quad in range(start, end, BLOCK):
        count = min(BLOCK, end - quad)
        low, high = element(quad, d), element(quad + count, d)
        z = block_noise(quad, count, d, stream, kind, step, room)
        _copy(high - low, z, xi[low - first * d : high - first * d])


@njit(nogil=True, cache=True)
def _perturb_rows(first, last, d, u_all, coefficients, table, stream, step, u_t, net_dtype, net_in, net_bits, target):
    room = buffers()
    xi, new = _elements(d), _elements(d)
    scale, xi_u, square, rest, v, g, a, b = _numbers()[:8]
    for row in range(first, last, _tile(d)):
        rows = min(_tile(d), last - row)
        start, stop = row * d, (row + rows) * d
        prefetch(u_all, start, stop)
        _noise(row, rows, d, stream, rng.Kind.TRAINING_NOISE.value, step, room, xi)
        z = block_noise(row, rows, 1, stream, rng.Kind.TRAINING_ANGLE.value, step, room)
        u, numbers = u_all[start:stop], coefficients[row : row + rows]
        for r in range(rows):
            scale[r], xi_u[r], _, _ = _measure(r * d, r * d + d, u, xi, u, u)
        _bilinear(rows, numbers, table, z, v, g)
        _project(rows, d, xi, u, scale, xi_u, square, rest)
        _turn_numbers(rows, v, square, rest, scale, a, b)
        for r in range(rows):
            combine(new, (a[r], b[r]), (u, xi), r * d, r * d + d)
        if len(u_t):
            _copy(stop - start, new, u_t[start:stop])
        if len(target):
            back = target[start:stop]
            _back_numbers(rows, numbers, v, g, square, rest, scale, a, b)
            for r in range(rows):
                combine(back, (a[r], b[r]), (u, xi), r * d, r * d + d)
        if net_dtype != _ABSENT:
            for r in range(rows):
                combine(new, (numbers[r, 3],), (new,), r * d, r * d + d)
            _write(stop - start, net_dtype, new, net_in[start:stop], net_bits[start:stop])


@njit(nogil=True, cache=True)
def _step_rows(
    first, last, d, u_all, f_dtype, f_all, f_bits, bad, out, history, net_dtype, net_in, net_bits, numbers, angles,
    stream, step, geodesic,
):  # fmt: skip
    noisy = numbers[5] != 0 if geodesic else len(angles) > 0 and numbers[7] != 0
    room = buffers()
    widened, xi, tangent, new = _elements(d), _elements(d), _elements(d), _elements(d)
    no_xi, space, lost = xi[:0], _numbers(), np.empty(BLOCK, np.bool_)
    for row in range(first, last, _tile(d)):
        rows = min(_tile(d), last - row)
        start, stop = row * d, (row + rows) * d
        # What lies in memory comes while the noise, which needs none of it, is computed.
        prefetch(u_all, start, stop)
        prefetch(f_all, start, stop)
        prefetch(f_bits, start, stop)
        prefetch(history, start, stop)
        if noisy:
            _noise(row, rows, d, stream, rng.Kind.STEP.value, step, room, xi)
        u, past = u_all[start:stop], history[start:stop]
        if f_dtype == _FLOAT:
            f = f_all[start:stop]
        else:
            _widen(stop - start, f_dtype, f_bits[start:stop], widened)
            f = widened
        noise = xi if noisy else no_xi
        if geodesic:
            _exponential_rows(rows, d, u, f, past, noise, numbers, tangent, new, lost, space)
        else:
            z = block_noise(row, rows, 1, stream, rng.Kind.ANGLE.value, step, room) if noisy else noise
            _flow_rows(rows, d, u, f, past, noise, numbers, angles, z, tangent, new, lost, space)
        for r in range(rows):
            if lost[r]:
                new[r * d : r * d + d] = NAN
                past[r * d : r * d + d] = NAN
                if bad[row + r] < 0:
                    bad[row + r] = step
        _copy(stop - start, new, out[start:stop])
        if net_dtype != _ABSENT:
            combine(new, (numbers[8],), (new,), 0, stop - start)
            _write(stop - start, net_dtype, new, net_in[start:stop], net_bits[start:stop])


# ---- a tile: towards a denoised direction, and heat-kernel noise ----


@njit(nogil=True, cache=True)
def _flow_rows(rows, d, u, f, past, xi, numbers, angles, z, tangent, new, lost, space):
    """``new`` from u; D goes into ``past``. ``tangent`` holds the tangent part of D_w."""
    alpha, sigma, w, length, spread = numbers[0], numbers[1], numbers[2], numbers[3], numbers[7]
    scale, along, square, rest, xi_u, xi_tangent, a, b = space[:8]
    multistep, noisy = len(past) > 0, len(xi) > 0
    w, before, noise = w if multistep else _ZERO, past if multistep else u, xi if noisy else u
    for r in range(rows):
        begin, end = r * d, r * d + d
        scale[r], f_u, before_u, xi_u[r] = _measure(begin, end, u, f, before, noise)
        gain = (_ONE + w) * sigma
        along[r] = (_ONE + w) * alpha - w * before_u * scale[r]
        radial = (w * before_u - gain * f_u) * scale[r] * scale[r]
        kept = (alpha - sigma * f_u * scale[r]) * scale[r]
        size, product, xi_tangent[r] = _ZERO, _ZERO, _ZERO
        for i in range(begin, end, _CHUNK):
            j = min(i + _CHUNK, end)
            combine(tangent, (gain, radial, -w), (f, u, before), i, j)
            if multistep:
                combine(past, (sigma, kept), (f, u), i, j)
            parts = products(tangent, (tangent, u, noise), i, j)
            size, product, xi_tangent[r] = size + parts[0], product + parts[1], xi_tangent[r] + parts[2]
        rest[r] = product * scale[r]
        square[r] = size - rest[r] * rest[r]
    _flow_numbers(rows, length, scale, along, square, rest, lost, a, b)
    for r in range(rows):
        combine(new, (a[r], b[r]), (u, tangent), r * d, r * d + d)
    if noisy:
        for r in range(rows):
            xi_u[r] = a[r] * xi_u[r] + b[r] * xi_tangent[r]
            scale[r] = _ONE  # of new
        _linear(rows, angles, spread, z, b)
        _project(rows, d, xi, new, scale, xi_u, square, rest)
        _turn_numbers(rows, b, square, rest, scale, a, along)
        for r in range(rows):
            combine(new, (a[r], along[r]), (new, xi), r * d, r * d + d)


@njit(nogil=True, cache=True, error_model="numpy")
def _flow_numbers(rows, length, scale, along, square, rest, lost, a, b):
    """u+ = a u + b tangent, by the tangent of half the angle; ``along`` is D_w.u."""
    for r in range(rows):
        whole = square[r] + along[r] * along[r]
        size, width = np.sqrt(whole), np.sqrt(square[r])
        still = square[r] <= _SHORTEST * (whole if whole > _ONE else _ONE)
        half = width / (size + along[r]) if along[r] >= _ZERO else (size - along[r]) / width
        power = -size * length * _LOG2_E
        left = exp2(power if power > _LOWEST else _LOWEST)
        turned = half * (_ONE - left) / (_ONE + half * half * left)
        share = _ONE / (_ONE + turned * turned)
        b[r] = _ZERO if still else _TWO * turned * share / width
        a[r] = ((_ONE if still else (_ONE - turned * turned) * share) - b[r] * rest[r]) * scale[r]
        lost[r] = not whole < _INFINITE


@njit(nogil=True, cache=True)
def _project(rows, d, xi, u, scale, xi_u, square, rest):
    """xi <- its tangent part; the square of that, and its rest along u."""
    for r in range(rows):
        begin, end = r * d, r * d + d
        radial, size, product = -xi_u[r] * scale[r] * scale[r], _ZERO, _ZERO
        for i in range(begin, end, _CHUNK):
            j = min(i + _CHUNK, end)
            combine(xi, (_ONE, radial), (xi, u), i, j)
            parts = products(xi, (xi, u), i, j)
            size, product = size + parts[0], product + parts[1]
        rest[r] = product * scale[r]
        square[r] = size - rest[r] * rest[r]


@njit(nogil=True, cache=True, error_model="numpy")
def _turn_numbers(rows, v, square, rest, scale, a, b):
    """u' = a u + b xi turns u by 1 - cos = v, which is clamped; where xi has no direction, v becomes 0."""
    for r in range(rows):
        versine = min(max(v[r], _ZERO), _TWO) if square[r] > _SHORTEST else _ZERO
        b[r] = np.sqrt(versine * (_TWO - versine)) / np.sqrt(max(square[r], _SHORTEST))
        a[r] = ((_ONE - versine) - b[r] * rest[r]) * scale[r]
        v[r] = versine


@njit(nogil=True, cache=True, error_model="numpy")
def _back_numbers(rows, coefficients, v, g, square, rest, scale, a, b):
    """The target, a u + b xi: what points back from u', times its coefficients."""
    for r in range(rows):
        sine = np.sqrt(v[r] * (_TWO - v[r]))
        gain = coefficients[r, 2] * g[r] * sine
        b[r] = -gain * (_ONE - v[r]) / np.sqrt(max(square[r], _SHORTEST))
        a[r] = (gain * sine - b[r] * rest[r]) * scale[r]


@njit(nogil=True, cache=True)
def _linear(rows, angles, spread, z, v):
    for r in range(rows):
        column, part = _column(z[r], len(angles))
        v[r] = spread * (angles[column] + part * (angles[column + 1] - angles[column]))


@njit(nogil=True, cache=True)
def _bilinear(rows, coefficients, table, z, v, g):
    for r in range(rows):
        i, between = _cell(coefficients[r, 0], table.shape[1])
        j, part = _column(z[r], table.shape[2])
        v_low = table[0, i, j] + part * (table[0, i, j + 1] - table[0, i, j])
        v_high = table[0, i + 1, j] + part * (table[0, i + 1, j + 1] - table[0, i + 1, j])
        g_low = table[1, i, j] + part * (table[1, i, j + 1] - table[1, i, j])
        g_high = table[1, i + 1, j] + part * (table[1, i + 1, j + 1] - table[1, i + 1, j])
        v[r] = coefficients[r, 1] * (v_low + between * (v_high - v_low))
        g[r] = g_low + between * (g_high - g_low)


@njit(nogil=True, cache=True, error_model="numpy")
def _column(z, columns):
    return _cell((z + _Z_MAX) * (np.float32(columns - 1) / _Z_RANGE), columns)


@njit(nogil=True, cache=True)
def _cell(position, nodes):
    """The node below, and the part of the way to the next; NaN is taken for 0."""
    inside = min(position, np.float32(nodes - 1)) if position > _ZERO else _ZERO
    below = min(np.int64(inside), nodes - 2)
    return below, inside - np.float32(below)


# ---- a tile: exponential map ----


@njit(nogil=True, cache=True)
def _exponential_rows(rows, d, u, f, past, xi, numbers, tangent, new, lost, space):
    """``new`` from u; the velocity transported there goes into ``past``. ``tangent`` holds the velocity at u."""
    w, drift, noise, back = numbers[2], numbers[4], numbers[5], numbers[6]
    scale, square, rest, past_u, past_square, overlap, a, b, c, a_past, b_past, c_past = space
    moving, noisy = len(past) > 0, len(xi) > 0
    w, back, before = (w, back, past) if moving else (_ZERO, _ZERO, u)
    noise, xi = (noise, xi) if noisy else (_ZERO, u)
    for r in range(rows):
        begin, end = r * d, r * d + d
        scale[r], f_u, past_u[r], xi_u = _measure(begin, end, u, f, before, xi)
        radial = -(drift * f_u + noise * xi_u + w * past_u[r]) * scale[r] * scale[r]
        size, product, past_u[r] = _ZERO, _ZERO, past_u[r] * scale[r]
        past_square[r], overlap[r] = _ZERO, _ZERO
        for i in range(begin, end, _CHUNK):
            j = min(i + _CHUNK, end)
            combine(tangent, (drift, radial, w, noise), (f, u, before, xi), i, j)
            parts = products(tangent, (tangent, u, before), i, j)
            size, product, overlap[r] = size + parts[0], product + parts[1], overlap[r] + parts[2]
            if moving:
                past_square[r] += products(past, (past,), i, j)[0]
        rest[r] = product * scale[r]
        square[r] = abs(size - rest[r] * rest[r])  # rounding may leave it below zero
    _exponential_numbers(
        rows, back, scale, square, rest, past_u, past_square, overlap, lost, a, b, c, a_past, b_past, c_past
    )
    for r in range(rows):
        for i in range(r * d, r * d + d, _CHUNK):
            j = min(i + _CHUNK, r * d + d)
            combine(new, (a[r], b[r], c[r]), (u, tangent, before), i, j)
            if moving:
                combine(past, (a_past[r], b_past[r], c_past[r]), (u, tangent, past), i, j)


@njit(nogil=True, cache=True, error_model="numpy")
def _exponential_numbers(
    rows, back, scale, square, rest, past_u, past_square, overlap, lost, a, b, c, a_past, b_past, c_past
):
    """u' = a u + b tangent + c past, and the velocity there = a_past u + b_past tangent + c_past past.

    Within: first of u, the velocity at u (without its rest) and the way to the start, p = -back past (the same).
    """
    for r in range(rows):
        way = back * back * abs(past_square[r] - past_u[r] * past_u[r])
        cos_way, sinc_way, fall = _circle(way)
        cos, sinc, _ = _circle(square[r])
        on_way = -back * (overlap[r] - rest[r] * past_u[r])  # velocity.p
        towards = cos * sinc_way - sinc * on_way * fall
        a[r] = (cos * cos_way - sinc * on_way * sinc_way - sinc * rest[r] + towards * back * past_u[r]) * scale[r]
        b[r], c[r] = sinc, -back * towards
        swing = square[r] * sinc
        towards = -cos * on_way * fall - swing * sinc_way
        a_past[r] = (
            -cos * on_way * sinc_way - swing * cos_way - cos * rest[r] + towards * back * past_u[r]
        ) * scale[r]  # fmt: skip
        b_past[r], c_past[r] = cos, -back * towards
        lost[r] = not square[r] + way < _INFINITE


@njit(nogil=True, cache=True, error_model="numpy")
def _circle(square):
    """cos t, sin t / t, (1 - cos t) / t^2 for t^2, by sine and cosine of t / 2."""
    angle = np.sqrt(square)
    turns = np.rint(angle * _HALF_TURNS)
    f = _TWO * fma(angle, _HALF_TURNS, -turns)
    sine, cosine = f * polynomial(_SIN, f * f), polynomial(_COS, f * f)
    odd = turns != _TWO * np.rint(turns * _HALF)
    versine = _TWO * (cosine * cosine if odd else sine * sine)
    product = _TWO * (-sine * cosine if odd else sine * cosine)
    small = square <= _SHORTEST
    return _ONE - versine, _ONE if small else product / angle, _HALF if small else versine / square


# ---- a row ----


@njit(nogil=True, cache=True, error_model="numpy")
def _measure(begin, end, u, f, past, xi):
    """1 / |u| (NaN where |u|^2 is zero or infinite), and f.u, past.u and xi.u."""
    square, f_u, past_u, xi_u = _ZERO, _ZERO, _ZERO, _ZERO
    for i in range(begin, end, _CHUNK):
        parts = products(u, (u, f, past, xi), i, min(i + _CHUNK, end))
        square, f_u, past_u, xi_u = square + parts[0], f_u + parts[1], past_u + parts[2], xi_u + parts[3]
    return np.sqrt(square) / square, f_u, past_u, xi_u
