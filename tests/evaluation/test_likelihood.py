"""Log-likelihoods by the probability flow, against densities that are known in closed form."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastmsgm
from fastmsgm.evaluation.elbo import elbo
from fastmsgm.evaluation.likelihood import LogLikelihood, log_likelihood
from fastmsgm.evaluation.ode import adaptive_steps
from fastmsgm.model import ScoreModel
from fastmsgm.nets import MLP
from fastmsgm.rotation import RadialPrior, Rotation, RotationModel
from tests.evaluation import exact
from tests.gbm import exact as gbm
from tests.rotation.exact import TiltedNet
from tests.sde import exact as sde

# Of equal variances in all directions, as the GBM's prior has.
TRIANGLE = torch.tensor([[-1.0, 0.0], [0.5, 3**0.5 / 2], [0.5, -(3**0.5) / 2]])
MIXTURE = exact.Gaussians(TRIANGLE, torch.tensor([0.09, 0.3, 0.15]), torch.full((3,), 1 / 3))
CLASSES = exact.Gaussians(TRIANGLE[:2], torch.tensor([0.09, 0.09]), torch.tensor([0.6, 0.4]))
VMF = {
    3: exact.VonMisesFisher(torch.tensor([[1.0, 0.0, 0.2], [-0.3, 0.8, 0.5]]), [6.0, 2.0]),
    4: exact.VonMisesFisher(
        torch.tensor([[1.0, 0.0, 0.2, -1.0], [-0.3, 0.8, 0.5, 1.0]]), [5.0, 2.0]
    ),
}


def likelihood(model: ScoreModel, x: Tensor, **options: Any) -> LogLikelihood:
    return log_likelihood(model, x, progress=False, **options)


def close(result: LogLikelihood, truth: Tensor, atol: float) -> None:
    """Every value within ``atol``, and the mean within 1 % of the truth's."""
    torch.testing.assert_close(result.values, truth, rtol=0, atol=atol)
    assert abs(result.mean - float(truth.mean())) < 0.01 * abs(float(truth.mean()))


# ---- the truth ----


@pytest.mark.parametrize("d", [1, 2])
def test_log_normal_mixtures(d: int) -> None:
    mixture = exact.Gaussians(
        MIXTURE.means[:, :d] + 2, MIXTURE.variances, MIXTURE.log_weights.exp()
    )
    y = mixture.sample(30)
    result = likelihood(exact.log_normal_model(mixture), torch.exp(y))
    close(result, mixture.log_prob(y) - y.sum(1), atol=0.01)
    assert result.settings["divergence"] == "exact"


def test_many_features_by_hutchinsons_estimate() -> None:
    means = torch.randn(2, 70, generator=torch.Generator().manual_seed(0)) / 3
    mixture = exact.Gaussians(means, torch.tensor([0.2, 0.5]), torch.tensor([0.3, 0.7]))
    y = mixture.sample(100)
    truth = mixture.log_prob(y) - y.sum(1)
    model = exact.log_normal_model(mixture, sigma=9.0)
    result = likelihood(model, torch.exp(y), rtol=1e-4, atol=1e-4)
    assert result.settings["divergence"] == "1 Rademacher probes"
    error = result.values - truth
    assert abs(error.mean()) < 3 * error.std() / 10 + 0.01
    assert abs(error.mean()) < 0.01 * truth.mean().abs()


@pytest.mark.parametrize(("prediction", "mu"), [("hyvarinen", None), ("score", 0.1)])
def test_score_networks_give_the_density_of_slightly_noised_data(
    prediction: str, mu: float | None
) -> None:
    """Without prior mismatch: y of unit covariances from the prior's own log-normal."""
    model = gbm.exact_model(prediction, 0.8, mu)
    x = gbm.log_normal_data(60)
    variance = gbm.VARIANCE.double() + model.preconditioning.sigma_min**2
    end = gbm.VARIANCE.double() + 0.64  # the prior has the mean of these variances
    y = torch.log(x.double())
    z = (y - gbm.MEAN) / variance.sqrt()
    at_end = gbm.MEAN + z * end.sqrt()  # the flow keeps the quantiles of a Gaussian
    prior = torch.distributions.Normal(gbm.MEAN.double(), model.prior.std(0.8))
    truth = (prior.log_prob(at_end) + torch.log(end / variance) / 2 - y).sum(1)
    close(likelihood(model, x), truth, atol=0.002)


