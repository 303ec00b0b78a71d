"""RotationModel: what its network is asked and answers, its two training objectives, fit, files and errors."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exact_rotation import MixtureNet, TiltedNet, exact_model, unit
from safetensors.torch import load_file
from torch import Tensor, nn

from fastmsgm import (
    GBM,
    GBMModel,
    NonFiniteError,
    RadialPrior,
    Rotation,
    RotationModel,
    ScoreModel,
    fit,
    load,
    losses,
    rng,
    sample,
)  # fmt: skip
from fastmsgm.angle_law import AngleLaw
from fastmsgm.heat_kernel import kappa, log_kernel, rho
from fastmsgm.losses.sliced import _probes
from fastmsgm.nets import MLP, UNet
from fastmsgm.rotation_model import CLOCK_MIN, PROBES


def data(n: int = 200, d: int = 3, seed: int = 0) -> Tensor:
    """Heavy-tailed vectors, more of them on one side."""
    z = torch.randn(n, d + 1, generator=torch.Generator().manual_seed(seed))
    return (z[:, :d] + 1) * torch.exp(z[:, d:])


def vectors(process: Rotation | None = None, d: int = 3, **options: Any) -> RotationModel:
    torch.manual_seed(0)
    net = MLP(d, 16, 2, conditions=2)
    return RotationModel.for_data(net, process or Rotation(), data(d=d), **options).eval()


def pictures(**options: Any) -> RotationModel:
    torch.manual_seed(0)
    net = UNet(1, 16, 32, 1, 2, conditions=2)
    nn.init.normal_(net.out.weight, std=0.05)
    images = torch.rand(20, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    return RotationModel.for_data(net, Rotation(), images, **{"offset": -0.5, **options}).eval()


def draw(model: ScoreModel | str, n: int, **options: Any) -> Tensor:
    return sample(model, n, **{"progress": False, "batch_size": 64, **options})


# ---- what the network is asked and answers ----


def test_conditions_are_the_clock_and_the_standardised_log_norm() -> None:
    x = data(500)
    model, norms = RotationModel.for_data(MLP(3, conditions=2), Rotation(), x), x.norm(dim=1)
    c = model.condition(np.geomspace(1e-4, 10, 500), norms)
    assert c.dtype == torch.float32
    assert c[:, 0].numpy() == pytest.approx((np.log(np.geomspace(1e-4, 10, 500)) + 3) / 3, rel=1e-5)
    assert float(c[:, 1].mean()) == pytest.approx(0, abs=1e-5)
    assert float(c[:, 1].std(correction=0)) == pytest.approx(1, abs=1e-5)
    one = model.condition(np.array([2.0]), norms)
    assert one[:, 0].unique().tolist() == pytest.approx([(math.log(2) + 3) / 3])
    assert torch.equal(one[:, 1], c[:, 1])


def test_the_denoised_direction_and_the_score_are_one_prediction() -> None:
    """rho n = kappa (D - alpha u): both columns say the same of f."""
    model, clocks = vectors(d=5), np.geomspace(1e-4, 10, 20)
    alpha, sigma, scale = model.coefficients(clocks).T
    assert alpha == pytest.approx(np.exp(-clocks / 2))
    assert scale == pytest.approx(kappa(clocks, 5) * sigma)
    assert scale == pytest.approx(rho(clocks, 5) / math.sqrt(5))
    f = torch.randn(20, 5)
    torch.testing.assert_close(model.score(f, clocks), f * torch.from_numpy(scale).float()[:, None])


@pytest.mark.parametrize("d", [3, 16])
def test_the_network_sees_unit_variance(d: int) -> None:
    model, seen = vectors(d=d), []

    class Watch(nn.Module):
        def forward(self, x: Tensor, c: Tensor) -> Tensor:
            seen.append((x.clone(), c.clone()))
            return torch.zeros_like(x)

    model.net = Watch()
    losses.loss(model, data(400, d), rng.stream(0), 0)
    draw(model, 50, steps=2)
    for x, c in seen:
        assert c.shape == (len(x), 2)
        assert float((x.double().square().mean(1) - 1).abs().max()) < 1e-6


# ---- denoising score matching ----


def mean_square_of_the_target(d: int) -> float:
    """E |score|^2 / rho^2 over log B uniform, by quadrature over the clock and the angle."""
    nodes, weights = np.polynomial.legendre.leggauss(9)
    ends = np.log([CLOCK_MIN, Rotation().clock_max])
    total, (angle, angle_weights) = 0.0, np.polynomial.legendre.leggauss(80)
    for node, weight in zip(nodes, weights, strict=True):
        clock = math.exp(ends[0] + (ends[1] - ends[0]) * (node + 1) / 2)
        law = AngleLaw(d, clock)
        theta = law.low + (law.high - law.low) * (angle + 1) / 2
        score = np.sin(theta) * log_kernel(theta, law.tau, d)[1]
        integral = np.sum(angle_weights * law.density(theta) * score**2) * (law.high - law.low) / 2
        total += weight / 2 * float(integral / rho(clock, d) ** 2)
    return total


@torch.no_grad()
@pytest.mark.parametrize(("d", "bound"), [(3, 0.03), (16, 0.012)])
def test_a_network_that_says_nothing_has_a_loss_of_one(d: int, bound: float) -> None:
    """One at small clocks, d / (d - 1) at large ones; a radial output says nothing either."""
    expected = mean_square_of_the_target(d)
    assert 1 < expected < d / (d - 1)
    for f in (lambda x, c: torch.zeros_like(x), lambda x, c: 2 * x):
        model = vectors(d=d)
        model.net.forward = f
        assert float(losses.loss(model, data(16_000, d), rng.stream(0), 0)) == pytest.approx(expected, abs=bound)


@torch.no_grad()
@pytest.mark.parametrize("d", [3, 16])
def test_the_exact_network_of_one_data_point_has_no_loss(d: int) -> None:
    centre = torch.randn(1, d, generator=torch.Generator().manual_seed(0))
    model = exact_model(MixtureNet(centre, [0.0]), d)
    x0 = centre * torch.linspace(0.1, 10, 2000)[:, None]
    assert float(losses.loss(model, x0, rng.stream(0), 0)) < 1e-6


def test_the_exact_network_has_the_least_loss() -> None:
    """A tilted law, whose score is known: its gain is stationary at one, and less or more is worse."""
    net = TiltedNet(Rotation(), torch.tensor([0.3, 0.0, 0.8]))
    model, exact = exact_model(net, 3), net.forward
    x0 = net.draw(40_000)
    stream, values = rng.stream(1), []
    with torch.no_grad():
        for gain in (0.5, 1.0, 1.5):
            model.net.forward = lambda x, c, gain=gain: gain * exact(x, c)
            values.append(float(losses.loss(model, x0, stream, 0)))
    # The loss is a parabola in the gain.
    low, least, high = values
    assert low > least
    assert high > least
    curvature = (low + high - 2 * least) / 0.25
    assert 1 - (high - low) / curvature == pytest.approx(1, abs=0.25)


# ---- sliced score matching ----


@pytest.mark.parametrize(
    ("process", "tilt", "probes"),
    [
        *((Rotation("isotropic", beta_min=0.5, beta_max=2.0), (0.5, 0.0, 0.8), probes) for probes in PROBES),
        *((Rotation("ring", beta_min=0.5, beta_max=2.0), (0.5, 0.0, 0.8), probes) for probes in PROBES),
        (Rotation("ring", beta_min=0.5, beta_max=2.0), (0.3, 0.4, 0.0, -0.5, 0.6), "rademacher"),
        (Rotation("dense", beta_min=0.5, beta_max=2.0), (0.5, 0.5, -0.6, 0.2), "rademacher"),
    ],
)
def test_ssm_of_the_exact_score(
    process: Rotation, tilt: tuple[float, ...], probes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The divergence integrates by parts: E beta (|a|^2 / 2 + div G a) = -E beta |a|^2 / 2, whatever the norms."""
    monkeypatch.setattr("fastmsgm.rotation_model.FORWARD_STEPS", 12)
    net = TiltedNet(process, torch.tensor(tilt))
    d, batches = len(tilt), 8
    model = exact_model(net, d, process, objective="ssm", probes=probes)
    differences, expected = [], []
    for step in range(batches):
        x0 = net.draw(3000, seed=step) * torch.exp(torch.linspace(-2, 2, 3000))[:, None]
        with torch.no_grad():
            value = float(losses.loss(model, x0, rng.stream(0), step))
        u, score, clocks = net.seen
        beta = torch.from_numpy(process.beta(process.time(clocks.numpy())))
        expected.append(-float((beta * process.turn_transposed(u, score).square().sum(1)).mean()) / 2 / d)
        differences.append(value - expected[-1])
    error = float(np.std(differences, ddof=1)) / batches**0.5
    assert abs(float(np.mean(differences))) < 5 * error  # Student's t with 7 degrees of freedom: p = 1.6e-3
    assert -float(np.mean(expected)) > 8 * error


