"""Operation of the exponentiated gradient: a flat, in-place update of one parameter."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmsgm.ops.checks import check_dtype
from fastmsgm.ops.dispatch import kernels
from fastmsgm.ops.operation import operation


@operation("egd_step_", mutates_args=("w",))
def egd_step_(w: Tensor, g: Tensor, lr: Tensor) -> None:
    """Take one step of the exponentiated gradient, in place: w <- w exp(-lr sign(w) g).

    ``reference.egd_step`` defines the treatment of zeros and of extreme values.

    Args:
        w: (...) float32, dense in memory. Its axes may lie in any order, as in channels-last
            weights.
        g: Like w, with any strides.
        lr: The learning rate, float32 of one element on the device of w.

    Raises:
        TypeError: w or g is not float32.
        ValueError: Another property of an argument is wrong.
    """
    check_dtype("w", w)
    check_dtype("g", g)
    if g.shape != w.shape or g.device != w.device:
        raise ValueError(
            f"g must match w {tuple(w.shape)} on {w.device}, got {tuple(g.shape)} on {g.device}: "
            "give w's own gradient"
        )
    if lr.numel() != 1 or lr.dtype != torch.float32 or lr.device != w.device:
        raise ValueError(
            f"lr must be float32 of one element on {w.device}, got {lr.dtype} {tuple(lr.shape)} on "
            f"{lr.device}"
        )
    # The axes in the order in which they lie in memory.
    order = sorted(range(w.ndim), key=lambda axis: w.stride(axis), reverse=True)
    in_order = w.permute(order)
    if not in_order.is_contiguous():
        raise ValueError(
            f"w must be dense in memory, got strides {w.stride()} for {tuple(w.shape)}: call "
            ".contiguous()"
        )
    kernels(w, "optim").egd_step(
        in_order.view(-1), g.permute(order).contiguous().view(-1), lr.view(1)
    )
