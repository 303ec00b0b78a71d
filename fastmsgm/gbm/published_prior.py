"""The starts of sampling that the authors of "Dale meets Langevin" publish, as priors.

Their code (arXiv 2510.02730) starts from x = exp(m + v z), with m and v fitted to the noised
training images + 1 of each data set, at k = 999 of N = 1000, sigma = 0.8 and T = 1. As a
``LogNormalPrior`` the log-variance of the data is v^2 - s^2, with s the noise level at k = 999, so
that the paper's solvers start from exactly that distribution at their default number of steps.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastmsgm.checks import check_int
from fastmsgm.data.loaders import Data
from fastmsgm.gbm.prior import LogMoments, LogNormalPrior

# Mean and standard deviation of log x at k = 999, per channel.
PUBLISHED_STARTS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "mnist": ((0.156517,), (0.835278,)),
    "fashion-mnist": ((0.277126,), (0.842829,)),
    "kmnist": ((0.214017,), (0.829043,)),
    "cifar-10": ((0.4075, 0.3785, 0.3693), (0.8016, 0.8004, 0.8005)),
}
SIGMA = 0.8
TIME = 0.999  # of k = 999


def published_prior(data: str, shape: tuple[int, ...]) -> LogNormalPrior:
    """Return the authors' start for a data set: one log-mean per channel.

    Their standard deviations for CIFAR-10, one per channel, are replaced by one, which differs from
    each of them by at most 0.1 %.

    Args:
        data: "mnist", "fashion-mnist", "kmnist" or "cifar-10".
        shape: (channels, height, width) of an image.

    Returns:
        The prior of images + 1, for ``GBM(0.8)`` and ``offset=1.0``.

    Raises:
        ValueError: An unknown data set, or a shape without its number of channels.

    Example:
        >>> prior = published_prior("mnist", (1, 28, 28))
        >>> round(math.log(float(prior.means[0, 0, 0, 0])), 4), prior.means.shape
        (0.1565, torch.Size([1, 1, 28, 28]))
    """
    mean, _, variance = _start(data, shape)
    return LogNormalPrior(mean.exp().expand(1, *shape).contiguous(), variance - _noise())


def published_class_average(
    data: str, x0: Data, labels: Tensor | bool, *, offset: float = 1.0
) -> LogNormalPrior:
    """Return the authors' class-average start for a data set.

    Their paper noises the mean image of each class up to k = 999, which is
    ``LogNormalPrior.class_average``. Their code gives that noise the fitted m and v instead of the
    process's mu and sigma:

        log x = log(mean image + 1) + (m - v^2 / 2) t + v sqrt(t) z,    t = 0.999.

    Args:
        data: "mnist", "fashion-mnist", "kmnist" or "cifar-10".
        x0: A tensor (n, channels, height, width), a data set or a loader, in the data's own range.
        labels: (n,) integers, or True for those of the items of a data set.
        offset: Number added to the data before the process sees them.

    Returns:
        The prior with one mean for each class, in the order of the labels.

    Raises:
        TypeError: labels is not an integer tensor.
        ValueError: An unknown data set, images without its number of channels, zeros or non-finite
            values, or labels of another shape.
    """
    _check_name(data)
    means = LogMoments(x0, labels, offset=offset, name="x0").class_average().means
    mean, variances, variance = _start(data, tuple(means.shape[1:]))
    shift = (mean - variances / 2) * TIME
    return LogNormalPrior((means * shift.exp()).float(), variance * TIME - _noise())


def _start(data: str, shape: tuple[int, ...]) -> tuple[Tensor, Tensor, float]:
    """Return m and v^2 of log x, (channels, 1, 1) float32 on the CPU, and the mean of v^2."""
    _check_name(data)
    means, deviations = PUBLISHED_STARTS[data]
    shape = tuple(check_int("shape", side, 1) for side in shape)
    if len(shape) != 3 or shape[0] != len(means):
        raise ValueError(
            f"shape must be ({len(means)}, height, width) for {data}, got {shape}: images have "
            "their channels first"
        )
    m = torch.tensor(means, dtype=torch.float32, device="cpu")
    v = torch.tensor(deviations, dtype=torch.float32, device="cpu")
    variance = math.fsum(deviation**2 for deviation in deviations) / len(deviations)
    return m[:, None, None], v.square()[:, None, None], variance


def _check_name(data: str) -> None:
    if data not in PUBLISHED_STARTS:
        raise ValueError(f"data must be one of {', '.join(PUBLISHED_STARTS)}, got {data!r}")


def _noise() -> float:
    """Return the square of the noise level at k = 999."""
    return SIGMA**2 * TIME
