"""The command line, in process: train, sample, demo, info, and its errors."""

from __future__ import annotations

import argparse
import inspect
import io
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import fastmsgm
from fastmsgm import nets, rng
from fastmsgm.families import FAMILIES, solver_names
from fastmsgm.tools import cli, train_command, train_data, train_model

FIXTURE = Path(__file__).parents[1] / "data" / "fashion_fixture.safetensors"
PNG = b"\x89PNG"
OF_A_FUNCTION = "describes a model that is a function, which has no name and no file"
NOT_TEXT = {  # arguments that are no options, and why
    "train": {
        "model": "built from --family, --width and the options of the family",
        "transform": "a function",
        "loss": "a function; each family has its default",
        "callback": "a function; the command prints what it would see",
    },
    "sample": {
        "generator": "an object in memory; --seed draws what it would",
        "distributed": "torchrun says so",
        "callback": "a function",
        "process": OF_A_FUNCTION,
        "shape": OF_A_FUNCTION,
        "prediction": OF_A_FUNCTION,
        "time": OF_A_FUNCTION,
        "prior": OF_A_FUNCTION,
        "unknown": "holds what sample refuses",
    },
}
FUNCTIONS = {"train": fastmsgm.fit, "sample": fastmsgm.sample}
OTHER_DEFAULTS = {"steps", "batch_size", "precision", "optimizer", "dtype", "device"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an untrained image model."""
    folder = tmp_path_factory.mktemp("checkpoint")
    images = load_file(FIXTURE)["images"].float() / 255
    torch.manual_seed(0)
    net, process = nets.UNet(1, 16, 16, 1, 2), fastmsgm.GBM(10.0)
    model = fastmsgm.GBMModel.for_data(net, process, images, offset=1.0, bounds=(0.0, 1.0))
    model.save(folder)
    return folder


def run(command: str, **options: object) -> int:
    """Run a command on the CPU; ``True`` stands for an option without a value."""
    arguments = [command]
    for name, value in {"device": "cpu", **options}.items():
        for each in value if isinstance(value, list) else [value]:
            arguments.append(f"--{name.replace('_', '-')}")
            if each is not True:
                arguments.append(str(each))
    return cli.main(arguments)


def write(path: Path, data: np.ndarray[Any, np.dtype[np.float64]]) -> Path:
    np.save(path, data.astype(np.float32))
    return path


def options_of(command: str) -> dict[str, argparse.Action]:
    """Return the options of a command by the name that Python's argument has."""
    subparsers = next(a for a in cli.parser()._actions if isinstance(a.choices, dict))
    assert isinstance(subparsers.choices, dict)
    actions = subparsers.choices[command]._actions
    return {a.dest.removeprefix("no_"): a for a in actions if a.dest != "help"}


@pytest.fixture
def vectors(tmp_path: Path) -> Path:
    """A file of 40 positive vectors of 3 features."""
    return write(tmp_path / "vectors.npy", np.random.default_rng(0).lognormal(size=(40, 3)))


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """A file of the classes of 40 samples, 0 .. 2."""
    np.save(tmp_path / "classes.npy", np.arange(40) % 3)
    return tmp_path / "classes.npy"


@pytest.fixture
def class_folders(tmp_path: Path) -> Path:
    """A folder with a folder for each of two classes, of images of several sizes."""
    for number, name in enumerate(("cats", "dogs")):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(4):
            pixels = np.full((10 + i, 12, 3), 100 * number + i, np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{i}.png")
    return tmp_path / "images"


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What ``fit`` is called with, instead of training."""
    seen: dict[str, Any] = {}

    def fit(model: Any, data: Any, labels: Any, **options: Any) -> Any:
        seen.update(options, model=model, data=data, labels=labels)
        return model

    monkeypatch.setattr(fastmsgm, "fit", fit)
    return seen


# ---- options ----


@pytest.mark.parametrize("command", FUNCTIONS)
def test_every_argument_is_an_option_or_no_text(command: str) -> None:
    arguments = set(inspect.signature(FUNCTIONS[command]).parameters)
    assert arguments == (arguments & options_of(command).keys()) | NOT_TEXT[command].keys()


@pytest.mark.parametrize("command", FUNCTIONS)
def test_options_have_the_defaults_of_the_arguments(command: str) -> None:
    options = options_of(command)
    for name, parameter in inspect.signature(FUNCTIONS[command]).parameters.items():
        if parameter.default is inspect.Parameter.empty or name in OTHER_DEFAULTS:
            continue
        if name in options and name != "progress":
            assert options[name].default == parameter.default or options[name].default is None, name
            assert (options[name].default is None) == (parameter.default is None), name


@pytest.mark.parametrize("command", ["train", "sample", "demo", "info"])
def test_every_option_has_a_help_text_with_its_default(command: str) -> None:
    for name, action in options_of(command).items():
        assert action.help, name
        if action.default not in (None, False) and name != "run":
            assert "%(default)s" in action.help, name


def test_every_family_can_be_trained() -> None:
    families = [name.lower() for name in FAMILIES]
    assert list(train_model.OPTIONS) == list(train_model.BUILDERS) == families


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("batch_size must be at least 1, got 0", "--batch-size must be at least 1, got 0"),
        ("data: there is no file x.npy", "--data: there is no file x.npy"),
        ("labels must have shape (3,)", "--label must have shape (3,)"),
        (
            "label needs more, got label=1 and model.drop=0: train with fit(..., drop=0.1)",
            "--label needs more, got --label 1 and model.drop=0: train with fastmsgm train --drop "
            "0.1",
        ),
        ("label=True needs batch_size=...", "--label needs --batch-size ..."),
        ("the label=3 of a net=MLP", "the --label 3 of a net=MLP"),
        ("database errors and labelled=1 stay", "database errors and labelled=1 stay"),
        ("too slow: lower batch_size.", "too slow: lower --batch-size."),
        ("too wide: lower data", "too wide: lower --data"),
        ("lower bounds of data", "lower bounds of data"),
        ("/a/batch_size/b and batch_size.npy", "/a/batch_size/b and batch_size.npy"),
        ("given as labels=..., or guidance=0", "given as --labels ..., or --guidance 0"),
        ("guidance and labels are words", "guidance and labels are words"),
    ],
)
def test_messages_name_options(message: str, expected: str) -> None:
    own = ["batch_size", "data", "label"]
    assert cli.name_options(message, own, ["guidance", "labels"]) == expected


@pytest.mark.parametrize("device", ["abacus", "meta", "xpu", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(
    device: str, vectors: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run("train", data=vectors, out="run", device=device)
    assert "argument --device: must be one that this PyTorch can use" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["out", "model", "grid", "solver"])
def test_an_empty_text_is_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("sample", **{"out": "x.npy", option: ""}) == 1
    assert f"sample: --{option} must not be empty" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["out", "data"])
def test_an_empty_text_is_refused_in_training(
    option: str, vectors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", **{"data": vectors, "out": tmp_path / "run", option: ""}) == 1
    assert f"train: --{option} must not be empty" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "sample", "demo"])
@pytest.mark.parametrize("root", ["/", "//", "/x/.."])
def test_the_root_folder_is_no_output(
    command: str, root: str, vectors: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = {"data": vectors} if command == "train" else {}
    assert run(command, out=root, **data) == 1
    assert f"{command}: --out must not be the root folder" in capsys.readouterr().err


def test_errors_of_the_system_name_the_option(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of the file itself, of one beside it and of the folder that it is in."""
    out = tmp_path / "new" / "x.npy"
    for path in (out, out.with_name(".x.npy.json.tmp"), out.parent):

        def refuse(*_: object, path: Path = path, **__: object) -> None:
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(fastmsgm, "sample", refuse)
        assert run("sample", model=checkpoint, out=out) == 1
        error = capsys.readouterr().err
        assert error == f"fastmsgm sample: --out: Permission denied: {path}\n"


def fail_with(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``sample`` raise an error."""

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(fastmsgm, "sample", fail)


ERRORS = (
    OSError(28, "No space left on device"),
    RuntimeError("CUDA error"),
    RecursionError("too deep"),
    UnicodeEncodeError("ascii", "é", 0, 1, "no"),
    FileNotFoundError(2, "No such file", "x"),
)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_errors_of_any_library_are_one_line(
    error: Exception,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fail_with(error, monkeypatch)
    assert run("sample", model=checkpoint, out="x.npy") == 1
    assert capsys.readouterr().err == f"fastmsgm sample: {error}\n"


def test_pytorchs_stack_in_cpp_is_not_shown(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail_with(RuntimeError("Overflow\nException raised from unpack:\nframe #0"), monkeypatch)
    assert run("sample", model=checkpoint, out="x.npy") == 1
    assert capsys.readouterr().err == "fastmsgm sample: Overflow\n"


@pytest.mark.parametrize("error", [KeyError("x"), OverflowError("x"), AssertionError("x")])
def test_a_fault_is_told_from_an_error(
    error: Exception,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fail_with(error, monkeypatch)
    assert run("sample", model=checkpoint, out="x.npy") == 70
    shown = capsys.readouterr().err
    assert shown.startswith(f"fastmsgm sample: a fault of fastmsgm ({type(error).__name__}: ")
    assert shown.count("\n") == 1


def test_a_traceback_is_shown_on_demand(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail_with(KeyError("x"), monkeypatch)
    monkeypatch.setenv("FASTMSGM_TRACEBACK", "1")
    assert run("sample", model=checkpoint, out="x.npy") == 70
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_a_lack_of_memory_names_the_options_that_need_it(
    error: Exception,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fail_with(error, monkeypatch)
    assert run("sample", model=checkpoint, out="x.npy") == 1
    shown = capsys.readouterr().err
    assert "there is not enough memory" in shown
    assert shown.endswith(": lower --batch-size or --n\n")


def test_an_output_that_nobody_reads_ends_in_silence() -> None:
    """As with ``fastmsgm info | head``, also where the log is what fails."""
    command = [sys.executable, "-m", "fastmsgm", "info"]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_an_output_that_is_full_is_one_line() -> None:
    command = [sys.executable, "-m", "fastmsgm", "info"]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 1
    assert b"No space left on device" in done.stderr


def test_a_log_that_cannot_be_written_raises() -> None:
    stream = io.StringIO()
    handler = cli._LogHandler(stream)
    stream.close()
    with pytest.raises(ValueError, match="closed file"):
        handler.emit(logging.LogRecord("x", logging.INFO, "", 0, "message", None, None))


@pytest.mark.parametrize("option", ["images", "vectors"])
def test_the_demo_names_its_options(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("demo", **{option: 0}) == 1
    assert f"demo: --{option} must be at least 1, got 0" in capsys.readouterr().err


# ---- sample ----


def test_sample_writes_samples_manifest_and_grid(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    out, picture = tmp_path / "x.npy", tmp_path / "grid.png"
    options = {"model": checkpoint, "n": 70, "steps": 3, "out": out, "seed": 4}
    assert run("sample", **options, grid=picture, no_progress=True) == 0
    samples = np.load(out)
    again = fastmsgm.sample(checkpoint, 70, steps=3, seed=4, progress=False)
    assert samples.shape == (70, 1, 28, 28)
    np.testing.assert_array_equal(samples, again.numpy())
    assert json.loads(Path(f"{out}.json").read_text())["nfe"] == 3
    assert picture.read_bytes().startswith(PNG)
    assert "70 samples, 3 network calls each" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "no-such-model"}, "--model must be one of"),
        ({"out": "x.png"}, "--out must be a path that ends in .npy"),
        ({"n": 0}, "--n must be at least 1"),
        ({"n": -1}, "--n must be at least 1"),
        ({"steps": 0}, "--steps must be at least 1"),
        ({"batch_size": 0}, "--batch-size must be at least 1"),
        ({"start": -1}, "--start must be at least 0"),
        ({"start": 2**56}, "--start + n must be at most 2^56"),
        ({"label": 1}, "--label must be None for a model without classes"),
        ({"label": "x.npy"}, "--label: there is no file x.npy"),
        ({"label": "cat"}, "--label must be a class, such as 3, or a .npy file, got 'cat'"),
        ({"solver": "magic"}, "--solver must be one of"),
        ({"seed": -1}, "--seed must be in"),
        ({"guidance": 2}, "--guidance needs a condition"),
        ({"guidance": "nan"}, "--guidance must be a finite number"),
        ({"condition": "age=3"}, "--condition must name what the model was trained with, nothing"),
        ({"condition": "age"}, "--condition must be NAME=VALUE"),
        ({"condition": ["a=1", "a=2"]}, "--condition must be NAME=VALUE, with every name once"),
        ({"grid": "g.foo"}, "--grid: a picture's name must end in one of .png, .jpg"),
    ],
)
def test_errors_are_one_line_and_exit_status_1(
    options: dict[str, object],
    message: str,
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = {"model": checkpoint, "out": tmp_path / "x.npy", **options}
    assert run("sample", **options, no_progress=True) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"fastmsgm sample: {message}")
    assert error.count("\n") == 1
    assert not (tmp_path / "x.npy").exists()


def test_a_grid_of_vectors_is_refused_before_sampling(tmp_path: Path) -> None:
    data, out = torch.rand(9, 3) + 1, tmp_path / "x.npy"
    model = fastmsgm.GBMModel.for_data(nets.MLP(3, 8), fastmsgm.GBM(5.0), data)
    model.save(tmp_path / "model")
    grid = tmp_path / "grid.png"
    assert run("sample", model=tmp_path / "model", out=out, grid=grid) == 1
    assert not out.exists()


def test_an_npz_of_images_is_uint8_with_channels_last(checkpoint: Path, tmp_path: Path) -> None:
    options = {"model": checkpoint, "n": 5, "steps": 2, "no_progress": True}
    assert run("sample", **options, out=tmp_path / "x.npz") == 0
    assert run("sample", **options, out=tmp_path / "x.npy") == 0
    with np.load(tmp_path / "x.npz") as file:
        images = file["arr_0"]
    assert images.dtype == np.uint8
    expected = np.rint(255 * np.load(tmp_path / "x.npy")).transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(images, expected)


def test_dtype_replaces_the_default(checkpoint: Path, tmp_path: Path) -> None:
    options = {"model": checkpoint, "n": 3, "steps": 1, "no_progress": True}
    for suffix, dtype in (("npz", "float32"), ("npy", "uint8")):
        assert run("sample", **options, out=tmp_path / f"x.{suffix}", dtype=dtype) == 0
    with np.load(tmp_path / "x.npz") as file:
        assert file["arr_0"].dtype == np.float32
    assert np.load(tmp_path / "x.npy").dtype == np.uint8


def test_a_folder_of_pictures_and_its_grid(checkpoint: Path, tmp_path: Path) -> None:
    """The grid is the same as that of the samples in a file, rounded to 8 bits."""
    options = {"model": checkpoint, "n": 4, "start": 7, "steps": 2, "no_progress": True}
    assert run("sample", **options, out=tmp_path / "x", grid=tmp_path / "x.png") == 0
    file, grid = tmp_path / "y.npy", tmp_path / "y.png"
    assert run("sample", **options, out=file, grid=grid, dtype="uint8") == 0
    names = sorted(path.name for path in (tmp_path / "x").glob("*.png"))
    assert names == [f"{i:06d}.png" for i in range(7, 11)]
    assert (tmp_path / "x.png").read_bytes() == (tmp_path / "y.png").read_bytes()


@pytest.mark.parametrize("out", ["x.npy", "x"])
def test_a_grid_is_scaled_by_the_bounds(out: str, tmp_path: Path) -> None:
    """Of images in [-3, 5], as of the same in [0, 1]."""
    images = load_file(FIXTURE)["images"][:20].float() / 255
    for name, bounds in (("unit", (0.0, 1.0)), ("wide", (-3.0, 5.0))):
        torch.manual_seed(0)
        low, high = bounds
        net = nets.UNet(1, 8, 8, 1, 1, condition={"log_norm": 1})
        data = images * (high - low) + low
        model = fastmsgm.RotationModel.for_data(net, fastmsgm.Rotation(), data, bounds=bounds)
        model.save(tmp_path / name)
    options = {"model": tmp_path / "wide", "n": 4, "steps": 2, "out": tmp_path / out}
    assert run("sample", **options, grid=tmp_path / "grid.png") == 0
    samples = fastmsgm.sample(tmp_path / "wide", 4, steps=2, progress=False)
    shown = np.asarray(Image.open(tmp_path / "grid.png"))[:56:2, :56:2, 0]
    expected = 255 * ((samples[0, 0] + 3) / 8).numpy()
    assert np.abs(shown - expected).max() <= 1.01


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out": "pictures"}, "--out, a folder of PNG files, needs a model that was trained on"),
        ({"out": "x.npy", "dtype": "uint8"}, "--dtype uint8 needs a model that was trained on"),
    ],
)
def test_bytes_of_a_model_without_bounds_are_refused(
    options: dict[str, str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, net = torch.rand(9, 1, 8, 8) + 1, nets.UNet(1, 8, 8, 1, 1)
    fastmsgm.GBMModel.for_data(net, fastmsgm.GBM(5.0), images).save(tmp_path / "model")
    out = tmp_path / options["out"]
    assert run("sample", **{**options, "model": tmp_path / "model", "n": 2, "out": out}) == 1
    error = capsys.readouterr().err
    assert f"sample: {message} images in [0, 1]: write a .npy or .npz file" in error
    assert not out.exists()


def test_an_npz_of_vectors_is_float32(vectors: Path, tmp_path: Path) -> None:
    model = fastmsgm.GBMModel.for_data(
        nets.MLP(3, 8), fastmsgm.GBM(5.0), torch.from_numpy(np.load(vectors))
    )
    model.save(tmp_path / "model")
    assert run("sample", model=tmp_path / "model", n=4, out=tmp_path / "x.npz") == 0
    with np.load(tmp_path / "x.npz") as file:
        assert (file["arr_0"].dtype, file["arr_0"].shape) == (np.float32, (4, 3))


def test_an_interrupt_has_exit_status_130(
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fastmsgm, "sample", interrupt)
    assert run("sample", model=checkpoint, out=tmp_path / "x.npy") == 130
    assert "interrupted" in capsys.readouterr().err


def test_help_says_what_the_exit_status_means(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    shown = capsys.readouterr().out
    assert all(f"{status} " in shown for status in (1, 2, 70, 130, 141))


def test_help_names_the_solvers_of_all_families(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["sample", "--help"])
    printed = "".join(capsys.readouterr().out.split())
    assert all(name in printed for name in solver_names())


# ---- train ----


def test_train_then_sample(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write(tmp_path / "data.npy", np.exp(np.random.default_rng(0).normal(size=(64, 3))))
    out = tmp_path / "run"
    options = {"data": data, "out": out, "steps": 3, "batch_size": 8, "width": 16}
    assert run("train", **options, sigma=5, precision="fp32") == 0
    assert f"{out}: trained for 3 steps" in capsys.readouterr().out
    model = fastmsgm.load(out)
    assert model.offset == 0.0
    assert model.bounds is None
    assert bool((fastmsgm.sample(model, 4, progress=False) > 0).all())


def test_train_on_images_in_the_unit_interval(tmp_path: Path) -> None:
    """They get the offset 1, and samples are clamped to their range."""
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((20, 1, 8, 8), np.float32))
    options = {"data": tmp_path / "x.npy", "steps": 2, "batch_size": 4, "width": 16}
    for family, offset in (("gbm", 1.0), ("rotation", 0.0)):
        assert run("train", **options, out=tmp_path / family, family=family) == 0
        model = fastmsgm.load(tmp_path / family)
        assert (model.offset, model.bounds) == (offset, (0.0, 1.0))


def test_train_a_rotation_then_sample(tmp_path: Path) -> None:
    data = write(tmp_path / "data.npy", np.random.default_rng(0).standard_t(2, size=(64, 3)))
    out = tmp_path / "run"
    options = {"data": data, "out": out, "steps": 3, "batch_size": 8, "width": 16}
    rotation = {"family": "rotation", "pareto": 0.1, "beta_max": 15}
    assert run("train", **options, **rotation, precision="fp32") == 0
    model = fastmsgm.load(out)
    assert isinstance(model, fastmsgm.RotationModel)
    assert (model.process.noise, model.process.beta_max, model.tail) == ("isotropic", 15.0, 6)
    assert isinstance(model.net, nets.DirectionMLP)
    norms = fastmsgm.sample(model, 50, progress=False).norm(dim=1)
    expected = model.prior.sample(50, rng.stream(0))
    torch.testing.assert_close(norms.log(), expected.log(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("prediction", "sigma"), [("score", 0.8), ("hyvarinen", 0.8), ("denoiser", 10.0)]
)
def test_a_score_network_is_trained_at_the_sigma_of_the_paper(
    prediction: str, sigma: float, tmp_path: Path
) -> None:
    data = write(tmp_path / "x.npy", np.random.default_rng(0).lognormal(size=(50, 3)))
    out = tmp_path / "run"
    options = {"data": data, "out": out, "steps": 60, "width": 8, "prediction": prediction}
    assert run("train", **options) == 0
    model = fastmsgm.load(out)
    assert isinstance(model, fastmsgm.GBMModel)
    assert (model.process.sigma, model.prediction) == (sigma, prediction)


@pytest.mark.parametrize("family", train_model.OPTIONS)
def test_a_class_conditional_model_of_every_family(
    family: str, vectors: Path, classes: Path, tmp_path: Path
) -> None:
    """It is trained with --labels and sampled with --label, of one class or of a file."""
    out = tmp_path / "run"
    options = {"data": vectors, "labels": classes, "drop": 0.1, "family": family, "width": 16}
    assert run("train", **options, out=out, steps=2, batch_size=8, precision="fp32") == 0
    model = fastmsgm.load(out)
    assert (model.classes, model.drop) == (3, pytest.approx(0.1))
    np.save(tmp_path / "label.npy", np.array([2, 0, 1, 1]))
    options = {"model": out, "n": 4, "steps": 2, "guidance": 2}
    for label, expected in ((1, 1), (tmp_path / "label.npy", [2, 0, 1, 1])):
        samples = tmp_path / f"x{expected == 1}.npy"
        assert run("sample", **options, label=label, out=samples) == 0
        again = fastmsgm.sample(model, 4, steps=2, guidance=2, label=expected, progress=False)
        np.testing.assert_array_equal(np.load(samples), again.numpy())


@pytest.mark.parametrize("family", train_model.OPTIONS)
def test_a_model_with_a_condition(family: str, vectors: Path, tmp_path: Path) -> None:
    """A number conditions all samples as a file of equal rows does."""
    out = tmp_path / "run"
    ages = write(tmp_path / "ages.npy", np.random.default_rng(1).normal(size=(40,)))
    places = write(tmp_path / "places.npy", np.random.default_rng(2).normal(size=(40, 2)))
    options = {"data": vectors, "condition": [f"age={ages}", f"place={places}"], "out": out}
    options |= {"family": family, "width": 16, "drop": 0.1, "validation": 0.2, "precision": "fp32"}
    assert run("train", **options, steps=2, batch_size=8) == 0
    ages, places = (
        write(tmp_path / f"{name}.npy", np.full(shape, 1.5))
        for name, shape in (("age", (4,)), ("place", (4, 2)))
    )
    options = {"model": out, "n": 4, "steps": 2, "guidance": 2}
    for name, age in (("number", 1.5), ("file", ages)):
        condition = [f"place={places}", f"age={age}"]
        assert run("sample", **options, out=tmp_path / f"{name}.npy", condition=condition) == 0
    by_number, by_file = (np.load(tmp_path / f"{name}.npy") for name in ("number", "file"))
    np.testing.assert_array_equal(by_number, by_file)


def test_a_missing_condition_is_named(
    vectors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = torch.from_numpy(np.load(vectors))
    net = nets.MLP(3, 8, condition={"age": 1})
    fastmsgm.GBMModel.for_data(net, fastmsgm.GBM(5.0), data).save(tmp_path / "model")
    assert run("sample", model=tmp_path / "model", n=2, out=tmp_path / "x.npy") == 1
    error = "--condition must name what the model was trained with, age, got nothing"
    assert error in capsys.readouterr().err


def test_a_folder_of_images_and_its_classes(
    class_folders: Path, tmp_path: Path, fitted: dict[str, Any]
) -> None:
    options = {"data": class_folders, "labels": "data", "size": 8, "width": 16, "sigma": 5}
    assert run("train", **options, out=tmp_path / "run") == 0
    model, images = fitted["model"], fitted["data"]
    assert (images.shape, images.dtype) == ((8, 3, 8, 8), torch.uint8)
    assert fitted["labels"].tolist() == [0] * 4 + [1] * 4
    assert (model.classes, model.offset, model.bounds) == (2, 1.0, (0.0, 1.0))


def test_training_on_uint8_images_of_an_npz(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "x.npz", images)
    options = {"data": tmp_path / "x.npz", "steps": 1, "batch_size": 4, "width": 8}
    assert run("train", **options, out=tmp_path / "run") == 0
    assert fastmsgm.load(tmp_path / "run").shape == (3, 8, 8)


def test_labels_and_validation_of_a_named_set(
    tmp_path: Path, fitted: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The labels come with the images, and the validation data are the test images."""
    size = {"train": 6, "test": 4}

    def mnist(split: str, labels: bool) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.rand(size[split], 1, 8, 8), torch.arange(size[split]) % 2

    monkeypatch.setitem(train_data.BY_NAME, "mnist", mnist)
    options = {"data": "mnist", "labels": "data", "validation": "mnist", "width": 16}
    assert run("train", **options, out=tmp_path / "run") == 0
    assert fitted["labels"].tolist() == [0, 1] * 3
    assert fitted["validation"][:][1]["label"].tolist() == [0, 1] * 2


def test_a_share_for_validation_is_held_out(
    tmp_path: Path, fitted: dict[str, Any], classes: Path
) -> None:
    """Samples keep their labels, and each is either trained on or held out."""
    x = np.random.default_rng(0).lognormal(size=(40, 3))
    x[:, 0] = 1 + np.arange(40)
    data = write(tmp_path / "x.npy", x)
    options = {"data": data, "labels": classes, "validation": 0.25, "out": tmp_path / "run"}
    assert run("train", **options) == 0
    held_out, condition = fitted["validation"][:]
    assert (len(fitted["data"]), len(held_out)) == (30, 10)
    indices = torch.cat((fitted["data"], held_out))[:, 0].long() - 1
    assert sorted(indices.tolist()) == list(range(40))
    labels = torch.cat((fitted["labels"], condition["label"]))
    assert labels.tolist() == (indices % 3).tolist()


def test_losses_are_printed(
    vectors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    validation = write(tmp_path / "held.npy", np.random.default_rng(1).lognormal(size=(9, 3)))
    options = {"data": vectors, "validation": validation, "out": tmp_path / "run", "width": 8}
    assert run("train", **options, steps=4, every=2, batch_size=8, no_progress=True) == 0
    printed = capsys.readouterr()
    lines = [line for line in printed.out.splitlines() if line.startswith("step ")]
    assert [line.split(":")[0] for line in lines] == ["step 2 of 4", "step 4 of 4"]
    assert all("validation loss" in line for line in lines)
    assert "training" not in printed.err  # the progress bar's name


def test_the_options_of_fit_arrive(vectors: Path, tmp_path: Path, fitted: dict[str, Any]) -> None:
    given = {
        "steps": 7,
        "batch_size": 5,
        "accumulate": 2,
        "lr": 0.01,
        "warmup": 3,
        "clip": 0.5,
        "ema": 0.9,
        "tail": 0.25,
        "precision": "fp32",
        "every": 4,
        "seed": 9,
    }
    options = {"data": vectors, "out": tmp_path / "run", "tensorboard": True}
    assert run("train", **options, **given, no_progress=True) == 0
    assert given.items() <= fitted.items()
    assert (fitted["tensorboard"], fitted["progress"]) == (True, False)


@pytest.mark.parametrize("optimizer", train_command.OPTIMIZERS)
def test_a_run_of_every_optimizer_resumes(optimizer: str, vectors: Path, tmp_path: Path) -> None:
    options = {"data": vectors, "optimizer": optimizer, "batch_size": 8, "width": 8, "warmup": 0}
    options |= {"precision": "fp32", "lr": 1e-3, "out": tmp_path / "run"}
    for steps in (2, 3):
        assert run("train", **options, steps=steps) == 0
    assert len((tmp_path / "run" / "loss.csv").read_text().splitlines()) == 4


@pytest.mark.parametrize(
    ("sides", "levels"), [((48, 64), 2), ((64, 64), 3), ((160, 192), 4), ((300, 8), 2)]
)
def test_the_levels_of_the_network_depend_on_the_images(
    sides: tuple[int, int], levels: int, tmp_path: Path, fitted: dict[str, Any]
) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((2, 1, *sides), np.float32))
    options = {"data": tmp_path / "x.npy", "out": tmp_path / "run", "width": 8}
    assert run("train", **options) == 0
    assert fitted["model"].net.config["levels"] == levels
    assert run("train", **options, levels=2) == 0
    assert fitted["model"].net.config["levels"] == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": "x.npy"}, "--data: there is no file x.npy"),
        ({"data": "{negative}"}, "--data: {negative}: data must be of floating"),
        ({"data": "{empty}"}, "--data: {empty}: data must be images"),
        ({"data": "{images}", "width": 12}, "--width must be a multiple of 8 for images"),
        ({"data": "{images}", "levels": 99}, "--levels must be"),
        ({"condition": "age={images}"}, "--condition must be a file of shape (n,) or (n, k)"),
        ({"condition": "age={nan}"}, "--condition 'age' must be finite"),
        ({"sigma": 1e9}, "--sigma sqrt(T) must be below"),
        ({"validation": "{negative}"}, "--validation: {negative}: data must be of floating"),
        ({"out": "{row}"}, "--out must be a folder, got '{row}'"),
        ({"out": "{row}/run"}, "--out must be a folder, got '{row}/run': {row} is a file"),
        ({"data": "x.txt"}, "--data must be one of"),
        ({"size": 8}, "--size is for folders of images"),
        ({"labels": "data"}, "--labels data needs a named set, or a folder"),
        ({"labels": "{vectors}"}, "--labels must be a file of integers, got float32"),
        ({"labels": "l.npy"}, "--labels: there is no file l.npy"),
        ({"condition": "age={classes}x"}, "--condition must be a .npy file"),
        ({"condition": "label={classes}"}, "--condition must not be named 'label'"),
        ({"condition": "age={row}"}, "--condition 'age' must have shape (40, ...)"),
        ({"labels": "{row}"}, "--labels must be a file of integers"),
        ({"labels": "{negative}"}, "--labels must be from 0 to 1, got -1 to 1"),
        ({"drop": 0.1}, "--drop needs --labels or --condition"),
        ({"drop": 1, "labels": "{classes}"}, "--drop must be in [0, 1)"),
        ({"validation": 1.5}, "--validation must be a share of the 40 samples"),
        ({"validation": "v.npy"}, "--validation: data: there is no file v.npy"),
        ({"validation": "{row}"}, "--validation must have samples of shape (3,)"),
        ({"validation": "v.npy", "labels": "{classes}"}, "--validation must be a share"),
        ({"batch_size": 0}, "--batch-size must be at least 1"),
        ({"accumulate": 0}, "--accumulate must be at least 1"),
        ({"steps": 0}, "--steps must be in 1 .. 2147483648"),
        ({"every": 0}, "--every must be at least 1"),
        ({"warmup": -1}, "--warmup must be at least 0"),
        ({"lr": 0}, "--lr must be a positive number"),
        ({"clip": 0}, "--clip must be positive"),
        ({"ema": 1}, "--ema must be in [0, 1)"),
        ({"tail": 1}, "--tail must be in [0, 1)"),
        ({"tail": 0.5}, "--tail must be 0 for a GBMModel"),
        ({"width": 0}, "--width must be at least 1"),
        ({"levels": 3}, "--levels is for images"),
        ({"sigma": -1}, "--sigma must be"),
        ({"family": "rotation", "beta_max": 0}, "--beta-max must be a positive number"),
        ({"family": "rotation", "pareto": 2}, "--pareto must be a share"),
        ({"seed": -1}, "--seed must be in"),
    ],
)
def test_errors_of_train_name_the_option(
    options: dict[str, Any],
    message: str,
    vectors: Path,
    classes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    row = write(tmp_path / "row.npy", np.ones((1, 2)))
    np.save(tmp_path / "negative.npy", np.arange(40) % 3 - 1)
    files = {"vectors": vectors, "classes": classes, "row": row}
    files |= {"negative": tmp_path / "negative.npy", "empty": tmp_path / "empty"}
    files["empty"].mkdir()
    files["images"] = write(tmp_path / "images.npy", np.ones((3, 1, 8, 8)))
    files["nan"] = write(tmp_path / "nan.npy", np.full(40, np.nan))
    given = {k: v.format(**files) if isinstance(v, str) else v for k, v in options.items()}
    assert run("train", **{"data": vectors, "out": tmp_path / "run", **given}) == 1
    error = capsys.readouterr().err
    for name, path in files.items():
        message = message.replace(f"{{{name}}}", str(path))
    assert error.startswith(f"fastmsgm train: {message}")
    assert error.count("\n") == 1


def test_a_remedy_names_the_option(vectors: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"family": "rotation", "beta_max": 1e9, "out": vectors.with_name("run")}
    assert run("train", data=vectors, **options) == 1
    assert capsys.readouterr().err.endswith(": lower --beta-max\n")


def test_labels_of_another_number_of_samples_are_refused(
    vectors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "labels.npy", np.zeros(3, np.int64))
    assert run("train", data=vectors, labels=tmp_path / "labels.npy", out=tmp_path / "run") == 1
    assert "train: --labels must have shape (40,)" in capsys.readouterr().err


def test_validation_data_may_lack_a_class(
    class_folders: Path, tmp_path: Path, fitted: dict[str, Any]
) -> None:
    """Class 1 stays class 1, and hidden folders are no classes."""
    held_out = tmp_path / "held_out"
    for name in ("cats", "dogs", ".cache"):
        (held_out / name).mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(held_out / "dogs" / "x.png")
    options = {"data": class_folders, "labels": "data", "size": 8, "width": 16}
    assert run("train", **options, validation=held_out, out=tmp_path / "run") == 0
    assert fitted["validation"][:][1]["label"].tolist() == [1]


def test_an_empty_class_folder_is_refused(
    class_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (class_folders / "eels").mkdir()
    options = {"data": class_folders, "labels": "data", "size": 8, "out": tmp_path / "run"}
    assert run("train", **options) == 1
    error = "--data must have images in every class folder, got none in eels"
    assert error in capsys.readouterr().err


def test_validation_data_of_other_classes_are_refused(
    class_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other" / "birds"
    other.mkdir(parents=True)
    options = {"data": class_folders, "labels": "data", "size": 8, "out": tmp_path / "run"}
    assert run("train", **options, validation=other.parent) == 1
    assert "--validation must have the class folders of --data" in capsys.readouterr().err


def test_data_of_both_signs_are_sent_to_rotations(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(9, 3)))
    assert run("train", data=data, out=tmp_path / "run") == 1
    assert "; try --family rotation" in capsys.readouterr().err


def test_data_of_one_sign_are_not_sent_to_rotations(
    vectors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", data=vectors, out=tmp_path / "run", sigma=500) == 1
    assert "--family rotation" not in capsys.readouterr().err


def test_a_seed_out_of_range_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write(tmp_path / "x.npy", np.ones((5, 3)))
    assert run("train", data=data, out=tmp_path / "out", seed=2**64) == 1
    assert "--seed must be in" in capsys.readouterr().err


def test_an_option_of_the_other_family_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write(tmp_path / "data.npy", np.ones((4, 3)))
    options = {"data": data, "out": tmp_path / "run"}
    assert run("train", **options, family="rotation", sigma=5) == 1
    assert "--sigma is for --family gbm, got --family rotation" in capsys.readouterr().err
    assert run("train", **options, pareto=0.1) == 1
    assert "--pareto is for --family rotation, got --family gbm" in capsys.readouterr().err
    assert run("train", **options, family="vp", offset=1) == 1
    assert "--offset is for --family gbm or rotation, got --family vp" in capsys.readouterr().err


def test_data_of_another_number_of_axes_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "x.npy", np.ones((4, 3, 2), np.float32))
    assert run("train", data=tmp_path / "x.npy", out=tmp_path / "run") == 1
    assert "--data must be vectors (n, d) or images" in capsys.readouterr().err


# ---- info ----


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info"]) == 0
    printed = capsys.readouterr().out
    for words in (f"fastmsgm {fastmsgm.__version__}", "backend", "numba: installed"):
        assert words in printed
