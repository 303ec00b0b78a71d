"""Ring: ``ring_step``, Givens rotations of neighbouring features around a ring, on rows of any norm, which they keep.

A rotation of pair k by a half turns turns the features k and k + 1 (mod d),

    x_k' = cos(pi a) x_k + sin(pi a) x_{k+1},    x_{k+1}' = cos(pi a) x_{k+1} - sin(pi a) x_k,

and pairs without a common feature form a group that turns at once: even pairs, odd pairs (the one around the end among
them where d is even), and for odd d the pair around the end alone. With f the network's raw output, xi normals, and

    phi_k = drift (x_{k+1} f_k - x_k f_{k+1}),    all at the state that came in,

a step without noise turns the last group by phi and the others by phi / 2 before and, in reverse, after it (Strang). A
step with noise turns all groups by phi and then, in reverse, by noise xi, either from the first group on or, by a coin,
from the last one on: the mean over the coin is the flow followed by the noise up to terms of third order in a step's
length, and the group where both meet turns once.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastmsgm import rng

from .gbm import is_normal

RING_COLUMNS = ("drift", "noise", "c_in")  # of a table, in order
LARGEST = 8192.0  # half turns: no larger phi is taken, and no noise beyond an eighth of it, whose normals stay below 7


def ring_step(
    x: Tensor, f: Tensor, table: Tensor, stream: Tensor, step: int, bad: Tensor, out: Tensor,
    history: Tensor | None, net_in: Tensor | None, restart: bool, noisy: bool,
) -> None:  # fmt: skip
    """One reverse step from ``x`` (or ``history``) to ``out`` (which may be x) with row ``step`` of ``table`` (T, 3).

    Args:
        x, out: (n, d) states before and after. ``out`` is scaled to the norm of the row that it started from, as
            measured at entry and rounded to 20 bits of its square: a row moves once to a norm that 20 bits hold, by
            5e-7 of it at most, and every later step finds that norm again, so that no drift builds up.
        f: (n, d) the network's raw output at x, float32, bfloat16 or float16.
        bad: (n,) int32, -1 before; receives the first step at which the sample was lost: something that came in was
            not finite, the square of the norm was no normal number (as of a zero row), a phi was beyond 8192 half
            turns, or noise beyond 1024. A lost row is NaN in out, history and net_in.
        history: (n, d) or None; without ``restart`` it receives x.
        net_in: (n, d) or None; receives c_in x', the network's next input, in its own dtype.
        restart: turn ``history`` instead of x, by the angles of x. Half the drift and no noise without restart, then
            all of it with restart, is the midpoint rule.
        noisy: with noise, of ``Kind.STEP``. The last group turns first where a sample's second word is odd, a bit that
            normals are all but blind to. A pair's normal is that of its own number, but where the last group turns
            first and d is even that of the number before.
    """
    drift, noise, c_in = rng.row_of(table, stream, step).to(x.dtype).unbind(0)
    n, d = x.shape
    f = f.to(x.dtype)
    phi = _taken(drift * (x.roll(-1, 1) * f - x * f.roll(-1, 1)), LARGEST)
    base = history if restart and history is not None else x
    square = (base * base).sum(1, keepdim=True)
    groups = _groups(d)
    if noisy:
        xi = _taken(noise, LARGEST / 8) * rng.normals(n, d, stream, rng.Kind.STEP, step, x.dtype)
        odd = rng.words(n, 1, stream, rng.Kind.STEP, step)[:, :1, 1] % 2 == 1
        in_order = _flow_and_noise(base, phi, xi, groups)
        reverse = _flow_and_noise(base, phi, xi if d % 2 else xi.roll(1, 1), groups[::-1])
        new = torch.where(odd, reverse, in_order)
    else:
        new = _strang(base, phi, groups)
    turned = (new * new).sum(1, keepdim=True)
    new = new * (_to_20_bits(square) / turned).sqrt()
    lost = ~(is_normal(square) & is_normal(turned))
    new = torch.where(lost, torch.nan, new)
    bad.copy_(torch.where(lost[:, 0] & (bad < 0), step + stream[2], bad))
    if history is not None:
        history.copy_(torch.where(lost, torch.nan, base))
    if net_in is not None:
        net_in.copy_(c_in * new)
    out.copy_(new)


def _taken(angle: Tensor, largest: float) -> Tensor:
    return torch.where(angle.abs() <= largest, angle, torch.nan)


def _groups(d: int) -> list[range]:
    even, odd, around = range(0, d - 1, 2), range(1, d - d % 2, 2), range(d - 1, d)
    return [even, odd, around] if d % 2 else [even, odd]


def _strang(x: Tensor, phi: Tensor, groups: list[range]) -> Tensor:
    *outer, middle = groups
    for pairs in outer:
        x = _turn(x, phi / 2, pairs)
    x = _turn(x, phi, middle)
    for pairs in reversed(outer):
        x = _turn(x, phi / 2, pairs)
    return x


def _flow_and_noise(x: Tensor, phi: Tensor, xi: Tensor, groups: list[range]) -> Tensor:
    *before, middle = groups
    for pairs in before:
        x = _turn(x, phi, pairs)
    x = _turn(x, phi + xi, middle)
    for pairs in reversed(before):
        x = _turn(x, xi, pairs)
    return x


def _turn(x: Tensor, angle: Tensor, pairs: range) -> Tensor:
    """The pairs k of ``pairs``, by the angles of their columns."""
    here = torch.arange(pairs.start, pairs.stop, pairs.step, device=x.device)
    behind = (here + 1) % x.shape[1]
    angle = math.pi * (angle - 2 * torch.round(angle / 2))[:, here]  # whole turns are taken off exactly
    cos, sin = torch.cos(angle), torch.sin(angle)
    new = x.clone()
    new[:, here] = cos * x[:, here] + sin * x[:, behind]
    new[:, behind] = cos * x[:, behind] - sin * x[:, here]
    return new


def _to_20_bits(square: Tensor) -> Tensor:
    """The nearest number with 4 bits fewer than float32 has (20), or than float64 has."""
    bits = square.view(torch.int32 if square.dtype == torch.float32 else torch.int64)
    return ((bits + 8) & -16).view(square.dtype)
