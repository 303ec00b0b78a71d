"""The latent law of geometric Brownian motion: log-normal noise around one or several centres.

    x = centre * exp(std(s) z),    std(s)^2 = s^2 + variance,

with s the noise level at which sampling starts. One centre and the data's log-variance is the moment match of the
noised data; the class means as centres and variance 0 is the paper's class-average start.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastmsgm.gbm import check_multiplicative


@dataclass(frozen=True)
class LogNormalPrior:
    """Log-normal noise around ``centres`` (m, ...); sample i takes centre i mod m.

    ``variance`` is the data's log-variance about the centre, added to s^2.
    """

    centres: Tensor
    variance: float

    def std(self, s: float) -> float:
        """Standard deviation of log x at noise level s."""
        return math.sqrt(s**2 + self.variance)

    @classmethod
    def per_feature(cls, x0: Tensor) -> LogNormalPrior:
        """The log-mean of every feature, one log-variance: right where s is much larger than the data's spread."""
        sign = feature_signs(x0)
        y = torch.log(x0.abs()).double()
        mean = y.mean(0, keepdim=True)
        return cls((sign * torch.exp(mean)).float(), float((y - mean).square().mean()))

    @classmethod
    def per_channel(cls, x0: Tensor) -> LogNormalPrior:
        """The paper's fit: one log-mean per channel (axis 1 of images, else one for all) and one log-variance."""
        sign = feature_signs(x0)
        y = torch.log(x0.abs()).double()
        axes = [0, 2, 3] if x0.ndim == 4 else list(range(x0.ndim))
        mean = y.mean(axes, keepdim=True)
        return cls((sign * torch.exp(mean)).float(), float((y - mean).square().mean()))

    @classmethod
    def class_average(cls, x0: Tensor, labels: Tensor) -> LogNormalPrior:
        """The paper's class-average start: the mean of every class, noised."""
        check_multiplicative("x0", x0)
        if labels.shape != x0.shape[:1]:
            raise ValueError(f"labels must have shape ({x0.shape[0]},), got {tuple(labels.shape)}")
        return cls(torch.stack([x0[labels == c].mean(0) for c in labels.unique()]).float(), 0.0)


def feature_signs(x0: Tensor) -> Tensor:
    """The sign of every feature, shape (1, ...), which multiplicative noise never changes.

    Raises:
        ValueError: a feature has both signs, so that no log-normal latent can reach all data.
    """
    check_multiplicative("data", x0)
    positive = (x0 > 0).float().mean(0, keepdim=True)
    mixed = (positive > 0) & (positive < 1)
    if bool(mixed.any()):
        raise ValueError(
            f"data must keep one sign per feature, got both signs in {int(mixed.sum())} of {mixed.numel()} features: "
            "shift the data with offset=..., so that they are positive"
        )
    return 2 * positive - 1