@pytest.mark.parametrize("probes", PROBES)
def test_probes_have_unit_covariance(probes: str) -> None:
    v = _probes(probes, 20_000, 4, rng.stream(0), 0)
    covariance = v.double().T @ v.double() / len(v)
    assert float((covariance - torch.eye(4)).abs().max()) < 4.5 * math.sqrt(2 / len(v))
    lengths = v.norm(dim=1)
    assert (probes == "gaussian") == (float(lengths.std()) > 0.1)
    if probes == "rademacher":
        assert v.unique().tolist() == [-1, 1]


@pytest.mark.parametrize(
    ("process", "objective"), [(Rotation(), "dsm"), (Rotation(), "ssm"), (Rotation("ring"), "ssm")]
)
def test_the_loss_is_the_same_in_an_evaluation(process: Rotation, objective: str) -> None:
    model = vectors(process, objective=objective)
    learning = losses.loss(model, data(), rng.stream(0), 3)
    learning.backward()
    gradients = [p.grad for p in model.net.parameters() if p.grad is not None]
    assert float(sum(g.abs().sum() for g in gradients)) > 0
    with torch.no_grad():
        value = losses.loss(model, data(), rng.stream(0), 3)
    assert not value.requires_grad
    assert value.item() == pytest.approx(learning.item(), rel=1e-5)


