"""Image grids and film strips: what the files show, and what is refused; the user's figures."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import fastmsgm
from fastmsgm import GBM, GBMModel, Rotation, RotationModel, ScoreModel
from fastmsgm.evaluation import normality, plots
from fastmsgm.nets import MLP, UNet
from fastmsgm.training.trainer import TrainStep

matplotlib = pytest.importorskip("matplotlib")
from matplotlib import pyplot  # noqa: E402


@pytest.mark.parametrize("channels", [1, 3])
def test_grid(channels: int, tmp_path: Path) -> None:
    """Five images of 8 x 6 on three columns, 2 pixels apart, at twice the scale."""
    images = torch.arange(5)[:, None, None, None] / 5 * torch.ones(5, channels, 8, 6)
    path = tmp_path / "new" / "grid.png"
    plots.grid(images, path)
    picture = torch.from_numpy(pyplot.imread(path)[..., :3].copy())
    assert picture.shape == (2 * (2 * 8 + 2), 2 * (3 * 6 + 2 * 2), 3)
    for i in range(5):
        top, left = 2 * (i // 3) * 10, 2 * (i % 3) * 8
        image = picture[top : top + 16, left : left + 12]
        torch.testing.assert_close(image, torch.full_like(image, i / 5), rtol=0, atol=0.003)
    assert bool((picture[16:20] == 1).all())  # the gap


def test_the_number_of_columns_can_be_chosen(tmp_path: Path) -> None:
    plots.grid(torch.rand(6, 1, 4, 4), tmp_path / "grid.png", columns=6, scale=1)
    assert pyplot.imread(tmp_path / "grid.png").shape[:2] == (4, 6 * 6 - 2)


@pytest.mark.parametrize("channels", [1, 3])
def test_film_strip(channels: int, tmp_path: Path) -> None:
    frames = [torch.rand(2, channels, 8, 8) + 1] * 3
    path = tmp_path / "new" / "film.png"
    plots.film_strip(frames, [1.0, 0.1, 0.0], path, (0.0, 0.7))
    height, width, _ = pyplot.imread(path).shape
    assert (height, width) == (round(150 * 2.5), round(150 * 3.3))


@pytest.mark.parametrize("shape", [(3,), (2, 8, 8), (8, 8), (1, 1, 8, 8)])
def test_check_refuses_what_is_no_image(shape: tuple[int, ...], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"plots need samples of shape \(1 or 3, height, width\)"):
        plots.check(shape, tmp_path / "grid.png")


@pytest.mark.parametrize("name", ["grid", "grid.foo", "grid.npy"])
def test_check_refuses_another_format(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a picture's name must end in one of \.png, \.jpg"):
        plots.check((1, 8, 8), tmp_path / name)


def test_a_missing_matplotlib_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r'pip install "fastmsgm\[images\]"'):
        plots.check((1, 8, 8), tmp_path / "grid.png")


# ---- the user's own figures ----


def grid(path: Path) -> None:
    plots.grid(torch.rand(4, 1, 4, 4), path)


def film_strip(path: Path) -> None:
    plots.film_strip([torch.rand(1, 1, 4, 4) + 1] * 2, [1.0, 0.0], path, (0.0, 0.7))


def heavy_tails(path: Path) -> None:
    plots.heavy_tails({"data": torch.randn(20, 2)}, torch.eye(2), path)


def quantiles(path: Path) -> None:
    normality.plot({"normal": [torch.randn(20)]}, path, columns=1)


DRAWN = [grid, film_strip, heavy_tails, quantiles]


@pytest.fixture
def users_figure() -> Iterator[int | str]:
    """Another backend than the one that draws into PNGs, and an open figure with its number."""
    before = matplotlib.get_backend()
    pyplot.switch_backend("svg")
    yield pyplot.figure().number
    pyplot.close("all")
    pyplot.switch_backend(before)


@pytest.mark.parametrize("draw", DRAWN)
@pytest.mark.parametrize("suffix", ["png", "pdf"])
def test_backend_and_open_figures_stay(
    draw: Callable[[Path], None], suffix: str, users_figure: int | str, tmp_path: Path
) -> None:
    draw(tmp_path / f"picture.{suffix}")
    assert (tmp_path / f"picture.{suffix}").stat().st_size > 0
    assert matplotlib.get_backend() == "svg"
    assert pyplot.get_fignums() == [users_figure]
    assert pyplot.gcf().number == users_figure


@pytest.mark.parametrize("draw", DRAWN)
def test_pyplot_is_not_imported(
    draw: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its import would choose a backend for the user."""
    monkeypatch.delattr(matplotlib, "pyplot")
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    draw(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").exists()


# ---- SampleGrid ----


def image_model(bounds: tuple[float, float] | None) -> GBMModel:
    torch.manual_seed(0)
    data = torch.rand(20, 1, 8, 8) + 0.5
    return GBMModel.for_data(UNet(1, 8, 8, 1, 1), GBM(8.0), data, offset=1.0, bounds=bounds).eval()


def train_step(model: ScoreModel, step: int = 500) -> TrainStep:
    return TrainStep(step, loss=1.0, validation_loss=None, lr=0.1, grad_norm=1.0, model=model)


@pytest.mark.parametrize("bounds", [(0.5, 1.5), None, (0.0, float("inf"))])
def test_a_sample_grid_is_named_by_the_step(
    bounds: tuple[float, float] | None, tmp_path: Path
) -> None:
    """What it shows is scaled by the bounds where they are finite."""
    model = image_model(bounds)
    plots.SampleGrid(tmp_path / "new" / "grids", n=5, steps=2, seed=3)(train_step(model))
    images = fastmsgm.sample(model, 5, steps=2, seed=3, progress=False)
    plots.grid(images - 0.5 if bounds == (0.5, 1.5) else images, tmp_path / "expected.png")
    got = (tmp_path / "new" / "grids" / "step_000500.png").read_bytes()
    assert got == (tmp_path / "expected.png").read_bytes()


def test_fit_calls_a_sample_grid(tmp_path: Path) -> None:
    fastmsgm.fit(
        image_model((0.5, 1.5)),
        torch.rand(20, 1, 8, 8) + 0.5,
        steps=4,
        batch_size=4,
        progress=False,
        every=2,
        callback=plots.SampleGrid(tmp_path, n=2, steps=1),
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step_000002.png",
        "step_000004.png",
    ]


def conditional_model() -> GBMModel:
    torch.manual_seed(0)
    net, images = UNet(1, 8, 8, 1, 1, classes=3, condition={"size": 1}), torch.rand(20, 1, 8, 8)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1)  # else the last layer ignores the conditions
    return GBMModel.for_data(net, GBM(8.0), images, offset=1.0, bounds=(0, 1), classes=3).eval()


