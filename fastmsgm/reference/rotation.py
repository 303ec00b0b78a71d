"""Rotation: ``rotation_perturb`` and ``rotation_step``, on unit directions u (rows), every norm exactly one.

With P_u v = v - (v.u) u the tangent part of v at u, Exp_u(v) = cos|v| u + sin|v| v / |v| the geodesic from u, f the
network's raw output and n = P_u f, a row of a coefficient table drives one reverse step, either

    D = alpha u + sigma n, D_w = D + w (D - D_prev);  u+ = exact flow of du/dt = P_u D_w over ``length``;
    u' = u+ turned by the angle 1 - cos = v in the direction of P_u+ xi      (heat-kernel noise, v from ``angles``),

or, where h is the velocity of the row before, b = Exp_u(-back h) and // is parallel transport along a geodesic,

    q = [w h + drift n + noise P_u xi] // from u to b;  u' = Exp_b(q);  h' = q // from b to u'.

Tangent parts are projected twice: one projection leaves a radial rest wherever v is nearly parallel to u.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastmsgm import rng

ROTATION_COLUMNS = ("alpha", "sigma", "w", "length", "drift", "noise", "back", "spread", "c_in")  # of a table, in order
SHORTEST = 1e-30  # squared: a shorter vector has no direction
Z_MAX = 6.0  # angle tables have columns for z = -6 .. 6


def rotation_perturb(
    u0: Tensor, coefficients: Tensor, table: Tensor, stream: Tensor, step: int,
    u_t: Tensor | None, net_in: Tensor | None, target: Tensor | None,
) -> None:  # fmt: skip
    """Noise u0 / |u0| once by the heat kernel of the sphere.

        u_t = (1 - v) u0 + s w,    target = scale g s e,    e = s u0 - (1 - v) w,

    with w the unit tangent part of the noise at u0, v = spread V = 1 - cos(angle), s = sqrt(v (2 - v)) = sin(angle);
    e is the unit tangent at u_t that points to u0.

    Args:
        u0: (n, d) directions.
        coefficients: (n, 4): fractional row of the table, spread, target's scale, c_in of each sample.
        table: (2, NB, NZ): V and g at the row and at z = -6 .. 6 uniformly, z the angle's normal.
        u_t, target: (n, d) or None.
        net_in: (n, d) or None; receives c_in u_t, the network's input, in its own dtype.
    """
    n, d = u0.shape
    xi = rng.normals(n, d, stream, rng.Kind.TRAINING_NOISE, step, u0.dtype)
    z = rng.normals(n, 1, stream, rng.Kind.TRAINING_ANGLE, step, u0.dtype)[:, 0]
    row, spread, scale, c_in = coefficients.to(u0.dtype).unbind(1)
    below, part = _cell(row, table.shape[1])
    low, high = (_interpolate(table, index, z) for index in (below, below + 1))
    v, g = low + part * (high - low)
    new, towards = _turn(_unit(u0), xi, spread * v)
    if u_t is not None:
        u_t.copy_(new)
    if net_in is not None:
        net_in.copy_(c_in[:, None] * new)
    if target is not None:
        target.copy_((scale * g)[:, None] * towards)


def rotation_step(
    u: Tensor, f: Tensor, table: Tensor, angles: Tensor | None, stream: Tensor, step: int, bad: Tensor, out: Tensor,
    history: Tensor | None, net_in: Tensor | None, geodesic: bool,
) -> None:  # fmt: skip
    """One reverse step from ``u`` to ``out`` (which may be u) with row ``step`` of ``table`` (T, 9), noise included.

    Args:
        u, out: (n, d) directions before and after; u is divided by its measured norm first, so that none drifts.
        f: (n, d) the network's raw output, float32, bfloat16 or float16.
        angles: (T, NZ) or None: the row is V at z = -6 .. 6 uniformly, for heat-kernel noise with v = spread V.
        bad: (n,) int32, -1 before; receives the first step at which the sample was lost: something that came in was
            not finite (or too large to square), or u was zero. A lost row is NaN in out, history and net_in.
        history: (n, d) or None; D_prev (or h) is read from it and D (or h') is written to it. None leaves the terms
            in w and back out.
        net_in: (n, d) or None; receives c_in u', the network's next input, in its own dtype.
        geodesic: the second form. It takes no ``angles``.
    """
    alpha, sigma, w, length, drift, noise, back, spread, c_in = rng.row_of(table, stream, step).to(u.dtype).unbind(0)
    n, d = u.shape
    xi = rng.normals(n, d, stream, rng.Kind.STEP, step, u.dtype)
    unit = _unit(u)
    tangent = _tangent(f.to(u.dtype), unit)
    if geodesic:
        start, velocity = unit, drift * tangent + noise * _tangent(xi, unit)
        if history is not None:
            past = _tangent(history, unit)
            start, velocity = _transport(unit, -back * past, velocity + w * past)
        new, memory = _transport(start, velocity, velocity)
        size = _dot(velocity, velocity)
    else:
        memory = alpha * unit + sigma * tangent
        aim = memory if history is None else memory + w * (memory - history)
        new = _flow(unit, aim, length)
        size = _dot(aim, aim)
        if angles is not None:
            z = rng.normals(n, 1, stream, rng.Kind.ANGLE, step, u.dtype)[:, 0]
            new, _ = _turn(new, xi, spread * _interpolate(rng.row_of(angles, stream, step)[None], 0, z))
    lost = ~size.isfinite()
    new, memory = (torch.where(lost, torch.nan, x) for x in (new, memory))
    bad.copy_(torch.where(lost[:, 0] & (bad < 0), step + stream[2], bad))
    if history is not None:
        history.copy_(memory)
    if net_in is not None:
        net_in.copy_(c_in * new)
    out.copy_(new)


def _dot(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).sum(1, keepdim=True)


def _unit(u: Tensor) -> Tensor:
    """u / |u|; NaN where |u|^2 is zero or infinite."""
    square = _dot(u, u)
    return u * (square.sqrt() / square)


def _tangent(v: Tensor, u: Tensor) -> Tensor:
    for _ in range(2):
        v = v - _dot(v, u) * u
    return v


def _flow(u: Tensor, aim: Tensor, length: Tensor) -> Tensor:
    """Exact flow of du/dt = P_u aim for the time ``length``, which may be infinite: then u = aim / |aim|.

    The tangent of half the angle between u and aim falls as exp(-|aim| t); below, ``turned`` is the tangent of half
    the angle by which u moves. Where u points to the aim or away from it, or there is no aim, u stays.
    """
    along, across = _dot(aim, u), _tangent(aim, u)
    square = _dot(across, across)
    width, size = square.sqrt(), (square + along**2).sqrt()
    still = square <= SHORTEST * (square + along**2).clamp(min=1)
    half = torch.where(along >= 0, width / (size + along), (size - along) / width)
    turned = half * -torch.expm1(-size * length) / (1 + half**2 * torch.exp(-size * length))
    moved = ((1 - turned**2) * u + 2 * turned * (across / width)) / (1 + turned**2)
    return torch.where(still, u, moved)


def _transport(u: Tensor, along: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Exp_u(along), and v (tangent at u, as ``along``) transported there along that geodesic."""
    angle = _dot(along, along).sqrt()
    sinc = torch.sinc(angle / math.pi)  # sin(angle) / angle
    fall = torch.sinc(angle / (2 * math.pi)) ** 2 / 2  # (1 - cos(angle)) / angle^2
    return torch.cos(angle) * u + sinc * along, v - _dot(v, along) * (fall * along + sinc * u)


def _turn(u: Tensor, xi: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """u turned towards the tangent part of xi by the angle 1 - cos = v (n,), clamped to 0 .. 2; the tangent there
    that points back, its length the sine."""
    across = _tangent(xi, u)
    square = _dot(across, across)
    v = torch.where(square > SHORTEST, v[:, None].clamp(0, 2), 0)
    w = across / square.clamp(min=SHORTEST).sqrt()
    sine = torch.sqrt(v * (2 - v))
    return (1 - v) * u + sine * w, sine * (sine * u - (1 - v) * w)


def _cell(position: Tensor, nodes: int) -> tuple[Tensor, Tensor]:
    """The node below a fractional one in 0 .. nodes - 1 (clamped), and the part of the way to the next."""
    position = position.clamp(0, nodes - 1)
    below = position.long().clamp(max=nodes - 2)
    return below, position - below


def _interpolate(table: Tensor, row: Tensor | int, z: Tensor) -> Tensor:
    """``table`` (..., rows, NZ) in the sample's row (or one for all) at z (n,), linearly between columns."""
    below, part = _cell((z + Z_MAX) * ((table.shape[-1] - 1) / (2 * Z_MAX)), table.shape[-1])
    low, high = (table[..., row, column].to(z.dtype) for column in (below, below + 1))
    return low + part * (high - low)
