"""GBMModel: fits to data, units, precision, files, and what the constructor refuses."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fastmsgm import load, sample
from fastmsgm.gbm import GBM, DenoisingLoss, GBMModel, LogNormalPrior, MDSMLoss
from fastmsgm.nets import MLP, UNet
from tests.gbm.exact import log_normal_data


def build(prediction: str = "denoiser", **changes: Any) -> GBMModel:
    torch.manual_seed(0)
    process = changes.pop("process", GBM(0.8))
    return GBMModel.for_data(
        MLP(3, 8), process, log_normal_data(300), prediction=prediction, **changes
    )


# ---- fits ----


def test_the_state_of_a_denoiser_is_centred_in_every_feature() -> None:
    x0 = log_normal_data(300)
    model = build()
    y = torch.log(model.to_state(x0)).double()
    torch.testing.assert_close(y.mean(0), torch.zeros(3).double(), rtol=0, atol=1e-6)
    assert model.log_std == pytest.approx(float(y.std()), rel=1e-6)
    assert torch.equal(model.prior.means, model.scale)
    assert model.prior.variance == pytest.approx(float(y.square().mean()), rel=1e-5)
    assert model.shape == (3,)


@pytest.mark.parametrize("prediction", ["hyvarinen", "score"])
def test_score_networks_see_x_itself_and_have_the_prior_of_the_paper(prediction: str) -> None:
    model, x0 = build(prediction), log_normal_data(300)
    assert torch.equal(model.scale, torch.ones(1, 3))
    assert torch.equal(model.to_state(x0), x0)
    expected = LogNormalPrior.per_channel(x0)
    assert torch.equal(model.prior.means, expected.means)
    assert model.prior.variance == expected.variance


def test_labels_give_the_class_average_start() -> None:
    x0, labels = log_normal_data(300), torch.arange(300) % 4
    model = build("score", labels=labels)
    expected = torch.stack([x0[labels == c].mean(0) for c in range(4)])
    torch.testing.assert_close(model.prior.means, expected, rtol=1e-6, atol=0)
    assert model.prior.variance == 0


def test_labels_leave_the_state_of_a_denoiser_centred() -> None:
    x0 = 5 * log_normal_data(300)
    model = GBMModel.for_data(MLP(3, 8), GBM(0.8), x0, labels=torch.arange(300) % 4)
    assert len(model.prior.means) == 4
    assert float(torch.log(model.to_state(x0)).mean(0).abs().max()) < 1e-6


@pytest.mark.parametrize("prediction", ["denoiser", "hyvarinen", "score"])
def test_a_given_prior_replaces_the_fitted_one_alone(prediction: str, tmp_path: Path) -> None:
    prior = LogNormalPrior(torch.tensor([[2.0, 3.0, 4.0], [5.0, 6.0, 7.0]]), 0.25)
    model, fitted = build(prediction, prior=prior), build(prediction)
    assert torch.equal(model.prior.means, prior.means)
    assert model.prior.variance == 0.25
    assert torch.equal(model.scale, fitted.scale)
    assert model.log_std == fitted.log_std
    model.save(tmp_path)
    again = load(tmp_path)
    assert isinstance(again, GBMModel)
    assert torch.equal(again.prior.means, prior.means)
    assert again.prior.variance == 0.25


def test_samples_start_from_the_given_prior() -> None:
    """At a tiny sigma the state stays where it starts: sample i at mean i mod 2."""
    prior = LogNormalPrior(torch.tensor([[2.0, 3.0, 4.0], [5.0, 6.0, 7.0]]), 0.0)
    model = build("score", prior=prior, process=GBM(1e-4))
    model.net.forward = lambda x, c: torch.zeros_like(x)
    x = sample(model, 4, steps=2, batch_size=4, progress=False)
    torch.testing.assert_close(x, prior.means.repeat(2, 1), rtol=2e-3, atol=0)


def test_a_given_prior_must_have_a_mean_for_every_class() -> None:
    prior = LogNormalPrior(torch.ones(2, 3), 0.0)
    with pytest.raises(ValueError, match="classes must match the prior, which has 2 means; got 3"):
        GBMModel.for_data(
            MLP(3, 8, classes=3), GBM(0.8), log_normal_data(300), prior=prior, classes=3
        )


def test_the_variance_of_a_given_prior_counts_for_the_range() -> None:
    with pytest.raises(ValueError, match=r"sigma sqrt\(T\) must be below .* log-variance 100"):
        build(prior=LogNormalPrior(torch.ones(1, 3), 100.0), process=GBM(9.0))


# ---- units ----


@pytest.mark.parametrize("prediction", ["denoiser", "score"])
def test_to_state_and_to_data_are_inverse(prediction: str) -> None:
    images = torch.rand(20, 1, 4, 4)
    model = GBMModel.for_data(
        UNet(1, 16, 32, 1, 2), GBM(2.0), images, offset=1.0, prediction=prediction
    )
    states = model.to_state(images)
    torch.testing.assert_close(model.to_process(states), images + 1)
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


# ---- what a family defines ----


def test_the_loss_goes_by_the_prediction() -> None:
    losses = [build(prediction).default_loss for prediction in ("denoiser", "hyvarinen", "score")]
    assert losses == [DenoisingLoss(), MDSMLoss(), MDSMLoss()]


@pytest.mark.parametrize(
    ("prediction", "objective"), [("denoiser", "dsm"), ("hyvarinen", "m-dsm"), ("score", "m-dsm")]
)
def test_objective(prediction: str, objective: str) -> None:
    assert build(prediction).objective == objective


@pytest.mark.parametrize(
    ("precision", "avx512", "dtype"),
    [("fp32", True, torch.float32), ("bf16", True, torch.bfloat16), ("bf16", False, torch.float32)],
)
def test_precision_is_that_of_the_network(
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
    mu = None if prediction == "denoiser" else 0.1
    model = build(
        prediction, process=GBM(0.7, mu, 0.9), offset=0.5, bounds=(0.0, 4.0), precision="bf16"
    )
    model.save(tmp_path / "model", dtype)
    names = sorted(p.name for p in (tmp_path / "model").iterdir())
    assert names == ["config.json", "model.safetensors"]
    stored = load_file(tmp_path / "model" / "model.safetensors")
    assert {k for k in stored if not k.startswith("net.")} == {"dropped", "means", "scale"}
    assert all(v.dtype == dtype for k, v in stored.items() if k.startswith("net."))
    again = load(tmp_path / "model")
    assert isinstance(again, GBMModel)
    assert again.process == model.process
    assert not again.training
    assert again.precision == "bf16"
    assert again.bounds == (0.0, 4.0)
    for name in ("prediction", "log_std", "variance", "offset", "shape"):
        assert getattr(again, name) == getattr(model, name)
    for k, v in model.net.state_dict().items():
        assert torch.equal(again.net.state_dict()[k], v.to(dtype).float())
    # Only the network is rounded; scale and means keep float32.
    assert torch.equal(again.scale, model.scale)
    assert torch.equal(again.means, model.means)


def test_the_config_holds_offset_bounds_and_process(tmp_path: Path) -> None:
    build("score", offset=1.0, bounds=(0.0, 1.0)).save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["format_version"] == 1
    assert config["offset"] == 1
    assert config["bounds"] == [0, 1]
    assert config["process"] == {"name": "GBM", "sigma": 0.8, "mu": None, "T": 1.0}
    net = {"dim": 3, "width": 8, "depth": 3, "condition": {}, "classes": 0}
    assert config["net"] == {"name": "MLP", **net}


def test_numpy_numbers_and_one_sided_bounds_are_saved(tmp_path: Path) -> None:
    options: dict[str, Any] = {"offset": np.float32(1), "bounds": (np.int64(0), math.inf)}
    GBMModel.for_data(MLP(3, 8), GBM(5.0), log_normal_data(9), **options).save(tmp_path)
    again = load(tmp_path)
    assert again.offset == 1
    assert again.bounds == (0, math.inf)


# ---- errors ----


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (
            torch.randint(0, 255, (9, 3)),
            TypeError,
            r"data must be floating point, got torch\.int64: .*255",
        ),
        (torch.zeros(9, 3), ValueError, r"data must have no zeros, got 100\.00%"),
        (torch.full((9, 3), math.nan), ValueError, r"data must be finite, got NaN"),
        (
            torch.full((9, 3), 1e-40),
            ValueError,
            r"data must have no zeros, got 100\.00%: .*1\.2e-38",
        ),
        (
            torch.full((9, 3), 1e300, dtype=torch.float64),
            ValueError,
            "data must be finite, got .* 27 entries",
        ),
        ([[1.0, 2.0, 3.0]], TypeError, "data must be a tensor, got list"),
        (np.ones((9, 3), np.float32), TypeError, "data must be a tensor, got ndarray"),
        (
            torch.tensor([[1.0, -1.0, 1.0], [1.0, 1.0, 1.0]]),
            ValueError,
            r"both signs in 1 of 3 features: .*offset",
        ),
    ],
)
@pytest.mark.parametrize("prediction", ["denoiser", "score"])
def test_for_data_refuses_data(
    data: Any, error: type[Exception], message: str, prediction: str
) -> None:
    with pytest.raises(error, match=message):
        GBMModel.for_data(MLP(3), GBM(0.8), data, prediction=prediction)


def test_for_data_sees_zeros_after_the_offset() -> None:
    with pytest.raises(ValueError, match="data must have no zeros"):
        GBMModel.for_data(MLP(3), GBM(0.8), torch.ones(4, 3), offset=-1.0)
    assert GBMModel.for_data(MLP(3), GBM(0.8), torch.tensor([[0.0], [1.0]]), offset=1.0).offset == 1


def test_for_data_refuses_data_and_processes_unfit_for_a_denoiser() -> None:
    with pytest.raises(ValueError, match=r"log_std must be positive, got 0\.0"):
        GBMModel.for_data(MLP(3), GBM(5.0), torch.full((9, 3), 2.0))
    with pytest.raises(ValueError, match=r"sigma sqrt\(T\) must be above 0\.002"):
        GBMModel.for_data(MLP(3), GBM(0.001), log_normal_data(9))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"prediction": "noise"},
            "prediction must be one of denoiser, hyvarinen, score, got 'noise'",
        ),
        ({"precision": "fp8"}, "precision must be one of fp32, bf16, fp16, got 'fp8'"),
        (
            {"process": GBM(0.8, mu=0.0)},
            r"a denoiser needs mu = sigma\^2 / 2, got GBM\(sigma=0\.8, mu=0\.0, T=1\.0\)",
        ),
        (
            {"process": GBM(12.699)},
            r"sigma sqrt\(T\) must be below 12\.[67]\d* for data of log-variance 0\.15",
        ),
        (
            {"labels": torch.zeros(5).long()},
            r"labels must have shape \(300,\), one for each sample, got \(5,\)",
        ),
    ],
)
def test_the_constructor_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**changes)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"bounds": (1.0, 0.0)},
            ValueError,
            r"bounds must be two numbers, the lower one .*, got \(1\.0, 0\.0\)",
        ),
        ({"bounds": (math.nan, 1.0)}, ValueError, "bounds must be two numbers"),
        ({"bounds": "ab"}, ValueError, "bounds must be two numbers, .*, got 'ab'"),
        ({"offset": math.nan}, ValueError, "offset must be a finite number, got nan"),
        ({"offset": "1"}, ValueError, "offset must be a finite number, got '1'"),
        (
            {"process": 0.8},
            TypeError,
            r"process must be a GBM, got float: give GBM\(sigma=\.\.\.\)",
        ),
        ({"net": "unet"}, TypeError, "net must be a torch.nn.Module, got str"),
        ({"classes": 1.0}, TypeError, r"classes must be an int, got 1\.0 \(float\)"),
        ({"classes": True}, TypeError, r"classes must be an int, got True \(bool\)"),
    ],
)
def test_for_data_refuses_arguments(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments = {"net": MLP(3, 8), "process": GBM(5.0), "data": log_normal_data(9), **options}
    with pytest.raises(error, match=message):
        GBMModel.for_data(**arguments)


class Narrow(nn.Module):
    """Returns one feature too few."""

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return x[:, :-1]


def test_a_network_whose_output_has_another_shape() -> None:
    model = build()
    model.net = Narrow()
    with pytest.raises(
        ValueError, match=r"net must return its input's shape \(5, 3\), got \(5, 2\)"
    ):
        model(torch.ones(5, 3), torch.zeros(5))


def test_a_network_that_returns_no_tensor() -> None:
    model = build()
    model.net.forward = lambda x, c: {"output": x}
    with pytest.raises(TypeError, match=r"net must return a tensor, .*, got dict"):
        model(torch.ones(5, 3), torch.zeros(5))


def test_a_given_prior_must_fit_the_data() -> None:
    data = log_normal_data(50)
    wrong: Any = data
    with pytest.raises(TypeError, match="prior must be a LogNormalPrior, got Tensor"):
        GBMModel.for_data(MLP(3, 8), GBM(5.0), data, prior=wrong)
    for means, message in (
        (
            torch.ones(1, 4),
            r"means of shape \(m, ...\) that fit samples of shape \(3,\), got \(1, 4\)",
        ),
        (torch.ones(1, 3, 1), r"got \(1, 3, 1\)"),
        (-torch.ones(1, 3), "means of the sign of the data"),
    ):
        with pytest.raises(ValueError, match=message):
            GBMModel.for_data(MLP(3, 8), GBM(5.0), data, prior=LogNormalPrior(means, 0.1))
    variance: Any = np.float32(0.5)
    prior, labels = LogNormalPrior(torch.ones(1, 3), variance), torch.zeros(50, dtype=torch.int64)
    with pytest.raises(ValueError, match="prior and labels must not be given together"):
        GBMModel.for_data(MLP(3, 8), GBM(5.0), data, prior=prior, labels=labels)
    assert GBMModel.for_data(MLP(3, 8), GBM(5.0), data, prior=prior).variance == 0.5


def test_the_repr_is_one_line_with_what_matters() -> None:
    torch.manual_seed(0)
    model = GBMModel.for_data(MLP(3, 8, 1), GBM(8.0), log_normal_data(50), offset=0.5)
    assert repr(model) == (
        "GBMModel(process=GBM(sigma=8.0, mu=None, T=1.0), prediction='denoiser', "
        "objective='dsm', shape=(3,), offset=0.5, precision='fp32', "
        "net=MLP with 723 parameters)"
    )
