"""Checkpoints: load, format version, damage, own networks; the files of a run, and its resume."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from fastmsgm import fit, load, sample, trainer
from fastmsgm.checkpoint import _same
from fastmsgm.gbm import GBM, DenoisingLoss, GBMModel
from fastmsgm.model import FORMAT_VERSION, ScoreModel
from fastmsgm.nets import MLP, UNet
from fastmsgm.rotation import Rotation, RotationModel
from fastmsgm.sde import VP, VPModel
from tests.gbm.exact import log_normal_data

# Many small operations: a second thread costs more than it gives.
pytestmark = pytest.mark.usefixtures("one_thread")

FIXTURE = Path(__file__).parent / "data" / "fashion_fixture.safetensors"
DATA = log_normal_data(50)


def vector_model(process: GBM | None = None, **options: Any) -> GBMModel:
    torch.manual_seed(0)
    return GBMModel.for_data(MLP(3, 8, 1), process or GBM(5.0), DATA, **options)


def image_model(clothes: Tensor) -> GBMModel:
    torch.manual_seed(0)
    net = UNet(width=16, deep=32, blocks=1, deep_blocks=2)
    return GBMModel.for_data(net, GBM(10.0), clothes, offset=1.0, bounds=(0.0, 1.0))


def train(model: GBMModel, data: Tensor = DATA, **options: Any) -> GBMModel:
    return fit(
        model, data, **{"steps": 10, "batch_size": 16, "warmup": 2, "progress": False, **options}
    )


def loss_curve(folder: Path) -> list[tuple[str, str]]:
    with open(folder / "loss.csv", newline="") as file:
        return [(row["step"], row["loss"]) for row in csv.DictReader(file)]


def assert_equal_networks(a: ScoreModel, b: ScoreModel) -> None:
    for k, v in a.net.state_dict().items():
        assert torch.equal(b.net.state_dict()[k], v), k


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, action: Callable[[], object]) -> None:
    """Do something in the middle of an optimizer step."""
    original = DenoisingLoss.__call__

    def hooked(self: Any, model: Any, x0: Tensor, stream: Tensor, k: int, **more: Any) -> Tensor:
        value = original(self, model, x0, stream, k, **more)
        if k == step:
            action()
        return value

    monkeypatch.setattr(DenoisingLoss, "__call__", hooked)


def power_cut() -> None:
    raise OSError("power cut")


# ---- load ----


@pytest.mark.parametrize(
    ("name", "kind", "shape", "classes"),
    [
        ("fashion-gbm", GBMModel, (1, 28, 28), 10),
        ("cauchy-rotation", RotationModel, (4,), 0),
        ("cauchy-vp", VPModel, (4,), 0),
    ],
)
def test_shipped_models(
    name: str, kind: type[ScoreModel], shape: tuple[int, ...], classes: int
) -> None:
    model = load(name)
    assert type(model) is kind
    assert (model.shape, model.classes, model.training) == (shape, classes, False)
    config = (resources.files("fastmsgm.models") / name / "config.json").read_text()
    assert json.loads(config)["format_version"] == FORMAT_VERSION


def test_an_unknown_name_is_refused(tmp_path: Path) -> None:
    for name in ("no-such-model", tmp_path):
        with pytest.raises(
            ValueError,
            match=(
                "model must be one of cauchy-rotation, cauchy-vp, fashion-gbm or a folder with "
                rf"config\.json, got '{name}'"
            ),
        ):
            load(name)


@pytest.mark.parametrize("wrong", [None, 3, MLP(3)])
def test_what_is_no_name_is_refused(wrong: Any) -> None:
    message = f"model must be a name or a folder, got {type(wrong).__name__}"
    with pytest.raises(TypeError, match=message):
        load(wrong)


def test_a_saved_unet_computes_the_same(tmp_path: Path) -> None:
    images = torch.rand(10, 1, 8, 8)
    model = GBMModel.for_data(
        UNet(1, 16, 32, 1, 2), GBM(10.0), images, offset=1.0, bounds=(0.0, 1.0)
    ).eval()
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
    message = (
        rf"net '{__name__}\.Own' is not one of MLP, UNet: build it yourself and give it as net="
    )
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


# ---- format version ----


def models() -> list[ScoreModel]:
    data = DATA[:20]
    return [
        vector_model(),
        RotationModel.for_data(MLP(3, 8, 1, condition={"log_norm": 1}), Rotation(), data),
        VPModel.for_data(MLP(3, 8, 1), VP(), data),
    ]


@pytest.mark.parametrize("model", models(), ids=lambda model: model.family)
def test_every_family_writes_the_format_version(model: ScoreModel, tmp_path: Path) -> None:
    model.save(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["format_version"] == FORMAT_VERSION


@pytest.mark.parametrize("version", [0, 2, "1", 1.5, None, "missing"])
def test_another_format_version_is_refused(version: object, tmp_path: Path) -> None:
    """The message names the version of the checkpoint and that of the package."""
    vector_model().save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    if version == "missing":
        config.pop("format_version")
        version = None
    else:
        config["format_version"] = version
    (tmp_path / "config.json").write_text(json.dumps(config))
    message = (
        rf"model: the checkpoint in .* has format_version {version!r}, this package reads "
        f"{FORMAT_VERSION}: load it with the version of fastmsgm that wrote it"
    )
    with pytest.raises(ValueError, match=message):
        load(tmp_path)
    with pytest.raises(ValueError, match=message):
        sample(tmp_path, 3, progress=False)


# ---- damage ----


@pytest.mark.parametrize(
    "damage", ["weights", "no weights", "json", "keys", "list", "net", "arguments", "means"]
)
def test_a_damaged_checkpoint(damage: str, tmp_path: Path) -> None:
    vector_model().save(tmp_path)
    config, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    changed = json.loads(config.read_text())
    if damage == "weights":
        weights.write_bytes(weights.read_bytes()[:200])
    elif damage == "no weights":
        weights.unlink()
    elif damage == "json":
        config.write_text("{")
    elif damage == "list":
        config.write_text("[]")
    else:
        if damage == "keys":
            changed = {"format_version": FORMAT_VERSION}
        elif damage == "means":
            changed["prior"] = {}
        else:
            changed["net"] = "MLP" if damage == "net" else {**changed["net"], "colour": 3}
        config.write_text(json.dumps(changed))
    with pytest.raises(ValueError, match=r"model: the checkpoint in .* is damaged"):
        load(tmp_path)


def test_an_unknown_process_is_refused(tmp_path: Path) -> None:
    vector_model().save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["process"]["name"] = "Levy"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="process 'Levy' is not one of GBM, Rotation, VP"):
        load(tmp_path)


def test_a_checkpoint_of_another_network(tmp_path: Path) -> None:
    vector_model().save(tmp_path)
    message = r"model: the checkpoint in .* is damaged or another network's .*net=\.\.\."
    with pytest.raises(ValueError, match=message):
        load(tmp_path, net=MLP(3, 24))


def test_a_compiled_network_is_saved_without_its_wrapper(tmp_path: Path) -> None:
    model = vector_model()
    model.net = torch.compile(model.net, backend="eager")
    train(model, steps=2, out=tmp_path)
    x, c = torch.ones(2, 3), torch.zeros(2)
    assert torch.equal(load(tmp_path)(x, c), model(x, c))


# ---- the files of a run ----


def test_a_run_is_json_csv_and_safetensors(tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(vector_model(), out=out)
    assert {path.name for path in out.iterdir()} == {
        "config.json",
        "model.safetensors",
        "training.json",
        "training.safetensors",
        "loss.csv",
    }
    for path in out.glob("*.json"):
        json.loads(path.read_text())
    for path in out.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            assert len(list(file.keys())) > 3
    assert [step for step, _ in loss_curve(out)] == [str(k) for k in range(1, 11)]


def test_numpy_numbers_are_written_down(tmp_path: Path) -> None:
    noise_levels: dict[str, Any] = {"p_mean": np.float32(-1.0), "p_std": np.float32(0.5)}
    loss = DenoisingLoss(**noise_levels)
    train(vector_model(), steps=2, out=tmp_path, lr=np.float32(0.25), loss=loss)
    settings = json.loads((tmp_path / "training.json").read_text())
    assert settings["lr"] == 0.25
    assert settings["loss"] == "DenoisingLoss(p_mean=-1.0, p_std=0.5)"


# ---- resume ----


@pytest.fixture(scope="module")
def clothes() -> Tensor:
    return load_file(FIXTURE)["images"].float() / 255


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("kind", ["images", "vectors"])
def test_a_resumed_run_is_the_uninterrupted_one(
    number: signal.Signals,
    kind: str,
    clothes: Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A run is stopped in the middle of step 6 of 14, in its third epoch.

    Its loss curve and files are bit-equal to those of an uninterrupted run.
    """
    build, data = (
        (vector_model, DATA) if kind == "vectors" else (lambda: image_model(clothes), clothes[:50])
    )
    options: dict[str, Any] = {"steps": 14, "batch_size": 8, "seed": 3, "ema": 0.8}
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    whole = train(build(), data, out=tmp_path / "whole", **options)
    with monkeypatch.context() as patch:
        at_step(patch, 6, lambda: os.kill(os.getpid(), number))
        with pytest.raises(KeyboardInterrupt, match="stopped after step 7"):
            train(build(), data, out=tmp_path / "halved", **options)
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert loss_curve(tmp_path / "halved") == loss_curve(tmp_path / "whole")[:7]
    resumed = train(build(), data, out=tmp_path / "halved", **options)
    assert loss_curve(tmp_path / "halved") == loss_curve(tmp_path / "whole")
    assert len(loss_curve(tmp_path / "whole")) == 14
    assert_equal_networks(whole, resumed)
    for name in ("model.safetensors", "training.safetensors"):
        first, second = (load_file(tmp_path / run / name) for run in ("whole", "halved"))
        assert first.keys() == second.keys()
        for k in first:
            assert torch.equal(first[k], second[k]), k


