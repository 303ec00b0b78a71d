"""LogNormalPrior: its fits, and that it is the distribution of the noised data."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from fastmsgm.gbm import GBM, LogNormalPrior
from fastmsgm.gbm.prior import LogMoments


def images(n: int = 200) -> torch.Tensor:
    """Positive images (n, 2, 4, 4) whose two channels have different log-means."""
    z = torch.randn(n, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    return torch.exp(0.3 * z + torch.tensor([0.5, -1.0])[:, None, None])


def test_per_channel_matches_the_moments_of_noised_data() -> None:
    x0, process = images(), GBM(0.8)
    prior = LogNormalPrior.per_channel(x0)
    many = x0.repeat(25, 1, 1, 1)
    y = torch.log(process.perturb(many, torch.ones(len(many)), seed=1).double())
    per_channel = y.movedim(1, 0).flatten(1)
    std, count = prior.std(process.sigma_max), per_channel.shape[1]
    assert prior.means.shape == (1, 2, 4, 4)
    # Both use the same data, so the Monte Carlo error is that of the noise and its cross term.
    for channel, mean in zip(per_channel, prior.means[0].double(), strict=True):
        assert len(mean.unique()) == 1
        assert abs(float(channel.mean() - torch.log(mean[0, 0]))) < 4.5 * std / math.sqrt(count)
    pooled = (per_channel - per_channel.mean(1, keepdim=True)).square().mean()
    assert float(pooled) == pytest.approx(std**2, abs=4.5 * std**2 * math.sqrt(2 / y.numel()))
    assert std**2 == pytest.approx(0.64 + 0.09, rel=0.03)


def test_per_channel_of_vectors_has_one_mean() -> None:
    x0 = torch.exp(torch.tensor([[1.0, 2.0], [3.0, 6.0]]))
    prior = LogNormalPrior.per_channel(x0)
    assert prior.means.shape == (1, 2)  # every feature has its own sign
    assert torch.log(prior.means).tolist() == [pytest.approx([3.0, 3.0])]
    assert prior.variance == pytest.approx((4 + 1 + 0 + 9) / 4)


def test_per_feature() -> None:
    x0 = torch.exp(torch.tensor([[1.0, -2.0], [3.0, -6.0]])) * torch.tensor([1.0, -1.0])
    prior = LogNormalPrior.per_feature(x0)
    assert prior.means.tolist() == [pytest.approx([math.exp(2), -math.exp(-4)])]
    assert prior.variance == pytest.approx((1 + 1 + 4 + 4) / 4)
    assert prior.std(2.0) == pytest.approx(math.sqrt(4 + 2.5))


def test_class_average() -> None:
    x0 = torch.tensor([[1.0, 2.0], [3.0, 4.0], [10.0, 20.0]])
    prior = LogNormalPrior.class_average(x0, torch.tensor([7, 7, 2]))
    assert prior.means.tolist() == [[10.0, 20.0], [2.0, 3.0]]  # in the order of the labels
    assert prior.std(0.8) == 0.8


@pytest.mark.parametrize("fit", ["per_feature", "per_channel", "class_average"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_means_are_float32(fit: str, dtype: torch.dtype) -> None:
    """The state is float32, whatever the dtype of the data."""
    arguments = (
        torch.ones(3, 2, dtype=dtype),
        *([torch.zeros(3, dtype=torch.int64)] if fit == "class_average" else []),
    )
    assert getattr(LogNormalPrior, fit)(*arguments).means.dtype == torch.float32


@pytest.mark.parametrize(
    "labels", [torch.zeros(2, dtype=torch.int64), torch.zeros(3, 1, dtype=torch.int64)]
)
def test_class_average_refuses_labels(labels: torch.Tensor) -> None:
    with pytest.raises(
        ValueError, match=r"labels must have shape \(3,\), one for each sample, got"
    ):
        LogNormalPrior.class_average(torch.ones(3, 2), labels)


def test_the_signs_of_the_features() -> None:
    assert LogMoments(torch.tensor([[1.0, -2.0], [3.0, -1.0]])).signs.tolist() == [[1.0, -1.0]]


@pytest.mark.parametrize("fit", [LogNormalPrior.per_feature, LogNormalPrior.per_channel])
def test_fits_refuse_features_of_both_signs(fit: Callable[[torch.Tensor], LogNormalPrior]) -> None:
    with pytest.raises(
        ValueError, match=r"one sign per feature, got both signs in 1 of 2 features: .*offset="
    ):
        fit(torch.tensor([[1.0, -2.0], [3.0, 1.0]]))


def two_passes(
    x0: torch.Tensor, axes: list[int], scale: torch.Tensor
) -> tuple[torch.Tensor, float, float]:
    """Log-mean, log-variance and the deviation of log(x / scale) by their definitions."""
    y = torch.log(x0.double().abs())
    mean = y.mean(axes, keepdim=True).expand(1, *x0.shape[1:])
    deviation = float((y - torch.log(scale.abs().double())).std())
    return x0[:1].sign() * mean.exp(), float((y - mean).square().mean()), deviation


@pytest.mark.parametrize("rows", [1, 7, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_pass_gives_the_moments(
    rows: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Means per feature and channel, whatever the blocks, of data with 1e4 between the features."""
    monkeypatch.setattr("fastmsgm.data.blocks.BLOCK", rows * 32)
    scale = torch.logspace(-2, 2, 32).reshape(2, 4, 4) * torch.tensor([1.0, -1.0])[:, None, None]
    x0 = (images() * scale).to(dtype)
    for fit, axes in ((LogNormalPrior.per_feature, [0]), (LogNormalPrior.per_channel, [0, 2, 3])):
        prior = fit(x0)
        means, variance, log_std = two_passes(x0, axes, prior.means)
        torch.testing.assert_close(prior.means.double(), means.double(), rtol=1e-6, atol=0)
        assert prior.variance == pytest.approx(variance, rel=1e-6)
        assert LogMoments(x0).log_std(prior.means) == pytest.approx(log_std, rel=1e-6)


