"""Ring: ``ring_step``, Givens rotations of neighbouring features around a ring.

A rotation of pair k by a half turns changes the features k and k + 1 (mod d),

    x_k' = cos(pi a) x_k + sin(pi a) x_{k+1},    x_{k+1}' = cos(pi a) x_{k+1} - sin(pi a) x_k.

It keeps the norm of a sample, which may be any. Pairs without a common feature form a group and
rotate at once: the even pairs; the odd pairs, which for even d include the pair around the end; and
for odd d the pair around the end alone. With the network's raw output f, normals xi, and

    phi_k = drift (x_{k+1} f_k - x_k f_{k+1}),    evaluated at the incoming state,

a step without noise rotates the last group by phi, and the others by phi / 2 before it and, in
reverse order, after it (Strang splitting).

A step with noise rotates all groups by phi and then, in reverse order, by noise xi. A coin decides
whether it starts with the first or with the last group. The group at which the order reverses
rotates once, by the sum of both angles. The mean over the coin is the flow followed by the noise,
up to terms of third order in the length of a step.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastmsgm import rng
from fastmsgm.constants import LARGEST_ANGLE

from .normal_numbers import is_normal

# The columns of a coefficient table, in this order.
RING_COLUMNS = ("drift", "noise", "c_in")


def ring_step(
    x: Tensor,
    model_output: Tensor,
    table: Tensor,
    stream: Tensor,
    step: int,
    first_nonfinite_step: Tensor,
    out: Tensor,
    step_start: Tensor | None,
    model_input: Tensor | None,
    restart: bool,
    noisy: bool,
) -> None:
    """Take one reverse step from ``x``, or from ``step_start``.

    Args:
        x: (n, d) the state before.
        model_output: (n, d) the network's raw output at x, float32, bfloat16 or float16.
        table: (T, 3) float32, the coefficients of each step (``RING_COLUMNS``).
        stream: (3,) int64, the noise stream (``rng.stream``).
        step: The row of the table, counted from the stream's first step.
        first_nonfinite_step: (n,) int32, -1 before the first step; receives the first step at which
            the sample was non-finite: an input was not finite, the squared norm was not a normal
            number (such as 0), an angle phi was beyond 8192 half turns, or the noise coefficient
            beyond 1024. A non-finite sample is NaN in out, step_start and model_input.
        out: (n, d) the state after; may be x. Each sample is scaled to its norm at entry, the
            square of which is rounded to 20 bits. So the first step changes the norm by 5e-7 of it
            at most. Later steps find the rounded norm again, and no drift builds up.
        step_start: (n, d) or None; without ``restart`` it receives x.
        model_input: (n, d) or None, in the network's dtype; receives the network's next input,
            c_in x'.
        restart: Rotate ``step_start`` instead of x, by the angles of x. A step with half the drift
            and no noise, followed by a full step with restart, is the midpoint rule.
        noisy: Add noise, of ``Purpose.STEP``. The last group rotates first where the second word of
            a sample is odd; the normals hardly depend on this bit. Pair k uses the normal k, or the
            normal k - 1 (mod d) where the last group rotates first and d is even.
    """
    drift, noise, c_in = rng.row_of(table, stream, step).to(x.dtype).unbind(0)
    n, d = x.shape
    f = model_output.to(x.dtype)
    phi = _within(drift * (x.roll(-1, 1) * f - x * f.roll(-1, 1)), LARGEST_ANGLE)
    base = step_start if restart and step_start is not None else x
    square = (base * base).sum(1, keepdim=True)
    groups = _groups(d)
    if noisy:
        xi = _within(noise, LARGEST_ANGLE / 8) * rng.normals(
            n, d, stream, rng.Purpose.STEP, step, x.dtype
        )
        odd = rng.words(n, 1, stream, rng.Purpose.STEP, step)[:, :1, 1] % 2 == 1
        in_order = _flow_and_noise(base, phi, xi, groups)
        reverse = _flow_and_noise(base, phi, xi if d % 2 else xi.roll(1, 1), groups[::-1])
        new = torch.where(odd, reverse, in_order)
    else:
        new = _strang(base, phi, groups)
    rotated = (new * new).sum(1, keepdim=True)
    new = new * (_to_20_bits(square) / rotated).sqrt()
    nonfinite = ~(is_normal(square) & is_normal(rotated))
    new = torch.where(nonfinite, torch.nan, new)
    first_nonfinite_step.copy_(
        torch.where(
            nonfinite[:, 0] & (first_nonfinite_step < 0), step + stream[2], first_nonfinite_step
        )
    )
    if step_start is not None:
        step_start.copy_(torch.where(nonfinite, torch.nan, base))
    if model_input is not None:
        model_input.copy_(c_in * new)
    out.copy_(new)


def _within(angle: Tensor, largest: float) -> Tensor:
    return torch.where(angle.abs() <= largest, angle, torch.nan)


def _groups(d: int) -> list[range]:
    even, odd, around = range(0, d - 1, 2), range(1, d - d % 2, 2), range(d - 1, d)
    return [even, odd, around] if d % 2 else [even, odd]


def _strang(x: Tensor, phi: Tensor, groups: list[range]) -> Tensor:
    *outer, middle = groups
    for pairs in outer:
        x = _rotate(x, phi / 2, pairs)
    x = _rotate(x, phi, middle)
    for pairs in reversed(outer):
        x = _rotate(x, phi / 2, pairs)
    return x


def _flow_and_noise(x: Tensor, phi: Tensor, xi: Tensor, groups: list[range]) -> Tensor:
    *before, middle = groups
    for pairs in before:
        x = _rotate(x, phi, pairs)
    x = _rotate(x, phi + xi, middle)
    for pairs in reversed(before):
        x = _rotate(x, xi, pairs)
    return x


def _rotate(x: Tensor, angle: Tensor, pairs: range) -> Tensor:
    """Rotate the pairs k in ``pairs`` by ``angle[:, k]`` half turns."""
    here = torch.arange(pairs.start, pairs.stop, pairs.step, dtype=torch.int64, device=x.device)
    behind = (here + 1) % x.shape[1]
    angle = math.pi * (angle - 2 * torch.round(angle / 2))[:, here]  # subtracts whole turns exactly
    cos, sin = torch.cos(angle), torch.sin(angle)
    new = x.clone()
    new[:, here] = cos * x[:, here] + sin * x[:, behind]
    new[:, behind] = cos * x[:, behind] - sin * x[:, here]
    return new


def _to_20_bits(square: Tensor) -> Tensor:
    """Round to a significand of 4 bits fewer than the dtype has: for float32 to 20 bits."""
    bits = square.view(torch.int32 if square.dtype == torch.float32 else torch.int64)
    return ((bits + 8) & -16).view(square.dtype)
