"""``fastmsgm eval``, in process: what it reads, samples and prints, and its errors."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import fastmsgm
from fastmsgm import nets
from fastmsgm.data import files
from fastmsgm.evaluation import evaluate
from fastmsgm.evaluation.bits import bits_per_dimension
from tests.sde.exact import gaussian_data
from tests.tools.test_cli import options_of, run

SMALL = "tests.evaluation.extractor_fixture:small"
NO_OPTION = {  # arguments of evaluate that are no options, and why
    "sources": "the command knows them",
}


def write(path: Path, n: int, seed: int) -> Path:
    """Write n vectors of 3 features, of a Gaussian."""
    np.save(path, gaussian_data(n, seed).numpy())
    return path


@pytest.fixture
def vectors(tmp_path: Path) -> dict[str, Path]:
    """Files of samples, of other data, and of the data that a model was trained on."""
    sizes = {"samples": 40, "reference": 50, "train": 60}
    return {
        name: write(tmp_path / f"{name}.npy", n, seed)
        for seed, (name, n) in enumerate(sizes.items())
    }


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A folder with an untrained model of vectors of 3 features."""
    torch.manual_seed(0)
    data = gaussian_data(100)
    model = fastmsgm.VPModel.for_data(nets.MLP(3, 8), fastmsgm.VP(), data)
    model.save(tmp_path / "model")
    return tmp_path / "model"


def figures(folder: Path) -> dict[str, Any]:
    content = json.loads((folder / "report.json").read_text())
    return {figure["name"]: figure for figure in content["figures"]}


def settings(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text())["settings"]


def test_every_argument_of_evaluate_is_an_option() -> None:
    arguments = set(inspect.signature(evaluate).parameters)
    options = options_of("eval").keys()
    assert arguments == (arguments & options) | NO_OPTION.keys()


def test_every_option_has_a_help_text_with_its_default() -> None:
    for name, action in options_of("eval").items():
        assert action.help, name
        if action.default not in (None, False) and name != "run":
            assert "%(default)s" in action.help, name


