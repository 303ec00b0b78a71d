"""The latent laws, from which sampling starts.

``LogNormalPrior``, of geometric Brownian motion: log-normal noise around one or several centres,

    x = centre * exp(std(s) z),    std(s)^2 = s^2 + variance,

with s the noise level at which sampling starts. One centre and the data's log-variance is the moment match of the
noised data; the class means as centres and variance 0 is the paper's class-average start.

``RadialPrior``, of rotation: the law of the data's norms times a uniform direction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastmsgm import rng
from fastmsgm.gbm import check_multiplicative
from fastmsgm.rotation import check_directions

LOG_LARGEST = 88.0  # of a norm that is drawn: its exponential is a float32 number


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
        check_labels(labels, len(x0))
        return cls(torch.stack([x0[labels == c].mean(0) for c in labels.unique()]).float(), 0.0)


def check_labels(labels: Tensor, n: int, classes: int | None = None) -> None:
    """Raise where labels are not n integers, from 0 to classes - 1 if their number is known."""
    if not isinstance(labels, Tensor):
        raise TypeError(f"labels must be a tensor, got {type(labels).__name__}: convert them with torch.as_tensor")
    if labels.dtype not in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
        raise TypeError(f"labels must be integers, got {labels.dtype}: convert them with .long()")
    if labels.shape != (n,):
        raise ValueError(f"labels must have shape ({n},), one for each sample, got {tuple(labels.shape)}")
    low, high = int(labels.min()), int(labels.max())
    if classes is not None and not 0 <= low <= high < classes:
        raise ValueError(f"labels must be from 0 to {classes - 1}, got {low} to {high}: number the classes from 0")


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


@dataclass(frozen=True)
class RadialPrior:
    """The law of log|x|: the data's own (eCDF), smoothed (KDE), with or without a Pareto tail beyond the data.

    Args:
        log_norms: (m,) float32, ascending.
        bandwidth: standard deviation of the Gaussian kernel on log|x|; 0 is the eCDF.
        tail: how many of the largest norms are replaced by the Pareto law fitted to them (Hill's estimator), so that
            norms beyond the largest of the data can occur; 0 is none.
    """

    log_norms: Tensor
    bandwidth: float = 0.0
    tail: int = 0

    def __post_init__(self) -> None:
        logs = self.log_norms
        if not isinstance(logs, Tensor) or logs.ndim != 1 or len(logs) < 1 or not bool(torch.isfinite(logs).all()):
            raise ValueError("log_norms must be a tensor of shape (m,), m >= 1, of finite numbers: use RadialPrior.fit")
        if bool((logs.diff() < 0).any()):
            raise ValueError("log_norms must be in ascending order: sort them, or use RadialPrior.fit")
        if not 0 <= self.bandwidth < math.inf:
            raise ValueError(f"bandwidth must be at least 0 and finite, got {self.bandwidth!r}")
        if not 0 <= self.tail < max(len(logs), 1):
            raise ValueError(f"tail must be from 0 to {len(logs) - 1}, fewer than there are norms, got {self.tail!r}")

    @classmethod
    def fit(cls, x: Tensor, *, smooth: bool = False, pareto: float = 0.0) -> RadialPrior:
        """The prior of data (n, ...).

        Args:
            smooth: KDE with Silverman's bandwidth instead of the eCDF.
            pareto: the share of the largest norms that is replaced by a Pareto tail, in [0, 0.5].

        Raises:
            TypeError, ValueError: data without directions, or a share that is out of range or less than one of them.
        """
        check_directions("x", x)
        if not 0 <= pareto <= 0.5:
            raise ValueError(f"pareto must be a share in [0, 0.5] (0.01 is a usual choice), got {pareto!r}")
        tail = round(pareto * len(x))
        if pareto and not tail:
            raise ValueError(
                f"pareto must be a share of at least one of the {len(x)} norms, got {pareto!r}, which rounds to none: "
                f"give at least {1 / len(x):.2g}, or 0 for no tail"
            )
        log_norms = torch.log(x.reshape(len(x), -1).double().norm(dim=1)).sort().values
        low, high = torch.quantile(log_norms[:: max(1, len(log_norms) // 2**20)], log_norms.new_tensor([0.25, 0.75]))
        spread = min(float(log_norms.std(correction=0)), float(high - low) / 1.34)
        bandwidth = 0.9 * spread * len(log_norms) ** -0.2 if smooth else 0.0
        return cls(log_norms.float(), bandwidth, tail)

    @property
    def tail_index(self) -> float:
        """Hill's estimate of alpha, P(|x| > r) ~ r^-alpha, from the ``tail`` largest norms (all equal: inf)."""
        top = self.log_norms[-self.tail - 1 :].double()
        excess = float((top[1:] - top[0]).mean())
        return 1 / excess if excess else math.inf

    def draw(self, n: int, stream: Tensor) -> Tensor:
        """Norms of samples ``stream[1]`` .. ``stream[1] + n - 1``, (n,) float32."""
        m = len(self.log_norms)
        rank = rng.uniforms(n, 1, stream, rng.Kind.RADIUS, 0)[:, 0] * m
        drawn = self.log_norms.double()[rank.long().clamp(max=m - 1)]
        if self.bandwidth:
            drawn = drawn + self.bandwidth * rng.normals(n, 1, stream, rng.Kind.RADIUS, 1, torch.float64)[:, 0]
        if self.tail:
            threshold = float(self.log_norms[-self.tail - 1])
            beyond = threshold - torch.log((m - rank) / self.tail) / self.tail_index
            drawn = torch.where(rank > m - self.tail, beyond, drawn)
        return torch.exp(drawn.clamp(max=LOG_LARGEST)).float()
