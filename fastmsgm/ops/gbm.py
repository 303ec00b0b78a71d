"""Operations of geometric Brownian motion, and the stream's normals.

In all families, no argument of an operation has a default value: torch 2.11 loses mutated trailing
arguments that have one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastmsgm.ops.checks import (
    OUTPUT_DTYPES,
    check_dtype,
    check_like,
    check_purpose,
    check_state,
    check_step,
    check_stream,
    flat,
    flat_arrays,
)
from fastmsgm.ops.dispatch import kernels
from fastmsgm.ops.operation import operation
from fastmsgm.reference import GBM_COLUMNS


@operation("fill_normal_", mutates_args=("out",))
def fill_normal_(out: Tensor, stream: Tensor, purpose: int, step: int) -> None:
    """Fill ``out`` with the stream's normals; ``out[0]`` is the sample ``stream[1]``.

    Args:
        out: (n, ...) float32.
        stream: (3,) int64, the noise stream (``rng.stream``).
        purpose: The purpose byte of the counter (``rng.Purpose``).
        step: The step, counted from the stream's first.

    Raises:
        TypeError: out is not float32.
        ValueError: Another property of an argument is wrong.
    """
    check_state("out", out)
    check_stream(stream, out)
    check_purpose(purpose)
    kernels(out, "gbm").fill_normal(flat(out), stream, purpose, step)


@operation("gbm_perturb_", mutates_args=("x_t", "model_input", "z"))
def gbm_perturb_(
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
        x0: (n, ...) float32, clean samples.
        coefficients: (n, 3) float32, shift, s and c_in of each sample.
        stream: (3,) int64, the noise stream (``rng.stream``).
        purpose: The purpose byte of the counter (``rng.Purpose``).
        step: The step, counted from the stream's first.
        x_t: Like x0, or None; receives x_t.
        model_input: Like x0 in the network's dtype, or None; receives c_in log|x_t|.
        z: Like x0, or None; receives the normals z.

    Raises:
        TypeError: The dtype of an array is wrong.
        ValueError: Another property of an argument is wrong.
    """
    check_state("x0", x0)
    if coefficients.shape != (x0.shape[0], 3):
        raise ValueError(
            f"coefficients must have shape ({x0.shape[0]}, 3), got {tuple(coefficients.shape)}"
        )
    check_dtype("coefficients", coefficients)
    check_stream(stream, x0)
    check_purpose(purpose)
    for name, tensor in (("x_t", x_t), ("z", z)):
        check_like(name, tensor, "x0", x0)
    check_like("model_input", model_input, "x0", x0, OUTPUT_DTYPES)
    outputs = (None if t is None else flat(t) for t in (x_t, model_input, z))
    kernels(x0, "gbm").gbm_perturb(
        flat(x0), coefficients.contiguous(), stream, purpose, step, *outputs
    )


@operation(
    "gbm_step_",
    mutates_args=("x", "first_nonfinite_step", "prev_denoised", "model_input"),
)
def gbm_step_(
    x: Tensor,
    model_output: Tensor,
    table: Tensor,
    stream: Tensor,
    step: int,
    first_nonfinite_step: Tensor,
    prev_denoised: Tensor | None,
    model_input: Tensor | None,
    stein_score: bool,
    sign_agnostic: bool,
    log_state: bool,
) -> None:
    """Take one reverse step of geometric Brownian motion, in place.

    Arguments as of ``reference.gbm_step``, with arrays of shape (n, ...) and x as ``out``.

    Raises:
        TypeError: The dtype of an array is wrong.
        ValueError: Another property of an argument is wrong.
    """
    _step(
        x,
        model_output,
        table,
        stream,
        step,
        first_nonfinite_step,
        x,
        prev_denoised,
        model_input,
        stein_score,
        sign_agnostic,
        log_state,
    )


@operation("gbm_step", mutates_args=("first_nonfinite_step", "prev_denoised", "model_input"))
def gbm_step(
    x: Tensor,
    model_output: Tensor,
    table: Tensor,
    stream: Tensor,
    step: int,
    first_nonfinite_step: Tensor,
    prev_denoised: Tensor | None,
    model_input: Tensor | None,
    stein_score: bool,
    sign_agnostic: bool,
    log_state: bool,
) -> Tensor:
    """``gbm_step_`` out of place: return the new state and leave x unchanged."""
    out = torch.empty_like(x)
    _step(
        x,
        model_output,
        table,
        stream,
        step,
        first_nonfinite_step,
        out,
        prev_denoised,
        model_input,
        stein_score,
        sign_agnostic,
        log_state,
    )
    return out


def _step(
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
    _check(
        x,
        model_output,
        table,
        stream,
        step,
        first_nonfinite_step,
        prev_denoised,
        model_input,
        log_state,
    )
    x, model_output, prev_denoised, model_input = flat_arrays(
        x, model_output, prev_denoised, model_input
    )
    kernels(x, "gbm").gbm_step(
        x,
        model_output,
        table,
        stream,
        step,
        first_nonfinite_step,
        flat(out),
        prev_denoised,
        model_input,
        stein_score,
        sign_agnostic,
        log_state,
    )


def _check(
    x: Tensor,
    model_output: Tensor,
    table: Tensor,
    stream: Tensor,
    step: int,
    first_nonfinite_step: Tensor,
    prev_denoised: Tensor | None,
    model_input: Tensor | None,
    log_state: bool,
) -> None:
    check_state("x", x)
    check_step(
        "x",
        x,
        model_output,
        table,
        GBM_COLUMNS,
        stream,
        step,
        first_nonfinite_step,
        ("prev_denoised", prev_denoised),
        model_input,
    )
    if not log_state and not (prev_denoised is None and model_input is None):
        raise ValueError(
            "prev_denoised and model_input need the logarithm of the state: give log_state=True"
        )