def test_a_data_set_and_a_loader_give_the_prior_of_the_tensor() -> None:
    x0, labels = images(), torch.arange(200) % 3
    dataset = TensorDataset(x0, labels)
    loader = DataLoader(dataset, batch_size=7, shuffle=True)
    for fit in (LogNormalPrior.per_feature, LogNormalPrior.per_channel):
        for data in (dataset, loader):
            torch.testing.assert_close(fit(data).means, fit(x0).means)
            assert fit(data).variance == pytest.approx(fit(x0).variance, rel=1e-12)
    expected = LogNormalPrior.class_average(x0, labels).means
    torch.testing.assert_close(LogNormalPrior.class_average(dataset, True).means, expected)
    torch.testing.assert_close(LogNormalPrior.class_average(loader, labels).means, expected)


def test_class_means_do_not_depend_on_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    x0, labels = images(), torch.arange(200) // 50
    monkeypatch.setattr("fastmsgm.data.blocks.BLOCK", 32 * 9)
    means = torch.stack([x0[labels == c].double().mean(0) for c in range(4)])
    torch.testing.assert_close(LogNormalPrior.class_average(x0, labels).means, means.float())


def test_an_error_says_which_samples_it_is_about(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastmsgm.data.blocks.BLOCK", 20)
    x0 = torch.ones(100, 2)
    x0[57] = 0
    with pytest.raises(ValueError, match=r"no zeros, got 10\.00%: .*\(in samples 50 to 59\)"):
        LogNormalPrior.per_feature(x0)


# ---- comparison ----


def test_priors_are_equal_by_value() -> None:
    prior = LogNormalPrior(torch.ones(2, 3), 0.5)
    assert prior == LogNormalPrior(torch.ones(2, 3), 0.5)
    assert len({prior, LogNormalPrior(torch.ones(2, 3), 0.5)}) == 1


@pytest.mark.parametrize(
    "other",
    [
        LogNormalPrior(torch.ones(2, 3), 0.25),
        LogNormalPrior(torch.ones(1, 3), 0.5),
        LogNormalPrior(torch.ones(2, 3) + 1e-6, 0.5),
        "a prior",
    ],
)
def test_priors_differ(other: object) -> None:
    assert LogNormalPrior(torch.ones(2, 3), 0.5) != other


def test_the_repr_is_short() -> None:
    prior = LogNormalPrior(torch.ones(10, 1, 28, 28), 0)
    assert repr(prior) == "LogNormalPrior(means=(10, 1, 28, 28), variance=0)"


@pytest.mark.parametrize("bad", [torch.zeros(2, 2), torch.full((2, 2), math.nan)])
def test_fits_refuse_zeros_and_nan(bad: torch.Tensor) -> None:
    for fit in (LogNormalPrior.per_feature, LogNormalPrior.per_channel):
        with pytest.raises(ValueError, match="data must"):
            fit(bad)
    with pytest.raises(ValueError, match="x0 must"):
        LogNormalPrior.class_average(bad, torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize(
    ("means", "variance", "error", "message"),
    [
        (torch.zeros(1, 2), 0.0, ValueError, "means must have no zeros"),
        (torch.full((1, 2), math.inf), 0.0, ValueError, "means must be finite"),
        (
            torch.ones(1, 2).long(),
            0.0,
            TypeError,
            r"means must be floating point, got torch\.int64",
        ),
        (torch.ones(1, 2), -0.1, ValueError, r"variance must be a number of 0 or more, got -0\.1"),
        (torch.ones(1, 2), math.nan, ValueError, "variance must be a number of 0 or more, got nan"),
        (torch.ones(1, 2), True, ValueError, "variance must be a number of 0 or more, got True"),
    ],
)
def test_the_prior_refuses(
    means: torch.Tensor, variance: float, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        LogNormalPrior(means, variance)
