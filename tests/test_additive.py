"""The additive baseline: forward marginals, sliced score matching of the exact score, samples of it, files, errors."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastmsgm import VP, VPModel, fit, load, losses, rng, sample
from fastmsgm.nets import MLP
from fastmsgm.solvers import EulerMaruyama, Solver, StratonovichHeun

MEAN = torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64)
COVARIANCE = torch.tensor([[1.0, 0.6, 0.0], [0.6, 2.0, -0.3], [0.0, -0.3, 0.5]], dtype=torch.float64)
DEVIATION = COVARIANCE.diagonal().sqrt()
CORRELATION = COVARIANCE / (DEVIATION[:, None] * DEVIATION)  # of the standardised state


def gaussian(n: int, seed: int = 0) -> Tensor:
    z = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (MEAN + z @ torch.linalg.cholesky(COVARIANCE).T).float()


class GaussianNet(nn.Module):
    """f = gain (sigma C_B^-1 x) + bias, C_B = alpha^2 CORRELATION + sigma^2: the exact network at gain 1 and bias 0."""

    def __init__(self) -> None:
        super().__init__()
        self.gain, self.bias = nn.Parameter(torch.ones(3)), nn.Parameter(torch.zeros(3))
        self.rates, self.axes = torch.linalg.eigh(CORRELATION)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        clock = torch.exp(3 * c.double() - 3)[:, None]
        alpha2, sigma2 = torch.exp(-clock), -torch.expm1(-clock)
        score = ((x.double() @ self.axes) / (alpha2 * self.rates + sigma2)) @ self.axes.T
        return self.gain * (sigma2.sqrt() * score).to(x.dtype) + self.bias


def exact_model() -> VPModel:
    return VPModel(GaussianNet(), VP(), MEAN.float()[None], DEVIATION.float()[None]).eval()


def vectors(**options: Any) -> VPModel:
    torch.manual_seed(0)
    return VPModel.for_data(MLP(3, 16, 2), VP(), gaussian(200), **options).eval()


# ---- the forward process ----


@pytest.mark.parametrize("clock", [1e-3, 0.3, 10.0])
def test_marginals_are_those_of_the_process(clock: float) -> None:
    """N(e^{-B/2} x_0, 1 - e^{-B}), independent in every feature."""
    n, x0 = 20_000, torch.tensor([[3.0, -1.0]])
    x = exact_model().noised(x0.expand(n, 2), np.full(n, clock), rng.stream(0), 0).double()
    variance = -math.expm1(-clock)
    mean_error = (x.mean(0) - math.exp(-clock / 2) * x0[0].double()) / math.sqrt(variance / n)
    assert float(mean_error.abs().max()) < 4.5
    covariance_error = (torch.cov(x.T) / variance - torch.eye(2)) * math.sqrt(n / 2)
    assert float(covariance_error.abs().max()) < 4.5


def test_noise_is_addressed_by_row_and_step() -> None:
    model, x0, clocks = exact_model(), torch.ones(8, 3), np.linspace(0.1, 1, 8)
    x = model.noised(x0, clocks, rng.stream(1), 5)
    assert torch.equal(x[3:], model.noised(x0[3:], clocks[3:], rng.stream(1, 3), 5))
    assert not torch.isclose(x, model.noised(x0, clocks, rng.stream(1), 6)).any()


@pytest.mark.parametrize("lambda_", [0.0, 0.5, 1.0])
def test_the_reverse_drift_leaves_a_standard_normal_as_it_is(lambda_: float) -> None:
    """Of score -x; its drift and noise balance: 2 drift.x + (1 - lambda) = 0 in each feature's variance."""
    x = torch.eye(3)
    drift = VP().reverse_drift(x, -x, lambda_)
    torch.testing.assert_close(2 * drift + (1 - lambda_) * x, torch.zeros(3, 3))
    assert torch.equal(VP().turn_transposed(x, VP().turn(x, drift)), drift)


def test_the_network_is_told_the_clock_and_says_the_noise() -> None:
    model, clocks = exact_model(), np.geomspace(1e-3, 10, 5)
    assert model.condition(clocks, torch.ones(5)).tolist() == pytest.approx((np.log(clocks) + 3) / 3, rel=1e-6)
    f = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    sigma = torch.from_numpy(np.sqrt(1 - np.exp(-clocks))).float()
    torch.testing.assert_close(model.score(f, clocks), -f / sigma[:, None])


# ---- sliced score matching ----


