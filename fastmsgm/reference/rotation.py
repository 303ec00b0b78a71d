"""Rotation: ``rotation_perturb`` and ``rotation_step``, on directions u of norm exactly one.

P_u v = v - (v.u) u is the tangent part of v at u, and Exp_u(v) = cos|v| u + sin|v| v / |v| is the
exponential map. With the network's raw output f and n = P_u f, one row of a coefficient table
drives one reverse step, either by the heat kernel,

    D = alpha u + sigma n,    D_w = D + w (D - D_prev),
    u+ = exact flow of du/dt = P_u D_w over ``length``,
    u' = u+ rotated towards P_u+ xi by the angle with 1 - cos = v    (v from ``angles``),

or along geodesics,

    b = Exp_u(-back h),
    q = [w h + drift n + noise P_u xi] // from u to b,
    u' = Exp_b(q),
    h' = q // from b to u',

where h is the velocity of the previous step and // is parallel transport along a geodesic.

Tangent parts are projected twice, because one projection leaves a radial residual where v is nearly
parallel to u.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastmsgm import rng
from fastmsgm.constants import SHORTEST, Z_MAX

# The columns of a coefficient table, in this order.
ROTATION_COLUMNS = (
    "alpha",
    "sigma",
    "w",
    "length",
    "drift",
    "noise",
    "back",
    "spread",
    "c_in",
)


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
    """Perturb u0 / |u0| by the heat kernel of the sphere.

        u_t = (1 - v) u0 + s w,    target = scale g s e,    e = s u0 - (1 - v) w,

    where w is the unit tangent part of the noise at u0, v = spread V = 1 - cos(angle), and
    s = sqrt(v (2 - v)) = sin(angle). e is the unit tangent at u_t that points to u0.

    Args:
        u0: (n, d) directions; divided by their norms first.
        coefficients: (n, 4) fractional row of the table, spread, scale of the target and c_in of
            each sample.
        table: (2, NB, NZ) V and g, by row and by the angle's normal z, uniform from -6 to 6.
        stream: (3,) int64, the noise stream (``rng.stream``).
        step: The step, counted from the stream's first.
        u_t: (n, d) or None; receives u_t.
        model_input: (n, d) or None, in the network's dtype; receives the network's input, c_in u_t.
        target: (n, d) or None; receives the target of denoising score matching.
    """
    n, d = u0.shape
    xi = rng.normals(n, d, stream, rng.Purpose.TRAINING_NOISE, step, u0.dtype)
    z = rng.normals(n, 1, stream, rng.Purpose.TRAINING_ANGLE, step, u0.dtype)[:, 0]
    row, spread, scale, c_in = coefficients.to(u0.dtype).unbind(1)
    below, part = _cell(row, table.shape[1])
    low, high = (_interpolate(table, index, z) for index in (below, below + 1))
    v, g = low + part * (high - low)
    new, towards = _rotate(_unit(u0), xi, spread * v)
    if u_t is not None:
        u_t.copy_(new)
    if model_input is not None:
        model_input.copy_(c_in[:, None] * new)
    if target is not None:
        target.copy_((scale * g)[:, None] * towards)


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
    """Take one reverse step, noise included.

    Args:
        u: (n, d) the directions before; divided by their measured norms first, so that no norm
            drifts.
        model_output: (n, d) the network's raw output, float32, bfloat16 or float16.
        table: (T, 9) float32, the coefficients of each step (``ROTATION_COLUMNS``).
        angles: (T, NZ) or None; V of each step for heat-kernel noise with v = spread V, by the
            angle's normal z, uniform from -6 to 6.
        stream: (3,) int64, the noise stream (``rng.stream``).
        step: The row of the table, counted from the stream's first step.
        first_nonfinite_step: (n,) int32, -1 before the first step; receives the first step at which
            the sample was non-finite: an input was not finite (or too large to square), or u was
            zero. A non-finite sample is NaN in out, prev_denoised and model_input.
        out: (n, d) the directions after; may be u.
        prev_denoised: (n, d) or None; D_prev (or h) is read from it, and D (or h') is written to
            it. Without it the terms in w and back are left out.
        model_input: (n, d) or None, in the network's dtype; receives the network's next input,
            c_in u'.
        geodesic: Step along geodesics, without ``angles``.
    """
    alpha, sigma, w, length, drift, noise, back, spread, c_in = (
        rng.row_of(table, stream, step).to(u.dtype).unbind(0)
    )
    n, d = u.shape
    xi = rng.normals(n, d, stream, rng.Purpose.STEP, step, u.dtype)
    unit = _unit(u)
    tangent = _tangent(model_output.to(u.dtype), unit)
    if geodesic:
        start, velocity = unit, drift * tangent + noise * _tangent(xi, unit)
        if prev_denoised is not None:
            prev = _tangent(prev_denoised, unit)
            start, velocity = _transport(unit, -back * prev, velocity + w * prev)
        new, memory = _transport(start, velocity, velocity)
        size = _dot(velocity, velocity)
    else:
        memory = alpha * unit + sigma * tangent
        aim = memory if prev_denoised is None else memory + w * (memory - prev_denoised)
        new = _flow(unit, aim, length)
        size = _dot(aim, aim)
        if angles is not None:
            z = rng.normals(n, 1, stream, rng.Purpose.ANGLE, step, u.dtype)[:, 0]
            new, _ = _rotate(
                new, xi, spread * _interpolate(rng.row_of(angles, stream, step)[None], 0, z)
            )
    nonfinite = ~size.isfinite()
    new, memory = (torch.where(nonfinite, torch.nan, x) for x in (new, memory))
    first_nonfinite_step.copy_(
        torch.where(
            nonfinite[:, 0] & (first_nonfinite_step < 0), step + stream[2], first_nonfinite_step
        )
    )
    if prev_denoised is not None:
        prev_denoised.copy_(memory)
    if model_input is not None:
        model_input.copy_(c_in * new)
    out.copy_(new)


def _dot(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).sum(1, keepdim=True)


def _unit(u: Tensor) -> Tensor:
    """u / |u|; NaN where |u|^2 is zero or infinite."""
    square = _dot(u, u)
    return u * (square.sqrt() / square)


def _tangent(v: Tensor, u: Tensor) -> Tensor:
    """P_u v, projected twice."""
    for _ in range(2):
        v = v - _dot(v, u) * u
    return v


def _flow(u: Tensor, aim: Tensor, length: Tensor) -> Tensor:
    """Exact flow of du/dt = P_u aim for the time ``length``.

    The tangent of half the angle between u and aim decays as exp(-|aim| t). ``half`` is its initial
    value, and ``moved_half`` is the tangent of half the angle by which u moves. For an infinite
    length the result is aim / |aim|. If aim is zero or parallel to u, in either direction, u stays.
    """
    along, across = _dot(aim, u), _tangent(aim, u)
    square = _dot(across, across)
    width, size = square.sqrt(), (square + along**2).sqrt()
    still = square <= SHORTEST * (square + along**2).clamp(min=1)
    half = torch.where(along >= 0, width / (size + along), (size - along) / width)
    moved_half = half * -torch.expm1(-size * length) / (1 + half**2 * torch.exp(-size * length))
    moved = ((1 - moved_half**2) * u + 2 * moved_half * (across / width)) / (1 + moved_half**2)
    return torch.where(still, u, moved)


def _transport(u: Tensor, along: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Exp_u(along), and v transported there along that geodesic; both are tangent at u."""
    angle = _dot(along, along).sqrt()
    sinc = torch.sinc(angle / math.pi)  # sin(angle) / angle
    cosc = torch.sinc(angle / (2 * math.pi)) ** 2 / 2  # (1 - cos(angle)) / angle^2
    return torch.cos(angle) * u + sinc * along, v - _dot(v, along) * (cosc * along + sinc * u)


def _rotate(u: Tensor, xi: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """u rotated towards the tangent part of xi by the angle with 1 - cos = v, and the way back.

    v (n,) is clamped to 0 .. 2. The way back is the tangent at the new u that points to the old
    one, with the sine of the angle as its length.
    """
    across = _tangent(xi, u)
    square = _dot(across, across)
    v = torch.where(square > SHORTEST, v[:, None].clamp(0, 2), 0)
    w = across / square.clamp(min=SHORTEST).sqrt()
    sine = torch.sqrt(v * (2 - v))
    return (1 - v) * u + sine * w, sine * (sine * u - (1 - v) * w)


def _cell(position: Tensor, nodes: int) -> tuple[Tensor, Tensor]:
    """The node below a position, clamped to 0 .. nodes - 1, and the fraction above it."""
    position = position.clamp(0, nodes - 1)
    below = position.long().clamp(max=nodes - 2)
    return below, position - below


def _interpolate(table: Tensor, row: Tensor | int, z: Tensor) -> Tensor:
    """Interpolate ``table`` (..., rows, NZ) in z (n,), in a row per sample or one row for all."""
    below, part = _cell((z + Z_MAX) * ((table.shape[-1] - 1) / (2 * Z_MAX)), table.shape[-1])
    low, high = (table[..., row, column].to(z.dtype) for column in (below, below + 1))
    return low + part * (high - low)
