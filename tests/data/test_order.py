"""DataOrder and OversampledOrder: epochs are permutations, a batch depends on its step alone."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from fastmsgm.data import DataOrder, OversampledOrder


@pytest.mark.parametrize(("n", "size"), [(10, 4), (6, 6), (5, 12), (1, 3)])
def test_every_epoch_is_a_permutation(n: int, size: int) -> None:
    order = DataOrder(n, size, seed=2)
    epochs = 12 * size // n
    indices = torch.cat([order.batch(k) for k in range(12)])[: epochs * n].reshape(epochs, n)
    assert torch.equal(indices.sort().values, torch.arange(n).expand(epochs, n))


def test_epochs_and_seeds_differ() -> None:
    order = DataOrder(100, 100, seed=2)
    assert not torch.equal(order.batch(0), order.batch(1))
    assert not torch.equal(order.batch(0), DataOrder(100, 100, seed=3).batch(0))


def test_the_order_is_that_of_earlier_versions() -> None:
    assert DataOrder(7, 5, seed=3).batch(2).tolist() == [2, 3, 0, 4, 5]


def test_a_batch_does_not_depend_on_the_batches_before() -> None:
    order = DataOrder(10, 4, seed=2)
    batches = [order.batch(k) for k in range(8)]
    for k in (7, 0, 5):
        assert torch.equal(DataOrder(10, 4, seed=2).batch(k), batches[k])


def test_iteration_begins_with_the_first_step() -> None:
    order = DataOrder(10, 4, seed=2)
    later = itertools.islice(DataOrder(10, 4, seed=2, first_step=5), 3)
    assert list(later) == [order.batch(k).tolist() for k in (5, 6, 7)]


def test_a_loader_takes_it_as_its_batch_sampler() -> None:
    order, x = DataOrder(10, 4, seed=2), torch.arange(10.0)
    loader = DataLoader(TensorDataset(x), batch_sampler=order)
    for step, (batch,) in zip(range(5), loader, strict=False):
        assert torch.equal(batch, x[order.batch(step)])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"n": 0}, ValueError, "n must be at least 1, got 0"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ({"batch_size": 2.0}, TypeError, "batch_size must be an int"),
        ({"seed": -1}, ValueError, r"seed must be in 0 \.\. 2\^64 - 1, got -1"),
        ({"first_step": -1}, ValueError, "first_step must be at least 0, got -1"),
    ],
)
def test_it_refuses(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments: dict[str, Any] = {"n": 10, "batch_size": 4, **change}
    with pytest.raises(error, match=message):
        DataOrder(**arguments)


def test_a_batch_that_no_memory_holds_is_refused_at_once() -> None:
    with pytest.raises(RuntimeError, match="allocate memory"):
        DataOrder(n=40, batch_size=2**40).batch(0)


def test_a_batch_beyond_int64_is_refused() -> None:
    with pytest.raises(ValueError, match=r"batch_size must be below 2\^63, got 1000"):
        DataOrder(n=40, batch_size=10**22)


# ---- oversampling ----

SUBSET = torch.tensor([4, 9, 17])


def oversampled(count: int = 5, subset: Tensor = SUBSET, **options: Any) -> OversampledOrder:
    return OversampledOrder(20, 8, **{"seed": 2, **options}, subset=subset, count=count)


@pytest.mark.parametrize("count", [1, 3, 5, 7])
def test_every_batch_begins_with_samples_of_the_subset(count: int) -> None:
    order = oversampled(count)
    for step in range(12):
        assert torch.isin(order.batch(step)[:count], SUBSET).all()
        assert len(order.batch(step)) == 8


@pytest.mark.parametrize("count", [1, 2, 5, 7])
def test_the_samples_of_the_subset_are_its_permutations(count: int) -> None:
    """Batches of fewer samples than the subset, and of several permutations."""
    order = oversampled(count)
    indices = torch.cat([order.batch(step)[:count] for step in range(12)])
    epochs = len(indices) // 3
    permutations = indices[: 3 * epochs].reshape(epochs, 3)
    assert torch.equal(permutations.sort().values, SUBSET.expand(epochs, 3))
    assert len(permutations.unique(dim=0)) > 1


def test_the_others_are_those_of_data_order_which_advances_by_them_alone() -> None:
    order, others = oversampled(5), DataOrder(20, 3, seed=2)
    for step in (0, 1, 9, 4):
        assert torch.equal(order.batch(step)[5:], others.batch(step))


def test_both_orders_are_independent() -> None:
    """Also where the subset is all samples, whose permutations would else be the same."""
    order = OversampledOrder(500, 1000, 2, subset=torch.arange(500), count=500)
    for step in range(3):
        first, others = order.batch(step).split(500)
        correlation = torch.corrcoef(torch.stack((first, others)).double())[0, 1]
        assert abs(float(correlation)) < 4.5 / 500**0.5


def test_an_oversampled_batch_does_not_depend_on_the_batches_before() -> None:
    order = oversampled(5)
    batches = [order.batch(step) for step in range(8)]
    for step in (7, 0, 5):
        assert torch.equal(oversampled(5).batch(step), batches[step])
    later = itertools.islice(oversampled(5, first_step=5), 3)
    assert list(later) == [batch.tolist() for batch in batches[5:]]


def test_oversampled_batches_of_other_seeds_differ() -> None:
    one, other = (oversampled(7, torch.arange(20), seed=seed).batch(0) for seed in (2, 3))
    assert not torch.equal(one[:7], other[:7])


def test_the_oversampled_order_is_pinned() -> None:
    assert oversampled().batch(2).tolist() == [9, 4, 9, 17, 4, 7, 1, 0]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"count": 0}, ValueError, "count must be in 1 .. 7, got 0"),
        ({"count": 8}, ValueError, "count must be in 1 .. 7, got 8"),
        ({"subset": SUBSET[:0]}, ValueError, r"subset must have shape \(m,\) .* got \(0,\): give"),
        ({"subset": SUBSET[None]}, ValueError, r"subset must have shape \(m,\) .* got \(1, 3\)"),
        (
            {"subset": SUBSET + 3},
            ValueError,
            r"subset must be of indices in 0 \.\. 19, got 7 \.\. 20",
        ),
        (
            {"subset": SUBSET - 5},
            ValueError,
            r"in 0 \.\. 19, got -1 \.\. 12: give those of the data",
        ),
        (
            {"subset": SUBSET.float()},
            TypeError,
            "subset must be a tensor of int64 indices, got tor",
        ),
        ({"subset": [4, 9]}, TypeError, "subset must be a tensor of int64 indices, got list: give"),
    ],
)
def test_an_oversampled_order_refuses(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        oversampled(**options)
