"""The divergence of a velocity: exact, or Hutchinson's estimate with random probes.

Each is one vector-Jacobian product for a feature, or for a probe v: E v . (J v) = tr J for probes
of unit covariance (Hutchinson, 1989). The estimate of a linear, diagonal part is exact for
Rademacher probes, whose entries are 1 or -1.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastmsgm.probes import sample_probes

EXACT = 64  # features, up to which the divergence is exact unless probes are asked for


def rademacher(n: int, d: int, probes: int, stream: Tensor) -> Tensor:
    """Return probes of n samples, (probes, n, d) float64, 1 or -1.

    Args:
        n: Number of samples.
        d: Number of features.
        probes: Probes for each sample.
        stream: The noise stream, whose first sample is the first of these.
    """
    drawn = [sample_probes("rademacher", n, d, stream, probe) for probe in range(probes)]
    return torch.stack(drawn).double()


def with_divergence(
    velocity: Callable[[Tensor], Tensor], state: Tensor, probes: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return a velocity and its divergence.

    Args:
        velocity: Differentiable, (n, d) -> (n, d), row by row.
        state: (n, d) float64.
        probes: (k, n, d) of the estimate, or None for the exact divergence.

    Returns:
        (n, d) and (n,), without gradients.

    Raises:
        RuntimeError: The velocity cannot be differentiated.
    """
    with torch.enable_grad():
        y = state.detach().requires_grad_()
        value = velocity(y)
    if not value.requires_grad:
        raise RuntimeError(
            "the network must be differentiable for likelihoods, got an output without a gradient: "
            "compute it in PyTorch, outside torch.no_grad() and without .detach()"
        )
    weight = 1.0
    if probes is None:  # every unit vector once
        probes = torch.eye(y.shape[1], dtype=y.dtype, device=y.device)[:, None].expand(-1, *y.shape)
    else:
        weight = 1 / len(probes)
    divergence = torch.zeros_like(state[:, 0])
    with torch.autocast(y.device.type, enabled=False):  # which reaches backward passes too
        for v in probes:
            (product,) = torch.autograd.grad(value, y, v, retain_graph=True)
            divergence = divergence + weight * (product * v).sum(1)
    return value.detach(), divergence