def test_the_exact_score_is_a_stationary_point() -> None:
    model = exact_model()

    def t_statistics(gain: float, bias: float) -> Tensor:
        """Of the gradients with respect to gain and bias, over batches."""
        nn.init.constant_(model.net.gain, gain)
        nn.init.constant_(model.net.bias, bias)
        rows = []
        for step in range(40):
            loss = losses.loss(model, model.to_state(gaussian(400, seed=step)), rng.stream(0), step)
            rows.append(torch.cat(torch.autograd.grad(loss, (model.net.gain, model.net.bias))))
        gradients = torch.stack(rows).double()
        return gradients.mean(0) / (gradients.std(0) / len(rows) ** 0.5)

    assert float(t_statistics(1.0, 0.0).abs().max()) < 4.5
    assert float(t_statistics(1.3, 0.0)[:3].min()) > 4.5
    assert float(t_statistics(1.0, 0.3)[3:].min()) > 4.5
    assert float(t_statistics(1.0, -0.3)[3:].max()) < -4.5


@torch.no_grad()
def test_the_exact_score_has_the_least_loss_and_its_value_is_known() -> None:
    """The divergence integrates by parts: -E beta |score|^2 / 2 a feature, |score|^2 = tr C_B^-1 on average."""
    model = exact_model()
    states, stream = model.to_state(gaussian(20_000)), rng.stream(1)
    values = {}
    for gain in (0.7, 1.0, 1.3):
        model.net.gain.fill_(gain)
        values[gain] = float(losses.loss(model, states, stream, 0))
    assert values[1.0] < min(values[0.7], values[1.3]) - 0.01
    t = 1e-3 + (1 - 1e-3) * (np.arange(20_000) + 0.5) / 20_000
    alpha2 = np.exp(-model.process.clock(t))
    rates = torch.linalg.eigvalsh(CORRELATION).numpy()
    squares = (1 / (alpha2[:, None] * rates + 1 - alpha2[:, None])).sum(1)
    expected = -float((model.process.beta(t) * squares).mean()) / 6
    assert values[1.0] == pytest.approx(expected, rel=0.03)


def test_fit_learns() -> None:
    model, states = vectors(), vectors().to_state(gaussian(2000, seed=1))
    before = losses.loss(model, states, rng.stream(9), 0).item()
    fit(model, gaussian(200), steps=60, batch_size=64, lr=5e-3, ema=0.8, warmup=2, progress=False)
    after = losses.loss(model, states, rng.stream(9), 0).item()
    assert after < before - 1


# ---- samples ----


@pytest.mark.parametrize("solver", [EulerMaruyama(), StratonovichHeun(), StratonovichHeun(lambda_=1.0)])
def test_samples_of_the_exact_score_have_the_datas_mean_and_covariance(solver: Solver) -> None:
    """In standard errors, of which steps in t (bias) add one or two."""
    n = 4000
    x = sample(exact_model(), n, solver=solver, steps=100, seed=1, progress=False).double()
    assert float(((x.mean(0) - MEAN) / DEVIATION * math.sqrt(n)).abs().max()) < 5
    error = (torch.cov(x.T) - COVARIANCE) / (DEVIATION[:, None] * DEVIATION)
    scale = ((1 + CORRELATION**2) / n).sqrt()
    assert float((error / scale).abs().max()) < 6


# ---- files and errors ----


def test_samples_after_load_are_bit_equal(tmp_path: Path) -> None:
    model = vectors()
    model.process = VP(beta_min=0.2, beta_max=8.0)
    model.save(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["process"]["name"] == "VP"
    again = load(tmp_path)
    assert isinstance(again, VPModel)
    assert (again.process, again.shape, again.precision) == (model.process, (3,), "fp32")
    options: dict[str, Any] = {"steps": 4, "batch_size": 64, "seed": 2, "progress": False}
    assert torch.equal(sample(again, 30, **options), sample(model, 30, **options))


def test_standardised_states_are_undone() -> None:
    model, x = vectors(), gaussian(200)
    states = model.to_state(x)
    assert float(states.mean(0).abs().max()) < 1e-5
    assert states.std(0, correction=0).tolist() == pytest.approx([1, 1, 1])
    torch.testing.assert_close(model.to_data(states), x)


@pytest.mark.parametrize(
    "x", [torch.tensor([[1.0, 2.0], [1.0, 3.0]]), torch.full((2, 2), math.nan), torch.tensor([[0.0, 1], [math.inf, 2]])]
)
def test_for_data_refuses_data_without_a_spread(x: Tensor) -> None:
    with pytest.raises(ValueError, match="data must be finite and vary in every feature"):
        VPModel.for_data(MLP(2), VP(), x)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="beta_max must be a positive number, got -1"):
        VP(beta_max=-1)
    with pytest.raises(ValueError, match="precision must be one of fp32, bf16, fp16, got 'fp8'"):
        vectors(precision="fp8")
    with pytest.raises(ValueError, match="data must be finite, got NaN or infinity"):
        fit(vectors(), torch.full((5, 3), math.nan), steps=1, progress=False)
    with pytest.raises(ValueError, match="levels must be None but for a GBM denoiser"):
        fit(vectors(), gaussian(5), steps=1, levels=(0.0, 1.0), progress=False)