def test_von_mises_fisher_mixtures_times_a_known_norm() -> None:
    for d, net in VMF.items():
        u = net.sample(8)
        x, radial = exact.with_norms(u)
        result = likelihood(exact.rotation_model(net, d), x, rtol=1e-4, atol=1e-4)
        close(result, net.log_prob(u) + radial, atol=0.03)


@pytest.mark.parametrize(("noise", "d"), [("ring", 3), ("ring", 4), ("dense", 3), ("dense", 4)])
def test_noise_of_other_kinds(noise: str, d: int) -> None:
    process = Rotation(noise, beta_max=60.0)  # dense noise is slow to reach uniform directions
    net = TiltedNet(process, torch.tensor([0.5, 0.2, -0.3, 0.4])[:d])
    u = net.sample(50).double()
    x, radial = exact.with_norms(u)
    area = 2 * math.pi ** (d / 2) / math.gamma(d / 2)
    truth = torch.log((1 + u @ net.tilt) / area) + radial
    close(likelihood(exact.rotation_model(net, d, process), x), truth, atol=0.03)


def test_gaussians_of_the_additive_process() -> None:
    x = sde.gaussian_data(60)
    truth = torch.distributions.MultivariateNormal(sde.MEAN, sde.COVARIANCE).log_prob(x.double())
    close(likelihood(sde.exact_model(), x), truth, atol=0.003)


def test_gaussian_mixtures_of_the_additive_process() -> None:
    mean, scale, y = torch.tensor([3.0, -1.0]), torch.tensor([2.0, 0.5]), MIXTURE.sample(60)
    truth = MIXTURE.log_prob(y) - torch.log(scale).sum()
    close(likelihood(exact.vp_model(MIXTURE, mean, scale), mean + scale * y), truth, atol=0.01)


def test_the_classes_have_densities_of_their_own() -> None:
    model = exact.log_normal_model(CLASSES, classes=2)
    y, label = CLASSES.sample(40), torch.arange(40) % 2
    components = CLASSES.log_terms(y, 1.0, 0.0) - CLASSES.log_weights - y.sum(1, keepdim=True)
    result = likelihood(model, torch.exp(y), label=label)
    torch.testing.assert_close(result.values, components[range(40), label], rtol=0, atol=0.02)
    first = likelihood(model, torch.exp(y), label=0)
    torch.testing.assert_close(first.values, components[:, 0], rtol=2e-3, atol=0.02)


def test_means_without_classes_are_a_mixture() -> None:
    """At a small largest noise level the prior counts: nothing is learnt of one half of it."""
    model = gbm.exact_model("hyvarinen")
    x = gbm.log_normal_data(20)
    one = likelihood(model, x).values
    model.means = torch.cat((model.means, 1e6 * model.means))
    torch.testing.assert_close(likelihood(model, x).values, one - math.log(2))


# ---- how it is computed ----


@pytest.mark.parametrize(("solver", "steps", "atol"), [("rk4", 40, 0.01), ("heun", 150, 0.03)])
def test_fixed_steps(solver: str, steps: int, atol: float) -> None:
    y = MIXTURE.sample(40)
    model = exact.log_normal_model(MIXTURE)
    result = likelihood(model, torch.exp(y), solver=solver, steps=steps)
    close(result, MIXTURE.log_prob(y) - y.sum(1), atol)
    assert result.settings["network_calls"] == steps * (4 if solver == "rk4" else 2)


def test_tolerances_buy_accuracy() -> None:
    mean, scale, y = torch.zeros(2), torch.ones(2), MIXTURE.sample(12)
    model = exact.vp_model(MIXTURE, mean, scale)
    fine = likelihood(model, y, solver="rk4", steps=100).values
    errors, calls = [], []
    for tolerance in (1e-2, 1e-3, 1e-4):
        result = likelihood(model, y, rtol=tolerance, atol=tolerance)
        errors.append(float((result.values - fine).abs().mean()))
        calls.append(result.settings["network_calls"])
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    assert errors[2] < 5e-3
    assert calls == sorted(calls)