def test_files_are_compared(
    vectors: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The report is that of evaluate, on the screen and in the folder."""
    assert run("eval", **vectors, out=tmp_path / "report") == 0
    tensors = [gaussian_data(n, seed) for seed, n in enumerate((40, 50, 60))]
    expected = evaluate(tensors[0], tensors[1], train=tensors[2], progress=False)
    found = figures(tmp_path / "report")
    assert {name: figure["value"] for name, figure in found.items()} == pytest.approx(
        {figure.name: figure.value for figure in expected.figures}
    )
    printed = capsys.readouterr().out
    assert f"reference: n 50, shape 3, dtype float32, source {vectors['reference']}" in printed
    for name in found:
        assert name in printed


def test_a_model_is_sampled_and_its_likelihood_is_reported(
    vectors: dict[str, Path], checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "report"
    options = {"model": checkpoint, "n": 30, "steps": 2, "seed": 5, "no_progress": True}
    reference = vectors["reference"]
    assert run("eval", **options, reference=reference, metrics="swd", likelihood=True, out=out) == 0
    samples = fastmsgm.sample(str(checkpoint), 30, steps=2, seed=5, progress=False)
    expected = evaluate(samples, gaussian_data(50, 1), metrics=["swd"], progress=False)
    found = figures(out)
    assert found["sliced Wasserstein"]["value"] == pytest.approx(expected.figures[0].value)
    assert found["log-likelihood"]["error"] > 0
    known = settings(out)["samples"]
    assert (known["n"], known["steps"], known["seed"]) == (30, 2, 5)
    assert known["model"] == str(checkpoint)


def test_the_likelihood_alone_takes_no_samples(
    vectors: dict[str, Path],
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("sampled")

    monkeypatch.setattr(fastmsgm, "sample", refuse)
    metrics = {"metrics": "likelihood", "no_progress": True}
    assert run("eval", model=checkpoint, reference=vectors["reference"], **metrics) == 0
    assert "log-likelihood" in capsys.readouterr().out


def test_a_named_set_gives_its_test_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the reference; as --train its training split. Samples come from a folder of pictures."""

    def read(split: str) -> torch.Tensor:
        seed, n = {"test": (0, 20), "train": (1, 30)}[split]
        return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed))

    monkeypatch.setitem(files.BY_NAME, "mnist", read)
    (tmp_path / "samples").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (12, 10, 10), dtype=np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / "samples" / f"{i:06d}.png")
    options = {"samples": tmp_path / "samples", "size": 8, "reference": "mnist", "train": "mnist"}
    out = tmp_path / "report"
    assert run("eval", **options, extractor=SMALL, no_progress=True, out=out) == 0
    known = settings(out)
    assert (known["reference"]["split"], known["reference"]["n"]) == ("test", 20)
    assert (known["train"]["split"], known["train"]["n"]) == ("train", 30)
    assert known["samples"]["resized to"] == 8
    assert known["samples"]["dtype"] == "uint8"
    assert known["extractor"]["name"] == SMALL
    assert len(known["extractor"]["sha256"]) == 64
    assert f"memorisation ratio, {SMALL}" in figures(out)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"samples": None}, "--samples or --model must be given, got neither"),
        ({"samples": "absent.npy"}, "--samples: data: there is no file absent.npy"),
        ({"reference": "absent.npy"}, "--reference: data: there is no file absent.npy"),
        ({"train": "absent.npy"}, "--train: data: there is no file absent.npy"),
        ({"metrics": "fld,swd"}, "--metrics must be among fid, kid"),
        ({"metrics": "nearest", "train": None}, "--metrics: nearest needs --train ..."),
        ({"likelihood": True}, "--metrics: likelihood needs --model ..."),
        ({"extractor": "clip", "metrics": "kid"}, "--extractor must be one of raw"),
        ({"batch_size": 0}, "--batch-size must be at least 1"),
        ({"size": 8}, "--size is for folders of images"),
        ({"n": 20, "steps": 3}, "--samples are not drawn from a model, got --n, --steps too"),
        ({"guidance": 2.0}, "--samples are not drawn from a model, got --guidance too"),
        ({"metrics": "swd", "extractor": "raw"}, "--extractor must be left out where no metric"),
        ({"label": 1}, "--label must be left out where metrics have no likelihood"),
    ],
)
def test_errors_name_the_option(
    change: dict[str, object],
    message: str,
    vectors: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = {name: value for name, value in {**vectors, **change}.items() if value is not None}
    assert run("eval", **options) == 1
    assert f"fastmsgm eval: {message}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metrics": "fld"}, "--metrics must be among"),
        ({"metrics": "frechet", "extractor": "clip"}, "--extractor must be one of"),
        ({"n": 9}, "--n must be at least 10"),
        ({"batch_size": 0}, "--batch-size must be at least 1"),
        ({"reference": "other"}, "--reference must have the shape of the model's samples"),
        ({"out": "file"}, "--out: "),
    ],
)
def test_errors_come_before_sampling(
    change: dict[str, str],
    message: str,
    vectors: dict[str, Path],
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("sampled")

    monkeypatch.setattr(fastmsgm, "sample", refuse)
    np.save(tmp_path / "other.npy", np.ones((20, 4), np.float32))
    (tmp_path / "file").write_text("")
    paths = {"other": tmp_path / "other.npy", "file": tmp_path / "file"}
    options = {"model": checkpoint, "reference": vectors["reference"], "metrics": "swd"}
    options |= {name: paths.get(value, value) for name, value in change.items()}
    assert run("eval", **options) == 1
    assert f"fastmsgm eval: {message}" in capsys.readouterr().err


@pytest.mark.parametrize("label", [None, 1])
def test_bits_of_images_given_their_class(
    label: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a named set its own classes, or the class of --label."""
    generator = torch.Generator().manual_seed(0)
    levels = torch.randint(0, 256, (12, 1, 4, 4), generator=generator, dtype=torch.uint8)
    classes = torch.arange(12) % 3

    def read(split: str, labels: bool = False) -> Any:
        return (levels / 255, classes) if labels else levels / 255

    monkeypatch.setitem(files.BY_NAME, "mnist", read)
    torch.manual_seed(0)
    net = nets.UNet(1, 8, 16, 0, 1, 2, classes=3)
    model = fastmsgm.VPModel.for_data(net, fastmsgm.VP(), levels / 255, classes=3)
    model.save(tmp_path / "model")
    options = {"model": tmp_path / "model", "reference": "mnist", "metrics": "likelihood"}
    out = tmp_path / "report"
    options |= {} if label is None else {"label": label}
    assert run("eval", **options, no_progress=True, out=out) == 0
    given = classes if label is None else label
    expected = bits_per_dimension(
        model, levels, label=given, solver="rk4", steps=16, progress=False
    )
    assert figures(out)["bits per dimension"]["value"] == pytest.approx(expected.mean, rel=1e-4)
