"""Rotation on the CPU: ``rotation_perturb`` and ``rotation_step`` as in ``fastmsgm.reference``.

Threads take ranges of rows, and a range is worked on a tile at a time (rows.py): noise (philox.py), the new directions
(rotation_flow.py or rotation_geodesic.py), what the network sees, copy out.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from fastmsgm import rng

from .arrays import (
    ABSENT,
    FLOAT,
    address,
    copy,
    flat,
    network_side,
    optional,
    prefetch,
    step_arrays,
    widen,
    write,
)
from .compile import allocating, routine
from .philox import BLOCK, block_noise, buffers, floats
from .rotation_flow import back_numbers, bilinear, flow_rows, project, turn_numbers
from .rotation_geodesic import exponential_rows
from .rows import batch, combine, elements, mark_lost, measure, put_net, row_noise, row_numbers, tile
from .threads import over_rows

_NO_ANGLES = np.empty(0, np.float32)


def rotation_perturb(
    u0: Tensor, coefficients: Tensor, table: Tensor, stream: Tensor, step: int,
    u_t: Tensor | None, net_in: Tensor | None, target: Tensor | None,
) -> None:  # fmt: skip
    """Noise u0 once; the arguments and the formula are those of ``reference.rotation_perturb``."""
    n, d = u0.shape
    inputs = flat(u0), coefficients.numpy(), table.numpy(), *address(stream, step)
    over_rows(_perturb_rows, n, d, d, *inputs, optional(u_t), *network_side(net_in), optional(target))


def rotation_step(
    u: Tensor, f: Tensor, table: Tensor, angles: Tensor | None, stream: Tensor, step: int, bad: Tensor, out: Tensor,
    history: Tensor | None, net_in: Tensor | None, geodesic: bool,
) -> None:  # fmt: skip
    """One reverse step from ``u`` to ``out``; arguments and formula are those of ``reference.rotation_step``."""
    n, d = u.shape
    numbers, step = address(stream, step, len(table))
    angle_row = _NO_ANGLES if angles is None else angles[step].numpy()
    arrays = step_arrays(u, f, bad, out, history, net_in)
    over_rows(_step_rows, n, d, d, *arrays, table[step].numpy(), angle_row, numbers, step, geodesic)


# ---- a range of rows ----


@allocating
def _numbers():
    """Room for the numbers of a tile, allocated once."""
    return (
        row_numbers(), row_numbers(), row_numbers(), row_numbers(), row_numbers(), row_numbers(),
        row_numbers(), row_numbers(), row_numbers(), row_numbers(), row_numbers(), row_numbers(),
    )  # fmt: skip


@allocating
def _perturb_rows(first, last, d, *arguments):
    space = buffers(d), buffers(1), floats(), elements(d), elements(d)
    _perturb_tiles(first, last, d, space, _numbers(), *arguments)


@routine
def _perturb_tiles(
    first, last, d, space, numbers_of_rows, u_all, coefficients, table, stream, step, u_t, net_dtype, net_in, net_bits,
    target,
):  # fmt: skip
    room, angle_room, z, xi, new = space
    no_xi = xi[:0]
    scale, xi_u, square, rest, v, g, a, b = numbers_of_rows[:8]
    for row in range(first, last, tile(d)):
        rows = min(tile(d), last - row)
        start, stop = row * d, (row + rows) * d
        row_noise(row, rows, d, stream, rng.Kind.TRAINING_NOISE.value, step, room, xi, (u_all,))
        within = (row - first) % batch(d)
        if within == 0:
            count = min(batch(d), last - row)
            block_noise(row, count, 1, stream, rng.Kind.TRAINING_ANGLE.value, step, angle_room, z, ())
        u, numbers = u_all[start:stop], coefficients[row : row + rows]
        for r in range(rows):
            scale[r], xi_u[r], _, _ = measure(r * d, r * d + d, u, xi, no_xi, no_xi)
        bilinear(rows, numbers, table, z[within:], v, g)
        project(rows, d, xi, u, scale, xi_u, square, rest)
        turn_numbers(rows, v, square, rest, scale, a, b)
        for r in range(rows):
            combine(new, (a[r], b[r]), (u, xi), r * d, r * d + d)
        if len(u_t):
            copy(stop - start, new, u_t[start:stop])
        if len(target):
            back = target[start:stop]
            back_numbers(rows, numbers, v, g, square, rest, scale, a, b)
            for r in range(rows):
                combine(back, (a[r], b[r]), (u, xi), r * d, r * d + d)
        if net_dtype != ABSENT:
            for r in range(rows):
                combine(new, (numbers[r, 3],), (new,), r * d, r * d + d)
            write(stop - start, net_dtype, new, net_in[start:stop], net_bits[start:stop])


@allocating
def _step_rows(first, last, d, *arguments):
    lost = np.empty(BLOCK, np.bool_)
    space = buffers(d), buffers(1), floats(), elements(d), elements(d), elements(d), elements(d), lost
    _step_tiles(first, last, d, space, _numbers(), *arguments)


@routine
def _step_tiles(
    first, last, d, space, numbers_of_rows, u_all, f_dtype, f_all, f_bits, bad, out, history, net_dtype, net_in,
    net_bits, numbers, angles, stream, step, geodesic,
):  # fmt: skip
    room, angle_room, z, widened, xi, tangent, buffer, lost = space
    noisy = numbers[5] != 0 if geodesic else len(angles) > 0 and numbers[7] != 0
    no_xi = xi[:0]
    for row in range(first, last, tile(d)):
        rows = min(tile(d), last - row)
        start, stop = row * d, (row + rows) * d
        needed_next = u_all, f_all, f_bits, history
        if noisy:
            row_noise(row, rows, d, stream, rng.Kind.STEP.value, step, room, xi, needed_next)
        else:
            prefetch(start, stop, needed_next)
        if f_dtype == FLOAT:
            f = f_all[start:stop]
        else:
            widen(stop - start, f_dtype, f_bits[start:stop], widened)
            f = widened
        u, past = u_all[start:stop], history[start:stop]
        noise = xi if noisy else no_xi
        if geodesic:
            new = buffer[: stop - start]  # u is needed to the end
            exponential_rows(rows, d, u, f, past, noise, numbers, tangent, new, lost, numbers_of_rows)
        else:
            new = out[start:stop]
            within = (row - first) % batch(d)
            if noisy and within == 0:
                count = min(batch(d), last - row)
                block_noise(row, count, 1, stream, rng.Kind.ANGLE.value, step, angle_room, z, ())
            flow_rows(rows, d, u, f, past, noise, numbers, angles, z[within:], tangent, new, lost, numbers_of_rows)
        for r in range(rows):
            if lost[r]:
                mark_lost(r, d, new, past, row + r, step, bad)
        if geodesic:
            copy(stop - start, new, out[start:stop])
        put_net(stop - start, new, numbers[8], tangent, net_dtype, net_in[start:stop], net_bits[start:stop])
