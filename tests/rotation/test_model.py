"""RotationModel: what its network sees, training, samples, files, and what is refused."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fastmsgm import NonFiniteError, ScoreModel, Step, fit, load, rng, sample
from fastmsgm.gbm import GBM, GBMModel
from fastmsgm.nets import MLP, UNet
from fastmsgm.rotation import RadialPrior, Rotation, RotationModel
from fastmsgm.rotation.heat_kernel import kappa, rho
from fastmsgm.rotation.preconditioning import B_MIN, RotationPreconditioning
from fastmsgm.rotation.ring import RingSplitting
from fastmsgm.rotation.spherical import SphericalMultistep
from fastmsgm.sampling import plan_for
from tests.rotation.exact import TiltedNet, exact_model, heavy_tails, unit, vectors

# Many small operations: a second thread costs more than it gives.
pytestmark = pytest.mark.usefixtures("one_thread")


def images(**options: Any) -> RotationModel:
    torch.manual_seed(0)
    net = UNet(1, 16, 32, 1, 2, condition={"log_norm": 1})
    nn.init.normal_(net.out.weight, std=0.05)
    data = torch.rand(20, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    return RotationModel.for_data(net, Rotation(), data, **{"offset": -0.5, **options}).eval()


def sampled(model: ScoreModel | str, n: int, **options: Any) -> Tensor:
    return sample(model, n, **{"progress": False, "batch_size": 64, **options})


def log_norm(model: RotationModel, norms: Tensor) -> Tensor:
    return model.condition_of(norms)["log_norm"]


# ---- what the network sees, and what its output means ----


def test_the_conditioning_is_the_noise_level_and_the_standardised_log_norm() -> None:
    x, B = heavy_tails(500), np.geomspace(1e-4, 10, 500)
    model, norms = (
        RotationModel.for_data(MLP(3, condition={"log_norm": 1}), Rotation(), x),
        x.norm(dim=1),
    )
    assert model.preconditioning.c_noise(B) == pytest.approx((np.log(B) + 3) / 3)
    condition = model.condition_of(norms)
    assert list(condition) == ["log_norm"]
    log_norm = condition["log_norm"]
    assert log_norm.shape == (500,)
    assert log_norm.dtype == torch.float32
    assert float(log_norm.mean()) == pytest.approx(0, abs=1e-5)
    assert float(log_norm.std(correction=0)) == pytest.approx(1, abs=1e-5)
    assert torch.equal(model.condition_of(norms[:7])["log_norm"], log_norm[:7])


def test_training_and_sampling_tell_the_network_noise_level_and_log_norm() -> None:
    model = vectors()
    seen: list[dict[str, Tensor]] = []

    def spy(x: Tensor, c: Tensor, **condition: Tensor) -> Tensor:
        seen.append({"c_noise": c.clone(), **{k: v.clone() for k, v in condition.items()}})
        return torch.zeros_like(x)

    model.net.forward = spy
    samples = sampled(model, 64, steps=3)
    plan = plan_for(model, steps=3)
    for called, c_noise in zip(seen, plan.c_noise, strict=True):
        assert called.keys() == {"c_noise", "log_norm"}
        assert called["c_noise"].dtype == called["log_norm"].dtype == torch.float32
        assert called["c_noise"].tolist() == pytest.approx([float(c_noise)] * 64, rel=1e-6)
        expected = model.condition_of(samples.norm(dim=1))["log_norm"]
        torch.testing.assert_close(called["log_norm"], expected, rtol=0, atol=1e-5)
    seen.clear()
    x = heavy_tails()
    model.default_loss(model, x, rng.stream(0), 0)
    (called,) = seen
    assert called["c_noise"].dtype == torch.float32
    B = torch.exp(3 * called["c_noise"].double() - 3)
    assert float(B.min()) > 0.99 * B_MIN
    assert float(B.max()) < 1.01 * model.process.B_max
    assert len(B.unique()) == 200
    assert torch.equal(called["log_norm"], model.condition_of(x.norm(dim=1))["log_norm"])


def test_the_denoised_direction_and_the_score_are_one_prediction() -> None:
    """rho n = kappa (D - alpha u), for both columns of coefficients."""
    preconditioning, B = vectors(d=5).preconditioning, np.geomspace(1e-4, 10, 20)
    alpha, sigma, scale = preconditioning.coefficients(B).T
    assert alpha == pytest.approx(np.exp(-B / 2))
    assert scale == pytest.approx(kappa(B, 5) * sigma)
    assert scale == pytest.approx(rho(B, 5) / math.sqrt(5))
    f = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    expected = f * torch.from_numpy(scale).float()[:, None]
    torch.testing.assert_close(preconditioning.score(f, B), expected)


@pytest.mark.parametrize("d", [3, 16])
def test_the_network_sees_unit_variance_in_every_step(d: int) -> None:
    model, seen = vectors(d=d), list[tuple[Tensor, Tensor, Tensor]]()

    class Spy(nn.Module):
        def forward(self, x: Tensor, c: Tensor, log_norm: Tensor) -> Tensor:
            seen.append((x.clone(), c.clone(), log_norm.clone()))
            return torch.zeros_like(x)

    model.net = Spy()
    sampled(model, 50, steps=2)
    assert len(seen) == 2
    for x, c, log_norm in seen:
        assert c.shape == log_norm.shape == (len(x),)
        assert float((x.double().square().mean(1) - 1).abs().max()) < 1e-6


def test_directions_depend_on_the_network_alone() -> None:
    """Norms and directions of the samples are independent where the network ignores the norm."""
    model = exact_model(TiltedNet(Rotation(), torch.tensor([0.9, 0.0, 0.0])), 3)
    x = sampled(model, 4000, steps=8, batch_size=4000)
    cos, logs = unit(x)[:, 0], x.double().norm(dim=1).log()
    assert abs(float(torch.corrcoef(torch.stack((cos, logs)))[0, 1])) < 4.5 / 4000**0.5


# ---- fit ----


def train(model: RotationModel, x: Tensor, **options: Any) -> RotationModel:
    return fit(
        model, x, **{"steps": 10, "batch_size": 16, "warmup": 2, "progress": False, **options}
    )


@pytest.mark.parametrize(
    ("process", "options"),
    [
        (Rotation(), {}),
        (Rotation(), {"objective": "ssm", "probes": "sphere"}),
        (Rotation("dense"), {}),
    ],
)
def test_a_stopped_run_goes_on_exactly(
    process: Rotation, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastmsgm.training.trainer.FLUSH_EVERY", 3)
    monkeypatch.setattr("fastmsgm.training.trainer.CHECKPOINT_SECONDS", 0.0)
    whole = train(vectors(process, **options), heavy_tails(), out=tmp_path / "whole")
    loss = type(vectors(process, **options).default_loss)
    original = loss.__call__

    def cut(self: Any, model: Any, x0: Tensor, stream: Tensor, step: int, **more: Any) -> Tensor:
        if step == 7:
            raise OSError("power cut")
        return original(self, model, x0, stream, step, **more)

    with monkeypatch.context() as patch:
        patch.setattr(loss, "__call__", cut)
        with pytest.raises(OSError, match="power cut"):
            train(vectors(process, **options), heavy_tails(), out=tmp_path / "cut")
    resumed = train(vectors(process, **options), heavy_tails(), out=tmp_path / "cut")
    curves = [(tmp_path / run / "loss.csv").read_text() for run in ("cut", "whole")]
    assert curves[0] == curves[1]
    for a, b in zip(whole.net.parameters(), resumed.net.parameters(), strict=True):
        assert torch.equal(a, b)
    other = vectors(Rotation(process.noise, beta_max=10.0), **options)
    with pytest.raises(ValueError, match=r"holds a run with other settings .*'process'"):
        train(other, heavy_tails(), out=tmp_path / "cut")


@pytest.mark.parametrize(
    ("process", "options"), [(Rotation(), {}), (Rotation("ring"), {"forward_steps": 8})]
)
def test_fit_learns(process: Rotation, options: dict[str, Any]) -> None:
    x = torch.tensor([1.0, 2.0, -1.0]) * torch.exp(torch.linspace(-1, 1, 300))[:, None]
    torch.manual_seed(0)
    net = MLP(3, 32, 2, condition={"log_norm": 1})
    model = RotationModel.for_data(net, process, x, **options)
    before = model.default_loss(model, x, rng.stream(9), 0).mean().item()
    train(model, x, steps=100, batch_size=64, lr=5e-3, ema=0.8)
    after = model.default_loss(model, x, rng.stream(9), 0).mean().item()
    assert after < (0.5 * before if model.objective == "dsm" else before - 0.1)


# ---- samples ----


TAILED = RadialPrior.fit(heavy_tails(), smooth=True, pareto=0.1)


@pytest.mark.parametrize(
    ("build", "batch_size"),
    [
        (vectors, 64),
        (vectors, 32),
        (images, 32),
        (lambda: vectors(Rotation("ring")), 32),
        (lambda: vectors(prior=TAILED), 32),
    ],
)
def test_a_part_of_the_stream_is_bit_equal(
    build: Callable[[], RotationModel], batch_size: int
) -> None:
    model = build()
    options: dict[str, Any] = {"seed": 3, "steps": 4, "batch_size": batch_size}
    whole = sampled(model, 100, **options)
    assert torch.equal(whole[40:60], sampled(model, 20, start=40, **options))
    assert torch.equal(whole[99:], sampled(model, 1, start=99, **options))
    assert len(whole.unique(dim=0)) == 100


@pytest.mark.parametrize(
    "solver", ["euler", "sde-dpm++2m", "geodesic-euler", "geodesic-heun", "stratonovich-heun"]
)
def test_a_part_of_the_stream_is_bit_equal_for_other_solvers(solver: str) -> None:
    options: dict[str, Any] = {"seed": 3, "steps": 4, "batch_size": 32, "solver": solver}
    whole = sampled(vectors(), 100, **options)
    assert torch.equal(whole[40:60], sampled(vectors(), 20, start=40, **options))
    assert not torch.equal(whole, sampled(vectors(), 100, **{**options, "seed": 4}))


def test_samples_have_the_norms_of_the_prior_and_the_range_of_the_data() -> None:
    model, x = vectors(), sampled(vectors(), 500, seed=2, steps=3)
    expected = model.prior.sample(500, rng.stream(2))
    torch.testing.assert_close(x.norm(dim=1), expected, rtol=1e-6, atol=0)
    clamped = sampled(images(bounds=(0.0, 1.0)), 30, steps=3)
    assert clamped.shape == (30, 1, 4, 4)
    assert float(clamped.min()) >= 0
    assert float(clamped.max()) <= 1
    unclamped = sampled(images(), 30, steps=3)
    assert torch.equal(unclamped.clamp(0, 1), clamped)
    norms = images().prior.sample(30, rng.stream(0))
    torch.testing.assert_close((unclamped - 0.5).flatten(1).norm(dim=1), norms, rtol=1e-5, atol=0)


def test_callbacks_see_state_and_denoised_of_the_samples_norm() -> None:
    model, steps = vectors(), list[Step]()
    x = sampled(model, 20, steps=5, batch_size=32, callback=steps.append)
    noise_levels = [step.noise_level for step in steps]
    assert noise_levels[0] == pytest.approx(model.process.B_max)
    assert noise_levels[-2:] == [pytest.approx(B_MIN), 0]
    assert noise_levels == sorted(noise_levels, reverse=True)
    norms = x.norm(dim=1)
    for step in steps:
        torch.testing.assert_close(step.x[:20].norm(dim=1), norms, rtol=1e-6, atol=0)
        assert (step.denoised is None) == (step.index == 0)
        if step.denoised is not None:
            torch.testing.assert_close(step.denoised[:20].norm(dim=1), norms, rtol=1e-6, atol=0)
    assert torch.equal(steps[-1].x[:20], x)
    assert steps[-1].denoised is not None
    torch.testing.assert_close(steps[-1].denoised[:20], x, rtol=1e-5, atol=1e-6)


def test_a_nonfinite_sample_is_named() -> None:
    model = vectors()
    inner = model.net.forward
    spoilt = torch.tensor([5])
    model.net.forward = lambda x, c, **cond: inner(x, c, **cond).index_fill(0, spoilt, math.nan)
    with pytest.raises(NonFiniteError, match=r"non-finite state at step 0 in 1 samples \(5\)"):
        sampled(model, 20, steps=3)
    assert sampled(model, 5, steps=3).isfinite().all()


# ---- heavy tails ----


@pytest.fixture
def saturated() -> RotationModel:
    return vectors(saturate=0.05)


def test_norms_beyond_the_limit_have_one_condition(saturated: RotationModel) -> None:
    norms = heavy_tails().norm(dim=1).sort().values
    condition, free = log_norm(saturated, norms), log_norm(vectors(), norms)
    assert len(condition[-11:].unique()) == 1  # 10 of the 200 norms are larger than the limit
    assert torch.equal(condition[:-10], free[:-10])
    assert (free[-10:] > condition[-1]).all()


def test_the_standardisation_is_that_of_all_norms(saturated: RotationModel) -> None:
    free = vectors()
    assert saturated._log_norm_mean == free._log_norm_mean
    assert saturated._log_norm_std == free._log_norm_std


def test_the_condition_of_a_norm_far_beyond_the_data_is_that_of_the_limit() -> None:
    prior = RadialPrior(torch.tensor([80.0]))
    model, seen = vectors(prior=prior, saturate=0.05), list[Tensor]()
    model.net.forward = lambda x, c, log_norm: (seen.append(log_norm), torch.zeros_like(x))[1]
    assert sampled(model, 64, steps=2).isfinite().all()
    limit = log_norm(model, model.log_norm_max[None].exp())
    for given in seen:
        torch.testing.assert_close(given, limit.expand(64))


def test_the_limit_is_kept_in_files(saturated: RotationModel, tmp_path: Path) -> None:
    saturated.save(tmp_path)
    again, norms = load(tmp_path), heavy_tails().norm(dim=1)
    assert isinstance(again, RotationModel)
    assert torch.equal(again.log_norm_max, saturated.log_norm_max)
    assert torch.equal(log_norm(again, norms), log_norm(saturated, norms))


def test_the_limit_travels_with_the_weights(saturated: RotationModel) -> None:
    other, norms = vectors(), heavy_tails().norm(dim=1)
    other.load_state_dict(saturated.state_dict())
    assert torch.equal(log_norm(other, norms), log_norm(saturated, norms))


def test_weights_from_before_have_no_limit(saturated: RotationModel) -> None:
    weights = dict(vectors().state_dict())
    del weights["log_norm_max"]
    config = {**saturated.config(), "precision": "fp32"}
    assert RotationModel.from_config(saturated.net, config, weights).log_norm_max == math.inf
    saturated.load_state_dict(weights)
    assert saturated.log_norm_max == math.inf


def test_the_weights_of_the_network_alone_keep_the_limit(saturated: RotationModel) -> None:
    limit = saturated.log_norm_max.clone()
    net = {name: value for name, value in saturated.state_dict().items() if name[:4] == "net."}
    saturated.load_state_dict(net, strict=False)
    assert torch.equal(saturated.log_norm_max, limit)
    assert limit < math.inf


def of_tails(n: int, heavy: bool, **options: Any) -> tuple[RotationModel, Tensor]:
    """Return a model of n vectors, heavy-tailed or normal, and these."""
    z = torch.randn(n, 3, generator=torch.Generator().manual_seed(0))
    data = z / z[:, :1].abs() if heavy else z
    net = MLP(3, condition={"log_norm": 1})
    return RotationModel.for_data(net, Rotation(**options), data), data


@pytest.mark.parametrize(
    ("n", "heavy", "larger"), [(10_000, True, 10), (10_000, False, 0), (900, True, 0)]
)
def test_the_limit_is_for_heavy_tails(n: int, heavy: bool, larger: int) -> None:
    model, data = of_tails(n, heavy)
    assert int((data.norm(dim=1).log() > model.log_norm_max).sum()) == larger


@pytest.mark.parametrize(
    ("n", "heavy", "eta"), [(1000, True, 0.6), (1000, False, 0.0), (900, True, 0.0)]
)
def test_the_solver_is_stochastic_for_heavy_tails(n: int, heavy: bool, eta: float) -> None:
    assert of_tails(n, heavy)[0].default_solver == SphericalMultistep(eta=eta)


def test_the_solver_of_ring_noise_is_the_same_for_heavy_tails() -> None:
    assert of_tails(1000, True, noise="ring")[0].default_solver == RingSplitting()


@pytest.mark.parametrize("limit", [-math.inf, math.nan, "1", True])
def test_a_limit_that_is_no_number(limit: Any) -> None:
    with pytest.raises(ValueError, match="log_norm_max must be a number or inf, got"):
        RotationModel(
            nn.Identity(),
            Rotation(),
            RadialPrior(torch.zeros(1)),
            shape=(3,),
            objective="dsm",
            log_norm_max=limit,
        )


# ---- files ----


@pytest.mark.parametrize("build", [vectors, images])
def test_samples_after_load_are_bit_equal(
    build: Callable[..., RotationModel], tmp_path: Path
) -> None:
    prior = RadialPrior.fit(heavy_tails(), smooth=True, pareto=0.1)
    model = build(prior=prior, bounds=(-5.0, 5.0), offset=0.25)
    model.save(tmp_path)
    again = load(tmp_path)
    assert isinstance(again, RotationModel)
    names = "process objective sliced offset bounds shape precision bandwidth tail"
    for name in names.split():
        assert getattr(again, name) == getattr(model, name), name
    assert torch.equal(again.log_norms, model.log_norms)
    options: dict[str, Any] = {"steps": 4, "solver": "sde-dpm++2m", "seed": 1}
    expected = sampled(model, 50, **options)
    assert torch.equal(sampled(again, 50, **options), expected)
    assert torch.equal(sampled(str(tmp_path), 50, **options), expected)


@pytest.mark.parametrize("noise", ["ring", "dense"])
def test_save_and_load_of_other_noises(noise: str, tmp_path: Path) -> None:
    process = Rotation(noise, beta_min=0.2, beta_max=8.0, seed=3)
    model = vectors(process, probes="gaussian", precision="bf16")
    model.save(tmp_path, torch.float16)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["process"] == {
        "name": "Rotation",
        "noise": noise,
        "beta_min": 0.2,
        "beta_max": 8.0,
        "seed": 3,
    }
    assert config["shape"] == [3]
    assert config["probes"] == "gaussian"
    weights = load_file(tmp_path / "model.safetensors")
    assert weights["log_norms"].dtype == torch.float32
    again = load(tmp_path)
    assert isinstance(again, RotationModel)
    assert (again.process, again.objective) == (process, "ssm")
    assert again.sliced.probes == "gaussian"
    assert again.precision == "bf16"
    assert torch.equal(again.log_norms, model.log_norms)


def test_loaded_norms_set_the_conditioning() -> None:
    torch.manual_seed(0)
    small, large = torch.randn(50, 3), 100 * torch.randn(50, 3)
    ours, theirs = (
        RotationModel.for_data(MLP(3, 8, condition={"log_norm": 1}), Rotation(), x)
        for x in (small, large)
    )
    ours.load_state_dict(theirs.state_dict())
    norms = large.norm(dim=1)
    assert torch.equal(log_norm(ours, norms), log_norm(theirs, norms))


# ---- errors ----


@pytest.mark.parametrize(
    ("process", "options", "message"),
    [
        (Rotation(), {"objective": "esm"}, "objective must be one of dsm, ssm, got 'esm'"),
        (
            Rotation(),
            {"probes": "uniform"},
            "probes must be one of rademacher, gaussian, sphere, got 'uniform'",
        ),
        (
            Rotation("ring"),
            {"objective": "dsm"},
            r'objective "dsm" needs isotropic noise, .*ring.*: use "ssm"',
        ),
        (
            Rotation("dense"),
            {"objective": "dsm"},
            r'objective "dsm" needs isotropic noise, .*dense.*: use "ssm"',
        ),
        (Rotation(), {"precision": "fp8"}, "precision must be one of fp32, bf16, fp16, got 'fp8'"),
        (
            Rotation(beta_min=1e-5, beta_max=1e-4),
            {},
            r"the process's integrated beta must end above 0\.0001, got 5\.5e-05: raise beta_max",
        ),
    ],
)
def test_for_data_refuses_options(process: Rotation, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vectors(process, **options)


@pytest.mark.parametrize(
    ("x", "offset", "error", "message"),
    [
        (
            torch.ones(3, 3, dtype=torch.int64),
            0.0,
            TypeError,
            r"data must be floating point, got torch\.int64",
        ),
        (np.ones((3, 3)), 0.0, TypeError, "data must be a tensor, got ndarray"),
        (
            torch.eye(3)[:2] * torch.tensor([[1.0], [0.0]]),
            0.0,
            ValueError,
            "data must have no zero vectors, got 1",
        ),
        (torch.ones(3, 3), -1.0, ValueError, "data must have no zero vectors, got 3"),
        (
            torch.full((3, 3), math.nan),
            0.0,
            ValueError,
            "data must be finite, got NaN or infinity in 9 entries",
        ),
        (torch.ones(3, 1), 0.0, ValueError, "at least 2 features"),
    ],
)
def test_for_data_refuses_data(x: Any, offset: float, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        RotationModel.for_data(MLP(3, condition={"log_norm": 1}), Rotation(), x, offset=offset)


@pytest.mark.parametrize("process", [GBM(0.8), "isotropic", None])
def test_another_process_is_refused(process: Any) -> None:
    message = f"process must be a Rotation, got {type(process).__name__}: give Rotation()"
    with pytest.raises(TypeError, match=message):
        RotationPreconditioning(process, 3)


def test_fit_refuses_data_without_directions_and_of_another_shape() -> None:
    with pytest.raises(ValueError, match="data must have no zero vectors, got 2"):
        train(vectors(), torch.cat((heavy_tails(), torch.zeros(2, 3))))
    with pytest.raises(ValueError, match=r"data must have shape \(N, 3\), got \(N, 4\)"):
        train(vectors(), heavy_tails(d=4))


def test_a_dense_tensor_that_is_too_large() -> None:
    net = MLP(1000, 8, 1, condition={"log_norm": 1})
    with pytest.raises(ValueError, match=r"3\.7 GiB for d = 1000"):
        RotationModel.for_data(net, Rotation("dense"), torch.ones(2, 1000))


class Narrow(nn.Module):
    """Returns one feature too few."""

    def forward(self, x: Tensor, c: Tensor, log_norm: Tensor) -> Tensor:
        return x[:, :-1]


@pytest.mark.parametrize("process", [Rotation(), Rotation("ring")])
def test_a_network_whose_output_has_another_shape(process: Rotation) -> None:
    model = RotationModel.for_data(Narrow(), process, heavy_tails())
    with pytest.raises(
        ValueError, match=r"net must return its input's shape \(64, 3\), got \(64, 2\)"
    ):
        sampled(model, 5)


def test_a_network_for_other_conditions() -> None:
    model = RotationModel.for_data(MLP(3), Rotation(), heavy_tails())
    with pytest.raises(ValueError, match=r"built with condition=\{\}, which has no 'log_norm'"):
        sampled(model, 5)
    net, data = MLP(3, condition={"log_norm": 1}), heavy_tails().abs() + 1
    message = r"built with condition=\{'log_norm': 1\}, but 'log_norm' is missing"
    with pytest.raises(ValueError, match=message):
        sample(GBMModel.for_data(net, GBM(5.0), data), 5, progress=False)


def test_a_ring_that_ends_early_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    for d, reported in ((4, False), (16, True)):
        caplog.clear()
        RotationModel.for_data(
            MLP(d, 8, condition={"log_norm": 1}), Rotation("ring"), torch.randn(20, d)
        )
        assert ("raise beta_max" in caplog.text) == reported


def test_a_copy_standardises_by_the_norms_that_it_loads() -> None:
    first, second = (
        RotationModel.for_data(
            MLP(3, 8, 1, condition={"log_norm": 1}), Rotation(), scale * torch.randn(50, 3)
        )
        for scale in (1.0, 100.0)
    )
    copied = copy.deepcopy(first)
    copied.load_state_dict(second.state_dict())
    norms = torch.tensor([5.0])
    assert torch.equal(log_norm(copied, norms), log_norm(second, norms))
    assert not torch.equal(log_norm(first, norms), log_norm(second, norms))


def test_for_data_refuses_another_process_or_prior() -> None:
    net, data = MLP(3, 8, 1, condition={"log_norm": 1}), torch.randn(50, 3)
    process: Any = GBM(1.0)
    prior: Any = data
    with pytest.raises(TypeError, match=r"process must be a Rotation, got GBM: give Rotation\(\)"):
        RotationModel.for_data(net, process, data)
    with pytest.raises(TypeError, match="prior must be a RadialPrior, got Tensor"):
        RotationModel.for_data(net, Rotation(), data, prior=prior)


def test_numpy_numbers_of_a_prior_are_saved(tmp_path: Path) -> None:
    numbers: dict[str, Any] = {"bandwidth": np.float32(0.5), "tail": np.int64(1)}
    prior, shape = RadialPrior(torch.zeros(3), **numbers), (np.int64(3),)
    options: dict[str, Any] = {"shape": shape, "objective": "dsm"}
    model = RotationModel(MLP(3, 8, 1, condition={"log_norm": 1}), Rotation(), prior, **options)
    model.save(tmp_path)
    assert load(tmp_path).shape == (3,)
