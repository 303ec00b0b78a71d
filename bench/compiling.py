"""torch.compile as a contender."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def compiled(function: Callable[P, R], device: torch.device) -> Callable[P, R]:
    """The function, compiled the way that is fastest on the device.

    On a CPU the compiler's own normals are drawn one by one, which takes ten times as long as PyTorch's: it is told to
    take those instead. On CUDA its own are computed where they are needed.
    """
    return torch.compile(dynamic=False, options={"fallback_random": device.type == "cpu"})(function)


@functools.cache
def obstacle(device: torch.device) -> str | None:
    """Why torch.compile does not work here, found out on a small function; None where it does."""
    try:
        compiled(_probe, device)(torch.ones(64, device=device))
    except Exception as error:  # no compiler, no Triton, an unsupported Python: each raises its own
        return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
    return None


def _probe(x: Tensor) -> Tensor:
    return torch.exp(x) + torch.randn_like(x)
