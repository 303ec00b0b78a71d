"""Checks of the arguments of operations: shapes, dtypes, strides and devices.

Every error names the argument.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# The dtypes that a network's output and input may have.
OUTPUT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def flat(x: Tensor) -> Tensor:
    """Return a view of x (n, ...) as (n, d)."""
    return x.view(x.shape[0], math.prod(x.shape[1:]))


def check_dtype(name: str, x: Tensor, allowed: tuple[torch.dtype, ...] = (torch.float32,)) -> None:
    """Raise TypeError unless the dtype of x is allowed."""
    if x.dtype not in allowed:
        names = " or ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
        raise TypeError(f"{name} must be {names}, got {x.dtype}: convert it with .float()")


def check_state(name: str, x: Tensor, least_features: int = 0) -> None:
    """Check that x is a contiguous tensor (n, ...) with enough features.

    Raises:
        TypeError: x is not float32.
        ValueError: Its shape or strides are wrong.
    """
    check_dtype(name, x)
    if x.ndim < 2:
        raise ValueError(
            f"{name} must have shape (n, ...) with at least one feature axis, got {tuple(x.shape)}"
        )
    _check_contiguous(name, x)
    if math.prod(x.shape[1:]) < least_features:
        raise ValueError(
            f"{name} must have at least {least_features} features, since one has no direction; "
            f"got {tuple(x.shape)}"
        )


def check_like(
    name: str,
    tensor: Tensor | None,
    other_name: str,
    other: Tensor,
    dtypes: tuple[torch.dtype, ...] = (torch.float32,),
) -> None:
    """Check that a contiguous tensor has the shape and device of another; None passes.

    Raises:
        TypeError: Its dtype is not allowed.
        ValueError: Its shape, device or strides are wrong.
    """
    if tensor is None:
        return
    check_dtype(name, tensor, dtypes)
    if tensor.shape != other.shape or tensor.device != other.device:
        raise ValueError(
            f"{name} must match {other_name} {tuple(other.shape)} on {other.device}, got "
            f"{tuple(tensor.shape)} on {tensor.device}"
        )
    _check_contiguous(name, tensor)


def check_stream(stream: Tensor, x: Tensor) -> None:
    """Raise ValueError unless ``stream`` is a noise stream on the device of x."""
    if stream.shape != (3,) or stream.dtype != torch.int64 or stream.device != x.device:
        raise ValueError(
            f"stream must be int64 of shape (3,) on {x.device}, got {stream.dtype} "
            f"{tuple(stream.shape)} on {stream.device}: make it with rng.stream"
        )


def check_purpose(purpose: int) -> None:
    """Raise ValueError unless ``purpose`` fits into a byte."""
    if not 0 <= purpose < 256:
        raise ValueError(
            f"purpose must be in 0 .. 255, a byte of every counter, got {purpose}: use one of "
            "rng.Purpose"
        )


def check_step(
    name: str,
    x: Tensor,
    model_output: Tensor,
    table: Tensor,
    columns: tuple[str, ...],
    stream: Tensor,
    step: int,
    first_nonfinite_step: Tensor,
    memory: tuple[str, Tensor | None],
    model_input: Tensor | None,
) -> None:
    """Check the arguments that the steps of all families have in common.

    Args:
        name: Name of the state, for errors.
        x: (n, ...) the state.
        model_output: Like x, in a network's dtype.
        table: (T, number of columns) float32.
        columns: Names of the table's columns.
        stream: (3,) int64, the noise stream.
        step: Row of the table.
        first_nonfinite_step: (n,) int32.
        memory: Name and tensor of what a step keeps for the next one; the tensor may be None.
        model_input: Like x, in a network's dtype, or None.

    Raises:
        TypeError: The dtype of model_output, model_input or the memory is wrong.
        ValueError: Another property of an argument is wrong.
    """
    check_stream(stream, x)
    if model_output.shape != x.shape:
        raise ValueError(
            f"model_output must have the state's shape {tuple(x.shape)}, got "
            f"{tuple(model_output.shape)}"
        )
    if model_output.device != x.device:
        raise ValueError(
            f"model_output must be on the state's device {x.device}, got {model_output.device}"
        )
    check_dtype("model_output", model_output, OUTPUT_DTYPES)
    if (
        table.shape[1:] != (len(columns),)
        or table.dtype != torch.float32
        or not table.is_contiguous()
    ):
        raise ValueError(
            f"table must be float32 of shape (T, {len(columns)}), contiguous, got {table.dtype} "
            f"{tuple(table.shape)} with strides {table.stride()}"
        )
    if not 0 <= step < table.shape[0]:
        raise ValueError(f"step must be a row of the table, 0 .. {table.shape[0] - 1}, got {step}")
    if first_nonfinite_step.shape != x.shape[:1] or first_nonfinite_step.dtype != torch.int32:
        raise ValueError(
            f"first_nonfinite_step must be int32 of shape ({x.shape[0]},), got "
            f"{first_nonfinite_step.dtype} {tuple(first_nonfinite_step.shape)}"
        )
    _check_contiguous("first_nonfinite_step", first_nonfinite_step)
    check_like(*memory, name, x)
    check_like("model_input", model_input, name, x, OUTPUT_DTYPES)


def flat_arrays(
    x: Tensor, model_output: Tensor, memory: Tensor | None, model_input: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Return the arrays of a step as (n, d).

    ``model_output`` is copied if it is not contiguous, as channels-last images are not.
    """
    x = flat(x)
    memory, model_input = (None if t is None else flat(t) for t in (memory, model_input))
    return x, model_output.reshape(x.shape).contiguous(), memory, model_input


def _check_contiguous(name: str, x: Tensor) -> None:
    if not x.is_contiguous():
        raise ValueError(
            f"{name} must be contiguous, got strides {x.stride()} for {tuple(x.shape)}: call "
            ".contiguous()"
        )
