"""M-ESM and non-negative score matching: their integrals, their constants to M-DSM, one minimum."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastmsgm import fit, rng
from fastmsgm.gbm import (
    GBM,
    GBMModel,
    MDSMLoss,
    MESMLoss,
    NonNegativeScoreMatching,
)
from fastmsgm.gbm.score_matching import non_negative_integrand
from fastmsgm.names import name_of
from fastmsgm.nets import MLP
from fastmsgm.probes import PROBES
from fastmsgm.sde import VP, VPModel
from tests.gbm.exact import MEAN, VARIANCE, exact_model, log_normal_data

# Many small operations: a second thread costs more than it gives.
pytestmark = pytest.mark.usefixtures("one_thread")

LEVELS = 0.64 * torch.arange(1, 1000, dtype=torch.float64)[:, None] / 1000  # s^2, at sigma = 0.8


def true_score(x: Tensor, t: Tensor) -> Tensor:
    """The Stein score of the noised data of ``exact.py``, at sigma = 0.8 and mu = 0.32."""
    return (-1 - (torch.log(x) - MEAN) / (VARIANCE + 0.64 * t[:, None])) / x


def altered(prediction: str, gain: float, bias: float) -> GBMModel:
    model = exact_model(prediction)
    with torch.no_grad():
        model.net.gain.fill_(gain)
        model.net.bias.fill_(bias)
    return model


# ---- Hyvarinen's integral ----


def test_the_integrand_gives_the_known_value_of_a_gamma_model_of_log_normal_data() -> None:
    """J of q = Gamma(3, 1/2) for p = LogNormal(0.2, 0.5), explicit and by parts.

    J = 1/2 E (x d log q - x d log p)^2 = 0.3469610545, and its part without p is -2.1530389455.
    """
    y, dy = np.linspace(0.2 - 6, 0.2 + 6, 200_001, retstep=True)
    density = np.exp(-((y - 0.2) ** 2) / 2 / 0.25) / math.sqrt(2 * math.pi * 0.25)
    x = torch.from_numpy(np.exp(y))[:, None].requires_grad_()
    q = 2 - x / GAMMA_SCALE  # x times the derivative of 2 log x - x / scale
    exact = non_negative_integrand(q, x, None, False)
    probed = non_negative_integrand(q, x, torch.ones_like(x), False)
    assert torch.equal(exact, probed)  # in one dimension (+-1)^2 is exact
    implicit = float((torch.from_numpy(density) * exact.detach()).sum()) * dy / 2
    assert implicit == pytest.approx(-2.1530389455, abs=1e-8)
    p = -1 - (y - 0.2) / 0.25
    explicit = float((density * (q[:, 0].detach().numpy() - p) ** 2).sum()) * dy / 2
    assert explicit == pytest.approx(0.3469610545, abs=1e-8)
    assert explicit - implicit == pytest.approx(float((density * p**2).sum()) * dy / 2, abs=1e-8)


GAMMA_SCALE = 0.5


def test_hutchinson_averages_to_the_exact_divergence() -> None:
    """Over all signs in three dimensions, for a q whose derivatives couple the features."""
    torch.manual_seed(0)
    weight = torch.randn(3, 3, dtype=torch.float64)
    x = (torch.rand(5, 3, dtype=torch.float64) + 0.5).requires_grad_()
    q = torch.sin(x @ weight)
    exact = non_negative_integrand(q, x, None, True)
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=3)), dtype=torch.float64)
    probed = torch.stack([non_negative_integrand(q, x, v.expand(5, 3), True) for v in signs])
    torch.testing.assert_close(probed.mean(0), exact)
    assert float((probed - exact).abs().max().detach()) > 0.1  # single probes differ


# ---- M-DSM = M-ESM + constant, and so for the non-negative loss ----


ALTERATIONS = ((1.0, 0.0), (1.3, 0.0), (1.0, -0.4), (0.6, 0.5))


@torch.no_grad()
@pytest.mark.parametrize("prediction", ["hyvarinen", "score"])
@pytest.mark.parametrize(("gain", "bias"), ALTERATIONS)
def test_m_dsm_is_m_esm_and_the_posterior_variance(
    prediction: str, gain: float, bias: float
) -> None:
    """E |D_net - y_0|^2 = E |D_net - D|^2 + E |D - y_0|^2, the last v s^2 / (v + s^2)."""
    model, states = altered(prediction, gain, bias), log_normal_data(40_000)
    first, second = (
        loss(model, states, rng.stream(3), 0).double()
        for loss in (MDSMLoss(), MESMLoss(true_score))
    )
    constant = float((VARIANCE * LEVELS / (VARIANCE + LEVELS)).mean())
    error = float((first - second).std()) / 200
    assert error < 0.02 * constant
    assert float((first - second).mean()) == pytest.approx(constant, abs=4.5 * error)
    if (gain, bias) == (1.0, 0.0):
        assert float(second.max()) < 1e-9
    else:
        assert float(second.mean()) > 0.01 * constant


@torch.no_grad()
@pytest.mark.parametrize("prediction", ["hyvarinen", "score"])
@pytest.mark.parametrize(("gain", "bias"), ALTERATIONS)
def test_the_non_negative_loss_is_m_esm_less_the_square_of_the_true_score(
    prediction: str, gain: float, bias: float
) -> None:
    """The constant is E s^4 q^2 = s^4 (1 + 1 / (v + s^2)), for q ~ N(-1, 1 / (v + s^2))."""
    model, states = altered(prediction, gain, bias), log_normal_data(40_000)
    first, second = (
        loss(model, states, rng.stream(3), 0).double()
        for loss in (NonNegativeScoreMatching("exact"), MESMLoss(true_score))
    )
    constant = -float((LEVELS**2 * (1 + 1 / (VARIANCE + LEVELS))).mean())
    error = float((first - second).std()) / 200
    assert error < 0.02 * abs(constant)
    assert float((first - second).mean()) == pytest.approx(constant, abs=4.5 * error)


@torch.no_grad()
@pytest.mark.parametrize("probes", PROBES)
def test_probes_give_the_loss_of_the_exact_divergence(probes: str) -> None:
    """The exact network does not couple features, so that signs give it sample by sample."""
    model, states = altered("hyvarinen", 0.8, 0.1), log_normal_data(20_000)
    exact, probed = (
        NonNegativeScoreMatching(p)(model, states, rng.stream(4), 1) for p in ("exact", probes)
    )
    difference = (probed - exact).double()
    if probes == "rademacher":
        torch.testing.assert_close(probed, exact, rtol=1e-4, atol=1e-5)
    else:
        assert float(difference.abs().max()) > 0.01
        assert abs(float(difference.mean())) < 4.5 * float(difference.std()) / 20_000**0.5


@pytest.mark.parametrize("loss", [NonNegativeScoreMatching(), NonNegativeScoreMatching("exact")])
@pytest.mark.parametrize("prediction", ["hyvarinen", "score"])
def test_the_exact_network_is_a_stationary_point(
    loss: NonNegativeScoreMatching, prediction: str
) -> None:
    def t_statistics(gain: float, bias: float) -> Tensor:
        model, batches = altered(prediction, gain, bias), []
        for step in range(40):
            value = loss(model, log_normal_data(400, seed=step), rng.stream(1), step).mean()
            batches.append(torch.cat(torch.autograd.grad(value, (model.net.gain, model.net.bias))))
        gradients = torch.stack(batches).double()
        return gradients.mean(0) / (gradients.std(0) / 40**0.5)

    assert float(t_statistics(1.0, 0.0).abs().max()) < 4.5
    assert float(t_statistics(1.3, 0.0)[:3].min()) > 4.5
    assert float(t_statistics(1.0, -0.3)[3:].max()) < -4.5


# ---- the authors' M-DSM ----


@torch.no_grad()
@pytest.mark.parametrize("prediction", ["hyvarinen", "score"])
@pytest.mark.parametrize("mu", [None, 0.5])
def test_m_dsm_is_the_authors_expression_at_the_same_normals(
    prediction: str, mu: float | None
) -> None:
    """Their residual: k/N sigma^2 x score + log x_k - log x_0 - mu k/N + 3/2 sigma^2 k/N.

    They sum its square over features where ours is averaged, and put k + 1 for k, which is an error
    (the noise is that of k).
    """
    n, step, stream = 50, 4, rng.stream(5, 20)
    model, x0 = exact_model(prediction, mu=mu), log_normal_data(50)
    model.net.gain.fill_(0.7)
    uniform = rng.uniforms(n, 1, stream, rng.Purpose.TRAINING_TIME, step)[:, 0]
    kd = ((1 + torch.floor(999 * uniform)) / 1000)[:, None]
    z = rng.normals(n, 3, stream, rng.Purpose.TRAINING_NOISE, step, torch.float64)
    drift = 0.32 if mu is None else mu
    xk = x0.double() * torch.exp((drift - 0.32) * kd + 0.8 * torch.sqrt(kd) * z)
    output = model(xk.float(), kd[:, 0].float()).double()
    score = output if prediction == "score" else output / xk
    logs = torch.log(xk) - torch.log(x0.double())
    residual = kd * 0.64 * xk * score + logs - drift * kd + 1.5 * 0.64 * kd
    expected = residual.square().sum(1) / 3
    losses = MDSMLoss()(model, x0, stream, step).double()
    torch.testing.assert_close(losses, expected, rtol=2e-4, atol=1e-6)


# ---- use ----


@pytest.mark.parametrize(
    "loss", [MESMLoss(true_score), NonNegativeScoreMatching(), NonNegativeScoreMatching("exact")]
)
def test_fit_learns_with_it(loss: Any) -> None:
    torch.manual_seed(0)
    data = log_normal_data(500)
    model = GBMModel.for_data(MLP(3, 32, 2), GBM(0.8), data, prediction="hyvarinen")
    judge = MESMLoss(true_score)
    before = judge(model, data, rng.stream(9), 0).mean().item()
    fit(model, data, steps=150, batch_size=64, lr=5e-3, ema=0.9, loss=loss, progress=False)
    assert judge(model, data, rng.stream(9), 0).mean().item() < 0.5 * before


def test_images_have_the_loss_of_their_pixels() -> None:
    """Shapes of more than one axis: the sum of the same terms."""
    x0 = log_normal_data(40).repeat(1, 4).view(40, 3, 2, 2)
    model = GBMModel.for_data(torch.nn.Conv2d(3, 3, 1), GBM(0.8), x0, prediction="hyvarinen")

    class Net(torch.nn.Module):
        def forward(self, x: Tensor, c: Tensor) -> Tensor:
            return 0.3 * torch.log(x) - c.view(-1, *[1] * (x.ndim - 1))

    model.net = Net()
    flat = GBMModel.for_data(Net(), GBM(0.8), x0.flatten(1), prediction="hyvarinen")
    for loss in (NonNegativeScoreMatching("exact"), NonNegativeScoreMatching("gaussian")):
        value = loss(model, x0, rng.stream(1), 2)
        expected = loss(flat, x0.flatten(1), rng.stream(1), 2)
        torch.testing.assert_close(value, expected)


@torch.no_grad()
@pytest.mark.parametrize("loss", [MESMLoss(true_score), NonNegativeScoreMatching()])
def test_losses_are_functions_of_seed_step_and_position(loss: Any) -> None:
    model, states = altered("hyvarinen", 0.8, 0.1), log_normal_data(96)
    whole = loss(model, states, rng.stream(8), 3)
    assert torch.equal(whole, loss(model, states, rng.stream(8), 3))
    parts = [loss(model, states[i : i + 32], rng.stream(8, i), 3) for i in (0, 32, 64)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-5, atol=1e-6)
    assert not torch.isclose(whole, loss(model, states, rng.stream(9), 3)).any()
    assert not torch.isclose(whole, loss(model, states, rng.stream(8), 4)).any()


def test_what_identifies_a_run_has_no_address() -> None:
    assert name_of(MESMLoss(true_score)) == (
        "MESMLoss(score=tests.gbm.test_score_matching.true_score)"
    )
    assert name_of(NonNegativeScoreMatching()) == "NonNegativeScoreMatching(probes='rademacher')"


# ---- errors ----


@pytest.mark.parametrize("loss", [MESMLoss(true_score), NonNegativeScoreMatching()])
def test_other_models_are_refused(loss: Any) -> None:
    name = type(loss).__name__
    with pytest.raises(TypeError, match=f"{name} is for score networks, got a denoiser: use Deno"):
        loss(exact_model("denoiser"), log_normal_data(5), rng.stream(0), 0)
    with pytest.raises(TypeError, match="model must be a GBMModel for this loss, got VPModel"):
        loss(VPModel.for_data(MLP(3, 8, 1), VP(), log_normal_data(20)), log_normal_data(5), *SOME)


SOME = (rng.stream(0), 0)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(TypeError, match=r"score must be a function \(x, t\) -> score, got int"):
        MESMLoss(3)  # type: ignore[arg-type]
    loss = MESMLoss(lambda x, t: t)
    with pytest.raises(ValueError, match=r"score must return a tensor of the shape of x, \(5, 3\)"):
        loss(exact_model("score"), log_normal_data(5), *SOME)
    allowed = "probes must be one of rademacher, gaussian, sphere, exact, got 'none'"
    with pytest.raises(ValueError, match=allowed):
        NonNegativeScoreMatching("none")
