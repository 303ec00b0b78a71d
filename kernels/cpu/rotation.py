"""Rotation on the CPU: ``rotation_perturb`` and ``rotation_step`` as in ``fastmsgm.reference``.

Threads take ranges of rows, and a range is processed a tile at a time (rows.py): noise (philox.py),
the new directions (rotation_flow.py or rotation_geodesic.py), the network's input, copies to the
outputs.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from fastmsgm import rng

from .arrays import (
    ABSENT,
    FLOAT,
    copy,
    counter,
    flat,
    network_side,
    optional,
    prefetch_range,
    step_arrays,
    widen,
    write,
)
from .compile import allocating, routine
from .philox import BLOCK, block_noise, buffers, floats
from .rotation_flow import bilinear, flow_rows, project, rotation_coeffs, target_coeffs
from .rotation_geodesic import exponential_rows
from .rows import (
    batch,
    combine,
    elements,
    mark_nonfinite,
    measure,
    put_model_input,
    row_noise,
    row_workspace,
    tile,
)
from .threads import over_rows

_NO_ANGLES = np.empty(0, np.float32)


def rotation_perturb(
    u0: Tensor,
    coefficients: Tensor,
    table: Tensor,
    stream: Tensor,
    step: int,
    u_t: Tensor | None,
    model_input: Tensor | None,
    target: Tensor | None,
) -> None:
    """Perturb directions as ``reference.rotation_perturb``."""
    n, d = u0.shape
    inputs = flat(u0), coefficients.numpy(), table.numpy(), *counter(stream, step)
    over_rows(
        _perturb_rows, n, d, d, *inputs, optional(u_t), *network_side(model_input), optional(target)
    )


def rotation_step(
    u: Tensor,
    model_output: Tensor,
    table: Tensor,
    angles: Tensor | None,
    stream: Tensor,
    step: int,
    first_nonfinite_step: Tensor,
    out: Tensor,
    prev_denoised: Tensor | None,
    model_input: Tensor | None,
    geodesic: bool,
) -> None:
    """Take a reverse step from ``u`` to ``out`` as ``reference.rotation_step``."""
    n, d = u.shape
    stream_array, step = counter(stream, step, len(table))
    angle_row = _NO_ANGLES if angles is None else angles[step].numpy()
    arrays = step_arrays(u, model_output, first_nonfinite_step, out, prev_denoised, model_input)
    coeffs = table[step].numpy()
    over_rows(_step_rows, n, d, d, *arrays, coeffs, angle_row, stream_array, step, geodesic)


# ---- a range of rows ----


@allocating
def _row_workspaces():
    """Allocate workspace for the coefficients of a tile's rows."""
    return (
        row_workspace(),
        row_workspace(),
        row_workspace(),
        row_workspace(),
        row_workspace(),
        row_workspace(),
        row_workspace(),
        row_workspace(),
        row_workspace(),
        row_workspace(),
        row_workspace(),
        row_workspace(),
    )


@allocating
def _perturb_rows(first, last, d, *arguments):
    workspace = buffers(d), buffers(1), floats(), elements(d), elements(d)
    _perturb_tiles(first, last, d, workspace, _row_workspaces(), *arguments)


