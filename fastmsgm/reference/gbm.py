"""Geometric Brownian motion: ``fill_normal``, ``gbm_perturb`` and ``gbm_step``.

A row of a coefficient table drives one reverse step of geometric Brownian motion, for the state x, y = log|x|, the
network's raw output f and g = f (or x f, where the network gives a Stein score):

    D = k0 y + k1 g + k2                         the denoised log-state, in whatever way the network speaks of it
    log|x'| = A y + B D + B' D_prev + C + S z    and x' keeps the sign of x, or
    x' = x (1 + (A - 1) y + B D + C + S z)       in the sign-agnostic form.

A state that leaves the normal float32 numbers becomes NaN and its step is written into ``bad``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastmsgm import rng

COLUMNS = ("A", "B", "B_prev", "C", "S", "k0", "k1", "k2", "c_in")  # of a coefficient table, in this order
TINY, HUGE = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max  # the normal numbers


def fill_normal(out: Tensor, stream: Tensor, kind: int, step: int) -> None:
    """Fill ``out`` (n, d) with the stream's normals."""
    n, d = out.shape
    out.copy_(rng.normals(n, d, stream, kind, step, out.dtype))


def gbm_perturb(
    x0: Tensor, coefficients: Tensor, stream: Tensor, kind: int, step: int,
    x_t: Tensor | None, net_in: Tensor | None, z: Tensor | None,
) -> None:  # fmt: skip
    """x_t = x0 exp(shift + s z) and the network's input c_in log|x_t|; ``coefficients`` (n, 3) holds shift, s, c_in."""
    n, d = x0.shape
    noise = rng.normals(n, d, stream, kind, step, x0.dtype)
    shift, s, c_in = (c[:, None].to(x0.dtype) for c in coefficients.unbind(1))
    increment = shift + s * noise
    if x_t is not None:
        x_t.copy_(x0 * torch.exp(increment))
    if net_in is not None:
        net_in.copy_(c_in * (torch.log(x0.abs()) + increment))
    if z is not None:
        z.copy_(noise)


def gbm_step(
    x: Tensor, f: Tensor, table: Tensor, stream: Tensor, step: int, bad: Tensor, out: Tensor,
    history: Tensor | None, net_in: Tensor | None, stein: bool, linear: bool, log_state: bool,
) -> None:  # fmt: skip
    """One reverse step from ``x`` to ``out`` (which may be x) with row ``step`` of ``table`` (T, 9), noise included.

    Args:
        x, out: (n, d) state before and after.
        f: (n, d) the network's raw output, float32, bfloat16 or float16.
        bad: (n,) int32, -1 before; receives the first step at which the sample left the normal float32 numbers.
        history: (n, d) or None; D_prev is read from it and D is written to it.
        net_in: (n, d) or None; receives c_in log|x'|, the network's next input, in its own dtype.
        stein: the network gives a Stein score, so g = x f.
        linear: the sign-agnostic form.
        log_state: the row uses y. Without it the row must have A + B k0 = 1 (score networks), and
            log|x'| - log|x| = B (k1 g + k2) + C + S z needs no logarithm; then history and net_in must be None.
    """
    a, b, b_prev, c, s, k0, k1, k2, c_in = rng.row_of(table, stream, step).to(x.dtype).unbind(0)
    n, d = x.shape
    z = rng.normals(n, d, stream, rng.Kind.STEP, step, x.dtype)
    g = f.to(x.dtype) * x if stein else f.to(x.dtype)
    score_term = k1 * g + k2
    if log_state:
        y = torch.log(x.abs())
        denoised = k0 * y + score_term
        increment = b * denoised + c + s * z
        if history is not None:
            increment = increment + b_prev * history
            history.copy_(denoised)
        log_new = a * y + increment
        new = x * (1 + (log_new - y)) if linear else torch.copysign(torch.exp(log_new), x)
        if net_in is not None:
            net_in.copy_(c_in * (torch.log(new.abs()) if linear else log_new))
    else:
        increment = b * score_term + c + s * z
        new = x * (1 + increment) if linear else x * torch.exp(increment)
    good = is_normal(new)
    left = (~good).any(1) & (bad < 0)
    bad.copy_(torch.where(left, step + stream[2], bad))
    out.copy_(torch.where(good, new, torch.nan))


def is_normal(x: Tensor) -> Tensor:
    """Not NaN, infinite, zero or subnormal as a float32 number."""
    size = x.abs()
    return (size >= TINY) & (size <= HUGE)
