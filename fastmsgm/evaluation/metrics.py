"""Distances between two sets of samples, and their tails.

    Frechet                  |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a^1/2 C_b C_a^1/2)^1/2), of the
                             Gaussians with the sets' moments (Dowson & Landau, 1982; on the
                             features of a network, Heusel et al., 2017)
    sliced Wasserstein       (E_u W_2^2(u.a, u.b))^1/2, u uniform on the sphere (Bonneel et al.,
                             2015)
    squared MMD              E k(a, a') + E k(b, b') - 2 E k(a, b) (Gretton et al., 2012)
    Kolmogorov-Smirnov       sup |F_a - F_b|
    survival                 P(|x| > r)

The first two are biased upwards for finite samples: compare them with the distance between two real
sets of the same sizes. The MMD is unbiased and comes with its standard error.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from fastmsgm.checks import check_floating_point, check_int

_CHUNK = 2**22  # quantiles, or values of a kernel, held at a time: 32 MiB in float64


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
    a, b = _pair(("features_a", features_a), ("features_b", features_b), least=2)
    (mean_a, cov_a), (mean_b, cov_b) = _moments(a), _moments(b)
    values, vectors = torch.linalg.eigh(cov_a)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.mT
    product = torch.linalg.eigvalsh(root @ cov_b @ root)
    cross = product.clamp(min=0).sqrt().sum()  # rounding can leave eigenvalues slightly below zero
    distance = (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross
    return max(0.0, distance.item())


def sliced_wasserstein(a: Tensor, b: Tensor, projections: int = 512, seed: int = 0) -> float:
    """Return the sliced 2-Wasserstein distance of two sets of samples.

    One direction's distance is exact: between sorted projections, or, for unequal sizes, between
    the two step-shaped quantile functions on the union of their steps. Memory stays bounded:
    directions are taken in chunks.

    Args:
        a: (n, ...) float; the features are flattened.
        b: (m, ...) float, with the same features on the same device.
        projections: Number of random directions; for a shift the relative error is about
            sqrt(1 / (2 projections)).
        seed: Seed of the directions, which are the same on every device.

    Returns:
        The distance, >= 0, in the data's units.

    Raises:
        TypeError: A set is not of floating point, or projections or seed is not an int.
        ValueError: Wrong shapes, no samples, values that are not finite, or projections < 1.

    Example:
        >>> a = torch.zeros(100, 2)
        >>> round(sliced_wasserstein(a, a + 1.0), 1)  # |shift| / sqrt(2)
        1.0
    """
    projections, seed = (
        check_int("projections", projections, 1),
        check_int("seed", seed, 0, 2**64 - 1),
    )
    a, b = _pair(("a", a), ("b", b), least=1)
    n, m, d = len(a), len(b), a.shape[1]
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(projections, d, dtype=torch.float64, device="cpu", generator=generator)
    directions = (directions / directions.norm(dim=1, keepdim=True)).to(a.device)
    # The quantile levels where either function steps: between two of them both are constant.
    steps = torch.cat(
        [torch.arange(k, n * m + 1, k, dtype=torch.int64, device="cpu") for k in (m, n)]
    ).unique()
    widths = steps.diff(prepend=steps.new_zeros(1)).to(a.device, torch.float64) / (n * m)
    indices_a, indices_b = (((steps - 1) // k).to(a.device) for k in (m, n))
    total = 0.0
    for chunk in directions.split(max(1, _CHUNK // len(steps))):
        quantiles_a, quantiles_b = (
            x.mm(chunk.mT).sort(0).values[at] for x, at in ((a, indices_a), (b, indices_b))
        )
        total += ((quantiles_a - quantiles_b).square().mean(1) @ widths).item() * len(chunk)
    return (total / projections) ** 0.5


def directions(x: Tensor) -> Tensor:
    """Return x / |x|.

    The sliced Wasserstein distance of directions compares sets without their norms.

    Args:
        x: (n, ...) float.

    Returns:
        (n, d) float64.

    Raises:
        TypeError: x is not of floating point.
        ValueError: A wrong shape, no samples, values that are not finite, or zero vectors.
    """
    x = _samples("x", x, least=1)
    norms = x.norm(dim=1, keepdim=True)
    zero = (norms[:, 0] == 0).nonzero()[:, 0]
    if len(zero):
        raise ValueError(
            f"x must have no zero vectors, got {len(zero)}, the first is sample {int(zero[0])}: "
            "remove them"
        )
    return x / norms


def mmd(a: Tensor, b: Tensor, kernel: Literal["median", "paper"] = "median") -> tuple[float, float]:
    """Return the unbiased squared maximum mean discrepancy, and its standard error.

    For equal distributions it is as often negative as positive. The standard error is the root of
    the variance of the U-statistic, in both its orders (Hoeffding, 1948): with
    r = E' k(a, a') - E k(a, b) for a sample a, r' likewise for b, and e_aa, e_bb, e_ab the
    variances of k beyond those of its conditional means,

        4 var(r) / n + 4 var(r') / m + S,
        S = 2 e_aa / (n (n - 1)) + 2 e_bb / (m (m - 1)) + 4 e_ab / (n m).

    The means in r are over the other samples, whose noise adds 2 S to the estimate of the first two
    terms. It is subtracted, though never more than they are, so that for equal distributions, where
    only S is left, the error is up to a quarter too large. The kernel is taken as fixed: the
    noise of its median is not in the error.

    Args:
        a: (n, ...) float, n >= 2; the features are flattened.
        b: (m, ...) float, m >= 2, the reference, with the same features on the same device.
        kernel: "median" is exp(-|x - y|^2 / (2 h^2)) with h the median distance within b (of 1024
            samples at most), the same for every a; "paper" is exp(-|x - y|^2 / d^2), that of the
            MSGM authors.

    Returns:
        The squared discrepancy, and its standard error.

    Raises:
        TypeError: A set is not of floating point.
        ValueError: Wrong shapes, too few samples, values that are not finite, another kernel, or a
            median of zero.
    """
    a, b = _pair(("a", a), ("b", b), least=2)
    n, m = len(a), len(b)
    if kernel == "paper":
        rate = 1 / a.shape[1] ** 2
    elif kernel == "median":
        median = torch.pdist(b[:: math.ceil(m / 1024)]).median().item()
        if median == 0:
            raise ValueError(
                'b: the median distance is zero, most samples are equal: use kernel="paper"'
            )
        rate = 1 / (2 * median**2)
    else:
        raise ValueError(f'kernel must be "median" or "paper", got {kernel!r}')

    aa, _, squares_aa = _kernel_sums(a, a, rate)
    bb, _, squares_bb = _kernel_sums(b, b, rate)
    ab, ba, squares_ab = _kernel_sums(a, b, rate)
    # k(x, x) = 1 is no pair.
    aa, bb = (aa - 1) / (n - 1), (bb - 1) / (m - 1)
    ab, ba = ab / m, ba / n
    first = 4 * (aa - ab).var() / n + 4 * (bb - ba).var() / m
    second = (
        2 * _residual((squares_aa - n) / (n * (n - 1)), aa, aa) / (n * (n - 1))
        + 2 * _residual((squares_bb - m) / (m * (m - 1)), bb, bb) / (m * (m - 1))
        + 4 * _residual(squares_ab / (n * m), ab, ba) / (n * m)
    )
    variance = second + (first - 2 * second).clamp(min=0)
    return (aa.mean() + bb.mean() - 2 * ab.mean()).item(), variance.sqrt().item()


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
    norms, at = _values("norms", norms), _values("at", at)
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
    x = _values("a", a).sort().values
    n = len(x)
    if isinstance(b, Tensor):
        y = _values("b", b).sort().values
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


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    mean = x.mean(0)
    centred = x - mean
    return mean, centred.mT @ centred / (len(x) - 1)


def _kernel_sums(x: Tensor, y: Tensor, rate: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the sums over rows, columns and squares of K = exp(-rate |x_i - y_j|^2)."""
    # |x|^2 + |y|^2 - 2 x.y is many times faster in high dimensions and right to 1e-10 below the
    # bound. Heavy tails lie far above it, where the differences would cancel.
    largest = max(x.square().sum(1).max().item(), y.square().sum(1).max().item())
    mode = "use_mm_for_euclid_dist" if rate * largest < 1e5 else "donot_use_mm_for_euclid_dist"
    rows, columns, squares = x.new_empty(len(x)), y.new_zeros(len(y)), x.new_zeros(())
    size = max(1, _CHUNK // len(y))
    for first in range(0, len(x), size):
        k = torch.cdist(x[first : first + size], y, compute_mode=mode).square_().mul_(-rate).exp_()
        rows[first : first + size] = k.sum(1)
        columns += k.sum(0)
        squares += k.square_().sum()
    return rows, columns, squares


def _residual(mean_square: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return the variance of k(x, y) beyond that of its means given x (rows) and y (columns)."""
    return (mean_square - rows.mean() ** 2 - rows.var() - columns.var()).clamp(min=0)


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


def _pair(a: tuple[str, Tensor], b: tuple[str, Tensor], least: int) -> tuple[Tensor, Tensor]:
    """Return both sets as float64 of shape (n, d), checked."""
    (name_a, x), (name_b, y) = a, b
    flat_x, flat_y = _samples(name_a, x, least), _samples(name_b, y, least)
    if x.shape[1:] != y.shape[1:] or x.device != y.device:
        raise ValueError(
            f"{name_a} and {name_b} must have the same features and device, "
            f"got {tuple(x.shape)} on {x.device} and {tuple(y.shape)} on {y.device}"
        )
    return flat_x, flat_y


def _samples(name: str, x: Tensor, least: int) -> Tensor:
    """Return a set (n, ...) as float64 of shape (n, d), checked."""
    _check_values(name, x)
    if x.ndim < 2 or len(x) < least or x[0].numel() == 0:
        raise ValueError(
            f"{name} must have shape (n, ...) with n >= {least} and features, got {tuple(x.shape)}"
        )
    return x.flatten(1).double()


def _values(name: str, x: Tensor) -> Tensor:
    """Return values (n,) as float64, checked."""
    _check_values(name, x)
    if x.ndim != 1 or len(x) == 0:
        raise ValueError(f"{name} must have shape (n,) with n >= 1, got {tuple(x.shape)}")
    return x.double()


def _check_values(name: str, x: Tensor) -> None:
    check_floating_point(name, x)
    if not x.isfinite().all():
        raise ValueError(
            f"{name} must be finite, got {int((~x.isfinite()).sum())} NaN or infinite values"
        )
