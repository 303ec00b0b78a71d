"""GBMModel: preconditioning, fits to data, units, files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exact import MEAN, exact_model, log_normal_data
from safetensors.torch import load_file
from torch import Tensor, nn

from fastmsgm import GBM, GBMModel, LogNormalPrior, load, ops, rng
from fastmsgm.model import write_atomically
from fastmsgm.nets import MLP, UNet


def build(prediction: str = "denoiser", **changes) -> GBMModel:
    torch.manual_seed(0)
    process = changes.pop("process", GBM(0.8))
    return GBMModel.for_data(MLP(3, 8), process, log_normal_data(300), prediction=prediction, **changes)


# ---- preconditioning ----


@pytest.mark.parametrize("s", [0.002, 0.1, 1.0, 10.0])
def test_a_denoisers_input_and_target_have_unit_variance(s: float) -> None:
    """On Gaussian log-data of deviation log_std: c_in y, and the target (y_0 - c_skip y) / c_out of training."""
    torch.manual_seed(0)
    x0 = torch.exp(0.4 * torch.randn(4000, 5) + torch.arange(5))
    model = GBMModel.for_data(MLP(5), GBM(12.0), x0)
    states = model.to_state(x0)
    k0, k1, k2, c_in = model.preconditioning(np.array([s]))[0]
    net_in, z = torch.empty_like(states), torch.empty_like(states)
    coefficients = torch.tensor([[0.0, s, float(c_in)]]).expand(len(states), 3)
    ops.gbm_perturb_(states, coefficients, rng.stream(1), 4, 0, x_t=None, net_in=net_in, z=z)
    y0 = torch.log(states).double()
    y = y0 + s * z.double()
    target = (y0 - k0 * y - k2) / k1
    error = 4.5 * math.sqrt(2 / states.numel())
    assert float(net_in.double().square().mean()) == pytest.approx(1, abs=error)
    assert float(target.square().mean()) == pytest.approx(1, abs=error)
    assert abs(float((target * net_in).mean())) < error  # the best linear guess of the target is 0


@pytest.mark.parametrize(
    ("prediction", "mu"), [("denoiser", None), ("hyvarinen", None), ("hyvarinen", 0.1), ("score", None), ("score", 0.1)]
)
def test_preconditioning_turns_the_exact_network_into_the_posterior_mean(prediction: str, mu: float | None) -> None:
    model = exact_model(prediction, mu=mu)
    s = np.array([0.01, 0.3, 0.8])
    k = torch.from_numpy(model.preconditioning(s))
    conditions = torch.from_numpy(model.condition(s)).float()
    variance, t = torch.tensor([0.04, 0.3, 0.1]).double(), (s / 0.8) ** 2
    for row, c, level, time in zip(k, conditions, s, t, strict=True):
        x = log_normal_data(50, seed=1) / model.scale
        y = torch.log(x).double()
        x_in = (row[3] * y).float() if prediction == "denoiser" else x
        f = model(x_in, c.expand(50)).detach().double()
        denoised = row[0] * y + row[1] * (x * f if prediction == "score" else f) + row[2]
        mean = (MEAN - torch.log(model.scale[0])).double()
        centred = y - model.process.drift * time
        expected = (variance * centred + level**2 * mean) / (variance + level**2)
        torch.testing.assert_close(denoised, expected, rtol=0, atol=2e-5)


def test_preconditioning_at_level_zero_is_the_score_itself() -> None:
    for prediction in ("hyvarinen", "score"):
        assert exact_model(prediction, mu=0.7).preconditioning(np.zeros(1)).tolist() == [[1, 1, 1, 1]]


def test_condition() -> None:
    s = np.array([0.2, 0.8])
    np.testing.assert_allclose(build("denoiser").condition(s), np.log(s) / 4)
    np.testing.assert_allclose(build("score").condition(s), [1 / 16, 1])


# ---- fits ----


def test_a_denoiser_is_centred_feature_by_feature() -> None:
    x0 = log_normal_data(300)
    model = build()
    y = torch.log(model.to_state(x0)).double()
    torch.testing.assert_close(y.mean(0), torch.zeros(3).double(), rtol=0, atol=1e-6)
    assert model.log_std == pytest.approx(float(y.std()), rel=1e-6)
    assert torch.equal(model.prior.centres, model.scale)
    assert model.prior.variance == pytest.approx(float(y.square().mean()), rel=1e-5)
    assert model.shape == (3,)


@pytest.mark.parametrize("prediction", ["hyvarinen", "score"])
def test_score_networks_see_x_itself_from_the_papers_prior(prediction: str) -> None:
    model, x0 = build(prediction), log_normal_data(300)
    assert torch.equal(model.scale, torch.ones(1, 3))
    assert torch.equal(model.to_state(x0), x0)
    expected = LogNormalPrior.per_channel(x0)
    assert torch.equal(model.prior.centres, expected.centres)
    assert model.prior.variance == expected.variance


def test_labels_ask_for_the_class_average_start() -> None:
    x0, labels = log_normal_data(300), torch.arange(300) % 4
    model = build("score", labels=labels)
    assert torch.equal(model.prior.centres, torch.stack([x0[labels == c].mean(0) for c in range(4)]))
    assert model.prior.variance == 0


@pytest.mark.parametrize("prediction", ["denoiser", "score"])
def test_to_state_and_to_data_are_inverse(prediction: str) -> None:
    images = torch.rand(20, 1, 4, 4)
    model = GBMModel.for_data(UNet(1, 16, 32, 1, 2), GBM(2.0), images, offset=1.0, prediction=prediction)
    states = model.to_state(images)
    torch.testing.assert_close(model.to_data(states.clone()), images, rtol=0, atol=1e-6)
    if prediction == "score":
        assert torch.equal(states, images + 1)


def test_to_data_clamps_to_the_bounds() -> None:
    model = build("score", offset=1.0, bounds=(0.0, 1.0))
    assert model.to_data(torch.tensor([[0.5, 1.25, 3.0]])).tolist() == [[0.0, 0.25, 1.0]]
    model.bounds = None
    assert model.to_data(torch.tensor([[0.5, 1.25, 3.0]])).tolist() == [[-0.5, 0.25, 2.0]]


def test_negative_features_stay_negative() -> None:
    x0 = log_normal_data(100) * torch.tensor([1.0, -1.0, 1.0])
    model = GBMModel.for_data(MLP(3), GBM(0.8), x0)
    assert model.scale.sign().tolist() == [[1, -1, 1]]
    assert bool((model.to_state(x0) > 0).all())


# ---- what is refused ----


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (torch.randint(0, 255, (9, 3)), TypeError, r"data must be floating point, got torch\.int64: .*255"),
        (torch.zeros(9, 3), ValueError, r"data must have no zeros, got 100\.00%"),
        (torch.full((9, 3), math.nan), ValueError, r"data must be finite, got NaN"),
        (torch.full((9, 3), 1e-40), ValueError, r"data must have no zeros, got 100\.00%: .*1\.2e-38"),
        (torch.full((9, 3), 1e300, dtype=torch.float64), ValueError, "data must be finite, got .* 27 entries"),
        ([[1.0, 2.0, 3.0]], TypeError, "data must be a tensor, got list"),
        (torch.tensor([[1.0, -1.0, 1.0], [1.0, 1.0, 1.0]]), ValueError, r"both signs in 1 of 3 features: .*offset"),
    ],
)
@pytest.mark.parametrize("prediction", ["denoiser", "score"])
def test_for_data_refuses_data(data: Tensor, error: type[Exception], message: str, prediction: str) -> None:
    with pytest.raises(error, match=message):
        GBMModel.for_data(MLP(3), GBM(0.8), data, prediction=prediction)


def test_for_data_sees_zeros_after_the_offset() -> None:
    with pytest.raises(ValueError, match="data must have no zeros"):
        GBMModel.for_data(MLP(3), GBM(0.8), torch.ones(4, 3), offset=-1.0)
    assert GBMModel.for_data(MLP(3), GBM(0.8), torch.tensor([[0.0], [1.0]]), offset=1.0).offset == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prediction": "noise"}, "prediction must be one of denoiser, hyvarinen, score, got 'noise'"),
        ({"precision": "fp8"}, "precision must be one of fp32, bf16, fp16, got 'fp8'"),
        ({"process": GBM(0.8, mu=0.0)}, r"a denoiser needs mu = sigma\^2 / 2, got GBM\(sigma=0\.8, mu=0\.0, T=1\.0\)"),
        ({"process": GBM(12.699)}, r"sigma sqrt\(T\) must be below 12\.[67]\d* for data of log-variance 0\.15"),
        ({"labels": torch.zeros(5).long()}, r"labels must have shape \(300,\), one for each sample, got \(5,\)"),
    ],
)
def test_the_constructor_refuses(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**changes)


class Wrong(nn.Module):
    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return x[:, :-1]


def test_a_network_whose_output_has_another_shape() -> None:
    model = build()
    model.net = Wrong()
    with pytest.raises(ValueError, match=r"net must return its input's shape \(5, 3\), got \(5, 2\)"):
        model(torch.ones(5, 3), torch.zeros(5))


@pytest.mark.parametrize(
    ("precision", "avx512", "dtype"),
    [("fp32", True, torch.float32), ("bf16", True, torch.bfloat16), ("bf16", False, torch.float32)],
)
def test_precision_is_the_networks(
    monkeypatch: pytest.MonkeyPatch, precision: str, avx512: bool, dtype: torch.dtype
) -> None:
    monkeypatch.setattr("fastmsgm.model._AVX512", avx512)
    model = build(precision=precision)
    assert model.input_dtype == dtype
    assert model(torch.ones(5, 3, dtype=dtype), torch.zeros(5)).dtype == dtype
    assert build("score", precision=precision).input_dtype == torch.float32


# ---- files ----


@pytest.mark.parametrize("prediction", ["denoiser", "hyvarinen", "score"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_save_and_load(prediction: str, dtype: torch.dtype, tmp_path: Path) -> None:
    drift = None if prediction == "denoiser" else 0.1
    model = build(prediction, process=GBM(0.7, drift, 0.9), offset=0.5, bounds=(0.0, 4.0), precision="bf16")
    model.save(tmp_path / "model", dtype)
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == ["config.json", "model.safetensors"]
    stored = load_file(tmp_path / "model" / "model.safetensors")
    assert all(v.dtype == dtype for k, v in stored.items() if k.startswith("net."))
    again = load(tmp_path / "model")
    assert again.process == model.process
    assert isinstance(again, GBMModel)
    assert not again.training
    assert again.precision == "bf16"
    assert again.bounds == (0.0, 4.0)
    for name in ("prediction", "log_std", "variance", "offset", "shape"):
        assert getattr(again, name) == getattr(model, name)
    for k, v in model.net.state_dict().items():
        assert torch.equal(again.net.state_dict()[k], v.to(dtype).float())
    # Only the network is rounded: what the data look like is kept as it is.
    assert torch.equal(again.scale, model.scale)
    assert torch.equal(again.centres, model.centres)


def test_a_saved_unet_computes_the_same(tmp_path: Path) -> None:
    images = torch.rand(10, 1, 8, 8)
    model = GBMModel.for_data(UNet(1, 16, 32, 1, 2), GBM(10.0), images, offset=1.0, bounds=(0.0, 1.0)).eval()
    nn.init.normal_(model.net.out.weight)
    model.save(tmp_path)
    x, c = torch.randn(3, 1, 8, 8), torch.rand(3)
    with torch.no_grad():
        assert torch.equal(load(str(tmp_path))(x, c), model(x, c))


class Own(nn.Module):
    """A network of the user's, with a counter among its buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.register_buffer("seen", torch.tensor(70001))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.linear(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_network_of_ones_own(dtype: torch.dtype, tmp_path: Path) -> None:
    model = GBMModel.for_data(Own(), GBM(0.8), log_normal_data(50))
    model.save(tmp_path, dtype)
    again = load(tmp_path, net=Own())
    assert torch.equal(again.net.linear.weight, model.net.linear.weight.to(dtype).float())
    assert int(again.net.seen) == 70001
    with pytest.raises(
        ValueError, match=r"net 'test_model.Own' is not one of MLP, UNet: build it yourself and give it as net="
    ):
        load(tmp_path)


