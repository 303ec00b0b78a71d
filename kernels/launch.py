"""Launching: the width of a warp, and the device."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

WARP = 64 if torch.version.hip else 32


@contextlib.contextmanager
def device(x: Tensor) -> Iterator[None]:
    """Launch on the device of x. CPU tensors occur in the interpreter and need no choice."""
    if x.is_cuda:
        with torch.cuda.device(x.device):
            yield
    else:
        yield
