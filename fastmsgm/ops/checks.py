"""What may enter an operation: shapes, dtypes, strides and devices, each refused by name."""

from __future__ import annotations

import math

import torch
from torch import Tensor

OUTPUT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # of a network


def rows(x: Tensor) -> Tensor:
    """x (n, ...) as (n, d), the same memory."""
    return x.view(x.shape[0], math.prod(x.shape[1:]))


def check_dtype(name: str, x: Tensor, allowed: tuple[torch.dtype, ...] = (torch.float32,)) -> None:
    if x.dtype not in allowed:
        names = " or ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
        raise TypeError(f"{name} must be {names}, got {x.dtype}: convert it with .float()")


def check_state(name: str, x: Tensor) -> None:
    check_dtype(name, x)
    if x.ndim < 2:
        raise ValueError(f"{name} must have shape (n, ...) with at least one feature axis, got {tuple(x.shape)}")
    if not x.is_contiguous():
        raise ValueError(
            f"{name} must be contiguous, got strides {x.stride()} for {tuple(x.shape)}: call .contiguous()"
        )


def check_like(
    name: str, tensor: Tensor | None, other_name: str, other: Tensor, dtypes: tuple[torch.dtype, ...] = (torch.float32,)
) -> None:
    if tensor is None:
        return
    check_dtype(name, tensor, dtypes)
    if tensor.shape != other.shape or tensor.device != other.device:
        raise ValueError(
            f"{name} must match {other_name} {tuple(other.shape)} on {other.device}, "
            f"got {tuple(tensor.shape)} on {tensor.device}"
        )
    if not tensor.is_contiguous():
        raise ValueError(f"{name} must be contiguous, got strides {tensor.stride()}: call .contiguous()")


def check_stream(stream: Tensor, x: Tensor) -> None:
    if stream.shape != (3,) or stream.dtype != torch.int64 or stream.device != x.device:
        raise ValueError(
            f"stream must be int64 of shape (3,) on {x.device}, got {stream.dtype} {tuple(stream.shape)} on "
            f"{stream.device}: make it with rng.stream"
        )


def check_kind(kind: int) -> None:
    if not 0 <= kind < 256:
        raise ValueError(f"kind must be in 0 .. 255, a byte of every address, got {kind}: use one of rng.Kind")


def check_directions(name: str, u: Tensor) -> None:
    check_state(name, u)
    if math.prod(u.shape[1:]) < 2:
        raise ValueError(f"{name} must have at least 2 features, since one has no directions; got {tuple(u.shape)}")


def check_step(
    name: str, x: Tensor, f: Tensor, table: Tensor, columns: tuple[str, ...], stream: Tensor, step: int, bad: Tensor,
    history: Tensor | None, net_in: Tensor | None,
) -> None:  # fmt: skip
    check_stream(stream, x)
    if f.shape != x.shape:
        raise ValueError(f"f, the network's output, must have the state's shape {tuple(x.shape)}, got {tuple(f.shape)}")
    if f.device != x.device:
        raise ValueError(f"f, the network's output, must be on the state's device {x.device}, got {f.device}")
    if f.dtype not in OUTPUT_DTYPES:
        raise TypeError(f"f, the network's output, must be float32, bfloat16 or float16, got {f.dtype}")
    if table.shape[1:] != (len(columns),) or table.dtype != torch.float32 or not table.is_contiguous():
        raise ValueError(
            f"table must be float32 of shape (T, {len(columns)}), contiguous, "
            f"got {table.dtype} {tuple(table.shape)} with strides {table.stride()}"
        )
    if not 0 <= step < table.shape[0]:
        raise ValueError(f"step must be a row of the table, 0 .. {table.shape[0] - 1}, got {step}")
    if bad.shape != x.shape[:1] or bad.dtype != torch.int32:
        raise ValueError(f"bad must be int32 of shape ({x.shape[0]},), got {bad.dtype} {tuple(bad.shape)}")
    if not bad.is_contiguous():
        raise ValueError(f"bad must be contiguous, got strides {bad.stride()}: call .contiguous()")
    check_like("history", history, name, x)
    check_like("net_in", net_in, name, x, OUTPUT_DTYPES)


def step_rows(
    x: Tensor, f: Tensor, history: Tensor | None, net_in: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """The arrays of a step as (n, d); f is copied where the network's output is strided (channels-last images)."""
    n_by_d = rows(x)
    history, net_in = (None if t is None else rows(t) for t in (history, net_in))
    return n_by_d, f.reshape(n_by_d.shape).contiguous(), history, net_in
