"""The Frechet distance: of the Gaussians with two sets' moments."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmsgm.evaluation.metrics.checks import check_pair


def frechet_distance(features_a: Tensor, features_b: Tensor) -> float:
    """Return the squared 2-Wasserstein distance of the Gaussians fitted to two sets.

    This is FID where the features are Inception's. Computed in float64, with unbiased covariances;
    the trace term from the eigenvalues of the symmetric product, so singular covariances (fewer
    samples than features) are fine.

    Args:
        features_a: (n, d), n >= 2.
        features_b: (m, d), m >= 2, on the same device.

    Returns:
        The distance, >= 0, in the features' units squared.

    Raises:
        TypeError: A set is not of floating point.
        ValueError: Wrong shapes, too few samples, or values that are not finite.
    """
    a, b = check_pair(("features_a", features_a), ("features_b", features_b), least=2)
    (mean_a, cov_a), (mean_b, cov_b) = _moments(a), _moments(b)
    values, vectors = torch.linalg.eigh(cov_a)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.mT
    product = torch.linalg.eigvalsh(root @ cov_b @ root)
    cross = product.clamp(min=0).sqrt().sum()  # rounding can leave eigenvalues slightly below zero
    distance = (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross
    return max(0.0, distance.item())


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    mean = x.mean(0)
    centred = x - mean
    return mean, centred.mT @ centred / (len(x) - 1)
