"""Training losses on log-normal data, whose best network is known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastmsgm import rng
from fastmsgm.gbm import GBM, DenoisingLoss, GBMModel, MDSMLoss
from fastmsgm.nets import MLP
from fastmsgm.sde import VP, VPModel
from tests.gbm.exact import VARIANCE, exact_model, log_normal_data

# Many small operations: a second thread costs more than it gives.
pytestmark = pytest.mark.usefixtures("one_thread")

PREDICTIONS = ("denoiser", "hyvarinen", "score")


def gradients(model: GBMModel, gain: float, bias: float, batches: int = 60) -> Tensor:
    """Return gradients (batches, 6) of the loss of 500 samples, by all gains and biases."""
    with torch.no_grad():
        model.net.gain.fill_(gain)
        model.net.bias.fill_(bias)
    gradients = []
    for step in range(batches):
        states = model.to_state(log_normal_data(500, seed=step))
        value = model.default_loss(model, states, rng.stream(1), step).mean()
        gradients.append(torch.cat(torch.autograd.grad(value, (model.net.gain, model.net.bias))))
    return torch.stack(gradients).double()


def t_statistics(values: Tensor) -> Tensor:
    return values.mean(0) / (values.std(0) / len(values) ** 0.5)


@pytest.mark.parametrize(
    ("prediction", "mu"),
    [("denoiser", None), ("hyvarinen", None), ("hyvarinen", 0.0), ("score", None), ("score", 0.0)],
)
def test_the_exact_network_is_a_stationary_point(prediction: str, mu: float | None) -> None:
    model = exact_model(prediction, mu=mu)
    assert float(t_statistics(gradients(model, 1.0, 0.0)).abs().max()) < 4.5
    # Elsewhere the gradient points back.
    assert bool((t_statistics(gradients(model, 1.3, 0.0))[:3] > 4.5).all())
    assert bool((t_statistics(gradients(model, 1.0, -0.3))[3:] < -4.5).all())


@torch.no_grad()
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_exact_network_has_the_least_loss(prediction: str) -> None:
    model = exact_model(prediction)
    states, stream = model.to_state(log_normal_data(20000)), rng.stream(2)
    least = float(model.default_loss(model, states, stream, 0).mean())
    for gain, bias in ((1.5, 0.0), (0.5, 0.0), (1.0, 0.2), (1.0, -0.2)):
        model.net.gain.fill_(gain)
        model.net.bias.fill_(bias)
        assert float(model.default_loss(model, states, stream, 0).mean()) > 1.005 * least


@torch.no_grad()
def test_m_dsm_of_the_exact_network_is_the_posterior_variance() -> None:
    """E |D - y_0|^2 is the mean over noise levels of v s^2 / (v + s^2)."""
    model, loss = exact_model("hyvarinen"), MDSMLoss()
    s2 = 0.64 * torch.arange(1, 1000, dtype=torch.float64)[:, None] / 1000
    expected = float((VARIANCE * s2 / (VARIANCE + s2)).mean())
    values = torch.stack(
        [loss(model, log_normal_data(2000, k), rng.stream(3), k).mean() for k in range(20)]
    ).double()
    assert abs(float(values.mean()) - expected) < 4.5 * float(values.std()) / 20**0.5
    assert float(values.std()) / 20**0.5 < 0.01 * expected


@torch.no_grad()
@pytest.mark.parametrize("mu", [None, 0.5])
def test_score_and_hyvarinen_score_have_one_loss(mu: float | None) -> None:
    states = log_normal_data(500)
    values = [
        float(MDSMLoss()(exact_model(p, mu=mu), states, rng.stream(4), 5).mean())
        for p in ("score", "hyvarinen")
    ]
    assert values[0] == pytest.approx(values[1], rel=1e-5)


def test_a_network_that_returns_zero_has_unit_loss() -> None:
    """The denoiser's target has unit variance where the spread of the data is log_std."""
    torch.manual_seed(0)
    y = 0.3 * torch.randn(4000, 8)
    model = GBMModel.for_data(MLP(8), GBM(12.0), torch.exp(y + torch.arange(8) / 4))
    torch.nn.init.zeros_(model.net.out.weight)
    torch.nn.init.zeros_(model.net.out.bias)
    states = model.to_state(torch.exp(y + torch.arange(8) / 4))
    value = DenoisingLoss()(model, states, rng.stream(5), 0).mean().item()
    assert value == pytest.approx(1, abs=0.05)


# ---- noise levels ----


class Spy(torch.nn.Module):
    """Keeps what it is called with, and returns zero."""

    x: Tensor
    c: Tensor

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        self.x, self.c = x, c
        return torch.zeros_like(x)


def test_noise_levels_of_denoising_are_log_normal_and_cut_off() -> None:
    """log s = 4 c is normal about log sd - 0.507 with deviation 1.2, cut off at sigma_max.

    The input of the network is c_in y.
    """
    model = exact_model("denoiser", sigma=0.8)
    model.net = Spy()
    DenoisingLoss()(model, model.to_state(log_normal_data(20000)), rng.stream(6), 0)
    log_s = 4 * model.net.c.double()
    cut = math.log(0.8)
    assert float(log_s.max()) == pytest.approx(cut, abs=1e-6)
    p_mean = math.log(model.log_std) - 0.507
    free = log_s < cut - 1e-6
    normal = torch.distributions.Normal(p_mean, 1.2)
    below = float(normal.cdf(torch.tensor(cut)))
    assert float(free.double().mean()) == pytest.approx(below, abs=0.015)
    assert float(log_s.median()) == pytest.approx(p_mean, abs=0.05)
    near = (log_s > -1) & (log_s < 0)
    s2 = torch.exp(2 * log_s)[:, None]
    expected = ((VARIANCE + 0.01 + s2) / (model.log_std**2 + s2))[near].mean()
    assert float(model.net.x[near].double().square().mean()) == pytest.approx(
        float(expected), rel=0.05
    )


