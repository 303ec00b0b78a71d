"""Sliced score matching: the exact score is its minimum, for rotations and for VP."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastmsgm import rng
from fastmsgm.gbm import GBM, GBMModel
from fastmsgm.nets import MLP
from fastmsgm.probes import PROBES, sample_probes
from fastmsgm.rotation import Rotation, RotationModel
from fastmsgm.sde import SlicedScoreMatching
from tests.rotation.exact import TiltedNet
from tests.rotation.exact import exact_model as exact_rotation
from tests.sde.exact import CORRELATION, exact_model, gaussian_data

# Many small operations: a second thread costs more than it gives.
pytestmark = pytest.mark.usefixtures("one_thread")

# ---- VP ----


def test_the_exact_score_is_a_stationary_point() -> None:
    model, loss = exact_model(), SlicedScoreMatching()

    def t_statistics(gain: float, bias: float) -> Tensor:
        """Return those of the gradients by gain and bias, over batches."""
        nn.init.constant_(model.net.gain, gain)
        nn.init.constant_(model.net.bias, bias)
        batches = []
        for step in range(40):
            states = model.to_state(gaussian_data(400, seed=step))
            value = loss(model, states, rng.stream(0), step).mean()
            batches.append(torch.cat(torch.autograd.grad(value, (model.net.gain, model.net.bias))))
        gradients = torch.stack(batches).double()
        return gradients.mean(0) / (gradients.std(0) / len(batches) ** 0.5)

    assert float(t_statistics(1.0, 0.0).abs().max()) < 4.5
    assert float(t_statistics(1.3, 0.0)[:3].min()) > 4.5
    assert float(t_statistics(1.0, 0.3)[3:].min()) > 4.5
    assert float(t_statistics(1.0, -0.3)[3:].max()) < -4.5


@torch.no_grad()
def test_the_exact_score_has_the_least_loss_and_its_value_is_known() -> None:
    """By parts it is -E beta |score|^2 / 2 per feature, with E |score|^2 = tr C_B^-1."""
    model, loss = exact_model(), SlicedScoreMatching()
    states, stream = model.to_state(gaussian_data(20_000)), rng.stream(1)
    values = {}
    for gain in (0.7, 1.0, 1.3):
        model.net.gain.fill_(gain)
        values[gain] = float(loss(model, states, stream, 0).mean())
    assert values[1.0] < min(values[0.7], values[1.3]) - 0.01
    t = 1e-3 + (1 - 1e-3) * (np.arange(20_000) + 0.5) / 20_000
    alpha2 = np.exp(-model.process.integrated_beta(t))
    rates = torch.linalg.eigvalsh(CORRELATION).numpy()
    squares = (1 / (alpha2[:, None] * rates + 1 - alpha2[:, None])).sum(1)
    expected = -float((model.process.beta(t) * squares).mean()) / 6
    assert values[1.0] == pytest.approx(expected, rel=0.03)


def test_it_is_the_loss_of_vp_models() -> None:
    model = exact_model()
    states = model.to_state(gaussian_data(50))
    expected = SlicedScoreMatching()(model, states, rng.stream(2), 3)
    assert torch.equal(model.default_loss(model, states, rng.stream(2), 3), expected)


# ---- rotations ----


def rotation(noise: str) -> Rotation:
    return Rotation(noise=noise, beta_min=0.5, beta_max=2.0)


@pytest.mark.parametrize(
    ("process", "tilt", "probes"),
    [
        *((rotation("isotropic"), (0.5, 0.0, 0.8), probes) for probes in PROBES),
        *((rotation("ring"), (0.5, 0.0, 0.8), probes) for probes in PROBES),
        (rotation("ring"), (0.3, 0.4, 0.0, -0.5, 0.6), "rademacher"),
        (rotation("dense"), (0.5, 0.5, -0.6, 0.2), "rademacher"),
    ],
)
def test_the_loss_of_the_exact_score_of_a_rotation(
    process: Rotation, tilt: tuple[float, ...], probes: str
) -> None:
    """By parts E beta (|a|^2 / 2 + div G a) = -E beta |a|^2 / 2, whatever the norms."""
    net, loss = TiltedNet(process, torch.tensor(tilt)), SlicedScoreMatching(probes)
    d, batches = len(tilt), 8
    model = exact_rotation(net, d, process, objective="ssm", forward_steps=12)
    differences, expected = [], []
    for step in range(batches):
        x0 = net.sample(3000, seed=step) * torch.exp(torch.linspace(-2, 2, 3000))[:, None]
        with torch.no_grad():
            value = float(loss(model, x0, rng.stream(0), step).mean())
        u, score, B = net.seen
        beta = torch.from_numpy(process.beta(process.time(B.numpy())))
        expected.append(
            -float((beta * process.g_transpose_prod(u, score).square().sum(1)).mean()) / 2 / d
        )
        differences.append(value - expected[-1])
    error = float(np.std(differences, ddof=1)) / batches**0.5
    # Student's t with 7 degrees of freedom: p = 1.6e-3.
    assert abs(float(np.mean(differences))) < 5 * error
    assert -float(np.mean(expected)) > 8 * error


# ---- probes ----


@pytest.mark.parametrize("probes", PROBES)
def test_probes_have_unit_covariance(probes: str) -> None:
    v = sample_probes(probes, 20_000, 4, rng.stream(0), 0)
    covariance = v.double().T @ v.double() / len(v)
    assert float((covariance - torch.eye(4)).abs().max()) < 4.5 * math.sqrt(2 / len(v))
    lengths = v.norm(dim=1)
    assert (probes == "gaussian") == (float(lengths.std()) > 0.1)
    if probes == "rademacher":
        assert v.unique().tolist() == [-1, 1]


@pytest.mark.parametrize("probes", PROBES)
def test_a_model_keeps_its_probes(probes: str) -> None:
    data = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    net, process = MLP(3, 8, 1, condition={"log_norm": 1}), Rotation(noise="ring")
    model = RotationModel.for_data(net, process, data, probes=probes)
    expected = SlicedScoreMatching(probes)(model, data, rng.stream(0), 1)
    assert torch.equal(model.default_loss(model, data, rng.stream(0), 1), expected)


# ---- errors ----


def test_other_probes_are_refused() -> None:
    with pytest.raises(
        ValueError, match="probes must be one of rademacher, gaussian, sphere, got 'uniform'"
    ):
        SlicedScoreMatching("uniform")


def test_gbm_is_refused() -> None:
    data = torch.rand(20, 3) + 1
    model = GBMModel.for_data(MLP(3, 8, 1), GBM(5.0), data)
    message = "model must be a RotationModel or a VPModel for sliced score matching, got GBMModel"
    with pytest.raises(TypeError, match=message):
        SlicedScoreMatching()(model, data, rng.stream(0), 0)
