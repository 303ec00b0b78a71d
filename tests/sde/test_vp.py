"""VP, the additive baseline: forward marginals, preconditioning, training, files, errors."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastmsgm import fit, load, rng, sample
from fastmsgm.gbm import DenoisingLoss
from fastmsgm.nets import MLP
from fastmsgm.sde import VP, VPModel
from fastmsgm.sde.vp import VPPreconditioning
from tests.sde.exact import exact_model, gaussian_data

# Many small operations: a second thread costs more than it gives.
pytestmark = pytest.mark.usefixtures("one_thread")


def vectors(process: VP | None = None, **options: Any) -> VPModel:
    torch.manual_seed(0)
    return VPModel.for_data(MLP(3, 16, 2), process or VP(), gaussian_data(200), **options).eval()


# ---- the process ----


@pytest.mark.parametrize("B", [1e-3, 0.3, 10.0])
def test_marginals_are_those_of_the_process(B: float) -> None:
    """N(e^{-B/2} x_0, 1 - e^{-B}), independent in every feature."""
    n, x0 = 20_000, torch.tensor([[3.0, -1.0]])
    x = exact_model().perturb_state(x0.expand(n, 2), np.full(n, B), rng.stream(0), 0).double()
    variance = -math.expm1(-B)
    mean_error = (x.mean(0) - math.exp(-B / 2) * x0[0].double()) / math.sqrt(variance / n)
    assert float(mean_error.abs().max()) < 4.5
    covariance_error = (torch.cov(x.T) / variance - torch.eye(2)) * math.sqrt(n / 2)
    assert float(covariance_error.abs().max()) < 4.5


def test_noise_depends_on_sample_and_step() -> None:
    model, x0, B = exact_model(), torch.ones(8, 3), np.linspace(0.1, 1, 8)
    x = model.perturb_state(x0, B, rng.stream(1), 5)
    assert torch.equal(x[3:], model.perturb_state(x0[3:], B[3:], rng.stream(1, 3), 5))
    assert not torch.isclose(x, model.perturb_state(x0, B, rng.stream(1), 6)).any()


@pytest.mark.parametrize("ito", [False, True])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_the_reverse_drift_keeps_a_standard_normal(eta: float, ito: bool) -> None:
    """With the score -x, drift and noise balance in every variance: 2 drift.x + eta = 0."""
    x = torch.eye(3)
    drift = VP().reverse_drift(x, -x, eta, ito)
    torch.testing.assert_close(2 * drift + eta * x, torch.zeros(3, 3))


@pytest.mark.parametrize("eta", [-0.1, 1.1, math.nan])
def test_the_reverse_drift_refuses_eta(eta: float) -> None:
    with pytest.raises(ValueError, match=r"eta must be in \[0, 1\]"):
        VP().reverse_drift(torch.ones(1, 3), torch.ones(1, 3), eta)


def test_the_noise_is_additive() -> None:
    x, v = torch.ones(2, 3), torch.tensor([[1.0, 2.0, 3.0], [-1.0, 0.5, 0.0]])
    process = VP()
    assert torch.equal(process.g_prod(x, v), v)
    assert torch.equal(process.g_transpose_prod(x, v), v)
    assert torch.equal(process.project(v), v)


# ---- the model ----


def test_the_network_sees_the_noise_level_and_predicts_the_noise() -> None:
    model, B = exact_model(), np.geomspace(1e-3, 10, 5)
    preconditioning = model.preconditioning
    assert isinstance(preconditioning, VPPreconditioning)
    assert preconditioning.c_noise(B) == pytest.approx((np.log(B) + 3) / 3, rel=1e-6)
    assert model.condition_of(torch.ones(5)) == {}
    seen: list[Tensor] = []
    model.net.forward = lambda x, c: (seen.append(c), 0 * x)[1]
    model.default_loss(model, torch.ones(200, 3), rng.stream(0), 0)
    assert seen[0].shape == (200,)
    assert seen[0].dtype == torch.float32
    levels = np.exp(3 * seen[0].double().numpy() - 3)
    t = model.process.time(levels)
    assert 0 < t.min() < 0.05
    assert 0.95 < t.max() <= 1
    f = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    sigma = torch.from_numpy(np.sqrt(1 - np.exp(-B))).float()
    torch.testing.assert_close(preconditioning.score(f, B), -f / sigma[:, None])
    assert (model.prediction, model.objective, preconditioning.c_in) == ("epsilon", "ssm", 1)


def test_standardised_states_are_undone() -> None:
    model, x = vectors(), gaussian_data(200)
    states = model.to_state(x)
    assert float(states.mean(0).abs().max()) < 1e-5
    assert states.std(0, correction=0).tolist() == pytest.approx([1, 1, 1])
    torch.testing.assert_close(model.to_data(states), x)


def test_fit_learns() -> None:
    model, states = vectors(), vectors().to_state(gaussian_data(2000, seed=1))
    before = model.default_loss(model, states, rng.stream(9), 0).mean().item()
    options: dict[str, Any] = {"lr": 5e-3, "ema": 0.8, "warmup": 2, "progress": False}
    fit(model, gaussian_data(200), steps=60, batch_size=64, **options)
    after = model.default_loss(model, states, rng.stream(9), 0).mean().item()
    assert after < before - 1


def test_samples_after_load_are_bit_equal(tmp_path: Path) -> None:
    model = vectors(VP(beta_min=0.2, beta_max=8.0))
    model.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["process"] == {"name": "VP", "beta_min": 0.2, "beta_max": 8.0}
    again = load(tmp_path)
    assert isinstance(again, VPModel)
    assert (again.process, again.shape, again.precision) == (model.process, (3,), "fp32")
    options: dict[str, Any] = {"steps": 4, "batch_size": 64, "seed": 2, "progress": False}
    assert torch.equal(sample(again, 30, **options), sample(model, 30, **options))


# ---- errors ----


@pytest.mark.parametrize(
    "x",
    [
        torch.tensor([[1.0, 2.0], [1.0, 3.0]]),
        torch.full((2, 2), math.nan),
        torch.tensor([[0.0, 1], [math.inf, 2]]),
    ],
)
def test_for_data_refuses_data_without_a_spread(x: Tensor) -> None:
    with pytest.raises(ValueError, match="data must be finite and vary in every feature"):
        VPModel.for_data(MLP(2), VP(), x)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.ones((3, 3)), "data must be a tensor, got ndarray"),
        (torch.ones(3, 3).long(), r"data must be floating point, got torch\.int64"),
    ],
)
def test_for_data_refuses_what_is_no_float_tensor(x: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        VPModel.for_data(MLP(3), VP(), x)


def test_the_model_refuses_another_process_and_another_precision() -> None:
    process: Any = "vp"
    with pytest.raises(TypeError, match="process must be a VP, got str"):
        VPModel.for_data(MLP(3), process, gaussian_data(20))
    with pytest.raises(ValueError, match="precision must be one of fp32, bf16, fp16, got 'fp8'"):
        vectors(precision="fp8")


def test_fit_refuses_data_that_are_not_finite() -> None:
    with pytest.raises(ValueError, match="data must be finite, got NaN or infinity"):
        fit(vectors(), torch.full((5, 3), math.nan), steps=1, progress=False)


def test_fit_refuses_a_loss_of_another_family() -> None:
    with pytest.raises(TypeError, match="model must be a GBMModel for this loss, got VPModel"):
        fit(vectors(), gaussian_data(5), steps=1, loss=DenoisingLoss(), progress=False)
