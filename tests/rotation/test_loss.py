"""Denoising score matching on the sphere, and what both losses of rotations have in common."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastmsgm import rng
from fastmsgm.gbm import GBM, GBMModel
from fastmsgm.nets import MLP
from fastmsgm.rotation import Rotation, RotationModel, SphericalDenoisingLoss
from fastmsgm.rotation.angle_distribution import AngleDistribution
from fastmsgm.rotation.heat_kernel import log_kernel, rho
from fastmsgm.rotation.preconditioning import B_MIN
from tests.rotation.exact import MixtureNet, TiltedNet, exact_model, heavy_tails, vectors


def mean_square_of_the_target(d: int) -> float:
    """Return E |score|^2 / rho^2 over log B uniform, by quadrature over B and the angle."""
    nodes, weights = np.polynomial.legendre.leggauss(9)
    ends = np.log([B_MIN, Rotation().B_max])
    total, (angle, angle_weights) = 0.0, np.polynomial.legendre.leggauss(80)
    for node, weight in zip(nodes, weights, strict=True):
        B = math.exp(ends[0] + (ends[1] - ends[0]) * (node + 1) / 2)
        angles = AngleDistribution(d, B)
        theta = angles.low + (angles.high - angles.low) * (angle + 1) / 2
        score = np.sin(theta) * log_kernel(theta, angles.tau, d)[1]
        integral = np.sum(angle_weights * angles.density(theta) * score**2)
        integral *= (angles.high - angles.low) / 2
        total += weight / 2 * float(integral / rho(B, d) ** 2)
    return total


@torch.no_grad()
@pytest.mark.parametrize(("d", "bound"), [(3, 0.03), (16, 0.012)])
def test_a_network_that_returns_zero_has_a_loss_of_about_one(d: int, bound: float) -> None:
    """One at small B, d / (d - 1) at large B; a radial output counts as zero."""
    expected = mean_square_of_the_target(d)
    assert 1 < expected < d / (d - 1)
    for f in (lambda x, c, **_: torch.zeros_like(x), lambda x, c, **_: 2 * x):
        model = vectors(d=d)
        model.net.forward = f
        losses = SphericalDenoisingLoss()(model, heavy_tails(16_000, d), rng.stream(0), 0)
        assert losses.mean().item() == pytest.approx(expected, abs=bound)


@torch.no_grad()
@pytest.mark.parametrize("d", [3, 16])
def test_the_exact_network_of_one_data_point_has_no_loss(d: int) -> None:
    point = torch.randn(1, d, generator=torch.Generator().manual_seed(0))
    model = exact_model(MixtureNet(point, [0.0]), d)
    x0 = point * torch.linspace(0.1, 10, 2000)[:, None]
    assert float(SphericalDenoisingLoss()(model, x0, rng.stream(0), 0).mean()) < 1e-6


@torch.no_grad()
def test_the_exact_network_has_the_least_loss() -> None:
    """For a tilted distribution the loss is a parabola in the gain, with its minimum at 1."""
    net = TiltedNet(Rotation(), torch.tensor([0.3, 0.0, 0.8]))
    model, exact, values = exact_model(net, 3), net.forward, []
    x0, stream = net.sample(40_000), rng.stream(1)
    for gain in (0.5, 1.0, 1.5):
        model.net.forward = lambda x, c, gain=gain, **_: gain * exact(x, c)
        values.append(float(SphericalDenoisingLoss()(model, x0, stream, 0).mean()))
    low, least, high = values
    assert low > least
    assert high > least
    curvature = (low + high - 2 * least) / 0.25
    assert 1 - (high - low) / curvature == pytest.approx(1, abs=0.25)


# ---- both losses ----


@pytest.mark.parametrize(
    ("process", "objective"), [(Rotation(), "dsm"), (Rotation(), "ssm"), (Rotation("ring"), "ssm")]
)
def test_the_loss_is_the_same_in_an_evaluation(process: Rotation, objective: str) -> None:
    model, x0 = vectors(process, objective=objective), heavy_tails()
    learning = model.default_loss(model, x0, rng.stream(0), 3)
    assert learning.shape == (200,)
    learning.mean().backward()
    gradients = [p.grad for p in model.net.parameters() if p.grad is not None]
    assert sum(float(g.abs().sum()) for g in gradients) > 0
    with torch.no_grad():
        value = model.default_loss(model, x0, rng.stream(0), 3)
    assert not value.requires_grad
    torch.testing.assert_close(value, learning.detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("objective", ["dsm", "ssm"])
def test_samples_of_the_global_batch_have_their_own_noise(objective: str) -> None:
    model, x0 = vectors(objective=objective), heavy_tails(8)
    loss = model.default_loss
    whole = loss(model, x0, rng.stream(0, 4), 1)
    halves = [loss(model, x0[i : i + 4], rng.stream(0, 4 + i), 1) for i in (0, 4)]
    torch.testing.assert_close(torch.cat(halves), whole, rtol=1e-5, atol=1e-5)
    assert not torch.isclose(loss(model, x0, rng.stream(0, 4), 2), whole, rtol=1e-3).any()


@pytest.mark.parametrize("d", [3, 16])
def test_the_network_sees_unit_variance(d: int) -> None:
    model, seen = vectors(d=d), list[tuple[Tensor, Tensor, Tensor]]()

    class Spy(nn.Module):
        def forward(self, x: Tensor, c: Tensor, log_norm: Tensor) -> Tensor:
            seen.append((x.clone(), c.clone(), log_norm.clone()))
            return torch.zeros_like(x)

    model.net = Spy()
    model.default_loss(model, heavy_tails(400, d), rng.stream(0), 0)
    ((x, c, log_norm),) = seen
    assert c.shape == log_norm.shape == (400,)
    assert float((x.double().square().mean(1) - 1).abs().max()) < 1e-6


# ---- errors ----


def other_models() -> list[Any]:
    positive = heavy_tails().abs() + 1
    return [
        vectors(Rotation("ring")),
        vectors(Rotation("dense")),
        GBMModel.for_data(MLP(3, 8), GBM(5.0), positive),
    ]


@pytest.mark.parametrize("model", other_models(), ids=["ring", "dense", "gbm"])
def test_spherical_denoising_is_for_isotropic_rotations(model: Any) -> None:
    message = (
        "model must be a RotationModel of isotropic noise for this loss, got "
        f"{type(model).__name__}"
    )
    with pytest.raises(TypeError, match=message):
        SphericalDenoisingLoss()(model, heavy_tails(5), rng.stream(0), 0)


class Narrow(nn.Module):
    """Returns one feature too few."""

    def forward(self, x: Tensor, c: Tensor, log_norm: Tensor) -> Tensor:
        return x[:, :-1]


@pytest.mark.parametrize("process", [Rotation(), Rotation("ring")])
def test_a_network_whose_output_has_another_shape(process: Rotation) -> None:
    model = RotationModel.for_data(Narrow(), process, heavy_tails())
    message = r"net must return its input's shape \(200, 3\), got \(200, 2\)"
    with pytest.raises(ValueError, match=message):
        model.default_loss(model, heavy_tails(), rng.stream(0), 0)


def test_a_network_without_a_place_for_the_norm() -> None:
    model = RotationModel.for_data(MLP(3), Rotation(), heavy_tails())
    message = r"MLP was built with condition=\{\}, which has no 'log_norm': .*\{'log_norm': 1\}"
    with pytest.raises(ValueError, match=message):
        model.default_loss(model, heavy_tails(), rng.stream(0), 0)
