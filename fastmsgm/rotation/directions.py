"""check_directions: what can be rotated."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastmsgm.checks import check_floating_point
from fastmsgm.constants import TINY


def check_directions(name: str, x: Tensor) -> None:
    """Raise where x has no directions to rotate.

    Raises:
        TypeError: x is not a tensor of floating point.
        ValueError: It has one feature, NaN or infinity, zero vectors, or norms that overflow.
    """
    check_floating_point(name, x)
    if x.ndim < 2 or x.shape[0] < 1 or math.prod(x.shape[1:]) < 2:
        raise ValueError(
            f"{name} must have shape (n, ...) with n >= 1 and at least 2 features, got "
            f"{tuple(x.shape)}"
        )
    x = x.detach()
    if not bool(torch.isfinite(x).all()):
        wrong = int((~torch.isfinite(x)).sum())
        raise ValueError(f"{name} must be finite, got NaN or infinity in {wrong} entries")
    norms = x.reshape(x.shape[0], -1).norm(dim=1)
    if not bool(torch.isfinite(norms).all()):
        raise ValueError(
            f"{name} must have norms whose squares {x.dtype} can hold, got entries of up to "
            f"{float(x.abs().max()):g}: scale the data"
        )
    zero = norms < TINY**0.5
    if bool(zero.any()):
        raise ValueError(
            f"{name} must have no zero vectors, got {int(zero.sum())}: they have no direction. "
            "Leave them out, or shift the data with offset=..."
        )
