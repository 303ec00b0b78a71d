"""The density of the norms: a Gaussian KDE of their logarithms, with or without a Pareto tail."""

from __future__ import annotations

import math

import torch
from torch import Tensor

REACH = 12.0  # bandwidths beyond the nearest norm at which a kernel is below float64's precision
CHUNK = 64  # norms at a time


def silverman(log_norms: Tensor) -> float:
    """Return Silverman's (1986) bandwidth, 0.9 min(std, IQR / 1.34) n^{-1/5}.

    Args:
        log_norms: (n,) float64, ascending.
    """
    n = len(log_norms)
    thinned = log_norms[:: max(1, n // 2**20)]
    low, high = torch.quantile(thinned, log_norms.new_tensor([0.25, 0.75]))
    return 0.9 * min(float(log_norms.std(correction=0)), float(high - low) / 1.34) * n**-0.2


def hill(log_norms: Tensor, k: int) -> float:
    """Return Hill's (1975) estimate of alpha in P(|x| > r) ~ r^-alpha.

    Args:
        log_norms: (n,) ascending.
        k: Number of the largest norms that it takes, 1 .. n - 1; its relative error is k^-1/2.

    Returns:
        1 over the mean excess of their logarithms over the next smaller one; inf where all are
        equal.
    """
    top = log_norms[-k - 1 :].double()
    excess = float((top[1:] - top[0]).mean())
    return 1 / excess if excess else math.inf


def log_norm_density(logs: Tensor, log_norms: Tensor, bandwidth: float, tail: int) -> Tensor:
    """Return the log-density of log-norms.

    A share tail / m of the norms is Pareto distributed beyond the threshold, so that log r is
    exponential there; the others are a KDE.

    Args:
        logs: (n,) float64, the log-norms.
        log_norms: (m,) ascending, of the data.
        bandwidth: Standard deviation of the Gaussian kernel.
        tail: How many of the largest are replaced by the Pareto distribution fitted to them.

    Returns:
        (n,) float64.

    Raises:
        ValueError: The bandwidth is 0, or all norms of the tail are equal.
    """
    alpha = hill(log_norms, tail) if tail else 0.0
    if not bandwidth or math.isinf(alpha):
        raise ValueError(
            "the norms do not vary, so they have no density, and neither have the samples: compare "
            "directions, or fit a prior to data whose norms vary"
        )
    m, kernels = len(log_norms), log_norms.double()[: len(log_norms) - tail].contiguous()
    order = torch.argsort(logs)
    parts = [_kde(chunk, kernels, bandwidth) for chunk in logs[order].split(CHUNK)]
    density = torch.empty_like(logs)
    density[order] = torch.cat(parts) - math.log(m)
    if not tail:
        return density
    threshold = float(log_norms[-tail - 1])
    pareto = math.log(tail * alpha / m) - alpha * (logs - threshold)
    return torch.logaddexp(density, torch.where(logs > threshold, pareto, -math.inf))


def _kde(logs: Tensor, kernels: Tensor, bandwidth: float) -> Tensor:
    """Return the log of the sum over kernels, both ascending; those too far away are left out."""
    above = torch.searchsorted(kernels, logs).clamp(max=len(kernels) - 1)
    nearest = torch.minimum(
        (kernels[above] - logs).abs(), (logs - kernels[(above - 1).clamp(min=0)]).abs()
    )
    reach = nearest + REACH * bandwidth
    ends = torch.stack(((logs - reach).min(), (logs + reach).max()))
    first, last = torch.searchsorted(kernels, ends).tolist()
    z = (logs[:, None] - kernels[first:last]) / bandwidth
    scale = math.log(bandwidth) + math.log(2 * math.pi) / 2
    return torch.logsumexp(-z.square() / 2, 1) - scale
