"""Checkpoints: load, format version, damage, own networks; the files of a run, and its resume."""

from __future__ import annotations

import csv
import errno
import itertools
import json
import os
import shutil
import signal
import stat
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fastmsgm import fit, load, sample
from fastmsgm.gbm import GBM, DenoisingLoss, GBMModel
from fastmsgm.model import FORMAT_VERSION, ScoreModel
from fastmsgm.nets import MLP, UNet
from fastmsgm.rotation import Rotation, RotationModel
from fastmsgm.sde import VP, VPModel
from fastmsgm.tensors import load_tensors, save_tensors
from fastmsgm.training import trainer, training_run
from fastmsgm.training.training_run import _same
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


def rewrite_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the configuration of a checkpoint, or replace it, with a sound checksum."""
    tensors, metadata = load_tensors(folder / "model.safetensors")
    config = json.loads(metadata["config"])
    replaced = change(config)
    text = json.dumps(config if replaced is None else replaced)
    save_tensors(folder / "model.safetensors", tensors, {"config": text})


def settings_of(folder: Path) -> dict[str, Any]:
    _, metadata = load_tensors(folder / "training.safetensors")
    return json.loads(metadata["settings"])


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
                rf"model\.safetensors, got '{name}'"
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
    message = rf"net '{__name__}\.Own' is not one of DirectionMLP, MLP, UNet: build it yourself"
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

    def change(config: dict[str, Any]) -> None:
        config["format_version"] = version
        if version == "missing":
            del config["format_version"]

    rewrite_config(tmp_path, change)
    shown = None if version == "missing" else version
    message = (
        rf"model: the checkpoint in .*its format_version is {shown!r}, this package reads "
        f"{FORMAT_VERSION}: load it with the version of fastmsgm that wrote it"
    )
    with pytest.raises(ValueError, match=message):
        load(tmp_path)
    with pytest.raises(ValueError, match=message):
        sample(tmp_path, 3, progress=False)


# ---- damage ----


@pytest.mark.parametrize("damage", ["keys", "list", "net", "arguments", "means"])
def test_a_configuration_that_makes_no_model(damage: str, tmp_path: Path) -> None:
    vector_model().save(tmp_path)

    def change(config: dict[str, Any]) -> object:
        if damage == "list":
            return []
        if damage == "keys":
            return {"format_version": FORMAT_VERSION}
        if damage == "means":
            return config | {"prior": {}}
        return config | {"net": "MLP" if damage == "net" else {**config["net"], "colour": 3}}

    rewrite_config(tmp_path, change)
    with pytest.raises(ValueError, match=r"model: the checkpoint in .* is damaged"):
        load(tmp_path)


def test_an_unknown_process_is_refused(tmp_path: Path) -> None:
    vector_model().save(tmp_path)
    rewrite_config(tmp_path, lambda config: config["process"].update(name="Levy"))
    with pytest.raises(ValueError, match="process 'Levy' is not one of GBM, Rotation, VP"):
        load(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"depth": 20_000},
        {"width": 10**7},
        {"condition": {"c": 50_000_000}},
        {"classes": 50_000_000},
        {"width": 16},
        {"width": -1},
        {"width": 1e300},
    ],
    ids=str,
)
def test_a_network_is_built_only_in_the_size_of_its_weights(
    change: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before any memory is taken: the constructor runs on the meta device alone."""
    vector_model().save(tmp_path)
    rewrite_config(tmp_path, lambda config: config["net"].update(change))
    built = []
    original = torch.empty

    def empty(*sizes: Any, **options: Any) -> Tensor:
        value = original(*sizes, **options)
        if value.device.type != "meta":
            built.append(value.numel())
        return value

    monkeypatch.setattr(torch, "empty", empty)
    with pytest.raises(ValueError, match=r"model: the checkpoint in .* is damaged"):
        load(tmp_path)
    assert sum(built) < 10_000


