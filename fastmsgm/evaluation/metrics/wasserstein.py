"""The sliced Wasserstein distance: exact in one dimension, averaged over projections."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmsgm.checks import check_int
from fastmsgm.evaluation.metrics.checks import check_pair
from fastmsgm.evaluation.metrics.memory import rows_at_a_time


def sliced_wasserstein(a: Tensor, b: Tensor, projections: int = 512, seed: int = 0) -> float:
    """Return the sliced 2-Wasserstein distance of two sets of samples.

    One direction's distance is exact: between sorted projections, or, for unequal sizes, between
    the two step-shaped quantile functions on the union of their steps. Memory stays bounded:
    directions are taken in chunks.

    Args:
        a: (n, ...) float; the features are flattened.
        b: (m, ...) float, with the same features on the same device.
        projections: Number of random directions; for a shift the relative error is about
            sqrt(1 / (2 projections)).
        seed: Seed of the directions, which are the same on every device.

    Returns:
        The distance, >= 0, in the data's units.

    Raises:
        TypeError: A set is not of floating point, or projections or seed is not an int.
        ValueError: Wrong shapes, no samples, values that are not finite, or projections < 1.

    Example:
        >>> a = torch.zeros(100, 2)
        >>> round(sliced_wasserstein(a, a + 1.0), 1)  # |shift| / sqrt(2)
        1.0
    """
    projections, seed = (
        check_int("projections", projections, 1),
        check_int("seed", seed, 0, 2**64 - 1),
    )
    a, b = check_pair(("a", a), ("b", b), least=1)
    n, m, d = len(a), len(b), a.shape[1]
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(projections, d, dtype=torch.float64, device="cpu", generator=generator)
    directions = (directions / directions.norm(dim=1, keepdim=True)).to(a.device)
    # The quantile levels where either function steps: between two of them both are constant.
    steps = torch.cat(
        [torch.arange(k, n * m + 1, k, dtype=torch.int64, device="cpu") for k in (m, n)]
    ).unique()
    widths = steps.diff(prepend=steps.new_zeros(1)).to(a.device, torch.float64) / (n * m)
    indices_a, indices_b = (((steps - 1) // k).to(a.device) for k in (m, n))
    total = 0.0
    for chunk in directions.split(rows_at_a_time(len(steps))):
        quantiles_a, quantiles_b = (
            x.mm(chunk.mT).sort(0).values[at] for x, at in ((a, indices_a), (b, indices_b))
        )
        total += ((quantiles_a - quantiles_b).square().mean(1) @ widths).item() * len(chunk)
    return (total / projections) ** 0.5