def test_noise_levels_of_denoising_can_be_chosen() -> None:
    model = exact_model("denoiser", sigma=8.0)
    model.net = Spy()
    loss = DenoisingLoss(p_mean=-0.5, p_std=0.7)
    loss(model, model.to_state(log_normal_data(20000)), rng.stream(6), 0)
    log_s = 4 * model.net.c.double()
    assert float(log_s.mean()) == pytest.approx(-0.5, abs=4.5 * 0.7 / 20000**0.5)
    assert float(log_s.std()) == pytest.approx(0.7, rel=0.03)


def test_the_default_noise_levels_are_those_of_edm() -> None:
    model, states = exact_model("denoiser"), log_normal_data(50)
    explicit = DenoisingLoss(p_mean=math.log(model.log_std) - 0.507, p_std=1.2)
    values = [loss(model, states, rng.stream(6), 2) for loss in (DenoisingLoss(), explicit)]
    assert torch.equal(values[0], values[1])


def test_noise_levels_of_m_dsm_are_those_of_the_paper() -> None:
    """t = k / 1000 with k uniform in 1 .. 999."""
    model = exact_model("hyvarinen")
    model.net = Spy()
    MDSMLoss()(model, log_normal_data(40000), rng.stream(7), 0)
    k = 1000 * model.net.c.double()
    assert float((k - k.round()).abs().max()) < 1e-3
    assert sorted({int(v) for v in k.round()}) == list(range(1, 1000))
    assert float(k.mean()) == pytest.approx(500, abs=4.5 * 288.5 / 200)


# ---- the stream ----


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_loss_is_a_function_of_seed_and_step(prediction: str) -> None:
    model, states = exact_model(prediction), log_normal_data(200)
    loss = model.default_loss
    first = loss(model, states, rng.stream(8), 3)
    assert first.shape == (200,)
    assert torch.equal(first, loss(model, states, rng.stream(8), 3))
    assert not torch.isclose(first, loss(model, states, rng.stream(9), 3)).any()
    assert not torch.isclose(first, loss(model, states, rng.stream(8), 4)).any()


@torch.no_grad()
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_loss_does_not_depend_on_how_a_batch_is_split(prediction: str) -> None:
    """A part of the global batch has the noise of its own samples.

    So the losses of two machines average to that of one.
    """
    model, states = exact_model(prediction), log_normal_data(192)
    whole = model.default_loss(model, states, rng.stream(10), 3)
    parts = [
        model.default_loss(model, states[i : i + 64].contiguous(), rng.stream(10, i), 3)
        for i in (0, 64, 128)
    ]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-5, atol=1e-6)


# ---- errors ----


@pytest.mark.parametrize("prediction", ["hyvarinen", "score"])
def test_denoising_is_for_denoisers(prediction: str) -> None:
    message = f"DenoisingLoss is for prediction='denoiser', got '{prediction}': use MDSMLoss"
    with pytest.raises(TypeError, match=message):
        DenoisingLoss()(exact_model(prediction), log_normal_data(5), rng.stream(0), 0)


def test_m_dsm_is_for_score_networks() -> None:
    with pytest.raises(TypeError, match="MDSMLoss is for score networks, got a denoiser: use Den"):
        MDSMLoss()(exact_model("denoiser"), log_normal_data(5), rng.stream(0), 0)


@pytest.mark.parametrize("loss", [DenoisingLoss(), MDSMLoss()])
def test_losses_refuse_another_family(loss: DenoisingLoss | MDSMLoss) -> None:
    model = VPModel.for_data(MLP(3, 8, 1), VP(), log_normal_data(20))
    with pytest.raises(TypeError, match="model must be a GBMModel for this loss, got VPModel"):
        loss(model, log_normal_data(5), rng.stream(0), 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"p_std": 0.0}, r"p_std must be a positive number, got 0\.0"),
        ({"p_std": -1.0}, r"p_std must be a positive number, got -1\.0"),
        ({"p_std": math.inf}, "p_std must be a positive number, got inf"),
        ({"p_std": "1"}, "p_std must be a positive number, got '1'"),
        ({"p_mean": math.nan}, "p_mean must be a finite number or None, got nan"),
        ({"p_mean": "0"}, "p_mean must be a finite number or None, got '0'"),
        ({"p_mean": True}, "p_mean must be a finite number or None, got True"),
        ({"p_mean": (0.0, 1.0)}, r"p_mean must be a finite number or None, got \(0\.0, 1\.0\)"),
    ],
)
def test_denoising_refuses_noise_levels(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DenoisingLoss(**options)


def test_denoising_takes_numpy_numbers() -> None:
    model, states = exact_model("denoiser"), log_normal_data(50)
    losses = (DenoisingLoss(np.float64(-1.0), np.float64(0.5)), DenoisingLoss(-1.0, 0.5))
    first, second = (loss(model, states, rng.stream(6), 2) for loss in losses)
    assert torch.equal(first, second)
