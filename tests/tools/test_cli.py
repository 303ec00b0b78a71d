"""The command line, in process: train, sample, demo, info, and its errors."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import fastmsgm
from fastmsgm import nets, rng
from fastmsgm.families import solver_names
from fastmsgm.tools import cli

FIXTURE = Path(__file__).parents[1] / "data" / "fashion_fixture.safetensors"
PNG = b"\x89PNG"


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
        arguments.append(f"--{name.replace('_', '-')}")
        if value is not True:
            arguments.append(str(value))
    return cli.main(arguments)


def write(path: Path, data: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> Path:
    np.save(path, data.astype(np.float32))
    return path


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
        ({"model": "no-such-model"}, "model must be one of"),
        ({"out": "x.png"}, "out must be a path that ends in .npy"),
        ({"n": 0}, "n must be at least 1"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"start": -1}, "start must be at least 0"),
        ({"label": 1}, "label must be None for a model without classes"),
        ({"solver": "magic"}, "solver must be one of"),
        ({"seed": -1}, "seed must be in"),
        ({"grid": "g.foo"}, "a picture's name must end in one of .png, .jpg"),
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
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "x.npy").exists()


def test_a_grid_of_vectors_is_refused_before_sampling(tmp_path: Path) -> None:
    data, out = torch.rand(9, 3) + 1, tmp_path / "x.npy"
    model = fastmsgm.GBMModel.for_data(nets.MLP(3, 8), fastmsgm.GBM(5.0), data)
    model.save(tmp_path / "model")
    grid = tmp_path / "grid.png"
    assert run("sample", model=tmp_path / "model", out=out, grid=grid) == 1
    assert not out.exists()


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


def test_a_seed_out_of_range_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write(tmp_path / "x.npy", np.ones((5, 3)))
    assert run("train", data=data, out=tmp_path / "out", seed=2**64) == 1
    assert "seed must be in" in capsys.readouterr().err


def test_an_option_of_the_other_family_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write(tmp_path / "data.npy", np.ones((4, 3)))
    options = {"data": data, "out": tmp_path / "run"}
    assert run("train", **options, family="rotation", sigma=5) == 1
    assert "--sigma is for --family gbm, got --family rotation" in capsys.readouterr().err
    assert run("train", **options, pareto=0.1) == 1
    assert "--pareto is for --family rotation, got --family gbm" in capsys.readouterr().err


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
