"""The generators of dense noise: independent normals, made skew, d^3 numbers."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from fastmsgm import rng

DENSE_BYTES = 2**31  # the largest tensor of generators, float32


def check_dense(d: int) -> None:
    """Raise ValueError where the d^3 numbers of the dense tensor would not fit."""
    if 4 * d**3 > DENSE_BYTES:
        raise ValueError(
            f'noise="dense" keeps d^3 numbers, {4 * d**3 / 2**30:.1f} GiB for d = {d} (at most '
            f'{DENSE_BYTES / 2**30:g} GiB): use "isotropic" or "ring"'
        )


@functools.lru_cache(maxsize=4)
@torch.inference_mode(mode=False)  # it is kept, and may be used in training later
def dense_generators(d: int, seed: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return (d, d, d): G^k = [:, :, k], skew, of squared norm d in all, so that tr L = -d/2."""
    check_dense(d)
    g, square = torch.empty(d, d, d, dtype=dtype, device="cpu"), 0.0
    for i in range(d):  # slice by slice: the normals' own memory is many times theirs
        z = rng.normals(1, d * d, rng.stream(seed, i), rng.Purpose.PRIOR, 2**32 - 1, torch.float64)
        g[i] = z.view(d, d)
    for i in range(d):
        g[i, i] = 0
        g[i, i + 1 :] -= g[i + 1 :, i]
        g[i + 1 :, i] = -g[i, i + 1 :]
        square += 2 * float(g[i, i + 1 :].double().square().sum())
    return g.mul_(math.sqrt(d / square)).to(device)
