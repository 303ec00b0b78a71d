"""Nearest neighbours in the training set: does a model repeat what it was trained on?"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from fastmsgm.data.items import as_float

_BLOCK = 2**23  # numbers of the training set, and of the matrix of products, at a time
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
        close: Share of the samples that are closer than about 1 % of the test set is. It sees a
            model that repeats some.
        close_expected: Its mean where samples and test set have one distribution: a new distance is
            below the k-th smallest of n with probability k / (n + 1), here k = int(0.01 n) + 1.
    """

    median: float
    test_median: float
    ratio: float
    close: float
    close_expected: float


@torch.no_grad()
def nearest(x: Tensor, train: Tensor, progress: bool = True, name: str = "samples") -> Neighbours:
    """Return the nearest sample of a training set for each of x.

    Memory stays bounded: both sets are taken in blocks. Distances are those of float64, around the
    mean of the training set, so that data far from the origin lose no digits.

    Args:
        x: (n, ...) floating point, or uint8 images, which are divided by 255; n >= 1.
        train: (m, ...) with the same features, m >= 1.
        progress: Show a progress bar.
        name: Of x, in the progress bar.

    Returns:
        Distances and indices, on the CPU. Of equally near ones the first is taken, to within
        rounding.

    Raises:
        ValueError: Other features, or no samples.
    """
    if x.shape[1:] != train.shape[1:] or not len(x) or not len(train):
        raise ValueError(
            f"train must have samples of shape {tuple(x.shape[1:])}, as {name}, got "
            f"{tuple(train.shape)}"
        )
    d, n = max(1, x[0].numel()), len(x)
    least = torch.full((n,), torch.inf, dtype=torch.float64, device="cpu")
    indices = torch.zeros(n, dtype=torch.int64, device="cpu")
    size = max(1, _BLOCK // d)
    centre = torch.stack([_rows(part).sum(0) for part in train.split(size)]).sum(0) / len(train)
    with tqdm(total=len(train), disable=not progress, desc=f"neighbours of {name}") as bar:
        for first in range(0, len(train), size):
            block = _rows(train[first : first + size]) - centre
            halves = block.square().sum(1) / 2
            for start in range(0, n, step := max(1, _BLOCK // len(block))):
                rows = slice(start, start + step)
                # |x - y|^2 / 2 but for |x|^2 / 2, which all have in common
                found, at = (halves - (_rows(x[rows]) - centre) @ block.mT).min(1)
                closer = found < least[rows]
                least[rows] = torch.where(closer, found, least[rows])
                indices[rows] = torch.where(closer, at + first, indices[rows])
            bar.update(len(block))
    # The differences themselves: a repeated sample has distance 0, not what rounding leaves.
    distances = torch.empty(n, dtype=torch.float32, device="cpu")
    for start in range(0, n, size):
        rows = slice(start, start + size)
        distances[rows] = (_rows(x[rows]) - _rows(train[indices[rows]])).norm(dim=1).float()
    return Neighbours(distances, indices)


def _rows(x: Tensor) -> Tensor:
    """Return samples as (n, d) float64; uint8 images in [0, 1] as float32 has them."""
    return (as_float(x) if x.dtype == torch.uint8 else x).flatten(1).cpu().double()


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
    below, n = int(CLOSE * len(ordered)), len(ordered)
    close = float((distances.double() < ordered[below]).double().mean())
    expected = (below + 1) / (n + 1)
    return Memorisation(median, test_median, median / test_median, close, expected)