@routine
def _perturb_tiles(
    first,
    last,
    d,
    workspace,
    row_coeffs,
    u_all,
    coefficients,
    table,
    stream,
    step,
    u_t,
    input_dtype,
    model_input,
    input_bits,
    target,
):
    noise_buffers, angle_buffers, z, xi, new = workspace
    no_xi = xi[:0]
    scale, xi_u, square, rest, v, g, a, b = row_coeffs[:8]
    for row in range(first, last, tile(d)):
        rows = min(tile(d), last - row)
        start, stop = row * d, (row + rows) * d
        row_noise(
            row,
            rows,
            d,
            stream,
            rng.Purpose.TRAINING_NOISE.value,
            step,
            noise_buffers,
            xi,
            (u_all,),
        )
        within = (row - first) % batch(d)
        if within == 0:
            count = min(batch(d), last - row)
            block_noise(
                row,
                count,
                1,
                stream,
                rng.Purpose.TRAINING_ANGLE.value,
                step,
                angle_buffers,
                z,
                (),
            )
        u, coeffs = u_all[start:stop], coefficients[row : row + rows]
        for r in range(rows):
            scale[r], xi_u[r], _, _ = measure(r * d, r * d + d, u, xi, no_xi, no_xi)
        bilinear(rows, coeffs, table, z[within:], v, g)
        project(rows, d, xi, u, scale, xi_u, square, rest)
        rotation_coeffs(rows, v, square, rest, scale, a, b)
        for r in range(rows):
            combine(new, (a[r], b[r]), (u, xi), r * d, r * d + d)
        if len(u_t):
            copy(stop - start, new, u_t[start:stop])
        if len(target):
            back = target[start:stop]
            target_coeffs(rows, coeffs, v, g, square, rest, scale, a, b)
            for r in range(rows):
                combine(back, (a[r], b[r]), (u, xi), r * d, r * d + d)
        if input_dtype != ABSENT:
            for r in range(rows):
                combine(new, (coeffs[r, 3],), (new,), r * d, r * d + d)
            write(stop - start, input_dtype, new, model_input[start:stop], input_bits[start:stop])


@allocating
def _step_rows(first, last, d, *arguments):
    nonfinite = np.empty(BLOCK, np.bool_)
    workspace = (
        buffers(d),
        buffers(1),
        floats(),
        elements(d),
        elements(d),
        elements(d),
        elements(d),
        nonfinite,
    )
    _step_tiles(first, last, d, workspace, _row_workspaces(), *arguments)


@routine
def _step_tiles(
    first,
    last,
    d,
    workspace,
    row_coeffs,
    u_all,
    output_dtype,
    output_floats,
    output_bits,
    first_nonfinite_step,
    out,
    prev_denoised,
    input_dtype,
    model_input,
    input_bits,
    coeffs,
    angles,
    stream,
    step,
    geodesic,
):
    noise_buffers, angle_buffers, z, widened, xi, tangent, buffer, nonfinite = workspace
    noisy = coeffs[5] != 0 if geodesic else len(angles) > 0 and coeffs[7] != 0
    no_xi = xi[:0]
    for row in range(first, last, tile(d)):
        rows = min(tile(d), last - row)
        start, stop = row * d, (row + rows) * d
        prefetch = u_all, output_floats, output_bits, prev_denoised
        if noisy:
            row_noise(
                row, rows, d, stream, rng.Purpose.STEP.value, step, noise_buffers, xi, prefetch
            )
        else:
            prefetch_range(start, stop, prefetch)
        if output_dtype == FLOAT:
            f = output_floats[start:stop]
        else:
            widen(stop - start, output_dtype, output_bits[start:stop], widened)
            f = widened
        u, prev = u_all[start:stop], prev_denoised[start:stop]
        noise = xi if noisy else no_xi
        if geodesic:
            new = buffer[: stop - start]  # not out, which may be u: u is read to the end
            exponential_rows(
                rows, d, u, f, prev, noise, coeffs, tangent, new, nonfinite, row_coeffs
            )
        else:
            new = out[start:stop]
            within = (row - first) % batch(d)
            if noisy and within == 0:
                count = min(batch(d), last - row)
                block_noise(
                    row, count, 1, stream, rng.Purpose.ANGLE.value, step, angle_buffers, z, ()
                )
            flow_rows(
                rows,
                d,
                u,
                f,
                prev,
                noise,
                coeffs,
                angles,
                z[within:],
                tangent,
                new,
                nonfinite,
                row_coeffs,
            )
        for r in range(rows):
            if nonfinite[r]:
                mark_nonfinite(r, d, new, prev, row + r, step, first_nonfinite_step)
        if geodesic:
            copy(stop - start, new, out[start:stop])
        put_model_input(
            stop - start,
            new,
            coeffs[8],
            tangent,
            input_dtype,
            model_input[start:stop],
            input_bits[start:stop],
        )
