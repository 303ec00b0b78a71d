"""The largest log-norm that the network of a rotation is conditioned on."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastmsgm.checks import is_number


def log_norm_limit(log_norm_max: float, device: torch.device) -> Tensor:
    """Return the limit as a float32 scalar; ValueError unless it is a number or inf."""
    if not is_number(log_norm_max) and log_norm_max != math.inf:
        raise ValueError(
            f"log_norm_max must be a number or inf, got {log_norm_max!r}: use "
            "RotationModel.for_data, which finds it"
        )
    return torch.tensor(float(log_norm_max), dtype=torch.float32, device=device)


def without_limit(model: Any, weights: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Let weights from before there was a limit be loaded: they have none."""
    if f"{prefix}log_norms" in weights:
        weights.setdefault(f"{prefix}log_norm_max", torch.full_like(model.log_norm_max, math.inf))
