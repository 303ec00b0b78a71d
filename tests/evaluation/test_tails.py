"""The picture of heavy tails: what is drawn, and what its titles state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastmsgm.data import synthetic
from fastmsgm.evaluation import plots
from fastmsgm.evaluation.plots import tails

pytest.importorskip("matplotlib")
from matplotlib import pyplot
from matplotlib.colors import to_rgb

AXES = synthetic.mixing(4).T
DATA = synthetic.correlated_cauchy(20_000, 4, seed=1)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are drawn."""
    figures: list[Any] = []

    def keep(**options: Any) -> Any:
        figures.append(plots.figure(**options))
        return figures[-1]

    monkeypatch.setattr(tails, "figure", keep)
    return figures


def reds(panel: Any) -> int:
    """Return how many points of a panel are red."""
    return sum(
        len(dots.get_offsets())
        for dots in panel.collections
        if tuple(dots.get_facecolor()[0][:3]) == to_rgb("red")
    )


def test_the_picture_is_written(tmp_path: Path) -> None:
    sets = {name: torch.randn(50, 3) for name in ("data", "ours", "theirs")}
    path = tmp_path / "new" / "tails.png"
    plots.heavy_tails(sets, torch.eye(3), path)
    assert pyplot.imread(path).shape[:2] == (1150, 1320)


def test_titles_state_the_share_that_is_off(drawn: list[Any], tmp_path: Path) -> None:
    axes = torch.eye(4)
    x = torch.eye(4)[torch.arange(1000) % 4] * torch.linspace(1, 100, 1000)[:, None]
    worse = x.clone()
    worse[-4:] = 100 * torch.ones(4, 4)  # four of the largest ten
    plots.heavy_tails({"data": x, "model": worse}, axes, tmp_path / "tails.png")
    titles = [panel.get_title() for panel in drawn[0].axes]
    assert titles[0] == "data\nlargest 1 % of 1,000 vectors: 0.0 % over 10° off"
    assert titles[2] == "model\nlargest 1 % of 1,000 vectors: 40.0 % over 10° off"
    assert titles[3] == "angle of the largest 1 %: median 0°, 90 % 60°"
    assert [reds(panel) for panel in drawn[0].axes] == [0, 0, 4, 4, 0]


def test_every_column_shows_as_many_vectors(drawn: list[Any], tmp_path: Path) -> None:
    plots.heavy_tails({"data": DATA, "model": DATA[:3000]}, AXES, tmp_path / "tails.png")
    counts = [sum(len(dots.get_offsets()) for dots in p.collections) for p in drawn[0].axes]
    assert counts[0] == counts[2] == 30
    assert counts[1] == counts[3] + reds(drawn[0].axes[1]) - reds(drawn[0].axes[3])


def test_every_panel_has_the_quantiles_of_the_data(drawn: list[Any], tmp_path: Path) -> None:
    plots.heavy_tails({"data": DATA, "model": DATA * 3}, AXES, tmp_path / "tails.png")
    first, second = drawn[0].axes[1].lines, drawn[0].axes[3].lines
    assert len(first) == 3
    for one, other in zip(first, second, strict=False):
        assert one.get_xydata().tolist() == other.get_xydata().tolist()


def test_a_model_has_its_own_median(drawn: list[Any], tmp_path: Path) -> None:
    plots.heavy_tails({"data": DATA, "model": DATA * 3}, AXES, tmp_path / "tails.png")
    first, second = drawn[0].axes[1].lines, drawn[0].axes[3].lines
    own = second[-1].get_xydata()
    assert second[-1].get_label() == "its own median"
    assert own[:, 0] == pytest.approx(3 * first[0].get_xydata()[:, 0], rel=1e-5)
    assert own[:, 1] == pytest.approx(first[0].get_xydata()[:, 1], rel=1e-5, abs=1e-5)


def test_quantiles_are_those_given_the_norm() -> None:
    n = 20_000
    norms, order = (10 ** (4 * torch.rand(n, dtype=torch.float64))).sort(descending=True)
    share = torch.rand(n, dtype=torch.float64)[order]
    vectors = tails._Vectors(torch.ones(n, 2).double(), norms, share / norms)
    at, quantiles = tails._band(vectors)
    expected = torch.tensor([0.1, 0.5, 0.9])[:, None].double() / at
    large = at > 10  # below, a bin is wide
    ratios = (quantiles / expected)[:, large]
    assert bool(((ratios - 1).abs().mean(1) < torch.tensor([0.5, 0.15, 0.1])).all())


@pytest.mark.parametrize(
    "axes",
    [
        torch.eye(3)[1:],  # feature 0 is of no use
        torch.tensor([[1.0, 2.0, 0.0], [1.0, 2.0, 1.0]]),  # the same line in features 0 and 1
    ],
)
def test_the_two_features_show_the_axes_apart(axes: Tensor) -> None:
    assert tails._clearest_pair(axes) == [1, 2]


def test_vectors_along_an_axis_can_be_drawn(drawn: list[Any], tmp_path: Path) -> None:
    """Angles of 0 have no logarithm."""
    x = torch.eye(2)[torch.arange(100) % 2] * torch.linspace(1, 2, 100)[:, None]
    plots.heavy_tails({"data": x}, torch.eye(2), tmp_path / "tails.png")
    assert drawn[0].axes[1].get_ylim() == (1e-5, 90)


@pytest.mark.parametrize(
    "x", [torch.ones(100), torch.ones(100, 2, 2), torch.ones(100, 1), torch.ones(0, 4)]
)
def test_heavy_tails_refuses_shapes(x: Tensor, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"sets\['b'\] must have shape \(n, "):
        plots.heavy_tails({"a": DATA[:100], "b": x}, AXES, tmp_path / "tails.png")


@pytest.mark.parametrize(
    ("names", "axes", "message"),
    [
        ("abcd", AXES, "sets must be 1 to 3, got 4: draw fewer"),
        ("", AXES, "sets must be 1 to 3, got 0"),
        ("a", AXES[:1], r"axes must be at least 2 vectors, got shape \(1, 4\)"),
        ("a", AXES[0], r"axes must be at least 2 vectors, got shape \(4,\)"),
        ("a", torch.eye(3), r"axes must have shape \(k, 4\)"),
    ],
)
def test_heavy_tails_refuses(names: str, axes: Tensor, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        plots.heavy_tails({name: DATA[:100] for name in names}, axes, tmp_path / "tails.png")