def test_a_finished_run_is_only_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = train(vector_model(), out=tmp_path)
    at_step(monkeypatch, 0, lambda: pytest.fail("trained again"))
    assert_equal_networks(first, train(vector_model(), out=tmp_path))


@pytest.fixture
def every_fourth_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint is written after every fourth step."""
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(trainer, "FLUSH_EVERY", 4)


@pytest.mark.usefixtures("every_fourth_step")
def test_checkpoints_are_written_while_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last of them continues the run after a power cut."""
    whole = train(vector_model(), out=tmp_path / "whole")
    with monkeypatch.context() as patch:
        at_step(patch, 9, power_cut)
        with pytest.raises(OSError, match="power cut"):
            train(vector_model(), out=tmp_path / "cut")
    assert len(loss_curve(tmp_path / "cut")) == 8
    resumed = train(vector_model(), out=tmp_path / "cut")
    assert loss_curve(tmp_path / "cut") == loss_curve(tmp_path / "whole")
    assert_equal_networks(whole, resumed)


@pytest.mark.usefixtures("every_fourth_step")
@pytest.mark.parametrize("files", range(10))
def test_a_power_cut_between_two_files_of_a_checkpoint(
    files: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After so many files, of the first checkpoint or the second, the run still goes on exactly."""
    whole = train(vector_model(), out=tmp_path / "whole")
    written, original = [], os.replace

    def replace(source: Any, target: Any) -> None:
        if len(written) == files:
            power_cut()
        written.append(target)
        original(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        with pytest.raises(OSError, match="power cut"):
            train(vector_model(), out=tmp_path / "cut")
    resumed = train(vector_model(), out=tmp_path / "cut")
    assert loss_curve(tmp_path / "cut") == loss_curve(tmp_path / "whole")
    assert_equal_networks(whole, resumed)


@pytest.mark.parametrize("damage", ["training.json", "training.safetensors", "no tensors"])
def test_a_damaged_run_is_refused(damage: str, tmp_path: Path) -> None:
    train(vector_model(), out=tmp_path)
    if damage == "no tensors":
        (tmp_path / "training.safetensors").unlink()
    else:
        path = tmp_path / damage
        path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"out=.* holds a damaged checkpoint .*use a new folder"):
        train(vector_model(), out=tmp_path)


# ---- other settings ----


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    out = tmp_path_factory.mktemp("finished")
    train(vector_model(), out=out)
    return out


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 9},
        {"batch_size": 8},
        {"lr": 2e-3},
        {"ema": 0.5},
        {"seed": 1},
        {"warmup": 3},
        {"clip": 2.0},
        {"precision": "bf16"},
        {"loss": DenoisingLoss(p_mean=-1.0, p_std=1.0)},
        {"loss": DenoisingLoss()},
    ],
)
def test_other_settings_are_refused(changes: dict[str, Any], finished: Path) -> None:
    before = {path.name: path.read_bytes() for path in finished.iterdir()}
    (name,) = changes
    with pytest.raises(
        ValueError, match=rf"out=.* holds a run with other settings .*'{name}': .* use a new folder"
    ):
        train(vector_model(), out=finished, **changes)
    assert {path.name: path.read_bytes() for path in finished.iterdir()} == before


def test_a_run_of_another_network_is_refused(finished: Path) -> None:
    other = vector_model()
    other.net = MLP(3, 24)
    with pytest.raises(
        ValueError,
        match=r"holds a run with other settings .*'net': \(.*'width': 24.*use a new folder",
    ):
        train(other, out=finished)


@pytest.mark.parametrize("other", ["process", "prediction", "samples"])
def test_a_run_of_another_model_or_data_set_is_refused(other: str, finished: Path) -> None:
    process = GBM(2.0) if other == "process" else GBM(5.0)
    prediction = "score" if other == "prediction" else "denoiser"
    model = vector_model(process, prediction=prediction)
    with pytest.raises(ValueError, match=rf"other settings .*'{other}'"):
        train(model, DATA[:40] if other == "samples" else DATA, out=finished)


def with_log_std(factor: float) -> GBMModel:
    """Return the model with a log_std that differs by a factor."""
    made = vector_model()
    return GBMModel(
        made.net,
        made.process,
        made.prior,
        prediction=made.prediction,
        scale=made.scale,
        log_std=made.log_std * factor,
    )


def test_a_run_goes_on_though_a_fit_differs_in_late_digits(finished: Path, tmp_path: Path) -> None:
    """As where log_std is summed by another number of threads."""
    shutil.copytree(finished, tmp_path / "run")
    again = train(with_log_std(1 + 1e-9), out=tmp_path / "run")
    assert_equal_networks(load(finished), again)
    with pytest.raises(ValueError, match=r"other settings .*'log_std'"):
        train(with_log_std(1 + 1e-5), out=tmp_path / "run")


def test_settings_are_compared_in_depth() -> None:
    settings = {"a": {"b": [1.0, None, "x", True]}, "c": 3}
    assert _same(settings, {"a": {"b": [1 + 1e-9, None, "x", True]}, "c": 3})
    for other in (
        [1 + 1e-5, None, "x", True],
        [1.0, None, "x"],
        [1.0, 0.0, "x", True],
        [1.0, None, "y", True],
    ):
        assert not _same(settings, {"a": {"b": other}, "c": 3})
    assert not _same(settings, {"a": {"b": [1.0, None, "x", True]}})
    assert not _same(settings, {**settings, "c": 4})