@pytest.mark.parametrize("label", [2, [0, 2, 1, 1], None])
def test_a_sample_grid_of_a_conditional_model(label: Any, tmp_path: Path) -> None:
    model, condition = conditional_model(), {"size": torch.arange(4.0)}
    plots.SampleGrid(tmp_path, n=4, steps=2, label=label, condition=condition)(train_step(model))
    images = fastmsgm.sample(model, 4, steps=2, label=label, condition=condition, progress=False)
    plots.grid(images, tmp_path / "expected.png")
    got = (tmp_path / "step_000500.png").read_bytes()
    assert got == (tmp_path / "expected.png").read_bytes()


def test_a_sample_grid_names_the_condition_that_it_lacks(tmp_path: Path) -> None:
    message = r"but 'size' is missing: give SampleGrid\(\.\.\., condition=\{'size': tensor\}\)"
    with pytest.raises(ValueError, match=message):
        plots.SampleGrid(tmp_path)(train_step(conditional_model()))


def test_a_sample_grid_of_a_rotation_needs_no_log_norm(tmp_path: Path) -> None:
    net = UNet(1, 8, 8, 1, 1, condition={"log_norm": 1})
    model = RotationModel.for_data(net, Rotation(), torch.randn(20, 1, 8, 8))
    plots.SampleGrid(tmp_path, n=1, steps=1)(train_step(model))
    assert (tmp_path / "step_000500.png").exists()


def test_a_sample_grid_refuses_what_is_no_image(tmp_path: Path) -> None:
    model = GBMModel.for_data(MLP(3, 16), GBM(8.0), torch.rand(20, 3) + 1)
    with pytest.raises(ValueError, match=r"plots need samples of shape .* the model's are \(3,\)"):
        plots.SampleGrid(tmp_path)(train_step(model))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n": 0}, ValueError, "n must be at least 1, got 0"),
        ({"steps": 1.5}, TypeError, "steps must be an int, got 1.5"),
        ({"seed": -1}, ValueError, "seed must be in 0 .. "),
        ({"condition": torch.zeros(36)}, TypeError, "condition must map names to tensors"),
        ({"condition": {"size": torch.zeros(4)}}, ValueError, r"'size' must have shape \(36, "),
    ],
)
def test_a_sample_grid_checks_its_arguments_before_training(
    options: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        plots.SampleGrid(tmp_path, **options)


def test_a_sample_grid_misses_matplotlib_before_training(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r'pip install "fastmsgm\[images\]"'):
        plots.SampleGrid(tmp_path)
