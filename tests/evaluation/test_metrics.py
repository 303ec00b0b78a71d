"""Distances against closed forms, naive formulas, and their stated errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from fastmsgm.evaluation.metrics import (
    frechet_distance,
    kolmogorov_smirnov,
    memory,
    mmd,
    sliced_wasserstein,
    survival,
)
from fastmsgm.evaluation.metrics.norms import _kolmogorov_tail


def gaussian(n: int, mean: Tensor, factor: Tensor, seed: int) -> Tensor:
    """Return n samples of exactly this mean and the unbiased covariance factor factor^T."""
    z = torch.randn(
        n, len(mean), dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    z = z - z.mean(0)
    white = torch.linalg.qr(z).Q * (n - 1) ** 0.5
    return mean + white @ factor.mT


def test_frechet_distance_diagonal() -> None:
    mean_a, mean_b = torch.tensor([0.0, 1.0, 2.0]).double(), torch.tensor([3.0, 1.0, 6.0]).double()
    deviations_a, deviations_b = (
        torch.tensor([1.0, 2.0, 0.5]).double(),
        torch.tensor([4.0, 2.0, 0.1]).double(),
    )
    a = gaussian(200, mean_a, deviations_a.diag(), seed=1)
    b = gaussian(333, mean_b, deviations_b.diag(), seed=2)
    assert frechet_distance(a, b) == pytest.approx(25 + 9 + 0.16, rel=1e-10)


def test_frechet_distance_of_covariances_that_do_not_commute() -> None:
    factor_a = torch.tensor([[2.0, 0.0], [1.0, 0.5]]).double()
    factor_b = torch.tensor([[1.0, -3.0], [0.2, 1.0]]).double()
    zero = torch.zeros(2).double()
    a, b = gaussian(100, zero, factor_a, seed=1), gaussian(80, zero, factor_b, seed=2)
    cov_a, cov_b = factor_a @ factor_a.mT, factor_b @ factor_b.mT
    product = cov_a @ cov_b
    # In two dimensions, tr sqrt(M) = sqrt(tr M + 2 sqrt(det M)).
    cross = (product.trace() + 2 * product.det().sqrt()).sqrt()
    expected = (cov_a.trace() + cov_b.trace() - 2 * cross).item()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-10)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-10)


def test_frechet_distance_of_rank_one() -> None:
    u, v = torch.tensor([1.0, 2.0, 0.0, -1.0]), torch.tensor([0.5, 0.0, 3.0, 1.0])
    # Two points +-w have covariance 2 w w^T.
    expected = 2 * (u @ u + v @ v - 2 * (u @ v).abs()).item()
    assert frechet_distance(torch.stack([u, -u]), torch.stack([v, -v])) == pytest.approx(
        expected, rel=1e-6
    )


def test_frechet_distance_of_a_set_and_itself_is_zero() -> None:
    a = torch.randn(50, 3, 8, generator=torch.Generator().manual_seed(0)) * 100
    assert 0 <= frechet_distance(a, a) < 1e-6


def test_sliced_wasserstein_one_dimension() -> None:
    a = torch.tensor([[1.0], [0.0], [5.0]])
    assert sliced_wasserstein(a, a.flip(0) + 2.5, projections=3) == pytest.approx(2.5)


def test_sliced_wasserstein_unequal_sizes() -> None:
    a, b = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [3.0], [6.0]])
    # Quantiles in sixths: 0 0 0 1 1 1 and 0 0 3 3 6 6.
    assert sliced_wasserstein(a, b) == pytest.approx((63 / 6) ** 0.5)
    assert sliced_wasserstein(b, a) == pytest.approx((63 / 6) ** 0.5)


def test_sliced_wasserstein_repeated_samples_change_nothing() -> None:
    a = torch.randn(40, 2, 3, generator=torch.Generator().manual_seed(0))
    assert sliced_wasserstein(a, a.repeat(3, 1, 1)) == pytest.approx(0, abs=1e-7)


def test_sliced_wasserstein_of_a_shift() -> None:
    a = torch.randn(30, 16, generator=torch.Generator().manual_seed(0))
    shift = torch.linspace(-1, 2, 16)
    expected = (shift.norm() / 16**0.5).item()  # E (u.v)^2 = |v|^2 / d
    assert sliced_wasserstein(a, a + shift, projections=4096) == pytest.approx(expected, rel=0.05)


def test_sliced_wasserstein_chunks_and_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(20, 5, generator=generator), 2 * torch.randn(30, 5, generator=generator)
    whole = sliced_wasserstein(a, b, projections=10, seed=3)
    assert whole != sliced_wasserstein(a, b, projections=10, seed=4)
    # Three directions at a time: the sets have 20 + 30 - 10 quantile levels.
    monkeypatch.setattr(memory, "_HELD", 3 * 40)
    assert sliced_wasserstein(a, b, projections=10, seed=3) == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("distance", [frechet_distance, sliced_wasserstein, mmd])
def test_distances_refuse(distance: Callable[[Tensor, Tensor], object]) -> None:
    good = torch.zeros(4, 3)
    with pytest.raises(TypeError, match=r"must be floating point, got torch\.uint8"):
        distance(good.byte(), good)
    with pytest.raises(ValueError, match=r"must have shape \(n, \.\.\.\) .* got \(4,\)"):
        distance(good, good[:, 0])
    with pytest.raises(ValueError, match=r"got \(0, 3\)"):
        distance(good[:0], good)
    with pytest.raises(
        ValueError, match=r"same features and device, got \(4, 3\) on cpu and \(4, 2\)"
    ):
        distance(good, good[:, :2])
    with pytest.raises(ValueError, match="must be finite, got 2 NaN"):
        distance(good, torch.tensor([[0.0, torch.nan], [torch.inf, 0.0]]))


def test_frechet_distance_needs_two_samples() -> None:
    with pytest.raises(ValueError, match="n >= 2"):
        frechet_distance(torch.zeros(4, 3), torch.zeros(1, 3))


def test_sliced_wasserstein_needs_a_projection() -> None:
    with pytest.raises(ValueError, match="projections must be at least 1, got 0"):
        sliced_wasserstein(torch.zeros(4, 3), torch.zeros(4, 3), projections=0)


@pytest.mark.parametrize("name", ["projections", "seed"])
@pytest.mark.parametrize("value", [2.0, True, "2"])
def test_counts_of_sliced_wasserstein_are_integers(name: str, value: object) -> None:
    a, b = torch.zeros(4, 3), torch.ones(4, 3)
    options: dict[str, Any] = {name: value}
    with pytest.raises(TypeError, match=f"{name} must be an int, got {value!r}"):
        sliced_wasserstein(a, b, **options)
    options = {name: np.int64(2)}
    assert sliced_wasserstein(a, b, **options) == sliced_wasserstein(a, b, **{name: 2})


def dense_mmd(a: Tensor, b: Tensor, rate: float) -> float:
    """Return the definition: means over pairs of different samples."""

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (-rate * (x[:, None] - y[None]).square().sum(2)).exp()

    n, m = len(a), len(b)
    within = (kernel(a, a).sum() - n) / (n * (n - 1)) + (kernel(b, b).sum() - m) / (m * (m - 1))
    return (within - 2 * kernel(a, b).mean()).item()


@pytest.mark.parametrize("far", [0.0, 1e9])
def test_mmd_equals_the_dense_formula(far: float, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(40, 30, dtype=torch.float64, generator=generator) / 3
    b = 0.2 + torch.randn(27, 30, dtype=torch.float64, generator=generator) / 3
    # A cluster far out, as in heavy tails: the distances within it still count.
    a[:8, 0] += far
    b[:5, 0] += far
    differences = (b[:, None] - b[None]).square().sum(2)
    median = differences[torch.ones(27, 27).triu(1) > 0].median().item()
    monkeypatch.setattr(memory, "_HELD", 100)
    assert mmd(a, b, "paper")[0] == pytest.approx(dense_mmd(a, b, 1 / 900), rel=1e-8)
    assert mmd(a, b)[0] == pytest.approx(dense_mmd(a, b, 1 / (2 * median)), rel=1e-8)


@pytest.mark.parametrize(
    ("shift", "least", "most"), [(0.0, 0.9, 1.4), (0.5, 0.85, 1.15), (2.0, 0.85, 1.15)]
)
def test_mmd_is_unbiased_and_states_its_error(shift: float, least: float, most: float) -> None:
    generator = torch.Generator().manual_seed(2)
    runs = []
    for _ in range(250):
        a, b = torch.randn(60, 2, generator=generator), torch.randn(40, 2, generator=generator)
        runs.append(mmd(a + torch.tensor([shift, 0.0]), b, "paper"))
    values, errors = torch.tensor(runs, dtype=torch.float64).T
    # E exp(-|v|^2 / 4) = exp(-s^2 / 8) / 2 for v ~ N((s, 0), 2 I).
    expected = 1 - math.exp(-(shift**2) / 8)
    deviation = values.std().item()
    assert abs(values.mean().item() - expected) < 4 * deviation / 250**0.5
    assert least < errors.square().mean().sqrt().item() / deviation < most


def test_mmd_refuses() -> None:
    x = torch.zeros(4, 3)
    with pytest.raises(
        ValueError,
        match='b: the median distance is zero, most samples are equal: use kernel="paper"',
    ):
        mmd(x, x)
    kernel: Any = "rbf"
    with pytest.raises(ValueError, match=r"kernel must be .* got 'rbf'"):
        mmd(x, x, kernel)
    with pytest.raises(ValueError, match="n >= 2"):
        mmd(x, x[:1], "paper")


def test_survival() -> None:
    norms, at = torch.tensor([4.0, 1.0, 2.0, 2.0]), torch.tensor([0.5, 1.0, 1.5, 2.0, 4.0])
    assert survival(norms, at).tolist() == [1, 0.75, 0.75, 0.25, 0]
    with pytest.raises(ValueError, match=r"norms must have shape \(n,\) with n >= 1, got \(4, 1\)"):
        survival(norms[:, None], at)
    with pytest.raises(TypeError, match="at must be floating point"):
        survival(norms, at.int())


def test_kolmogorov_smirnov_statistic() -> None:
    a, b = torch.tensor([3.0, 1.0, 2.0, 4.0]), torch.tensor([2.5, 5.0])
    assert kolmogorov_smirnov(a, b)[0] == 0.5  # from 2 on, and from 4 on
    assert kolmogorov_smirnov(a, a)[0] == 0
    assert kolmogorov_smirnov(a, a)[1] == 1
    # Steps 1/4 .. 1 against 0.1, 0.4, 0.6, 0.7: the last step is 0.3 above, none is further below.
    assert kolmogorov_smirnov(torch.tensor([0.7, 0.1, 0.6, 0.4]), lambda x: x)[0] == pytest.approx(
        0.3
    )
    assert kolmogorov_smirnov(torch.tensor([0.7, 0.95, 0.9]), lambda x: x)[0] == pytest.approx(0.7)


def test_kolmogorov_tail() -> None:
    # Smirnov's table (1948) to 12 digits.
    known = {
        0.5: 0.963945243665,
        1.0: 0.269999671677,
        1.5: 0.022217962617,
        2.0: 0.000670925230,
        3.0: 3.0459959e-8,
    }
    for x, probability in known.items():
        assert _kolmogorov_tail(x) == pytest.approx(probability, rel=1e-7)
    assert _kolmogorov_tail(1 - 1e-12) == pytest.approx(_kolmogorov_tail(1.0), rel=1e-10)
    assert _kolmogorov_tail(0.0) == _kolmogorov_tail(0.05) == 1


def test_kolmogorov_smirnov_p_value_against_the_exact_one() -> None:
    generator = torch.Generator().manual_seed(0)
    for shift in (0.0, 0.05, 0.1, 0.2):
        a = torch.rand(100, generator=generator).double()
        b = torch.rand(83, generator=generator).double() + shift
        exact: Any = stats.ks_2samp(a.numpy(), b.numpy(), method="exact")
        assert kolmogorov_smirnov(a, b) == pytest.approx((exact.statistic, exact.pvalue), abs=0.02)

        def cdf(x: Any, power: float = 1 + shift) -> Any:
            return x**power

        exact = stats.kstest(a.numpy(), cdf, method="exact")
        result = kolmogorov_smirnov(a, cdf)
        assert result == pytest.approx((exact.statistic, exact.pvalue), abs=0.02)


def test_kolmogorov_smirnov_p_values_are_uniform_for_equal_distributions() -> None:
    generator = torch.Generator().manual_seed(1)
    one, two = [], []
    for _ in range(600):
        a, b = torch.rand(80, generator=generator), torch.rand(121, generator=generator)
        one.append(kolmogorov_smirnov(a, lambda x: x)[1])
        two.append(kolmogorov_smirnov(a, b)[1])
    for values in (one, two):
        assert kolmogorov_smirnov(torch.tensor(values), lambda x: x)[1] > 1e-3


def test_kolmogorov_smirnov_refuses() -> None:
    a = torch.rand(5)
    with pytest.raises(ValueError, match=r"a must have shape \(n,\)"):
        kolmogorov_smirnov(a[None], a)
    with pytest.raises(ValueError, match="b must be finite, got 1 NaN"):
        kolmogorov_smirnov(a, torch.tensor([1.0, torch.nan]))
    with pytest.raises(ValueError, match=r"b must map values \(5,\) to as many in \[0, 1\]"):
        kolmogorov_smirnov(a, lambda x: x + 1)
    with pytest.raises(ValueError, match="b must map values"):
        kolmogorov_smirnov(a, lambda x: x[:2])
