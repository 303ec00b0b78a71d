"""Training objectives on log-normal data, whose best network is known."""

from __future__ import annotations

import pytest
import torch
from exact import VARIANCE, exact_model, log_normal_data
from torch import Tensor

from fastmsgm import GBM, GBMModel, losses, rng
from fastmsgm.losses import denoising, loss, m_dsm
from fastmsgm.nets import MLP

PREDICTIONS = ("denoiser", "hyvarinen", "score")


def gradients(model: GBMModel, gain: float, bias: float, batches: int = 60) -> Tensor:
    """Gradients (batches, 6) with respect to gain and bias of each feature, one batch of 500 noisings each."""
    with torch.no_grad():
        model.net.gain.fill_(gain)
        model.net.bias.fill_(bias)
    rows = []
    for step in range(batches):
        states = model.to_state(log_normal_data(500, seed=step))
        value = loss(model, states, rng.stream(1), step)
        rows.append(torch.cat(torch.autograd.grad(value, (model.net.gain, model.net.bias))))
    return torch.stack(rows).double()


def t_statistics(rows: Tensor) -> Tensor:
    return rows.mean(0) / (rows.std(0) / len(rows) ** 0.5)


@pytest.mark.parametrize(
    ("prediction", "mu"), [("denoiser", None), ("hyvarinen", None), ("hyvarinen", 0.0), ("score", None), ("score", 0.0)]
)
def test_the_exact_network_is_a_stationary_point(prediction: str, mu: float | None) -> None:
    model = exact_model(prediction, mu=mu)
    assert float(t_statistics(gradients(model, 1.0, 0.0)).abs().max()) < 4.5
    # Off it, the gradient points back.
    assert bool((t_statistics(gradients(model, 1.3, 0.0))[:3] > 4.5).all())
    assert bool((t_statistics(gradients(model, 1.0, -0.3))[3:] < -4.5).all())


@torch.no_grad()
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_exact_network_has_the_least_loss(prediction: str) -> None:
    model = exact_model(prediction)
    states, stream = model.to_state(log_normal_data(20000)), rng.stream(2)
    least = float(loss(model, states, stream, 0))
    for gain, bias in ((1.5, 0.0), (0.5, 0.0), (1.0, 0.2), (1.0, -0.2)):
        model.net.gain.fill_(gain)
        model.net.bias.fill_(bias)
        assert float(loss(model, states, stream, 0)) > 1.005 * least


@torch.no_grad()
def test_m_dsm_of_the_exact_network_is_the_posterior_variance() -> None:
    """E |D - y_0|^2 = mean over levels of v s^2 / (v + s^2)."""
    model = exact_model("hyvarinen")
    s2 = 0.64 * torch.arange(1, 1000, dtype=torch.float64)[:, None] / 1000
    expected = float((VARIANCE * s2 / (VARIANCE + s2)).mean())
    values = torch.stack([m_dsm(model, log_normal_data(2000, k), rng.stream(3), k) for k in range(20)]).double()
    assert abs(float(values.mean()) - expected) < 4.5 * float(values.std()) / 20**0.5
    assert float(values.std()) / 20**0.5 < 0.01 * expected


def test_levels_can_be_chosen() -> None:
    model = exact_model("denoiser", sigma=8.0)
    model.net = Spy()
    loss(model, model.to_state(log_normal_data(20000)), rng.stream(6), 0, (-0.5, 0.7))
    log_s = 4 * model.net.c.double()
    assert float(log_s.mean()) == pytest.approx(-0.5, abs=4.5 * 0.7 / 20000**0.5)
    assert float(log_s.std()) == pytest.approx(0.7, rel=0.03)


@torch.no_grad()
@pytest.mark.parametrize("mu", [None, 0.5])
def test_score_and_hyvarinen_score_are_one_loss(mu: float | None) -> None:
    states = log_normal_data(500)
    values = [float(loss(exact_model(p, mu=mu), states, rng.stream(4), 5)) for p in ("score", "hyvarinen")]
    assert values[0] == pytest.approx(values[1], rel=1e-5)


