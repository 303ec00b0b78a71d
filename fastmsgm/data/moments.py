"""Moments: mean and spread of every feature, from one pass over data of any size."""

from __future__ import annotations

import torch
from torch import Tensor


class Moments:
    """Means and sums of squared deviations in float64, merged part by part (Chan et al., 1983).

    All is relative to the first sample, so features that do not vary have a spread of exactly 0.
    """

    def __init__(self) -> None:
        self.n = 0

    def update(self, x: Tensor) -> None:
        """Take part of the data.

        Args:
            x: (n, ...) floating point, n >= 1; n may differ from part to part.
        """
        if not self.n:
            self._first = x[0].double()
            self._mean, self.m2 = torch.zeros_like(self._first), torch.zeros_like(self._first)
        deviation = x - self._first
        mean = deviation.mean(0)
        deviation -= mean
        n, total, difference = len(x), self.n + len(x), mean - self._mean
        self.m2 += deviation.square_().sum(0) + difference.square() * (self.n * n / total)
        self._mean += difference * (n / total)
        self.n = total

    @property
    def mean(self) -> Tensor:
        """(...) float64, the mean of every feature."""
        return self._first + self._mean

    @property
    def variance(self) -> Tensor:
        """(...) float64, the mean squared deviation of every feature."""
        return self.m2 / self.n


class ClassMeans:
    """The mean of every class, summed in float64, part by part."""

    def __init__(self) -> None:
        self._sums: dict[int, tuple[int, Tensor]] = {}  # by label: number of samples and their sum

    def update(self, x: Tensor, labels: Tensor) -> None:
        """Take part of the data.

        Args:
            x: (n, ...) floating point.
            labels: (n,) integers, of any values.
        """
        labels = labels.to(x.device)
        for label in labels.unique().tolist():
            samples = x[labels == label].double()
            n, total = self._sums.get(label, (0, torch.zeros_like(samples[0])))
            self._sums[label] = n + len(samples), total + samples.sum(0)

    @property
    def labels(self) -> Tensor:
        """(classes,) int64, the labels that occurred, ascending."""
        return torch.tensor(sorted(self._sums), dtype=torch.int64, device="cpu")

    @property
    def means(self) -> Tensor:
        """(classes, ...) float64, in the order of ``labels``."""
        return torch.stack([total / n for _, (n, total) in sorted(self._sums.items())])