@pytest.mark.parametrize(("solver", "steps"), [("dopri5", None), ("rk4", 12)])
def test_values_do_not_depend_on_the_batch(solver: str, steps: int | None) -> None:
    y = MIXTURE.sample(11)
    model = exact.log_normal_model(MIXTURE)
    options: dict[str, Any] = {"probes": 2, "solver": solver, "steps": steps, "seed": 5}
    whole = likelihood(model, torch.exp(y), **options)
    parts = likelihood(model, torch.exp(y), batch_size=4, **options)
    torch.testing.assert_close(parts.values, whole.values, rtol=0, atol=1e-4)
    other = likelihood(model, torch.exp(y), **{**options, "seed": 6})
    assert float((other.values - whole.values).abs().max()) > 0.1  # other probes


def test_probes_are_unbiased_and_average_out() -> None:
    y = MIXTURE.sample(20).repeat(25, 1)
    model = exact.log_normal_model(MIXTURE)
    options: dict[str, Any] = {"solver": "rk4", "steps": 20}
    fine = likelihood(model, torch.exp(y[:20]), **options).values.repeat(25)
    error = likelihood(model, torch.exp(y), probes=1, **options).values - fine
    assert abs(error.mean()) < 3.5 * error.std() / len(y) ** 0.5
    averaged = likelihood(model, torch.exp(y), probes=8, **options).values - fine
    assert 0.2 < float(averaged.std() / error.std()) < 0.5  # 8^-1/2 = 0.35


def test_bfloat16_and_training_mode_change_nothing() -> None:
    x = torch.exp(torch.randn(5, 4, generator=torch.Generator().manual_seed(0)))
    torch.manual_seed(0)
    net = MLP(4, 16)
    nn.init.normal_(net.out.weight)
    model = fastmsgm.GBMModel.for_data(net, fastmsgm.GBM(3.0), x, precision="bf16").train()
    with torch.autocast("cpu", torch.bfloat16):
        result = likelihood(model, x, solver="rk4", steps=4)
    assert model.precision == "bf16"
    assert model.training
    model.precision = "fp32"
    torch.testing.assert_close(result.values, likelihood(model, x, solver="rk4", steps=4).values)


def test_offset_and_scale_are_the_datas_own() -> None:
    """log p of a shifted, scaled sample differs by the scale's logarithm alone."""
    y = MIXTURE.sample(20)
    model = exact.log_normal_model(MIXTURE)
    plain = likelihood(model, torch.exp(y))
    model.offset = 1.0
    shifted = likelihood(model, torch.exp(y) - 1)
    torch.testing.assert_close(shifted.values, plain.values)
    assert plain.standard_error == pytest.approx(float(plain.values.std()) / 20**0.5)


def test_one_sample_has_no_standard_error(recwarn: pytest.WarningsRecorder) -> None:
    result = likelihood(exact.log_normal_model(MIXTURE), torch.ones(1, 2), solver="rk4", steps=4)
    assert math.isnan(result.standard_error)
    assert "standard_error=nan" in repr(result)
    assert not recwarn.list


def test_inference_mode_changes_nothing() -> None:
    x, options = torch.exp(MIXTURE.sample(4)), {"solver": "rk4", "steps": 4}
    model = exact.log_normal_model(CLASSES, classes=2)
    label = torch.arange(4) % 2
    outside = likelihood(model, x, label=label, **options).values
    bound = elbo(model, x, label=label, draws=2, progress=False).values
    with torch.inference_mode():
        inside, inference_label = x.clone(), label.clone()
        assert inside.is_inference()
        assert torch.equal(
            likelihood(model, inside, label=inference_label, **options).values, outside
        )
        assert torch.equal(elbo(model, inside, label=label, draws=2, progress=False).values, bound)
        rotation = exact.with_norms(VMF[3].sample(4))[0]
        ring = exact.rotation_model(TiltedNet(Rotation("ring"), torch.ones(3) / 2), 3)
        assert elbo(ring, rotation, draws=2, progress=False).values.isfinite().all()
        built = fastmsgm.GBMModel.for_data(MLP(2, 8), fastmsgm.GBM(3.0), x)
    with pytest.raises(ValueError, match=r"model must be built outside torch\.inference_mode"):
        likelihood(built, x)