@pytest.mark.parametrize("objective", ["dsm", "ssm"])
def test_rows_of_the_global_batch_have_their_own_noise(objective: str) -> None:
    model, x0 = vectors(objective=objective), data(8)
    whole = losses.loss(model, x0, rng.stream(0, 4), 1)
    halves = [losses.loss(model, x0[i : i + 4], rng.stream(0, 4 + i), 1).item() for i in (0, 4)]
    assert whole.item() == pytest.approx(sum(halves) / 2, rel=1e-5)
    assert losses.loss(model, x0, rng.stream(0, 4), 2).item() != pytest.approx(whole.item(), rel=1e-3)


# ---- fit ----


def train(model: RotationModel, x: Tensor, **options: Any) -> RotationModel:
    return fit(model, x, **{"steps": 10, "batch_size": 16, "warmup": 2, "progress": False, **options})


@pytest.mark.parametrize(
    ("process", "options"),
    [(Rotation(), {}), (Rotation(), {"objective": "ssm", "probes": "sphere"}), (Rotation("dense"), {})],
)
def test_a_stopped_run_goes_on_exactly(
    process: Rotation, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastmsgm.trainer.FLUSH_EVERY", 3)
    monkeypatch.setattr("fastmsgm.trainer.CHECKPOINT_SECONDS", 0.0)
    whole = train(vectors(process, **options), data(), out=tmp_path / "whole")
    original = losses.loss

    def cut(model: RotationModel, x0: Tensor, stream: Tensor, k: int, *rest: None) -> Tensor:
        if k == 7:
            raise OSError("power cut")
        return original(model, x0, stream, k, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(losses, "loss", cut)
        with pytest.raises(OSError, match="power cut"):
            train(vectors(process, **options), data(), out=tmp_path / "cut")
    resumed = train(vectors(process, **options), data(), out=tmp_path / "cut")
    assert (tmp_path / "cut" / "loss.csv").read_text() == (tmp_path / "whole" / "loss.csv").read_text()
    for a, b in zip(whole.net.parameters(), resumed.net.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ValueError, match=r"holds a run with other settings .*'process'"):
        train(vectors(Rotation(process.noise, beta_max=10.0), **options), data(), out=tmp_path / "cut")


@pytest.mark.parametrize("process", [Rotation(), Rotation("ring")])
def test_fit_learns(process: Rotation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastmsgm.rotation_model.FORWARD_STEPS", 8)
    x = torch.tensor([1.0, 2.0, -1.0]) * torch.exp(torch.linspace(-1, 1, 300))[:, None]
    torch.manual_seed(0)
    model = RotationModel.for_data(MLP(3, 32, 2, conditions=2), process, x)
    before = losses.loss(model, x, rng.stream(9), 0).item()
    train(model, x, steps=100, batch_size=64, lr=5e-3, ema=0.8)
    after = losses.loss(model, x, rng.stream(9), 0).item()
    assert after < (0.5 * before if model.objective == "dsm" else before - 0.1)


# ---- sampling: the stream ----


@pytest.mark.parametrize(
    ("build", "batch_size"),
    [
        (vectors, None),
        (vectors, 32),
        (pictures, 32),
        (lambda: vectors(Rotation("ring")), 32),
        (lambda: vectors(prior=TAILED), 32),
    ],
)
def test_a_part_of_the_stream_is_bit_equal(build: Any, batch_size: int | None) -> None:
    model, options = build(), {"seed": 3, "steps": 4, "batch_size": batch_size}
    whole = draw(model, 100, **options)
    assert torch.equal(whole[40:60], draw(model, 20, start=40, **options))
    assert torch.equal(whole[99:], draw(model, 1, start=99, **options))
    assert len(whole.unique(dim=0)) == 100


TAILED = RadialPrior.fit(data(), smooth=True, pareto=0.1)


@pytest.mark.parametrize("solver", ["euler", "sde-dpm++2m", "geodesic-euler", "geodesic-heun", "stratonovich-heun"])
def test_a_part_of_the_stream_is_bit_equal_for_other_solvers(solver: str) -> None:
    options: dict[str, Any] = {"seed": 3, "steps": 4, "batch_size": 32, "solver": solver}
    whole = draw(vectors(), 100, **options)
    assert torch.equal(whole[40:60], draw(vectors(), 20, start=40, **options))
    assert not torch.equal(whole, draw(vectors(), 100, **{**options, "seed": 4}))


def test_samples_are_the_priors_norms_in_the_datas_range() -> None:
    model, x = vectors(), draw(vectors(), 500, seed=2, steps=3)
    torch.testing.assert_close(x.norm(dim=1), model.prior.draw(500, rng.stream(2)), rtol=1e-6, atol=0)
    images = draw(pictures(bounds=(0.0, 1.0)), 30, steps=3)
    assert images.shape == (30, 1, 4, 4)
    assert float(images.min()) >= 0
    assert float(images.max()) <= 1
    unclamped = draw(pictures(), 30, steps=3)
    assert torch.equal(unclamped.clamp(0, 1), images)
    norms = pictures().prior.draw(30, rng.stream(0))
    torch.testing.assert_close((unclamped - 0.5).flatten(1).norm(dim=1), norms, rtol=1e-5, atol=0)


def test_callbacks_see_state_and_denoised_of_the_samples_norm() -> None:
    model, steps = vectors(), []
    x = draw(model, 20, steps=5, batch_size=32, callback=steps.append)
    levels = [step.level for step in steps]
    assert levels[0] == pytest.approx(model.process.clock_max)
    assert levels[-2:] == [pytest.approx(CLOCK_MIN), 0]
    assert levels == sorted(levels, reverse=True)
    for step in steps:
        torch.testing.assert_close(step.x[:20].norm(dim=1), x.norm(dim=1), rtol=1e-6, atol=0)
        assert (step.denoised is None) == (step.index == 0)
        if step.denoised is not None:
            torch.testing.assert_close(step.denoised[:20].norm(dim=1), x.norm(dim=1), rtol=1e-6, atol=0)
    assert torch.equal(steps[-1].x[:20], x)
    torch.testing.assert_close(steps[-1].denoised[:20], x, rtol=1e-5, atol=1e-6)


def test_a_lost_sample_is_named() -> None:
    model = vectors()
    inner = model.net.forward
    model.net.forward = lambda x, c: inner(x, c).index_fill(0, torch.tensor([5]), math.nan)
    with pytest.raises(NonFiniteError, match=r"non-finite state at step 0 in 1 samples \(5\)"):
        draw(model, 20, steps=3)
    assert draw(model, 5, steps=3).isfinite().all()


# ---- files ----


@pytest.mark.parametrize("build", [vectors, pictures])
def test_samples_after_load_are_bit_equal(build: Any, tmp_path: Path) -> None:
    model = build(prior=RadialPrior.fit(data(d=3), smooth=True, pareto=0.1), bounds=(-5.0, 5.0), offset=0.25)
    model.save(tmp_path)
    again = load(tmp_path)
    assert isinstance(again, RotationModel)
    for name in ("process", "objective", "probes", "offset", "bounds", "shape", "precision", "bandwidth", "tail"):
        assert getattr(again, name) == getattr(model, name), name
    assert torch.equal(again.log_norms, model.log_norms)
    options = {"steps": 4, "solver": "sde-dpm++2m", "seed": 1}
    assert torch.equal(draw(again, 50, **options), draw(model, 50, **options))
    assert torch.equal(draw(str(tmp_path), 50, **options), draw(model, 50, **options))


@pytest.mark.parametrize("noise", ["ring", "dense"])
def test_save_and_load_of_other_noises(noise: str, tmp_path: Path) -> None:
    model = vectors(Rotation(noise, beta_min=0.2, beta_max=8.0, seed=3), probes="gaussian", precision="bf16")
    model.save(tmp_path, torch.float16)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["process"] == {"name": "Rotation", "noise": noise, "beta_min": 0.2, "beta_max": 8.0, "seed": 3}
    assert config["shape"] == [3]
    weights = load_file(tmp_path / "model.safetensors")
    assert weights["log_norms"].dtype == torch.float32
    again = load(tmp_path)
    assert (again.process, again.objective, again.probes) == (model.process, "ssm", "gaussian")
    assert again.precision == "bf16"
    assert torch.equal(again.log_norms, model.log_norms)


# ---- errors ----


@pytest.mark.parametrize(
    ("process", "options", "message"),
    [
        (Rotation(), {"objective": "esm"}, "objective must be one of dsm, ssm, got 'esm'"),
        (Rotation(), {"probes": "uniform"}, "probes must be one of rademacher, gaussian, sphere, got 'uniform'"),
        (Rotation("ring"), {"objective": "dsm"}, r'objective "dsm" needs isotropic noise, .*ring.*: use "ssm"'),
        (Rotation("dense"), {"objective": "dsm"}, r'objective "dsm" needs isotropic noise, .*dense.*: use "ssm"'),
        (Rotation(), {"precision": "fp8"}, "precision must be one of fp32, bf16, fp16, got 'fp8'"),
        (Rotation(beta_min=1e-5, beta_max=1e-4), {}, r"largest clock must be above 0\.0001, got 5\.5e-05: raise"),
    ],
)  # fmt: skip
def test_for_data_refuses_options(process: Rotation, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vectors(process, **options)


@pytest.mark.parametrize(
    ("x", "offset", "error", "message"),
    [
        (torch.ones(3, 3, dtype=torch.int64), 0.0, TypeError, r"data must be floating point, got torch\.int64"),
        (np.ones((3, 3)), 0.0, TypeError, "data must be a tensor, got ndarray"),
        (torch.eye(3)[:2] * torch.tensor([[1.0], [0.0]]), 0.0, ValueError, "data must have no zero vectors, got 1"),
        (torch.ones(3, 3), -1.0, ValueError, "data must have no zero vectors, got 3"),
        (torch.full((3, 3), math.nan), 0.0, ValueError, "data must be finite, got NaN or infinity in 9 entries"),
        (torch.ones(3, 1), 0.0, ValueError, "at least 2 features"),
    ],
)
def test_for_data_refuses_data(x: Any, offset: float, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        RotationModel.for_data(MLP(3, conditions=2), Rotation(), x, offset=offset)


def test_fit_refuses_data_without_directions() -> None:
    with pytest.raises(ValueError, match="data must have no zero vectors, got 2"):
        train(vectors(), torch.cat((data(), torch.zeros(2, 3))))
    with pytest.raises(ValueError, match=r"data must be float32 of shape \(N, 3\), got torch\.float32 \(200, 4\)"):
        train(vectors(), data(d=4))


def test_fit_refuses_levels() -> None:
    with pytest.raises(ValueError, match="levels must be None but for a GBM denoiser"):
        train(vectors(), data(), levels=(0.0, 1.0))


def test_a_dense_tensor_that_is_too_large() -> None:
    with pytest.raises(ValueError, match=r"3\.7 GiB for d = 1000"):
        RotationModel.for_data(MLP(1000, 8, 1, conditions=2), Rotation("dense"), torch.ones(2, 1000))


class Wrong(nn.Module):
    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return x[:, :-1]


@pytest.mark.parametrize("process", [Rotation(), Rotation("ring")])
def test_a_network_whose_output_has_another_shape(process: Rotation) -> None:
    model = RotationModel.for_data(Wrong(), process, data())
    message = r"net must return its input's shape \(\d+, 3\), got \(\d+, 2\)"
    with pytest.raises(ValueError, match=message):
        losses.loss(model, data(), rng.stream(0), 0)
    with pytest.raises(ValueError, match=message):
        draw(model, 5)


def test_a_network_for_another_number_of_conditions() -> None:
    model = RotationModel.for_data(MLP(3), Rotation(), data())
    with pytest.raises(ValueError, match=r"built for 1 conditions a sample, got 2: build it with conditions=2"):
        losses.loss(model, data(), rng.stream(0), 0)
    positive = GBMModel.for_data(MLP(3, conditions=2), GBM(5.0), data().abs() + 1)
    with pytest.raises(ValueError, match=r"built for 2 conditions a sample, got 1: build it with conditions=1"):
        draw(positive, 5)


def test_directions_are_the_networks_alone() -> None:
    """Norms and directions of the samples are independent where the network ignores the norm."""
    x = draw(exact_model(TiltedNet(Rotation(), torch.tensor([0.9, 0.0, 0.0])), 3), 4000, steps=8, batch_size=4000)
    cos, logs = unit(x)[:, 0], x.double().norm(dim=1).log()
    assert abs(float(torch.corrcoef(torch.stack((cos, logs)))[0, 1])) < 4.5 / 4000**0.5


def test_loaded_norms_set_the_conditions() -> None:
    torch.manual_seed(0)
    small, large = torch.randn(50, 3), 100 * torch.randn(50, 3)
    ours, theirs = (RotationModel.for_data(MLP(3, 8, conditions=2), Rotation(), x) for x in (small, large))
    ours.load_state_dict(theirs.state_dict())
    clocks, norms = np.ones(50), large.norm(dim=1)
    assert torch.equal(ours.condition(clocks, norms), theirs.condition(clocks, norms))


def test_a_ring_that_ends_early_says_so(caplog: pytest.LogCaptureFixture) -> None:
    for d, said in ((4, False), (16, True)):
        caplog.clear()
        RotationModel.for_data(MLP(d, 8, conditions=2), Rotation("ring"), torch.randn(20, d))
        assert ("raise beta_max" in caplog.text) == said
