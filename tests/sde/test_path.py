"""Sliced score matching over whole paths: the authors' expression, its value, what it calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastmsgm import fit, rng
from fastmsgm.gbm import GBM, GBMModel
from fastmsgm.nets import MLP
from fastmsgm.rotation import Rotation, RotationModel
from fastmsgm.sde import VP, PathScoreMatching, SlicedScoreMatching, VPModel
from tests.rotation.exact import TiltedNet
from tests.rotation.exact import exact_model as exact_rotation
from tests.sde.exact import CORRELATION, exact_model, gaussian_data

# Many small operations: a second thread costs more than it gives.
pytestmark = pytest.mark.usefixtures("one_thread")


def vectors(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def rotation(noise: str, d: int, **options: Any) -> RotationModel:
    torch.manual_seed(0)
    net, process = MLP(d, 16, 2, condition={"log_norm": 1}), Rotation(noise, 7)
    return RotationModel.for_data(net, process, vectors(100, d), objective="ssm", **options)


# ---- the authors' expression ----


def test_it_is_the_authors_expression_at_the_same_normals() -> None:
    """v . grad(v . sqrt(beta) G a) + |a|^2 / 2 with a = sqrt(beta) G^T score, at every t_k = k / K.

    Averaged over times; ours is also divided by d. G is the tensor of d^3 numbers, and the path is
    simulated by the classical Runge-Kutta method with the norms of the data.
    """
    n, d, steps, step = 5, 4, 6, 3
    model, x0 = rotation("dense", d), vectors(n, d, seed=1) * 3
    process, stream = model.process, rng.stream(11, 2)
    losses = PathScoreMatching(steps=steps)(model, x0, stream, step)
    assert losses.shape == (n,)

    tensor = process._generators(x0)
    assert float(tensor.square().sum()) == pytest.approx(d, rel=1e-5)
    x, before, expected = x0 / x0.norm(dim=1, keepdim=True), 0.0, torch.zeros(n)

    def move(x: Tensor, w: Tensor) -> Tensor:
        return torch.stack([(tensor @ w[i]) @ x[i] for i in range(n)])

    for k in range(steps):
        t = (k + 1) / steps
        B = float(process.integrated_beta(t))
        xi = rng.normals(n, d, stream, rng.Purpose.TRAINING_NOISE, step * steps + k)
        w = (B - before) ** 0.5 * xi
        k1 = move(x, w)
        k2 = move(x + k1 / 2, w)
        k3 = move(x + k2 / 2, w)
        x = x + (k1 + 2 * k2 + 2 * k3 + move(x + k3, w)) / 6
        x, before = (x / x.norm(dim=1, keepdim=True)).detach().requires_grad_(), B

        v = torch.sign(rng.normals(n, d, stream, rng.Purpose.PROBE, step * steps + k))
        log_norm = model.condition_of(x0.norm(dim=1))
        c_noise = torch.full((n,), float(model.preconditioning.c_noise(np.array([B]))[0]))
        f = model(d**0.5 * x, c_noise, **log_norm)
        score = model.preconditioning.score(f, np.full(n, B))
        root = float(process.beta(t)) ** 0.5
        a = root * torch.einsum("ijk,nj,ni->nk", tensor, x, score)
        ga = root * torch.einsum("ijk,nj,nk->ni", tensor, x, a)
        (gradient,) = torch.autograd.grad(ga, x, v)
        expected += (gradient * v).sum(1) + a.detach().square().sum(1) / 2
        x = x.detach()
    torch.testing.assert_close(losses.detach(), expected / steps / d, rtol=2e-4, atol=2e-4)


# ---- its value ----


@torch.no_grad()
def test_the_exact_score_of_vp_has_the_least_loss_and_its_value_is_known() -> None:
    """By parts it is -beta(t_k) tr C_k^-1 / 2 per feature, averaged over k."""
    model, loss = exact_model(), PathScoreMatching(steps=16)
    states, stream = model.to_state(gaussian_data(8_000)), rng.stream(1)
    values = {}
    for gain in (0.7, 1.0, 1.3):
        model.net.gain.fill_(gain)
        values[gain] = loss(model, states, stream, 0).double()
    t = np.arange(1, 17) / 16
    alpha2 = np.exp(-model.process.integrated_beta(t))
    rates = torch.linalg.eigvalsh(CORRELATION).numpy()
    squares = (1 / (alpha2[:, None] * rates + 1 - alpha2[:, None])).sum(1)
    expected = -float((model.process.beta(t) * squares).mean()) / 6
    error = float(values[1.0].std()) / 8_000**0.5
    assert error < 0.01 * abs(expected)
    assert float(values[1.0].mean()) == pytest.approx(expected, abs=4.5 * error)
    assert float(values[1.0].mean()) < min(float(values[g].mean()) for g in (0.7, 1.3)) - 0.01


@pytest.mark.parametrize(
    ("noise", "tilt"),
    [("isotropic", (0.5, 0.0, 0.8)), ("ring", (0.5, 0.0, 0.8)), ("dense", (0.5, 0.5, -0.6, 0.2))],
)
def test_the_exact_score_of_a_rotation(noise: str, tilt: tuple[float, ...]) -> None:
    """By parts E beta (|a|^2 / 2 + div G a) = -E beta |a|^2 / 2 at every time of the path."""
    process = Rotation(noise=noise, beta_min=0.5, beta_max=2.0)
    net, loss, d = TiltedNet(process, torch.tensor(tilt)), PathScoreMatching(steps=8), len(tilt)
    model = exact_rotation(net, d, process, objective="ssm")
    differences, expected = [], []
    for step in range(8):
        x0 = net.sample(1500, seed=step) * torch.exp(torch.linspace(-2, 2, 1500))[:, None]
        with torch.no_grad():
            value = float(loss(model, x0, rng.stream(0), step).mean())
        u, score, B = net.seen
        beta = torch.from_numpy(process.beta(process.time(B.numpy())))
        squares = process.g_transpose_prod(u, score).square().sum(1)
        expected.append(-float((beta * squares).mean()) / 2 / d)
        differences.append(value - expected[-1])
    error = float(np.std(differences, ddof=1)) / 8**0.5
    # Student's t with 7 degrees of freedom: p = 1.6e-3.
    assert abs(float(np.mean(differences))) < 5 * error
    assert -float(np.mean(expected)) > 8 * error


# ---- what it calls ----


class Spy(nn.Module):
    """Keeps what it is called with, and returns zero."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[dict[str, Tensor]] = []

    def forward(self, x: Tensor, c: Tensor, **condition: Tensor) -> Tensor:
        self.calls.append({"x": x.detach(), "c": c, **condition})
        return 0 * x


