"""torch.compile as a provider."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def compiled(function: Callable[P, R], device: torch.device) -> Callable[P, R]:
    """Return the function, compiled with the options that are fastest on the device.

    On a CPU the compiler's own generator makes normals one by one, ten times slower than PyTorch's,
    so PyTorch's generator is selected. On CUDA the compiler's generator is fused with the rest.
    """
    return torch.compile(dynamic=False, options={"fallback_random": device.type == "cpu"})(function)


@functools.cache
def error(device: torch.device) -> str | None:
    """Return why torch.compile fails on a small function here, or None if it works."""
    try:
        compiled(_probe, device)(torch.ones(64, device=device))
    except Exception as error:  # no compiler, no Triton, an unsupported Python: each has its own
        return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
    return None


def _probe(x: Tensor) -> Tensor:
    return torch.exp(x) + torch.randn_like(x)
