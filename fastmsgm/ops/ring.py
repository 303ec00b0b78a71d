"""Operations of rotations around a ring."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmsgm.ops.checks import check_state, check_step, flat, flat_arrays
from fastmsgm.ops.dispatch import kernels
from fastmsgm.ops.operation import operation
from fastmsgm.reference import RING_COLUMNS


@operation("ring_step_", mutates_args=("x", "first_nonfinite_step", "step_start", "model_input"))
def ring_step_(
    x: Tensor,
    model_output: Tensor,
    table: Tensor,
    stream: Tensor,
    step: int,
    first_nonfinite_step: Tensor,
    step_start: Tensor | None,
    model_input: Tensor | None,
    restart: bool,
    noisy: bool,
) -> None:
    """Take one reverse step of rotations around a ring, in place.

    Arguments as of ``reference.ring_step``, with arrays of shape (n, ...) and x as ``out``.

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
        step_start,
        model_input,
        restart,
        noisy,
    )


@operation("ring_step", mutates_args=("first_nonfinite_step", "step_start", "model_input"))
def ring_step(
    x: Tensor,
    model_output: Tensor,
    table: Tensor,
    stream: Tensor,
    step: int,
    first_nonfinite_step: Tensor,
    step_start: Tensor | None,
    model_input: Tensor | None,
    restart: bool,
    noisy: bool,
) -> Tensor:
    """``ring_step_`` out of place: return the new state and leave x unchanged."""
    out = torch.empty_like(x)
    _step(
        x,
        model_output,
        table,
        stream,
        step,
        first_nonfinite_step,
        out,
        step_start,
        model_input,
        restart,
        noisy,
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
    step_start: Tensor | None,
    model_input: Tensor | None,
    restart: bool,
    noisy: bool,
) -> None:
    _check(
        x, model_output, table, stream, step, first_nonfinite_step, step_start, model_input, restart
    )
    x, model_output, step_start, model_input = flat_arrays(x, model_output, step_start, model_input)
    kernels(x, "ring").ring_step(
        x,
        model_output,
        table,
        stream,
        step,
        first_nonfinite_step,
        flat(out),
        step_start,
        model_input,
        restart,
        noisy,
    )


def _check(
    x: Tensor,
    model_output: Tensor,
    table: Tensor,
    stream: Tensor,
    step: int,
    first_nonfinite_step: Tensor,
    step_start: Tensor | None,
    model_input: Tensor | None,
    restart: bool,
) -> None:
    check_state("x", x, least_features=2)
    check_step(
        "x",
        x,
        model_output,
        table,
        RING_COLUMNS,
        stream,
        step,
        first_nonfinite_step,
        ("step_start", step_start),
        model_input,
    )
    if restart and step_start is None:
        raise ValueError(
            "restart starts from step_start, got None: give what the step without restart wrote to"
        )