def test_the_network_is_called_once_on_the_times_above_time_min() -> None:
    """t = 1/4 is time_min itself and left out, as the authors do."""
    model = rotation("ring", 3, time_min=0.25)
    model.net, x0 = Spy(), vectors(5, 3, seed=2)
    PathScoreMatching(steps=4)(model, x0, rng.stream(0), 0, extra=torch.arange(5.0))
    (call,) = model.net.calls
    times = np.repeat([0.5, 0.75, 1.0], 5)
    c_noise = model.preconditioning.c_noise(model.process.integrated_beta(times))
    assert call["c"].tolist() == pytest.approx(c_noise.tolist(), rel=1e-5)
    assert call["extra"].tolist() == [*range(5)] * 3
    expected = model.condition_of(x0.norm(dim=1))["log_norm"]
    assert torch.equal(call["log_norm"], expected.repeat(3))
    torch.testing.assert_close(call["x"].norm(dim=1), torch.full((15,), 3**0.5))


def test_states_of_a_path_follow_each_other() -> None:
    """Directions of neighbouring times are as close as the noise between them, not independent."""
    model = rotation("isotropic", 3)
    model.net = Spy()
    PathScoreMatching(steps=10)(model, vectors(4000, 3, seed=3), rng.stream(0), 0)
    u = (model.net.calls[0]["x"] / 3**0.5).view(10, 4000, 3).double()
    cosines = (u[1:] * u[:-1]).sum(2).mean(1).numpy()
    B = model.process.integrated_beta(np.arange(1, 11) / 10)
    assert cosines == pytest.approx(np.exp(-np.diff(B) / 2), abs=4.5 * 0.6 / 4000**0.5)


