"""The command line, in process: train, sample, demo, info, and what a user sees when something is wrong."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import fastmsgm
from fastmsgm import cli, nets, rng
from fastmsgm.pictures import film_strip, grid

FIXTURE = Path(__file__).parent / "data" / "fashion_fixture.safetensors"
PNG = b"\x89PNG"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an untrained image model."""
    folder = tmp_path_factory.mktemp("checkpoint")
    images = load_file(FIXTURE)["images"].float() / 255
    torch.manual_seed(0)
    net = nets.UNet(1, 16, 16, 1, 2)
    fastmsgm.GBMModel.for_data(net, fastmsgm.GBM(10.0), images, offset=1.0, bounds=(0.0, 1.0)).save(folder)
    return folder


def test_sample_writes_samples_manifest_and_grid(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    out, picture = tmp_path / "x.npy", tmp_path / "grid.png"
    arguments = ["sample", "--model", str(checkpoint), "--n", "70", "--steps", "3", "--out", str(out), "--seed", "4"]
    assert cli.main([*arguments, "--grid", str(picture), "--no-progress", "--device", "cpu"]) == 0
    samples = np.load(out)
    again = fastmsgm.sample(checkpoint, 70, steps=3, seed=4, progress=False)
    assert samples.shape == (70, 1, 28, 28)
    np.testing.assert_array_equal(samples, again.numpy())
    assert json.loads(Path(f"{out}.json").read_text())["calls"] == 3
    assert picture.read_bytes().startswith(PNG)
    assert "70 samples, 3 calls each" in caplog.text


def test_train_then_sample(tmp_path: Path) -> None:
    data, run = tmp_path / "data.npy", tmp_path / "run"
    np.save(data, np.exp(np.random.default_rng(0).normal(size=(64, 3))).astype(np.float32))
    arguments = ["train", "--data", str(data), "--out", str(run), "--steps", "3", "--batch-size", "8", "--width", "16"]
    assert cli.main([*arguments, "--sigma", "5", "--precision", "fp32", "--device", "cpu"]) == 0
    model = fastmsgm.load(run)
    assert model.offset == 0.0
    assert model.bounds is None
    assert (fastmsgm.sample(model, 4, progress=False) > 0).all()


def test_train_a_rotation_then_sample(tmp_path: Path) -> None:
    data, run = tmp_path / "data.npy", tmp_path / "run"
    np.save(data, np.random.default_rng(0).standard_t(2, size=(64, 3)).astype(np.float32))
    arguments = ["train", "--data", str(data), "--out", str(run), "--steps", "3", "--batch-size", "8", "--width", "16"]
    rotation = ["--family", "rotation", "--pareto", "0.1", "--beta-max", "15"]
    assert cli.main([*arguments, *rotation, "--precision", "fp32", "--device", "cpu"]) == 0
    model = fastmsgm.load(run)
    assert isinstance(model, fastmsgm.RotationModel)
    assert (model.process.noise, model.process.beta_max, model.tail) == ("isotropic", 15.0, 6)
    norms = fastmsgm.sample(model, 50, progress=False).norm(dim=1)
    torch.testing.assert_close(norms.log(), model.prior.draw(50, rng.stream(0)).log(), rtol=0, atol=1e-5)


def test_a_score_network_is_trained_at_the_papers_sigma(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).lognormal(size=(50, 3)).astype(np.float32))
    for prediction, sigma in (("score", 0.8), ("hyvarinen", 0.8), ("denoiser", 10.0)):
        out = tmp_path / prediction
        arguments = ["train", "--data", str(tmp_path / "x.npy"), "--out", str(out), "--steps", "60", "--width", "8"]
        assert cli.main([*arguments, "--prediction", prediction, "--device", "cpu"]) == 0
        assert fastmsgm.load(out).process.sigma == sigma


def test_a_seed_out_of_range_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "x.npy", np.ones((5, 3), np.float32))
    arguments = ["train", "--data", str(tmp_path / "x.npy"), "--out", str(tmp_path / "out"), "--seed", str(2**64)]
    assert cli.main(arguments) == 1
    assert "seed must be in" in capsys.readouterr().err


def test_an_option_of_the_other_family_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data.npy"
    np.save(data, np.ones((4, 3), dtype=np.float32))
    arguments = ["train", "--data", str(data), "--out", str(tmp_path / "run"), "--device", "cpu"]
    assert cli.main([*arguments, "--family", "rotation", "--sigma", "5"]) == 1
    assert "--sigma is for --family gbm, got --family rotation" in capsys.readouterr().err
    assert cli.main([*arguments, "--pareto", "0.1"]) == 1
    assert "--pareto is for --family rotation, got --family gbm" in capsys.readouterr().err


def test_demo_draws_the_pictures(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    arguments = ["demo", "--out", str(tmp_path), "--images", "4", "--vectors", "40", "--device", "cpu"]
    assert cli.main(arguments) == 0
    for name in ("fashion.png", "denoising.png", "cauchy.png"):
        assert (tmp_path / name).read_bytes().startswith(PNG)
    assert "4 samples, 18 calls each" in caplog.text
    assert "40 samples, 20 calls each" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "no-such-model", "--out", "x.npy"], "model must be one of"),
        (["--out", "x.png"], "out must be a path that ends in .npy"),
        (["--n", "0", "--out", "x.npy"], "n must be at least 1"),
        (["--steps", "0", "--out", "x.npy"], "steps must be at least 1"),
        (["--solver", "magic", "--out", "x.npy"], "solver must be one of"),
        (["--seed", "-1", "--out", "x.npy"], "seed must be in"),
        (["--grid", "g.foo", "--out", "x.npy"], "a picture's name must end in one of .png, .jpg"),
    ],
)
def test_errors_are_one_line_and_exit_status_1(
    arguments: list[str], message: str, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = [] if "--model" in arguments else ["--model", str(checkpoint)]
    assert cli.main(["sample", *model, *arguments, "--no-progress", "--device", "cpu"]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_grid_and_film_strip_take_colour(tmp_path: Path) -> None:
    grid(torch.rand(5, 3, 8, 8), tmp_path / "grid.png")
    film_strip([torch.rand(2, 3, 8, 8) + 1] * 3, [1.0, 0.1, 0.0], tmp_path / "film.png", (0.0, 0.7))
    assert (tmp_path / "grid.png").read_bytes().startswith(PNG)
    assert (tmp_path / "film.png").read_bytes().startswith(PNG)


def test_interruption_is_said(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fastmsgm, "sample", interrupt)
    arguments = ["sample", "--model", str(checkpoint), "--out", str(tmp_path / "x.npy"), "--device", "cpu"]
    assert cli.main(arguments) == 130
    assert "interrupted" in capsys.readouterr().err


def test_a_grid_of_vectors_is_refused_before_sampling(tmp_path: Path) -> None:
    data = torch.rand(9, 3) + 1
    fastmsgm.GBMModel.for_data(nets.MLP(3, 8), fastmsgm.GBM(5.0), data).save(tmp_path / "model")
    arguments = ["sample", "--model", str(tmp_path / "model"), "--out", str(tmp_path / "x.npy"), "--device", "cpu"]
    assert cli.main([*arguments, "--grid", str(tmp_path / "grid.png")]) == 1
    assert not (tmp_path / "x.npy").exists()
