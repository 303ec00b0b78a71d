"""Moments and class means, merged from parts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastmsgm.data.moments import ClassMeans, Moments


def of_parts(x: Tensor, size: int) -> Moments:
    moments = Moments()
    for part in x.split(size):
        moments.update(part)
    return moments


def data(n: int = 100) -> Tensor:
    return torch.randn(n, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("size", [1, 7, 99, 100])
def test_parts_give_the_moments_of_the_whole(size: int) -> None:
    moments = of_parts(data(), size)
    torch.testing.assert_close(moments.mean, data().mean(0), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(moments.variance, data().var(0, correction=0), rtol=1e-12, atol=0)


@pytest.mark.parametrize("size", [1, 100])
def test_a_mean_far_from_zero_costs_no_accuracy(size: int) -> None:
    """A sum of squares would lose all digits: the mean is 1e9 times the spread."""
    x = torch.arange(100, dtype=torch.float64)[:, None]
    moments = of_parts(1e9 + x, size)
    torch.testing.assert_close(moments.variance, x.var(0, correction=0), rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.1, 1 / 3, 1e10])
def test_data_that_do_not_vary_have_no_spread_at_all(value: float, dtype: torch.dtype) -> None:
    moments = of_parts(torch.full((100, 3), value, dtype=dtype), 7)
    assert moments.m2.tolist() == [0, 0, 0]
    assert torch.equal(moments.mean, torch.full((3,), value, dtype=dtype).double())


def test_the_data_stay_as_they_are() -> None:
    x = data()
    of_parts(x, 30)
    assert torch.equal(x, data())


def test_class_means_of_parts() -> None:
    x, labels = data().float(), torch.arange(100) % 3 * 10 - 5
    classes = ClassMeans()
    for part, of_part in zip(x.split(7), labels.split(7), strict=True):
        classes.update(part, of_part)
    assert classes.labels.tolist() == [-5, 5, 15]
    expected = torch.stack([x[labels == c].double().mean(0) for c in (-5, 5, 15)])
    torch.testing.assert_close(classes.means, expected)