# ---- each equation by itself ----


def test_a_row_may_end_with_a_tiny_step() -> None:
    """One of 1e-10, while another row has many to go.

    The first row's derivative is zero but for the third stage of its first step, 1/32 long, which
    has such an error that the next steps are (1 - 1e-10) / 32 times 1, 5 and 25 long.
    """
    h, atol = 1 / 32, 1e-6
    pulse = atol / h * 16695 / 71 * 0.9**5 * (1 + 5e-10)

    def f(time: Tensor, z: Tensor, rows: Tensor) -> Tensor:
        third = (time > 0.25 * h) & (time < 0.35 * h)
        first = torch.where(rows == 0, pulse * third.double(), torch.cos(200 * time))
        return torch.stack((first, torch.zeros_like(first)), 1)

    z, calls = adaptive_steps(f, torch.zeros(2, 2, dtype=torch.float64), 0.0, 1.0, 0.0, atol)
    assert int(calls[0]) == 1 + 6 * 5  # the fifth step is the tiny one
    assert int(calls[1]) > 6 * 20
    assert float(z[0, 0]) == pytest.approx(h * pulse * 500 / 1113)
    assert float(z[1, 0]) == pytest.approx(math.sin(200) / 200, abs=1e-4)


# ---- arguments ----


def test_errors_say_what_to_do() -> None:
    model, x = exact.log_normal_model(MIXTURE), torch.ones(3, 2)
    for options, message in (
        ({"solver": "euler"}, "solver must be one of dopri5, heun, rk4"),
        ({"steps": 10}, 'steps must be None for "dopri5"'),
        ({"solver": "rk4", "steps": 0}, "steps must be at least 1"),
        ({"rtol": 0.0}, "rtol must be a positive number"),
        ({"probes": 0}, "probes must be at least 1"),
        ({"label": 1}, "label must be None for a model without classes"),
    ):
        with pytest.raises(ValueError, match=message):
            likelihood(model, x, **options)
    with pytest.raises(ValueError, match=r"x must have shape \(n, 2\), n >= 1, got \(3, 4\)"):
        likelihood(model, torch.ones(3, 4))
    with pytest.raises(ValueError, match="x must be finite, got NaN or infinity in 1 of 3"):
        likelihood(model, torch.tensor([[1.0, 1], [1, math.nan], [1, 1]]))
    with pytest.raises(ValueError, match="label must be given for a class-conditional model"):
        likelihood(exact.log_normal_model(CLASSES, classes=2), x)
    with pytest.raises(TypeError, match="x must be a tensor, got list"):
        likelihood(model, [[1.0, 1.0]])  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_samples_outside_the_support(value: float) -> None:
    with pytest.raises(ValueError, match="1 of 3 samples with zeros or other signs"):
        likelihood(
            exact.log_normal_model(MIXTURE), torch.tensor([[1.0, 1.0], [2.0, value], [1.0, 1.0]])
        )
    with pytest.raises(ValueError, match="x must have no zero vectors"):
        likelihood(exact.rotation_model(VMF[3], 3), torch.zeros(2, 3))


def test_norms_that_do_not_vary_have_no_density() -> None:
    prior = RadialPrior(torch.zeros(5))
    model = RotationModel(VMF[3], Rotation(), prior, shape=(3,), objective="dsm")
    with pytest.raises(ValueError, match="the norms do not vary, so they have no density"):
        likelihood(model, torch.eye(3))


def test_networks_without_a_derivative_and_families_without_a_flow() -> None:
    class Detached(nn.Module):
        def forward(self, x: Tensor, c: Tensor) -> Tensor:
            return torch.full_like(x, math.nan)

    model = fastmsgm.VPModel(Detached(), fastmsgm.VP(), torch.zeros(1, 2), torch.ones(1, 2))
    with pytest.raises(RuntimeError, match="could not be followed: its velocity is not finite"):
        likelihood(model, torch.ones(2, 2))
    with pytest.raises(ValueError, match="the log-density is not finite for 2 of 2 samples"):
        likelihood(model, torch.ones(2, 2), solver="rk4", steps=2)
    with pytest.raises(TypeError, match="must have a probability flow"):
        ScoreModel.probability_flow(model)
