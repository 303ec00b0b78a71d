"""LogNormalPrior: log-normal noise around one or several means, where sampling starts.

    x = mean * exp(std(s) z),    std(s)^2 = s^2 + variance,

with s the noise level at which sampling starts. One mean and the log-variance of the data match
the moments of the noised data; the class means and variance 0 are the class-average start of
"Dale meets Langevin" (arXiv 2510.02730).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastmsgm.checks import check_labels, is_number
from fastmsgm.gbm.process import check_multiplicative


@dataclass(frozen=True)
class LogNormalPrior:
    """Log-normal noise around ``means``; sample i takes mean i mod m.

    Args:
        means: (m, ...) float32 without zeros, in the units of the process.
        variance: Log-variance of the data about their mean, >= 0, added to s^2.

    Raises:
        TypeError: means is not a tensor of floating point.
        ValueError: means has zeros or non-finite values, or variance is negative.
    """

    means: Tensor
    variance: float

    def __post_init__(self) -> None:
        check_multiplicative("means", self.means)
        if not is_number(self.variance) or self.variance < 0:
            raise ValueError(f"variance must be a number of 0 or more, got {self.variance!r}")
        object.__setattr__(self, "variance", float(self.variance))

    def std(self, s: float) -> float:
        """Return the standard deviation of log x at noise level s."""
        return math.sqrt(s**2 + self.variance)

    @classmethod
    def per_feature(cls, x0: Tensor) -> LogNormalPrior:
        """Fit the log-mean of every feature and one log-variance.

        Accurate where s is much larger than the spread of the data.

        Args:
            x0: (n, ...) data in the units of the process.

        Raises:
            ValueError: x0 has zeros, non-finite values, or features of both signs.
        """
        return cls._fit(x0, [0])

    @classmethod
    def per_channel(cls, x0: Tensor) -> LogNormalPrior:
        """Fit one log-mean per channel and one log-variance, as the paper does.

        Args:
            x0: (n, ...) data in the units of the process. Axis 1 of images holds the channels;
                other data have one log-mean for all features.

        Raises:
            ValueError: x0 has zeros, non-finite values, or features of both signs.
        """
        return cls._fit(x0, [0, 2, 3] if x0.ndim == 4 else list(range(x0.ndim)))

    @classmethod
    def class_average(cls, x0: Tensor, labels: Tensor) -> LogNormalPrior:
        """Fit the mean of every class: the class-average start of the paper.

        Args:
            x0: (n, ...) data in the units of the process.
            labels: (n,) integers.

        Raises:
            TypeError: labels is not an integer tensor.
            ValueError: x0 has zeros or non-finite values, or labels another shape.
        """
        check_multiplicative("x0", x0)
        check_labels(labels, len(x0))
        return cls(torch.stack([x0[labels == c].mean(0) for c in labels.unique()]).float(), 0.0)

    @classmethod
    def _fit(cls, x0: Tensor, axes: list[int]) -> LogNormalPrior:
        sign = feature_signs(x0)
        y = torch.log(x0.abs()).double()
        mean = y.mean(axes, keepdim=True)
        return cls((sign * torch.exp(mean)).float(), float((y - mean).square().mean()))


def feature_signs(x0: Tensor) -> Tensor:
    """Return the sign of every feature, (1, ...), which multiplicative noise never changes.

    Raises:
        ValueError: A feature has both signs, so that no log-normal prior can reach all data.
    """
    check_multiplicative("data", x0)
    positive = (x0 > 0).float().mean(0, keepdim=True)
    mixed = (positive > 0) & (positive < 1)
    if bool(mixed.any()):
        raise ValueError(
            f"data must keep one sign per feature, got both signs in {int(mixed.sum())} of "
            f"{mixed.numel()} features: shift the data with offset=..., so that they are positive, "
            "or use a Rotation model"
        )
    return 2 * positive - 1
