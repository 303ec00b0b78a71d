"""Random probes v of unit covariance, for Hutchinson's estimate v . (J v) of the trace of J."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastmsgm import rng

PROBES = ("rademacher", "gaussian", "sphere")


def check_probes(distribution: object, others: tuple[str, ...] = ()) -> None:
    """Raise ValueError unless it names a distribution of probes, or is one of ``others``."""
    allowed = PROBES + others
    if distribution not in allowed:
        raise ValueError(f"probes must be one of {', '.join(allowed)}, got {distribution!r}")


def sample_probes(distribution: str, n: int, d: int, stream: Tensor, step: int) -> Tensor:
    """Return n probes, (n, d) float32.

    Args:
        distribution: "rademacher", "gaussian" or "sphere" (of radius sqrt(d)).
        n: Number of samples.
        d: Number of features.
        stream: (3,) int64, the noise stream.
        step: Step of the noise counter.
    """
    z = rng.normals(n, d, stream, rng.Purpose.PROBE, step)
    if distribution == "rademacher":
        return torch.sign(z)
    if distribution == "gaussian":
        return z
    return z * (math.sqrt(d) / z.norm(dim=1, keepdim=True))
