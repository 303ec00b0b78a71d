"""Geometric Brownian motion: ``fill_normal``, ``gbm_perturb`` and ``gbm_step``.

One row of a coefficient table drives one reverse step of geometric Brownian motion. For the state
x, y = log|x|, the network's raw output f, and g = f (or g = x f if the network gives a Stein
score), the denoised log-state is, for any parametrization of the network,

    D = k0 y + k1 g + k2.

The new state x' has the sign of x and

    log|x'| = A y + B D + B' D_prev + C + S z,

or in the sign-agnostic form it is

    x' = x (1 + (A - 1) y + B D + B' D_prev + C + S z).

Values of x' that are not normal float32 numbers become NaN, and the step of the first one is
recorded in ``first_nonfinite_step``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastmsgm import rng

from .normal_numbers import is_normal

# The columns of a coefficient table, in this order.
GBM_COLUMNS = ("A", "B", "B_prev", "C", "S", "k0", "k1", "k2", "c_in")


def fill_normal(out: Tensor, stream: Tensor, purpose: int, step: int) -> None:
    """Fill ``out`` with the stream's normals.

    Args:
        out: (n, d).
        stream: (3,) int64, the noise stream (``rng.stream``).
        purpose: The purpose byte of the counter (``rng.Purpose``).
        step: The step, counted from the stream's first.
    """
    n, d = out.shape
    out.copy_(rng.normals(n, d, stream, purpose, step, out.dtype))


def gbm_perturb(
    x0: Tensor,
    coefficients: Tensor,
    stream: Tensor,
    purpose: int,
    step: int,
    x_t: Tensor | None,
    model_input: Tensor | None,
    z: Tensor | None,
) -> None:
    """Perturb x0: x_t = x0 exp(shift + s z), and the network's input c_in log|x_t|.

    Args:
        x0: (n, d) clean samples.
        coefficients: (n, 3) shift, s and c_in of each sample.
        stream: (3,) int64, the noise stream (``rng.stream``).
        purpose: The purpose byte of the counter (``rng.Purpose``).
        step: The step, counted from the stream's first.
        x_t: (n, d) or None; receives x_t.
        model_input: (n, d) or None, in the network's dtype; receives c_in log|x_t|.
        z: (n, d) or None; receives the normals z.
    """
    n, d = x0.shape
    noise = rng.normals(n, d, stream, purpose, step, x0.dtype)
    shift, s, c_in = (c[:, None].to(x0.dtype) for c in coefficients.unbind(1))
    increment = shift + s * noise
    if x_t is not None:
        x_t.copy_(x0 * torch.exp(increment))
    if model_input is not None:
        model_input.copy_(c_in * (torch.log(x0.abs()) + increment))
    if z is not None:
        z.copy_(noise)


def gbm_step(
    x: Tensor,
    model_output: Tensor,
    table: Tensor,
    stream: Tensor,
    step: int,
    first_nonfinite_step: Tensor,
    out: Tensor,
    prev_denoised: Tensor | None,
    model_input: Tensor | None,
    stein_score: bool,
    sign_agnostic: bool,
    log_state: bool,
) -> None:
    """Take one reverse step, noise included.

    Args:
        x: (n, d) the state before.
        model_output: (n, d) the network's raw output, float32, bfloat16 or float16.
        table: (T, 9) float32, the coefficients of each step (``GBM_COLUMNS``).
        stream: (3,) int64, the noise stream (``rng.stream``).
        step: The row of the table, counted from the stream's first step.
        first_nonfinite_step: (n,) int32, -1 before the first step; receives the first step at
            which a feature of the sample was not a normal float32 number.
        out: (n, d) the state after; may be x.
        prev_denoised: (n, d) or None; D_prev is read from it, and D is written to it.
        model_input: (n, d) or None, in the network's dtype; receives the network's next input,
            c_in log|x'|.
        stein_score: The network gives a Stein score, so g = x f.
        sign_agnostic: Use the sign-agnostic form.
        log_state: The row uses y. Without it the row must have A + B k0 = 1 (score networks), so
            that log|x'| - log|x| = B (k1 g + k2) + C + S z needs no logarithm. Then prev_denoised
            and model_input must be None.
    """
    a, b, b_prev, c, s, k0, k1, k2, c_in = rng.row_of(table, stream, step).to(x.dtype).unbind(0)
    n, d = x.shape
    z = rng.normals(n, d, stream, rng.Purpose.STEP, step, x.dtype)
    f = model_output.to(x.dtype)
    g = f * x if stein_score else f
    score_term = k1 * g + k2
    if log_state:
        y = torch.log(x.abs())
        denoised = k0 * y + score_term
        increment = b * denoised + c + s * z
        if prev_denoised is not None:
            increment = increment + b_prev * prev_denoised
            prev_denoised.copy_(denoised)
        log_new = a * y + increment
        new = x * (1 + (log_new - y)) if sign_agnostic else torch.copysign(torch.exp(log_new), x)
        if model_input is not None:
            model_input.copy_(c_in * (torch.log(new.abs()) if sign_agnostic else log_new))
    else:
        increment = b * score_term + c + s * z
        new = x * (1 + increment) if sign_agnostic else x * torch.exp(increment)
    good = is_normal(new)
    left = (~good).any(1) & (first_nonfinite_step < 0)
    first_nonfinite_step.copy_(torch.where(left, step + stream[2], first_nonfinite_step))
    out.copy_(torch.where(good, new, torch.nan))