def test_a_network_that_says_nothing_has_unit_loss() -> None:
    """The denoiser's target has unit variance at every level where the data's spread is log_std."""
    torch.manual_seed(0)
    y = 0.3 * torch.randn(4000, 8)
    model = GBMModel.for_data(MLP(8), GBM(12.0), torch.exp(y + torch.arange(8) / 4))
    torch.nn.init.zeros_(model.net.out.weight)
    torch.nn.init.zeros_(model.net.out.bias)
    states = model.to_state(torch.exp(y + torch.arange(8) / 4))
    value = denoising(model, states, rng.stream(5), 0).item()
    assert value == pytest.approx(1, abs=0.05)


class Spy(torch.nn.Module):
    """Remembers what it is called with."""

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        self.x, self.c = x, c
        return torch.zeros_like(x)


def test_denoising_levels_are_the_networks_conditioning() -> None:
    """log s = 4 c is normal about log sd - 0.507 with deviation 1.2, cut off at sigma_max; the input is c_in y."""
    model = exact_model("denoiser", sigma=0.8)
    model.net = Spy()
    denoising(model, model.to_state(log_normal_data(20000)), rng.stream(6), 0)
    log_s = 4 * model.net.c.double()
    cut = torch.log(torch.tensor(0.8, dtype=torch.float64))
    assert float(log_s.max()) == pytest.approx(float(cut), abs=1e-6)
    centre = torch.log(torch.tensor(model.log_std, dtype=torch.float64)) - 0.507
    free = log_s < cut - 1e-6
    normal = torch.distributions.Normal(centre, 1.2)
    assert float(free.double().mean()) == pytest.approx(float(normal.cdf(cut)), abs=0.015)
    assert float(log_s.median()) == pytest.approx(float(centre), abs=0.05)
    near = (log_s > -1) & (log_s < 0)
    s2 = torch.exp(2 * log_s)[:, None]
    expected = ((VARIANCE + 0.01 + s2) / (model.log_std**2 + s2))[near].mean()
    assert float(model.net.x[near].double().square().mean()) == pytest.approx(float(expected), rel=0.05)


def test_m_dsm_levels_are_the_papers() -> None:
    """t = k / 1000 with k uniform in 1 .. 999."""
    model = exact_model("hyvarinen")
    model.net = Spy()
    m_dsm(model, log_normal_data(40000), rng.stream(7), 0)
    k = 1000 * model.net.c.double()
    assert float((k - k.round()).abs().max()) < 1e-3
    assert sorted({int(v) for v in k.round()}) == list(range(1, 1000))
    assert float(k.mean()) == pytest.approx(500, abs=4.5 * 288.5 / 200)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_loss_is_a_function_of_seed_and_step(prediction: str) -> None:
    model, states = exact_model(prediction), log_normal_data(200)
    first = loss(model, states, rng.stream(8), 3)
    assert torch.equal(first, loss(model, states, rng.stream(8), 3))
    assert not torch.equal(first, loss(model, states, rng.stream(9), 3))
    assert not torch.equal(first, loss(model, states, rng.stream(8), 4))


@torch.no_grad()
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_loss_does_not_depend_on_how_a_batch_is_split(prediction: str) -> None:
    """A part of the global batch draws its own rows' noise: on two machines the losses average to that of one."""
    model, states = exact_model(prediction), log_normal_data(192)
    whole = float(loss(model, states, rng.stream(10), 3))
    parts = [float(loss(model, states[i : i + 64].contiguous(), rng.stream(10, i), 3)) for i in (0, 64, 128)]
    assert sum(parts) / 3 == pytest.approx(whole, rel=1e-5)


def test_loss_goes_by_the_models_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    monkeypatch.setattr(losses, "denoising", lambda *_: called.append("denoising"))
    monkeypatch.setattr(losses, "m_dsm", lambda *_: called.append("m_dsm"))
    for prediction in PREDICTIONS:
        loss(exact_model(prediction), log_normal_data(2), rng.stream(0), 0)
    assert called == ["denoising", "m_dsm", "m_dsm"]
