"""Distances against closed forms, on samples whose moments or quantiles are exact by construction."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastmsgm import metrics
from fastmsgm.metrics import frechet_distance, sliced_wasserstein


def gaussian(n: int, mean: Tensor, factor: Tensor, seed: int) -> Tensor:
    """n samples whose mean is exactly ``mean`` and whose unbiased covariance is exactly factor factor^T."""
    z = torch.randn(n, len(mean), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    z = z - z.mean(0)
    white = torch.linalg.qr(z).Q * (n - 1) ** 0.5
    return mean + white @ factor.mT


def test_frechet_distance_diagonal() -> None:
    mean_a, mean_b = torch.tensor([0.0, 1.0, 2.0]).double(), torch.tensor([3.0, 1.0, 6.0]).double()
    deviations_a, deviations_b = torch.tensor([1.0, 2.0, 0.5]).double(), torch.tensor([4.0, 2.0, 0.1]).double()
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
    assert frechet_distance(torch.stack([u, -u]), torch.stack([v, -v])) == pytest.approx(expected, rel=1e-6)


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
    monkeypatch.setattr(metrics, "_CHUNK", 3 * 40)  # 20 + 30 - 10 common levels: three directions at a time
    assert sliced_wasserstein(a, b, projections=10, seed=3) == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("distance", [frechet_distance, sliced_wasserstein])
def test_what_distances_refuse(distance) -> None:
    good = torch.zeros(4, 3)
    with pytest.raises(TypeError, match=r"must be of floating point, got torch\.uint8"):
        distance(good.byte(), good)
    with pytest.raises(ValueError, match=r"must have shape \(n, \.\.\.\) .* got \(4,\)"):
        distance(good, good[:, 0])
    with pytest.raises(ValueError, match=r"got \(0, 3\)"):
        distance(good[:0], good)
    with pytest.raises(ValueError, match=r"same features and device, got \(4, 3\) on cpu and \(4, 2\)"):
        distance(good, good[:, :2])
    with pytest.raises(ValueError, match="must be finite, got 2 NaN"):
        distance(good, torch.tensor([[0.0, torch.nan], [torch.inf, 0.0]]))


def test_frechet_distance_needs_two_samples() -> None:
    with pytest.raises(ValueError, match="n >= 2"):
        frechet_distance(torch.zeros(4, 3), torch.zeros(1, 3))


def test_sliced_wasserstein_needs_a_projection() -> None:
    with pytest.raises(ValueError, match="projections must be at least 1, got 0"):
        sliced_wasserstein(torch.zeros(4, 3), torch.zeros(4, 3), projections=0)
