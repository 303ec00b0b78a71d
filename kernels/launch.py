"""Where and how wide a kernel is launched."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

WARP = 64 if torch.version.hip else 32


@contextlib.contextmanager
def device(x: Tensor) -> Iterator[None]:
    """Launch on the device of x; a CPU tensor is for the interpreter and has none to choose."""
    if x.is_cuda:
        with torch.cuda.device(x.device):
            yield
    else:
        yield
