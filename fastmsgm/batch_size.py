"""The batch size of sampling where the user gives none."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from fastmsgm import rng
from fastmsgm.loop import Loop
from fastmsgm.modes import evaluation

PROBE = 4  # samples whose memory is measured on CUDA


def default_batch_size(
    shape: tuple[int, ...], n: int, device: torch.device, loop: Callable[[int], Loop]
) -> int:
    """Return the largest chunk of a job whose user gave none.

    The power of two nearest 2^16 / d, between 64 and 8192. On CUDA 16 times that, but no more than
    half of the free memory holds, as measured on a few samples.

    Args:
        shape: Of a sample.
        n: Number of samples.
        device: Where they are computed.
        loop: Returns the loop over a chunk of a size.
    """
    exponent = round(math.log2(2**16 / math.prod(shape)))
    size = min(max(2**exponent, 64), 8192)
    if device.type != "cuda" or n <= PROBE:
        return size
    free, _ = torch.cuda.mem_get_info(device)
    return max(1, min(16 * size, free // 2 // bytes_per_sample(device, loop)))


def bytes_per_sample(device: torch.device, loop: Callable[[int], Loop]) -> int:
    """Measure the memory of a sample on CUDA: its state and one step with its network call."""
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    few = loop(PROBE)
    few.start(rng.stream(0, 0, device), {})
    with evaluation(few.model):
        few.step(0)
    return max(1, (torch.cuda.max_memory_allocated(device) - before) // PROBE)