@pytest.mark.parametrize("part", ["config", "tensors", "checksum", "length"])
def test_a_flipped_bit_is_noticed(part: str, tmp_path: Path) -> None:
    vector_model().save(tmp_path)
    path = tmp_path / "model.safetensors"
    raw = bytearray(path.read_bytes())
    place = {
        "config": raw.index(b"process"),
        "tensors": len(raw) - 5,
        "checksum": raw.index(b"sha256") + 20,
        "length": 0,
    }
    raw[place[part]] ^= 1
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=r"model: the checkpoint in .* is damaged"):
        load(tmp_path)


def test_a_file_without_a_checksum_is_refused(tmp_path: Path) -> None:
    vector_model().save(tmp_path)
    path = tmp_path / "model.safetensors"
    save_file(load_file(path), path)
    with pytest.raises(ValueError, match=r"model: the checkpoint in .* is damaged"):
        load(tmp_path)


@pytest.mark.parametrize("change", ["edited", "damaged"])
def test_another_config_json_is_said(
    change: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The weights hold the configuration that counts."""
    vector_model().save(tmp_path)
    config = tmp_path / "config.json"
    text = config.read_text()
    config.write_text(text.replace("fp32", "bf16") if change == "edited" else text[:30])
    assert load(tmp_path).precision == "fp32"
    assert "config.json differs from the configuration in model.safetensors" in caplog.text


def test_a_loaded_model_does_not_change_with_its_file(tmp_path: Path) -> None:
    """Nothing of it is mapped: its file can be overwritten or cut."""
    model = vector_model()
    model.save(tmp_path)
    loaded = load(tmp_path)
    path = tmp_path / "model.safetensors"
    with open(path, "r+b") as file:
        file.write(b"x" * path.stat().st_size)
    assert_equal_networks(model, loaded)
    os.truncate(path, 0)
    assert_equal_networks(model, loaded)


def test_a_folder_before_a_shipped_model_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    vector_model().save(tmp_path / "cauchy-vp")
    monkeypatch.chdir(tmp_path)
    assert load("cauchy-vp").family == "GBM"
    assert "is loaded, not the shipped model of that name" in caplog.text


def test_files_have_the_mode_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        train(vector_model(), steps=2, out=tmp_path / "run")
    finally:
        os.umask(before)
    for path in (tmp_path / "run").iterdir():
        if path.name != ".lock":
            assert stat.S_IMODE(path.stat().st_mode) == 0o640, path


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
        "training.safetensors",
        "loss.csv",
        ".lock",
    }
    json.loads((out / "config.json").read_text())
    for path in out.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            assert len(list(file.keys())) > 3
    assert [step for step, _ in loss_curve(out)] == [str(k) for k in range(1, 11)]


def test_numpy_numbers_are_written_down(tmp_path: Path) -> None:
    noise_levels: dict[str, Any] = {"p_mean": np.float32(-1.0), "p_std": np.float32(0.5)}
    loss = DenoisingLoss(**noise_levels)
    train(vector_model(), steps=2, out=tmp_path, lr=np.float32(0.25), loss=loss)
    settings = settings_of(tmp_path)
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
    clock = itertools.count()
    monkeypatch.setattr(trainer.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", 3.5)


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


def test_a_damaged_state_gives_way_to_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", 0.0)
    whole = train(vector_model(), out=tmp_path / "whole")
    with monkeypatch.context() as patch:
        at_step(patch, 9, power_cut)
        with pytest.raises(OSError, match="power cut"):
            train(vector_model(), out=tmp_path / "cut")
    state = tmp_path / "cut" / "training.safetensors"
    state.write_bytes(state.read_bytes()[:-20])
    resumed = train(vector_model(), out=tmp_path / "cut")
    assert "training.safetensors' is damaged" in caplog.text
    assert "the state before it is resumed" in caplog.text
    assert loss_curve(tmp_path / "cut") == loss_curve(tmp_path / "whole")
    assert_equal_networks(whole, resumed)


def test_a_run_whose_states_are_all_damaged_is_refused(tmp_path: Path) -> None:
    train(vector_model(), out=tmp_path)
    state = tmp_path / "training.safetensors"
    state.write_bytes(state.read_bytes()[:-20])
    shutil.copy(state, tmp_path / "training.previous.safetensors")
    with pytest.raises(ValueError, match=r"out=.* holds a damaged checkpoint .*use a new folder"):
        train(vector_model(), out=tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"step": "-5"},
        {"step": "1000000"},
        {"step": "5"},
        {"step": "ten"},
        {"groups": "[]"},
        {"groups": "{"},
    ],
    ids=str,
)
def test_a_hostile_state_is_refused(changes: dict[str, str], tmp_path: Path) -> None:
    """With a sound checksum; numbers are checked before they are used."""
    train(vector_model(), out=tmp_path)
    tensors, metadata = load_tensors(tmp_path / "training.safetensors")
    save_tensors(tmp_path / "training.safetensors", tensors, metadata | changes)
    with pytest.raises(ValueError, match=r"out=.* holds a checkpoint that does not fit"):
        train(vector_model(), out=tmp_path)


@pytest.mark.parametrize("left", ["older", "none", "damaged"])
def test_a_finished_run_writes_its_model_again(left: str, tmp_path: Path) -> None:
    """A kill during the last checkpoint can leave the state of the end beside an older model."""
    first = train(vector_model(), out=tmp_path)
    path = tmp_path / "model.safetensors"
    if left == "older":
        vector_model().save(tmp_path)
    elif left == "none":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-20])
    train(vector_model(), out=tmp_path)
    assert_equal_networks(first, load(tmp_path))


# ---- the folder ----


def test_two_runs_in_one_folder_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        message = r"out=.* is in use by another training run: wait for it, or use a new folder"

        def second() -> None:
            with pytest.raises(ValueError, match=message):
                fit(vector_model(), DATA, steps=10, out=tmp_path, progress=False)

        at_step(patch, 3, second)
        train(vector_model(), out=tmp_path)
    train(vector_model(), out=tmp_path)


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_file_is_no_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("mine")
    at_step(monkeypatch, 0, lambda: pytest.fail("trained"))
    with pytest.raises(ValueError, match="out must be a folder that can be written, got"):
        train(vector_model(), out=tmp_path / name)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_model_without_its_training_is_not_overwritten(tmp_path: Path) -> None:
    vector_model().save(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match=r"out=.* holds a model without the state of its training"):
        train(vector_model(), out=tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_a_planted_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    out = tmp_path / "run"
    out.mkdir()
    for name in ("config.json", "config.json.tmp", "loss.csv"):
        (out / name).symlink_to(tmp_path / "precious")
    train(vector_model(), steps=2, out=out)
    assert (tmp_path / "precious").read_text() == "mine"


def test_what_a_kill_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / f".training.safetensors.{'a' * 32}.tmp").write_bytes(b"half a file")
    train(vector_model(), steps=2, out=tmp_path)
    assert not list(tmp_path.glob("*.tmp"))
    assert not list(tmp_path.glob(".*.tmp"))


# ---- a full disk ----


def full_disk(monkeypatch: pytest.MonkeyPatch, saves: range) -> None:
    """The disk is full at these saves of the state."""
    count, original = iter(range(1000)), training_run.save_tensors

    def save(path: Path, *arguments: Any, **options: Any) -> None:
        if next(count) in saves:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        original(path, *arguments, **options)

    monkeypatch.setattr(training_run, "save_tensors", save)


def test_training_goes_on_where_a_checkpoint_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", 0.0)
    whole = train(vector_model())
    full_disk(monkeypatch, range(2, 9))
    train(vector_model(), out=tmp_path)
    assert "step 3 could not be saved ([Errno 28] No space left on device" in caplog.text
    assert_equal_networks(whole, load(tmp_path))


def test_the_last_checkpoint_must_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model has the trained weights, and the run can be finished later."""
    whole, model = train(vector_model()), vector_model()
    with monkeypatch.context() as patch:
        full_disk(patch, range(1000))
        message = r"step 10 could not be saved \(No space left on device\): make room"
        with pytest.raises(OSError, match=message):
            train(model, out=tmp_path)
    assert_equal_networks(whole, model)
    train(vector_model(), out=tmp_path)
    assert_equal_networks(whole, load(tmp_path))


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