MODELS: dict[str, Callable[[], Any]] = {
    "isotropic": lambda: rotation("isotropic", 3),
    "ring": lambda: rotation("ring", 3),
    "dense": lambda: rotation("dense", 3),
    "vp": lambda: VPModel.for_data(MLP(3, 16, 2), VP(), vectors(100, 3)),
}


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_it_is_a_function_of_seed_step_and_position(name: str) -> None:
    torch.manual_seed(0)
    model, x0, loss = MODELS[name](), vectors(12, 3, seed=4), PathScoreMatching(steps=5)
    whole = loss(model, x0, rng.stream(10), 3)
    assert torch.equal(whole, loss(model, x0, rng.stream(10), 3))
    parts = [loss(model, x0[i : i + 4], rng.stream(10, i), 3) for i in (0, 4, 8)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-4, atol=1e-4)
    assert not torch.isclose(whole, loss(model, x0, rng.stream(10), 4)).any()
    assert not torch.isclose(whole, loss(model, x0, rng.stream(9), 3)).any()


@torch.no_grad()
@pytest.mark.parametrize("loss", [PathScoreMatching(), SlicedScoreMatching()])
def test_evaluation_has_noise_of_its_own(loss: Any) -> None:
    """Its steps begin at 2^31, and 64 steps of a path times 2^31 are 0 modulo 2^32."""
    model, x0 = rotation("ring", 3, forward_steps=64), vectors(12, 3, seed=4)
    states = []
    for step in (7, 2**31 + 7):
        model.net = Spy()
        loss(model, x0, rng.stream(10), step)
        states.append(model.net.calls[0]["x"])
    assert not torch.isclose(*states).all(1).any()


def test_ordinary_steps_have_the_counters_of_their_parts() -> None:
    assert [rng.substep(5, 64, k) for k in (0, 63)] == [320, 383]
    assert rng.substep(2**31 + 5, 64, 1) == 2**31 + 321
    assert rng.substep(2**31 - 1, 64, 63) == 2**31 - 1


@pytest.mark.parametrize("name", ["ring", "vp"])
def test_fit_learns_with_it(name: str) -> None:
    torch.manual_seed(0)
    model = MODELS[name]()
    x = torch.tensor([1.0, 2.0, -1.0]) * torch.exp(torch.linspace(-1, 1, 300))[:, None]
    x += 0.1 * vectors(300, 3)
    loss = PathScoreMatching(steps=6)
    states = model.to_state(x)
    before = loss(model, states, rng.stream(9), 0).mean().item()
    fit(model, x, steps=60, batch_size=32, lr=5e-3, ema=0.8, loss=loss, progress=False)
    assert loss(model, states, rng.stream(9), 0).mean().item() < before - 0.02


# ---- errors ----


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="probes must be one of rademacher, gaussian, sphere, got"):
        PathScoreMatching("exact")
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        PathScoreMatching(steps=0)
    model = GBMModel.for_data(MLP(3, 8, 1), GBM(5.0), torch.rand(20, 3) + 1)
    message = "model must be a RotationModel or a VPModel for sliced score matching, got GBMModel"
    with pytest.raises(TypeError, match=message):
        PathScoreMatching()(model, torch.rand(20, 3) + 1, rng.stream(0), 0)
