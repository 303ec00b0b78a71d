"""The evidence lower bound: tight for exact scores, the training loss, and short by what is off."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor, nn

from fastmsgm import rng
from fastmsgm.evaluation.elbo import elbo
from fastmsgm.evaluation.likelihood import log_likelihood
from fastmsgm.rotation import Rotation
from fastmsgm.sde import SlicedScoreMatching, VPModel
from tests.evaluation import exact
from tests.evaluation.test_likelihood import MIXTURE, VMF
from tests.rotation.exact import TiltedNet
from tests.sde import exact as sde


def tight(bound: Tensor, truth: Tensor, bias: float = 0.0) -> None:
    """The mean of the bound is that of the truth, up to 3 standard errors and the bias."""
    gap = truth - bound
    assert abs(float(gap.mean())) < 3 * float(gap.std()) / len(gap) ** 0.5 + bias


def test_it_is_tight_for_log_normal_mixtures() -> None:
    y = MIXTURE.sample(400)
    bound = elbo(exact.log_normal_model(MIXTURE), torch.exp(y), draws=32, progress=False)
    tight(bound.values, MIXTURE.log_prob(y) - y.sum(1))
    assert bound.settings["draws"] == 32


def test_it_is_tight_for_von_mises_fisher_mixtures() -> None:
    u = VMF[3].sample(200)
    x, radial = exact.with_norms(u)
    bound = elbo(exact.rotation_model(VMF[3], 3), x, draws=8, progress=False)
    tight(bound.values, VMF[3].log_prob(u) + radial, bias=0.003)  # of the norms' KDE


@pytest.mark.parametrize("noise", ["ring", "dense"])
def test_it_is_tight_for_noise_of_other_kinds(noise: str) -> None:
    process = Rotation(noise)
    net = TiltedNet(process, torch.tensor([0.5, 0.2, -0.3]))
    u = net.sample(200).double()
    x, radial = exact.with_norms(u)
    bound = elbo(exact.rotation_model(net, 3, process), x, draws=8, progress=False)
    tight(bound.values, torch.log((1 + u @ net.tilt) / (4 * math.pi)) + radial, bias=0.003)


def test_it_is_tight_for_gaussians() -> None:
    x = sde.gaussian_data(400)
    truth = torch.distributions.MultivariateNormal(sde.MEAN, sde.COVARIANCE).log_prob(x.double())
    tight(elbo(sde.exact_model(), x, draws=32, progress=False).values, truth)


def test_a_wrong_score_costs_half_its_squared_error() -> None:
    """f + b has the score error b / sigma: the bound loses int |b|^2 / (1 - e^-B) dB / 2."""
    x, model = sde.gaussian_data(400), sde.exact_model()
    exactly = elbo(model, x, draws=32, seed=1, progress=False).values
    b = torch.tensor([0.2, -0.1, 0.3])
    with torch.no_grad():
        model.net.bias.copy_(b)
    short = exactly - elbo(model, x, draws=32, seed=1, progress=False).values
    first, last = model.probability_flow().noise_levels
    expected = float(b.square().sum()) / 2 * math.log(math.expm1(last) / math.expm1(first))
    assert float(short.mean()) == pytest.approx(
        expected, abs=4 * float(short.std()) / len(x) ** 0.5
    )
    assert expected > 0.3


RATES, AXES = torch.linalg.eigh(sde.CORRELATION)


def reverse_sde_variances(model: VPModel, gain: float) -> Tensor:
    """Return the variances (3,) of the reverse SDE from N(0, I), for the exact score times a gain.

    It is linear, so that the states are Gaussian; per axis of the correlation the variance v obeys
    dv = [2 (1/2 - gain / c(B)) v + 1] d(-B), with c = e^-B rate + 1 - e^-B that of the data.
    """
    first, last = model.probability_flow().noise_levels
    solution = solve_ivp(
        lambda B, v: -(2 * (0.5 - gain / (1 + math.exp(-B) * (RATES.numpy() - 1))) * v + 1),
        (last, first),
        np.ones(3),
        rtol=1e-9,
        atol=1e-12,
    )
    return torch.from_numpy(solution.y[:, -1])


def reverse_sde_log_prob(model: VPModel, x: Tensor, gain: float) -> Tensor:
    """Return log p(x) (n,) of the reverse SDE."""
    z = ((x.double() - sde.MEAN) / sde.DEVIATION) @ AXES
    normal = torch.distributions.Normal(0.0, reverse_sde_variances(model, gain).sqrt())
    return normal.log_prob(z).sum(1) - torch.log(sde.DEVIATION).sum()


def expected_gap(model: VPModel, gain: float) -> float:
    """Return E log p(x) of the reverse SDE minus the bound over the data, with all integrals done.

    int dB / c = log(e^B + rate - 1), E|score|^2 = gain^2 / c and div score = -gain / c.
    """
    first, last = model.probability_flow().noise_levels
    v = reverse_sde_variances(model, gain)
    log_p = -(torch.log(v) + RATES / v) / 2
    at_end = 1 + math.exp(-last) * (RATES - 1)
    integral = torch.log((math.exp(last) + RATES - 1) / (math.exp(first) + RATES - 1))
    bound = -at_end / 2 - (last - first) / 2 - (gain**2 / 2 - gain) * integral
    return float((log_p - bound).sum())


def test_it_is_below_the_density_of_the_reverse_sde_and_not_of_the_flow() -> None:
    """For a score that is a fifth too small, by paired differences of the same samples."""
    x, model, gain = sde.gaussian_data(200), sde.exact_model(), 0.8
    truth = torch.distributions.MultivariateNormal(sde.MEAN, sde.COVARIANCE).log_prob(x.double())
    torch.testing.assert_close(reverse_sde_log_prob(model, x, 1.0), truth, rtol=0, atol=0.03)
    with torch.no_grad():
        model.net.gain.fill_(gain)
    bound = elbo(model, x, draws=32, progress=False).values
    gap = reverse_sde_log_prob(model, x, gain) - bound
    error = float(gap.std()) / len(gap) ** 0.5
    assert float(gap.mean()) > 3 * error
    assert float(gap.mean()) == pytest.approx(expected_gap(model, gain), abs=4 * error)
    above = bound - log_likelihood(model, x, solver="rk4", steps=20, progress=False).values
    assert float(above.mean()) > 3 * float(above.std()) / len(gap) ** 0.5


def test_it_is_the_training_loss_of_msgm() -> None:
    """Up to T, d and the constant; at one sample of the noise the two have the same."""
    u = VMF[3].sample(20)
    x, model = exact.with_norms(u)[0].float(), exact.rotation_model(VMF[3], 3, Rotation("ring"))
    r = x.double().norm(dim=1)
    constant = model.prior.log_density(r) - 2 * torch.log(r) - math.log(4 * math.pi)
    for seed in (7, 8):
        with torch.no_grad():
            loss = model.default_loss(model, x, rng.stream(seed), 0).double()
        bound = elbo(model, x, draws=1, seed=seed, progress=False).values
        torch.testing.assert_close(bound, constant - 3 * (1 - 1e-3) * loss)


def test_the_network_is_not_called_below_the_noise_it_was_trained_at() -> None:
    """Denoising score matching trains from B_MIN on, here the time 9.1e-3 and not 1e-3."""

    class Spy(nn.Module):
        lowest = math.inf

        def forward(self, x: Tensor, c: Tensor, **condition: Tensor) -> Tensor:
            self.lowest = min(self.lowest, float(torch.exp(3 * c.double() - 3).min()))
            return 0 * x

    spy, process = Spy(), Rotation(beta_min=0.01, beta_max=1.0)
    model = exact.rotation_model(spy, 3, process)
    x = exact.with_norms(VMF[3].sample(2000))[0]
    elbo(model, x, draws=2, progress=False)
    smallest = model.probability_flow().noise_levels[0]
    assert smallest * (1 - 1e-5) < spy.lowest < 1.5 * smallest  # c_noise is float32


def test_the_integral_begins_where_denoising_score_matching_does() -> None:
    """It is then that of sliced score matching from the same time on, with the same noise."""
    process = Rotation(beta_min=0.01, beta_max=1.0)
    model = exact.rotation_model(TiltedNet(process, torch.tensor([0.5, 0.2, -0.3])), 3, process)
    x = exact.with_norms(VMF[3].sample(20))[0].float()
    bound = elbo(model, x, draws=1, seed=7, progress=False).values
    first = float(process.time(model.probability_flow().noise_levels[0]))
    assert first > 5e-3
    model.preconditioning = dataclasses.replace(model.preconditioning, time_min=first)
    with torch.no_grad():
        loss = SlicedScoreMatching()(model, x, rng.stream(7), 0).double()
    r = x.double().norm(dim=1)
    constant = model.prior.log_density(r) - 2 * torch.log(r) - math.log(4 * math.pi)
    torch.testing.assert_close(bound, constant - 3 * (1 - first) * loss)


def test_it_is_the_loss_of_the_additive_process_written_out() -> None:
    """The bound of Song et al. (2021), from the exact Gaussian score and its exact divergence."""
    x, model = sde.gaussian_data(50), sde.exact_model()
    state = (x.double() - sde.MEAN) / sde.DEVIATION
    stream, total = rng.stream(3), torch.zeros(50, dtype=torch.float64)
    rates, axes = torch.linalg.eigh(sde.CORRELATION)
    for draw in range(60):
        uniform = rng.uniforms(50, 1, stream, rng.Purpose.TRAINING_TIME, draw)[:, :1]
        t = 1e-3 + (1 - 1e-3) * (draw + uniform) / 60
        B, beta = 0.1 * t + 19.9 * t * t / 2, 0.1 + 19.9 * t
        z = rng.normals(50, 3, stream, rng.Purpose.TRAINING_NOISE, draw, torch.float64)
        x_t = torch.exp(-B / 2) * state + torch.sqrt(-torch.expm1(-B)) * z
        precisions = 1 / (torch.exp(-B) * rates - torch.expm1(-B))
        score = -(x_t @ axes * precisions) @ axes.T
        integrand = score.square().sum(1) / 2 - precisions.sum(1)
        total += (1 - 1e-3) * beta[:, 0] * integrand
    first, last = 0.1e-3 + 19.9e-6 / 2, 10.05
    at_end = -(math.exp(-last) * state.square().sum(1) - 3 * math.expm1(-last)) / 2
    prior = at_end - 1.5 * math.log(2 * math.pi) - 1.5 * (last - first)
    expected = prior - total / 60 - torch.log(sde.DEVIATION).sum()
    bound = elbo(model, x, draws=60, seed=3, progress=False).values
    # The loss has Rademacher probes in place of the exact trace.
    tight(bound, expected)
    assert float((bound - expected).abs().mean()) < 0.3


def test_draws_and_batches() -> None:
    y = MIXTURE.sample(10)
    model = exact.log_normal_model(MIXTURE)
    whole = elbo(model, torch.exp(y), draws=3, seed=2, progress=False).values
    parts = elbo(model, torch.exp(y), draws=3, seed=2, batch_size=4, progress=False).values
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="draws must be at least 1, got 0"):
        elbo(model, torch.exp(y), draws=0, progress=False)
