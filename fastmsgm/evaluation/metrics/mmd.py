"""The maximum mean discrepancy of two sets: with its standard error, and as the MSGM authors do."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from fastmsgm.evaluation.metrics.checks import check_pair
from fastmsgm.evaluation.metrics.memory import rows_at_a_time


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
    a, b = check_pair(("a", a), ("b", b), least=2)
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


def msgm_mmd(a: Tensor, b: Tensor) -> float:
    """Return the maximum mean discrepancy as the MSGM authors' code reports it.

    It is sqrt(E k(a, a') + E k(b, b') - 2 E k(a, b)) with k(x, y) = exp(-mean_j (x_j - y_j)^2 / d).
    Expectations are over all pairs, also those of a sample with itself. So it is never negative,
    and is about sqrt(E' (1 - k) (1 / n + 1 / m)) for equal distributions: compare sets of one size.

    Args:
        a: (n, ...) float, n >= 2; the d features are flattened.
        b: (m, ...) float, m >= 2, with the same features on the same device.

    Raises:
        TypeError: A set is not of floating point.
        ValueError: Wrong shapes, too few samples, or values that are not finite.
    """
    a, b = check_pair(("a", a), ("b", b), least=2)
    rate = 1 / a.shape[1] ** 2
    aa, bb, ab = (_kernel_sums(x, y, rate)[0].sum() for x, y in ((a, a), (b, b), (a, b)))
    n, m = len(a), len(b)
    squared = aa / n**2 + bb / m**2 - 2 * ab / (n * m)
    return squared.clamp(min=0).sqrt().item()


def _kernel_sums(x: Tensor, y: Tensor, rate: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the sums over rows, columns and squares of K = exp(-rate |x_i - y_j|^2)."""
    # |x|^2 + |y|^2 - 2 x.y is many times faster in high dimensions and right to 1e-10 below the
    # bound. Heavy tails lie far above it, where the differences would cancel.
    largest = max(x.square().sum(1).max().item(), y.square().sum(1).max().item())
    mode = "use_mm_for_euclid_dist" if rate * largest < 1e5 else "donot_use_mm_for_euclid_dist"
    rows, columns, squares = x.new_empty(len(x)), y.new_zeros(len(y)), x.new_zeros(())
    size = rows_at_a_time(len(y))
    for first in range(0, len(x), size):
        k = torch.cdist(x[first : first + size], y, compute_mode=mode).square_().mul_(-rate).exp_()
        rows[first : first + size] = k.sum(1)
        columns += k.sum(0)
        squares += k.square_().sum()
    return rows, columns, squares


def _residual(mean_square: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return the variance of k(x, y) beyond that of its means given x (rows) and y (columns)."""
    return (mean_square - rows.mean() ** 2 - rows.var() - columns.var()).clamp(min=0)