def test_load_refuses_an_unknown_name(tmp_path: Path) -> None:
    for name in ("no-such-model", tmp_path):
        with pytest.raises(ValueError, match=rf"model must be one of .* or a folder with config\.json, got '{name}'"):
            load(name)


def test_the_config_says_how_data_and_state_differ(tmp_path: Path) -> None:
    build("score", offset=1.0, bounds=(0.0, 1.0)).save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["offset"] == 1
    assert config["bounds"] == [0, 1]
    assert config["process"] == {"name": "GBM", "sigma": 0.8, "mu": None, "T": 1.0}
    assert config["net"] == {"name": "MLP", "dim": 3, "width": 8, "depth": 3, "conditions": 1}


def test_a_broken_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    write_atomically(path, lambda p: p.write_text("new"))
    assert path.read_text() == "new"


@pytest.mark.parametrize("damage", ["weights", "no weights", "json", "keys", "net", "arguments"])
def test_a_damaged_checkpoint(damage: str, tmp_path: Path) -> None:
    build().save(tmp_path)
    config, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    if damage == "weights":
        weights.write_bytes(weights.read_bytes()[:200])
    elif damage == "no weights":
        weights.unlink()
    elif damage in ("json", "keys"):
        config.write_text("{" if damage == "json" else "{}")
    else:
        changed = json.loads(config.read_text())
        changed["net"] = "MLP" if damage == "net" else {**changed["net"], "colour": 3}
        config.write_text(json.dumps(changed))
    with pytest.raises(ValueError, match=r"model: the checkpoint in .* is damaged"):
        load(tmp_path)


