"""The authors' starts: the distribution of the first state against their expressions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fastmsgm import GBMModel, rng
from fastmsgm.gbm import GBM, LogNormalPrior, published_class_average, published_prior
from fastmsgm.gbm.published_prior import PUBLISHED_STARTS
from fastmsgm.solvers import PUBLISHED

STARTS = {
    "mnist": ([0.156517], [0.835278]),
    "fashion-mnist": ([0.277126], [0.842829]),
    "kmnist": ([0.214017], [0.829043]),
    "cifar-10": ([0.4075, 0.3785, 0.3693], [0.8016, 0.8004, 0.8005]),
}


class Zero(torch.nn.Module):
    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return torch.zeros_like(x)


def first_logs(prior: LogNormalPrior, data: str, n: int) -> Tensor:
    """Return log x (n, ...) where the published Dale-Langevin sampler starts."""
    x0 = torch.rand(20, *prior.means.shape[1:], generator=torch.Generator().manual_seed(0)) + 1
    model = GBMModel.for_data(Zero(), GBM(0.8), x0, prior=prior, prediction="score")
    solver = PUBLISHED[data][0]
    state = solver.plan(model.preconditioning, solver.default_steps).state(model, n)
    state.sample_prior(rng.stream(1), None)
    return torch.log(state.x(slice(None)).double())


def test_every_published_sampler_has_a_start() -> None:
    assert PUBLISHED_STARTS.keys() == PUBLISHED.keys() == STARTS.keys()


@pytest.mark.parametrize("data", STARTS)
def test_the_published_sampler_starts_from_the_published_moments(data: str) -> None:
    means, deviations = STARTS[data]
    channels, n = len(means), 400
    y = first_logs(published_prior(data, (channels, 8, 8)), data, n)
    count = n * 64
    for channel, (mean, deviation) in enumerate(zip(means, deviations, strict=True)):
        logs = y[:, channel]
        assert float(logs.mean()) == pytest.approx(mean, abs=4.5 * deviation / count**0.5)
        error = 4.5 * deviation / math.sqrt(2 * count)
        assert float(logs.std()) == pytest.approx(deviation, abs=error + 1e-3 * deviation)


@pytest.mark.parametrize("data", STARTS)
def test_the_standard_deviation_is_theirs(data: str) -> None:
    """Without sampling error; that of CIFAR-10 differs from each of its three by at most 0.1 %."""
    means, deviations = STARTS[data]
    shape = (len(means), 2, 2)
    std = published_prior(data, shape).std(0.8 * math.sqrt(0.999))
    assert [std] * len(means) == pytest.approx(deviations, rel=1e-6 if len(means) == 1 else 1.01e-3)
    x0, labels = torch.rand(8, *shape), torch.arange(8) % 2
    std = published_class_average(data, x0, labels).std(0.8 * math.sqrt(0.999))
    expected = [v * math.sqrt(0.999) for v in deviations]
    assert [std] * len(means) == pytest.approx(expected, rel=1e-6 if len(means) == 1 else 1.01e-3)


@pytest.mark.parametrize("data", STARTS)
def test_the_class_average_start_is_that_of_the_authors_code(data: str) -> None:
    """x0 exp((m - v^2 / 2) dt t + v sqrt(dt t) z) with dt = 1/1000, t = 999, x0 the means + 1."""
    means, deviations = (torch.tensor(v)[:, None, None] for v in STARTS[data])
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.rand(30, len(means), 4, 4, generator=generator), torch.arange(30) % 3
    prior = published_class_average(data, images, labels)
    for k in range(3):
        x0 = images[labels == k].mean(0) + 1
        expected = x0 * torch.exp((means - deviations**2 / 2) * 0.999)
        torch.testing.assert_close(prior.means[k], expected)
    logs = first_logs(prior, data, 3000) - torch.log(prior.means.double()).repeat(1000, 1, 1, 1)
    deviation = float(deviations.mean()) * math.sqrt(0.999)
    assert float(logs.mean()) == pytest.approx(0, abs=4.5 * deviation / logs.numel() ** 0.5)
    assert float(logs.std()) == pytest.approx(deviation, rel=4.5 / math.sqrt(2 * logs.numel()))


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="data must be one of mnist, fashion-mnist, kmnist, cifar"):
        published_prior("celeba", (3, 64, 64))
    with pytest.raises(ValueError, match="data must be one of mnist, fashion-mnist, kmnist, cifar"):
        published_class_average("MNIST", torch.ones(2, 1, 2, 2), torch.arange(2))
    for data, shape in (("mnist", (3, 28, 28)), ("cifar-10", (32, 32, 3)), ("mnist", (784,))):
        with pytest.raises(ValueError, match=rf"shape must be \(\d, height, width\) for {data}"):
            published_prior(data, shape)
