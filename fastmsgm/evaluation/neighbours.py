"""Nearest neighbours in the training set: does a model repeat what it was trained on?"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from fastmsgm.data.items import as_float

_BLOCK = 2**24  # numbers of the training set, and of the matrix of products, at a time
CLOSE = 0.01  # quantile of the test set's distances, below which a sample is close


class Neighbours(NamedTuple):
    """The nearest sample of the training set.

    Attributes:
        distances: (n,) float32, Euclidean.
        indices: (n,) int64, in the training set.
    """

    distances: Tensor
    indices: Tensor


class Memorisation(NamedTuple):
    """How close samples are to the training set, compared with a test set.

    Attributes:
        median: Distance of a sample to the training set, the median.
        test_median: The same of the test set.
        ratio: ``median / test_median``: about 1 for a model that has learnt the distribution, far
            below 1 for one that repeats the training set.
        close: Share of the samples that are closer than 1 % of the test set is. It is 0.01 where
            samples and test set have one distribution, and sees a model that repeats some.
    """

    median: float
    test_median: float
    ratio: float
    close: float


@torch.no_grad()
def nearest(x: Tensor, train: Tensor, progress: bool = True, name: str = "samples") -> Neighbours:
    """Return the nearest sample of a training set for each of x.

    Memory stays bounded: both sets are taken in blocks.

    Args:
        x: (n, ...) floating point, or uint8 images, which are divided by 255; n >= 1.
        train: (m, ...) with the same features, m >= 1.
        progress: Show a progress bar.
        name: Of x, in the progress bar.

    Returns:
        Distances and indices, on the CPU. Of equally near ones the first is taken, to within
        float32.

    Raises:
        ValueError: Other features, or no samples.
    """
    if x.shape[1:] != train.shape[1:] or not len(x) or not len(train):
        raise ValueError(
            f"train must have samples of shape {tuple(x.shape[1:])}, as {name}, got "
            f"{tuple(train.shape)}"
        )
    d, n = max(1, x[0].numel()), len(x)
    least = torch.full((n,), torch.inf, dtype=torch.float32, device="cpu")
    indices = torch.zeros(n, dtype=torch.int64, device="cpu")
    size = max(1, _BLOCK // d)
    with tqdm(total=len(train), disable=not progress, desc=f"neighbours of {name}") as bar:
        for first in range(0, len(train), size):
            block = as_float(train[first : first + size]).flatten(1)
            halves = block.square().sum(1) / 2
            for start in range(0, n, step := max(1, _BLOCK // len(block))):
                rows = slice(start, start + step)
                # |x - y|^2 / 2 but for |x|^2 / 2, which all have in common
                found, at = (halves - as_float(x[rows]).flatten(1) @ block.mT).min(1)
                closer = found < least[rows]
                least[rows] = torch.where(closer, found, least[rows])
                indices[rows] = torch.where(closer, at + first, indices[rows])
            bar.update(len(block))
    # The differences themselves: a repeated sample has distance 0, not what rounding leaves.
    distances = torch.empty(n, dtype=torch.float32, device="cpu")
    for start in range(0, n, size):
        rows = slice(start, start + size)
        difference = as_float(x[rows]) - as_float(train[indices[rows]])
        distances[rows] = difference.flatten(1).norm(dim=1)
    return Neighbours(distances, indices)


def memorisation(distances: Tensor, test_distances: Tensor) -> Memorisation:
    """Compare distances to the training set with those of a test set.

    Args:
        distances: (n,) of the samples.
        test_distances: (m,) of the test set.

    Raises:
        ValueError: The median of the test set is 0.
    """
    ordered = test_distances.double().sort().values
    median, test_median = float(distances.double().median()), float(ordered.median())
    if not test_median:
        raise ValueError(
            "reference must not be part of train, got a median distance of 0 between them: give "
            "data that the model was not trained on"
        )
    limit = ordered[int(CLOSE * len(ordered))]
    close = float((distances < limit).double().mean())
    return Memorisation(median, test_median, median / test_median, close)
