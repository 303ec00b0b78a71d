"""Distances between two sets of samples: Frechet (of features) and sliced Wasserstein (of anything).

    Frechet: |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a^1/2 C_b C_a^1/2)^1/2), between the Gaussians with the sets' moments
    (Dowson & Landau, 1982; with the features of a network, Heusel et al., 2017, "GANs trained by a two time-scale ...")
    sliced Wasserstein: (E_u W_2^2(u.a, u.b))^1/2, u uniform on the unit sphere (Bonneel et al., 2015)

Both are biased upwards for finite samples: compare them with the distance between two real sets of the same sizes.
"""

from __future__ import annotations

import torch
from torch import Tensor

_CHUNK = 2**22  # quantiles held at a time: 32 MiB in float64


def frechet_distance(features_a: Tensor, features_b: Tensor) -> float:
    """The squared 2-Wasserstein distance of the Gaussians fitted to two sets (what FID is, for Inception features).

    Computed in float64, with unbiased covariances; the trace term from the eigenvalues of the symmetric product, so
    singular covariances (fewer samples than features) are fine.

    Args:
        features_a: (n, d), n >= 2.
        features_b: (m, d), m >= 2, on the same device.

    Returns:
        The distance, >= 0, in the features' units squared.

    Raises:
        TypeError: a set is not of floating point.
        ValueError: wrong shapes, too few samples, or values that are not finite.
    """
    a, b = _pair(("features_a", features_a), ("features_b", features_b), least=2)
    (mean_a, cov_a), (mean_b, cov_b) = _moments(a), _moments(b)
    values, vectors = torch.linalg.eigh(cov_a)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.mT
    product = torch.linalg.eigvalsh(root @ cov_b @ root)
    cross = product.clamp(min=0).sqrt().sum()  # rounding can leave eigenvalues a hair below zero
    distance = (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross
    return max(0.0, distance.item())


def sliced_wasserstein(a: Tensor, b: Tensor, projections: int = 512, seed: int = 0) -> float:
    """The sliced 2-Wasserstein distance of two sets of samples, over random directions.

    One direction's distance is exact: between sorted projections, or, for unequal sizes, between the two step-shaped
    quantile functions on the union of their steps. Memory stays bounded: directions are taken in chunks.

    Args:
        a: (n, ...) float; the features are flattened.
        b: (m, ...) float, with the same features on the same device.
        projections: how many directions; for a shift the relative error is about sqrt(1 / (2 projections)).
        seed: of the directions, which are the same on every device.

    Returns:
        The distance, >= 0, in the data's units.

    Raises:
        TypeError: a set is not of floating point.
        ValueError: wrong shapes, no samples, values that are not finite, or projections < 1.
    """
    if projections < 1:
        raise ValueError(f"projections must be at least 1, got {projections}")
    a, b = _pair(("a", a), ("b", b), least=1)
    n, m, d = len(a), len(b), a.shape[1]
    directions = torch.randn(projections, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    directions = (directions / directions.norm(dim=1, keepdim=True)).to(a.device)
    # The quantile levels where either function steps: between two of them both are constant.
    steps = torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]).unique()
    widths = steps.diff(prepend=steps.new_zeros(1)).to(a.device, torch.float64) / (n * m)
    rows_a, rows_b = (((steps - 1) // k).to(a.device) for k in (m, n))
    total = 0.0
    for chunk in directions.split(max(1, _CHUNK // len(steps))):
        quantiles_a, quantiles_b = (x.mm(chunk.mT).sort(0).values[rows] for x, rows in ((a, rows_a), (b, rows_b)))
        total += ((quantiles_a - quantiles_b).square().mean(1) @ widths).item() * len(chunk)
    return (total / projections) ** 0.5


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    mean = x.mean(0)
    centred = x - mean
    return mean, centred.mT @ centred / (len(x) - 1)


def _pair(a: tuple[str, Tensor], b: tuple[str, Tensor], least: int) -> tuple[Tensor, Tensor]:
    """Both sets as float64 of shape (n, d), checked."""
    for name, x in (a, b):
        if not x.is_floating_point():
            raise TypeError(f"{name} must be of floating point, got {x.dtype}: convert it with .float()")
        if x.ndim < 2 or len(x) < least or x[0].numel() == 0:
            raise ValueError(f"{name} must have shape (n, ...) with n >= {least} and features, got {tuple(x.shape)}")
        if not x.isfinite().all():
            raise ValueError(f"{name} must be finite, got {int((~x.isfinite()).sum())} NaN or infinite values")
    (name_a, x), (name_b, y) = a, b
    if x.shape[1:] != y.shape[1:] or x.device != y.device:
        raise ValueError(
            f"{name_a} and {name_b} must have the same features and device, "
            f"got {tuple(x.shape)} on {x.device} and {tuple(y.shape)} on {y.device}"
        )
    return x.flatten(1).double(), y.flatten(1).double()
