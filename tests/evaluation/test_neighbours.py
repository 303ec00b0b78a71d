"""Nearest neighbours against a naive search, and the memorisation ratio of known sets."""

from __future__ import annotations

import pytest
import torch

from fastmsgm.evaluation import neighbours
from fastmsgm.evaluation.neighbours import memorisation, nearest


@pytest.mark.parametrize("block", [2**24, 40])
def test_nearest(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in blocks of both sets."""
    monkeypatch.setattr(neighbours, "_BLOCK", block)
    generator = torch.Generator().manual_seed(0)
    x, train = (torch.randn(n, 2, 3, generator=generator) + 1 for n in (37, 53))
    x[5] = train[52]
    pairs = torch.cdist(x.flatten(1).double(), train.flatten(1).double())
    found = nearest(x, train, progress=False)
    assert found.indices.tolist() == pairs.argmin(1).tolist()
    torch.testing.assert_close(found.distances, pairs.min(1).values.float())
    assert float(found.distances[5]) == 0.0


def test_bytes_are_compared_as_shares_of_255() -> None:
    x = torch.tensor([[0, 255], [51, 0]], dtype=torch.uint8)
    found = nearest(x, torch.tensor([[0.2, 0.3], [0.1, 1.0]]), progress=False)
    assert found.indices.tolist() == [1, 0]
    torch.testing.assert_close(found.distances, torch.tensor([0.1, 0.3]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_copies_far_from_the_origin_have_distance_zero(dtype: torch.dtype) -> None:
    """|x|^2 is 1e6 times the squared distances here, at the limit of float32."""
    generator = torch.Generator().manual_seed(0)
    train = torch.randn(500, 4, generator=generator, dtype=dtype) + 1e3
    x = torch.randn(50, 4, generator=generator, dtype=dtype) + 1e3
    x[:20] = train[100:120]
    found = nearest(x, train, progress=False)
    assert found.indices[:20].tolist() == list(range(100, 120))
    assert float(found.distances[:20].max()) == 0.0
    pairs = (x.double()[:, None] - train.double()[None]).norm(dim=2)
    assert found.indices.tolist() == pairs.argmin(1).tolist()


def test_the_expected_share_of_close_samples() -> None:
    """The truth: the mean over many test sets of the probability, for uniform distances."""
    generator = torch.Generator().manual_seed(0)
    sets = torch.rand(20_000, 20, generator=generator, dtype=torch.float64)
    limits = sets.min(1).values  # below which a new uniform number is with this probability
    found = memorisation(torch.ones(3), sets[0])
    assert found.close_expected == pytest.approx(float(limits.mean()), rel=0.03)


def test_other_features_are_refused() -> None:
    with pytest.raises(ValueError, match=r"train must have samples of shape \(3,\), as samples"):
        nearest(torch.zeros(2, 3), torch.zeros(2, 4), progress=False)


def test_memorisation_of_a_model_that_repeats_some() -> None:
    """A tenth of the samples repeats the training set; the others are new."""
    generator = torch.Generator().manual_seed(0)
    train, test, samples = (torch.randn(n, 8, generator=generator) for n in (2000, 1000, 1000))
    fair = memorisation(*(nearest(x, train, progress=False).distances for x in (samples, test)))
    assert fair.ratio == pytest.approx(1, abs=0.05)
    assert fair.close == pytest.approx(0.01, abs=0.01)
    samples[:100] = train[:100] + 1e-3
    some = memorisation(*(nearest(x, train, progress=False).distances for x in (samples, test)))
    assert some.ratio == pytest.approx(1, abs=0.1)
    assert some.close == pytest.approx(0.1 + 0.9 * fair.close, abs=0.005)
    repeated = memorisation(torch.full((10,), 0.02), torch.full((10,), 0.5))
    assert repeated.ratio == pytest.approx(0.04)


def test_the_training_set_is_no_test_set() -> None:
    with pytest.raises(ValueError, match="reference must not be part of train"):
        memorisation(torch.ones(3), torch.zeros(3))
