"""Every recipe: its smoke run, its header, and its row in docs/recipes.md."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import fastmsgm
from fastmsgm.evaluation import metrics
from fastmsgm.nets import MLP
from train import recipe as recipes
from train.vector_models import compressed

ROOT = Path(__file__).parents[1]
NAMES = sorted(
    path.stem for path in (ROOT / "train").glob("*.py") if "__main__" in path.read_text("utf-8")
)
WITH_RECIPE = sorted(
    name for name in NAMES if hasattr(importlib.import_module(f"train.{name}"), "RECIPE")
)

pytestmark = pytest.mark.usefixtures("one_thread")


def module(name: str) -> Any:
    return importlib.import_module(f"train.{name}")


def variants(name: str) -> dict[str, recipes.Recipe]:
    recipe = module(name).RECIPE
    return recipe if isinstance(recipe, dict) else {"": recipe}


def models(folder: Path) -> Iterator[fastmsgm.ScoreModel]:
    for path in sorted(folder.rglob("model.safetensors")):
        yield fastmsgm.load(path.parent)


@pytest.mark.parametrize("name", WITH_RECIPE)
def test_a_smoke_run_trains_and_samples_every_model(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipes.main(module(name).RECIPE, module(name).__doc__, ["--smoke", "--out", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    expected = [
        f"{tmp_path / variant / model}: "
        for variant, recipe in variants(name).items()
        for model in recipe.models
    ]
    assert [line[: len(start)] for line, start in zip(lines, expected, strict=True)] == expected
    for line in lines:
        distance = re.search(r"distance ([\d.e+]+), floor ([\d.e+]+), 32 samples$", line)
        assert distance is not None, line
        assert all(0 < float(number) < 1e6 for number in distance.groups())
    assert sum(1 for _ in models(tmp_path)) == len(expected)


@pytest.mark.parametrize("name", sorted({*NAMES} - {*WITH_RECIPE}))
def test_a_smoke_run_of_a_script_of_its_own(name: str, tmp_path: Path) -> None:
    out = tmp_path / ("plot.png" if name == "egd_digits" else "run")
    module(name).main(["--smoke", "--out", str(out)])
    if name == "egd_digits":
        assert out.read_bytes()[:4] == b"\x89PNG"
    else:
        assert [fastmsgm.sample(model, 2, steps=3, progress=False) for model in models(out)]


@pytest.mark.parametrize("name", NAMES)
def test_a_header_names_its_paper_its_command_and_its_hours(name: str) -> None:
    header = " ".join(module(name).__doc__.split())
    assert re.search(r"arXiv 2510\.02730|MSGM \(ICLR 2026\)|[Nn]either paper", header)
    assert f"-m fastmsgm.recipes.{name} --out" in header
    assert re.search(r"Hours on 2 cores: [\d.,]*\d|(minutes|hour) on (one|2) cores?", header)
    assert re.search(r"Expected", header)


def test_the_package_names_every_recipe() -> None:
    document = importlib.import_module("fastmsgm.recipes").__doc__ or ""
    words = re.findall(r"\w+", document)
    assert [name for name in NAMES if name not in words] == []


def rows() -> list[list[str]]:
    lines = (ROOT / "docs" / "recipes.md").read_text("utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "|" in line]
    return [row for row in cells if row[0].startswith("`")]


def test_the_table_lists_exactly_the_recipes() -> None:
    assert sorted(row[0].strip("`") for row in rows()) == NAMES


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0].strip("`"))
def test_a_row_of_the_table(row: list[str]) -> None:
    name, _, _, listed, hours, figures = row
    name = name.strip("`")
    assert float(hours.replace(",", "")) > 0
    link = re.fullmatch(r"\[.+\]\((.+)\)", figures)
    assert figures == "not run" if link is None else (ROOT / "docs" / link[1]).is_file()
    if name in WITH_RECIPE:
        for recipe in variants(name).values():
            assert list(recipe.models) == listed.split(", ")
    else:
        assert listed == "-"


def small(**options: Any) -> recipes.Recipe:
    """A recipe of a perceptron on two classes of positive vectors."""

    def vectors(n: int | None) -> torch.Tensor:
        return 1 + torch.rand(n or 200, 2, generator=torch.Generator().manual_seed(3))

    def build(classes: int) -> Callable[..., fastmsgm.ScoreModel]:
        def model(x: torch.Tensor, labels: torch.Tensor) -> fastmsgm.ScoreModel:
            assert torch.equal(labels, torch.arange(len(x)) % 2)
            net = MLP(2, 16, classes=classes)
            return fastmsgm.GBMModel.for_data(net, fastmsgm.GBM(2.0), x, classes=classes)

        return model

    return recipes.Recipe(
        name="small",
        data=vectors,
        held_out=vectors,
        models={"plain": build(0), "conditional": build(2)},
        labels=lambda n: torch.arange(n or 200) % 2,
        steps=6,
        batch_size=20,
        samples=50,
        **options,
    )


def test_training_resumes_where_it_stopped(tmp_path: Path) -> None:
    whole = small().train("conditional", tmp_path / "whole", progress=False)

    class Stopped(Exception):
        pass

    def stop(step: fastmsgm.TrainStep) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        small().train("conditional", tmp_path / "run", progress=False, callback=stop, every=3)
    resumed = small().train("conditional", tmp_path / "run", progress=False)
    for key, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value), key


def test_arguments_of_one_model_are_its_own(tmp_path: Path) -> None:
    """Both would fail together: a model without classes cannot drop them."""
    recipe = small(fit_of={"conditional": {"drop": 0.5}}, fit={"progress": False})
    assert recipe.train("conditional", tmp_path / "conditional").classes == 2
    assert recipe.train("plain", tmp_path / "plain").classes == 0


def test_the_distance_is_of_what_is_measured(tmp_path: Path) -> None:
    recipe = small(measured=lambda x: 10 * x)
    model = recipe.train("plain", tmp_path, progress=False)
    x = fastmsgm.sample(model, 50, steps=4, progress=False)
    truth, other = recipe.held_out(100).split(50)
    expected = [metrics.sliced_wasserstein(10 * y, 10 * truth, 128) for y in (x, other)]
    line = recipe.compare(model, 50, progress=False, steps=4)
    assert line == (
        f"sliced Wasserstein distance {expected[0]:.4g}, floor {expected[1]:.4g}, 50 samples"
    )


def test_a_smoke_run_keeps_out_of_the_folder_of_the_real_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipes.main(small(), "doc", ["--smoke", "--model", "plain"])
    assert [str(path) for path in Path("runs").glob("*/*")] == [str(Path("runs/small-smoke/plain"))]


def test_an_unknown_variant_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        recipes.main({"a": small(), "b": small()}, "doc", ["--variant", "c"])
    assert "invalid choice: 'c'" in capsys.readouterr().err


def test_compressed_vectors_keep_their_direction_and_have_the_logarithm_of_their_norm() -> None:
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, -2e30]])
    y = compressed(x)
    expected = torch.tensor([[0.6, 0.8], [0.0, 0.0], [0.0, -1.0]]) * torch.log1p(
        50 * torch.tensor([[5.0], [0.0], [2e30]])
    )
    torch.testing.assert_close(y, expected)