def test_a_checkpoint_of_another_network(tmp_path: Path) -> None:
    build().save(tmp_path)
    with pytest.raises(ValueError, match=r"model: the checkpoint in .* is damaged or another network's .*net=\.\.\."):
        load(tmp_path, net=MLP(3, 24))
    with pytest.raises(TypeError, match="model must be a name or a folder, got NoneType"):
        load(None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"bounds": (1.0, 0.0)}, ValueError, r"bounds must be two numbers, the lower one .*, got \(1\.0, 0\.0\)"),
        ({"bounds": (math.nan, 1.0)}, ValueError, "bounds must be two numbers"),
        ({"bounds": "ab"}, ValueError, "bounds must be two numbers, .*, got 'ab'"),
        ({"offset": math.nan}, ValueError, "offset must be a finite number, got nan"),
        ({"offset": "1"}, ValueError, "offset must be a finite number, got '1'"),
        ({"process": 0.8}, TypeError, r"process must be a GBM, got float: give GBM\(sigma=\.\.\.\)"),
        ({"net": "unet"}, TypeError, "net must be a torch.nn.Module, got str"),
    ],
)
def test_for_data_refuses_arguments(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        GBMModel.for_data(**{"net": MLP(3, 8), "process": GBM(5.0), "data": log_normal_data(9), **options})


def test_numbers_of_numpy_and_bounds_of_one_side(tmp_path: Path) -> None:
    options: dict[str, Any] = {"offset": np.float32(1), "bounds": (np.int64(0), math.inf)}
    GBMModel.for_data(MLP(3, 8), GBM(5.0), log_normal_data(9), **options).save(tmp_path)
    again = load(tmp_path)
    assert again.offset == 1
    assert again.bounds == (0, math.inf)


def test_labels_leave_a_denoisers_state_centred() -> None:
    x0 = 5 * log_normal_data(300)
    model = GBMModel.for_data(MLP(3, 8), GBM(0.8), x0, labels=torch.arange(300) % 4)
    assert len(model.prior.centres) == 4
    assert float(torch.log(model.to_state(x0)).mean(0).abs().max()) < 1e-6


def test_for_data_refuses_what_a_denoiser_cannot_learn() -> None:
    with pytest.raises(ValueError, match=r"log_std must be positive, got 0\.0"):
        GBMModel.for_data(MLP(3), GBM(5.0), torch.full((9, 3), 2.0))
    with pytest.raises(ValueError, match=r"sigma sqrt\(T\) must be above 0\.002"):
        GBMModel.for_data(MLP(3), GBM(0.001), log_normal_data(9))
    with pytest.raises(TypeError, match="data must be a tensor, got ndarray"):
        GBMModel.for_data(MLP(3), GBM(5.0), np.ones((9, 3), np.float32))  # type: ignore[arg-type]


def test_a_network_that_returns_no_tensor() -> None:
    model = build()
    model.net.forward = lambda x, c: (x,)
    with pytest.raises(TypeError, match="net must return a tensor, got tuple"):
        model(torch.ones(5, 3), torch.zeros(5))
