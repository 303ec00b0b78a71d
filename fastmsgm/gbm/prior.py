"""LogNormalPrior: log-normal noise around one or several means, where sampling starts.

    x = mean * exp(std(s) z),    std(s)^2 = s^2 + variance,

with s the noise level at which sampling starts. One mean and the log-variance of the data match
the moments of the noised data; the class means and variance 0 are the class-average start of
"Dale meets Langevin" (arXiv 2510.02730). ``published_prior.py`` has the authors' own numbers.
``LogMoments`` is what the fits are computed from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastmsgm.checks import is_number
from fastmsgm.data.blocks import located, one_pass
from fastmsgm.data.loaders import Data
from fastmsgm.data.moments import ClassMeans, Moments
from fastmsgm.gbm.process import check_multiplicative


@dataclass(frozen=True, repr=False)
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

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LogNormalPrior):
            return NotImplemented
        same = self.means.shape == other.means.shape and self.variance == other.variance
        return same and torch.equal(self.means.cpu(), other.means.cpu())

    def __hash__(self) -> int:
        return hash((self.means.shape, self.variance))

    def __repr__(self) -> str:
        return f"LogNormalPrior(means={tuple(self.means.shape)}, variance={self.variance:g})"

    def std(self, s: float) -> float:
        """Return the standard deviation of log x at noise level s."""
        return math.sqrt(s**2 + self.variance)

    @classmethod
    def per_feature(cls, x0: Data) -> LogNormalPrior:
        """Fit the log-mean of every feature and one log-variance.

        Accurate where s is much larger than the spread of the data.

        Args:
            x0: A tensor (n, ...), a data set or a loader, in the units of the process.

        Raises:
            ValueError: x0 has zeros, non-finite values, or features of both signs.
        """
        return LogMoments(x0).per_feature()

    @classmethod
    def per_channel(cls, x0: Data) -> LogNormalPrior:
        """Fit one log-mean per channel and one log-variance, as the paper does.

        Args:
            x0: A tensor (n, ...), a data set or a loader, in the units of the process. Axis 1 of
                images holds the channels; other data have one log-mean for all features.

        Raises:
            ValueError: x0 has zeros, non-finite values, or features of both signs.
        """
        return LogMoments(x0).per_channel()

    @classmethod
    def class_average(cls, x0: Data, labels: Tensor | bool) -> LogNormalPrior:
        """Fit the mean of every class: the class-average start of the paper.

        Args:
            x0: A tensor (n, ...), a data set or a loader, in the units of the process.
            labels: (n,) integers, or True for those of the items of a data set.

        Raises:
            TypeError: labels is not an integer tensor.
            ValueError: x0 has zeros or non-finite values, or labels another shape.
        """
        return LogMoments(x0, labels, name="x0").class_average()


class LogMoments:
    """Moments of log|x|, signs and class means, in float64, from one pass over the data.

    Args:
        data: A tensor (n, ...), a data set or a loader.
        labels: (n,) integers, True for those of the items, or None.
        offset: Number added to the data before the process sees them.
        name: Of the data, in messages.

    Attributes:
        classes: The labels that occurred and the means of their samples.

    Raises:
        TypeError: Data or labels of the wrong type.
        ValueError: Data with zeros after the offset or non-finite values, or labels of another
            shape.
    """

    @torch.no_grad()
    def __init__(
        self,
        data: Data,
        labels: Tensor | bool | None = None,
        *,
        offset: float = 0.0,
        name: str = "data",
    ) -> None:
        self.classes, self._log = ClassMeans(), Moments()
        self._positive = torch.zeros((), dtype=torch.int64, device="cpu")
        for block, label in one_pass(data, labels, name):
            x = block + offset
            with located(self._log.n, len(x)):
                check_multiplicative(name, x)
            self._log.update(x.abs().double().log_())
            self._positive = self._positive.to(x.device) + (x > 0).sum(0)
            if label is not None:
                self.classes.update(x, label)

    @property
    def signs(self) -> Tensor:
        """(1, ...) float32, the sign of every feature, which multiplicative noise never changes.

        Raises:
            ValueError: A feature has both signs, so that no log-normal prior can reach all data.
        """
        mixed = (self._positive > 0) & (self._positive < self._log.n)
        if bool(mixed.any()):
            raise ValueError(
                f"data must keep one sign per feature, got both signs in {int(mixed.sum())} of "
                f"{mixed.numel()} features: shift the data with offset=..., so that they are "
                "positive, or use a Rotation model"
            )
        return torch.where(self._positive > 0, 1.0, -1.0).float()[None]

    def per_feature(self) -> LogNormalPrior:
        """Return the prior with the log-mean of every feature."""
        return self._prior(self._log.mean)

    def per_channel(self) -> LogNormalPrior:
        """Return the prior with one log-mean per channel of images, else one for all features."""
        mean = self._log.mean
        axes = (1, 2) if mean.ndim == 3 else tuple(range(mean.ndim))
        return self._prior(mean.mean(axes, keepdim=True).expand_as(mean))

    def class_average(self) -> LogNormalPrior:
        """Return the prior with the mean of every class, in the order of the labels."""
        return LogNormalPrior(self.classes.means.float(), 0.0)

    def log_std(self, scale: Tensor) -> float:
        """Return the standard deviation of log(x / scale) over all entries, for scale (1, ...)."""
        centre = (self._log.mean - torch.log(scale[0].abs().double())).flatten()
        centre = centre - centre[0]  # exactly 0 for data that do not vary
        between = self._log.n * (centre - centre.mean()).square().sum()
        entries = self._log.n * len(centre)
        return math.sqrt(float(self._log.m2.sum() + between) / max(entries - 1, 1))

    def _prior(self, log_means: Tensor) -> LogNormalPrior:
        variance = self._log.variance + (self._log.mean - log_means).square()
        return LogNormalPrior((self.signs * log_means.exp()).float(), float(variance.mean()))


def check_prior(prior: LogNormalPrior, scale: Tensor, denoiser: bool) -> None:
    """Raise where a prior does not fit the data that ``scale`` (1, ...) is of."""
    if not isinstance(prior, LogNormalPrior):
        raise TypeError(
            f"prior must be a LogNormalPrior, got {type(prior).__name__}: use "
            "LogNormalPrior.per_feature"
        )
    sides = zip(prior.means.shape[1:], scale.shape[1:], strict=False)
    if prior.means.ndim != scale.ndim or any(a not in (1, b) and b != 1 for a, b in sides):
        raise ValueError(
            f"prior must have means of shape (m, ...) that fit samples of shape "
            f"{tuple(scale.shape[1:])}, got {tuple(prior.means.shape)}"
        )
    if denoiser and not bool((prior.means / scale > 0).all()):
        raise ValueError(
            "prior must have means of the sign of the data in every feature: multiplication never "
            "changes a sign"
        )
