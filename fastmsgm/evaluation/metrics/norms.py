"""Distributions of norms, or of any other number: survival functions, Kolmogorov-Smirnov tests."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fastmsgm.evaluation.metrics.checks import check_values


def survival(norms: Tensor, at: Tensor) -> Tensor:
    """Return the empirical survival function P(norm > r).

    On a logarithmic grid it compares the tails of a model with those of the data.

    Args:
        norms: (n,) float, n >= 1, for instance ``x.flatten(1).norm(dim=1)``.
        at: (k,) float, the r, on the same device, for instance ``torch.logspace(-1, 4, 101)``.

    Returns:
        (k,) float64; the standard error of a value p is sqrt(p (1 - p) / n).

    Raises:
        TypeError: An argument is not of floating point.
        ValueError: A wrong shape, no samples, or values that are not finite.
    """
    norms, at = check_values("norms", norms), check_values("at", at)
    return 1 - _empirical_cdf(norms.sort().values, at)


def kolmogorov_smirnov(a: Tensor, b: Tensor | Callable[[Tensor], Tensor]) -> tuple[float, float]:
    """Return the Kolmogorov-Smirnov statistic and its p-value.

    Of two samples, or of one sample and a distribution. The p-value is that of the limit
    distribution at (sqrt(N) + 0.12 + 0.11 / sqrt(N)) D, with N = n, or n m / (n + m) for two
    samples (Stephens, 1970): within 0.02 for one sample of 10 or more. For two, whose D moves in
    steps, it is up to 0.03 too small at n = m = 100, less at unequal sizes. With ties it is too
    large.

    Args:
        a: (n,) float, n >= 1.
        b: (m,) float, m >= 1, on the same device; or a cumulative distribution function, which
            maps the sorted values of a, (n,) float64, to [0, 1].

    Returns:
        The statistic, in [0, 1], and the probability of one at least as large under equal
        distributions.

    Raises:
        TypeError: A sample is not of floating point.
        ValueError: A wrong shape, no samples, values that are not finite, or a function with values
            outside [0, 1].
    """
    x = check_values("a", a).sort().values
    n = len(x)
    if isinstance(b, Tensor):
        y = check_values("b", b).sort().values
        both = torch.cat([x, y])
        statistic = (_empirical_cdf(x, both) - _empirical_cdf(y, both)).abs().max().item()
        effective = n * len(y) / (n + len(y))
    else:
        cdf = b(x)
        if cdf.shape != x.shape or not ((cdf >= 0) & (cdf <= 1)).all():
            raise ValueError(
                f"b must map values {tuple(x.shape)} to as many in [0, 1], got "
                f"{tuple(cdf.shape)}, {cdf}"
            )
        steps = torch.arange(n + 1, dtype=x.dtype, device=x.device) / n
        statistic = torch.maximum(steps[1:] - cdf, cdf - steps[:-1]).max().item()
        effective = n
    root = effective**0.5
    return statistic, _kolmogorov_tail((root + 0.12 + 0.11 / root) * statistic)


def _empirical_cdf(ordered: Tensor, at: Tensor) -> Tensor:
    return torch.searchsorted(ordered, at, right=True).double() / len(ordered)


def _kolmogorov_tail(x: float) -> float:
    """Return P(K > x) of Kolmogorov's distribution.

    2 sum (-1)^(k-1) exp(-2 k^2 x^2), or, for small x, its Jacobi transform.
    """
    if x < 1:
        if x < 0.04:  # the sum below is less than 1e-300, and x itself may be 0
            return 1.0
        terms = (math.exp(-(((2 * k - 1) * math.pi / x) ** 2) / 8) for k in range(1, 5))
        return 1 - math.sqrt(2 * math.pi) / x * sum(terms)
    return 2 * sum((-1) ** (k - 1) * math.exp(-2 * (k * x) ** 2) for k in range(1, 6))
