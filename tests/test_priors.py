"""The log-normal prior: its fits, and that it is the law of the noised data."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from fastmsgm import GBM, LogNormalPrior, RadialPrior, rng
from fastmsgm.priors import feature_signs


def images(n: int = 200) -> torch.Tensor:
    """Positive images (n, 2, 4, 4) whose two channels have different log-means."""
    z = torch.randn(n, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    return torch.exp(0.3 * z + torch.tensor([0.5, -1.0])[:, None, None])


def test_per_channel_is_the_moments_of_noised_data() -> None:
    x0, process = images(), GBM(0.8)
    prior = LogNormalPrior.per_channel(x0)
    many = x0.repeat(25, 1, 1, 1)
    y = torch.log(process.perturb(many, torch.ones(len(many)), seed=1).double())
    per_channel = y.movedim(1, 0).flatten(1)
    std, count = prior.std(process.sigma_max), per_channel.shape[1]
    assert prior.centres.shape == (1, 2, 4, 4)
    # The data are the same in both, so that the Monte-Carlo error is that of the noise alone, plus its cross term.
    for channel, centre in zip(per_channel, prior.centres[0].double(), strict=True):
        assert len(centre.unique()) == 1
        assert abs(float(channel.mean() - torch.log(centre[0, 0]))) < 4.5 * std / math.sqrt(count)
    pooled = (per_channel - per_channel.mean(1, keepdim=True)).square().mean()
    assert float(pooled) == pytest.approx(std**2, abs=4.5 * std**2 * math.sqrt(2 / y.numel()))
    assert std**2 == pytest.approx(0.64 + 0.09, rel=0.03)


def test_per_channel_of_vectors_has_one_centre() -> None:
    x0 = torch.exp(torch.tensor([[1.0, 2.0], [3.0, 6.0]]))
    prior = LogNormalPrior.per_channel(x0)
    assert prior.centres.shape == (1, 2)  # the sign is each feature's own
    assert torch.log(prior.centres).tolist() == [pytest.approx([3.0, 3.0])]
    assert prior.variance == pytest.approx((4 + 1 + 0 + 9) / 4)


def test_per_feature() -> None:
    x0 = torch.exp(torch.tensor([[1.0, -2.0], [3.0, -6.0]])) * torch.tensor([1.0, -1.0])
    prior = LogNormalPrior.per_feature(x0)
    assert prior.centres.tolist() == [pytest.approx([math.exp(2), -math.exp(-4)])]
    assert prior.variance == pytest.approx((1 + 1 + 4 + 4) / 4)
    assert prior.std(2.0) == pytest.approx(math.sqrt(4 + 2.5))


def test_class_average() -> None:
    x0 = torch.tensor([[1.0, 2.0], [3.0, 4.0], [10.0, 20.0]])
    prior = LogNormalPrior.class_average(x0, torch.tensor([7, 7, 2]))
    assert prior.centres.tolist() == [[10.0, 20.0], [2.0, 3.0]]  # in the order of the labels
    assert prior.std(0.8) == 0.8


@pytest.mark.parametrize("fit", ["per_feature", "per_channel", "class_average"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_centres_are_float32(fit: str, dtype: torch.dtype) -> None:
    """The state is float32, whatever the data were fitted in."""
    arguments = (torch.ones(3, 2, dtype=dtype), *([torch.zeros(3).long()] if fit == "class_average" else []))
    assert getattr(LogNormalPrior, fit)(*arguments).centres.dtype == torch.float32


@pytest.mark.parametrize("labels", [torch.zeros(2).long(), torch.zeros(3, 1).long()])
def test_class_average_refuses_labels(labels: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"labels must have shape \(3,\), one for each sample, got"):
        LogNormalPrior.class_average(torch.ones(3, 2), labels)


def test_feature_signs() -> None:
    assert feature_signs(torch.tensor([[1.0, -2.0], [3.0, -1.0]])).tolist() == [[1.0, -1.0]]
    with pytest.raises(ValueError, match=r"one sign per feature, got both signs in 1 of 2 features: .*offset="):
        feature_signs(torch.tensor([[1.0, -2.0], [3.0, 1.0]]))


@pytest.mark.parametrize("bad", [torch.zeros(2, 2), torch.full((2, 2), math.nan)])
def test_fits_refuse_data_beyond_multiplication(bad: torch.Tensor) -> None:
    for fit in (LogNormalPrior.per_feature, LogNormalPrior.per_channel):
        with pytest.raises(ValueError, match="data must"):
            fit(bad)
    with pytest.raises(ValueError, match="x0 must"):
        LogNormalPrior.class_average(bad, torch.zeros(2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"log_norms": torch.tensor([1.0, 0.0])}, "log_norms must be in ascending order"),
        ({"log_norms": torch.tensor([0.0, math.nan])}, "log_norms must be a tensor of shape"),
        ({"log_norms": torch.empty(0)}, "log_norms must be a tensor of shape"),
        ({"bandwidth": -1.0}, "bandwidth must be at least 0"),
        ({"tail": 3}, "tail must be from 0 to 2"),
    ],
)
def test_radial_prior_refuses(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RadialPrior(**{"log_norms": torch.arange(3.0)} | change)


def test_no_norm_of_a_heavy_tail_overflows() -> None:
    prior = RadialPrior(torch.linspace(0, 60, 100), tail=50)
    assert torch.isfinite(prior.draw(100_000, rng.stream(0))).all()
