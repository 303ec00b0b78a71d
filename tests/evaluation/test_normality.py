"""The Anderson-Darling statistic and the quantile-quantile plot."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fastmsgm.evaluation import normality

pytest.importorskip("scipy")


def normals(n: int) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(0))


def test_the_statistic_of_a_normal_sample_of_any_scale_is_small() -> None:
    x = normals(4000)
    assert normality.anderson_darling(x) < 0.75
    assert normality.anderson_darling(1e3 * x - 7) == pytest.approx(
        normality.anderson_darling(x), abs=1e-3
    )


def test_the_statistic_of_other_samples_is_large() -> None:
    x = normals(4000)
    uniform, log_normal = torch.rand(4000, generator=torch.Generator().manual_seed(1)), x.exp()
    for other in (uniform, log_normal, x.abs(), x.sign() + 0.01 * x):
        assert normality.anderson_darling(other) > 30
    assert normality.anderson_darling(torch.full((50,), 0.125)) == float("inf")


def test_plot(tmp_path: Path) -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    path = tmp_path / "new" / "plot.png"
    panels = {
        "a": [normals(200), normals(300)],
        "b": [torch.rand(100)],
        "c": [normals(50)],
        "d": [normals(60)],
    }
    normality.plot(panels, path, columns=2)
    height, width, _ = pyplot.imread(path).shape
    assert (height, width) == (800, 840)


def test_the_line_of_a_normal_sample_is_the_diagonal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    matplotlib_figure = pytest.importorskip("matplotlib.figure")
    figures = []
    monkeypatch.setattr(
        matplotlib_figure.Figure, "savefig", lambda figure, *_, **__: figures.append(figure)
    )
    normality.plot({"normal": [3 * normals(20_000) + 5]}, tmp_path / "plot.png", columns=1)
    (figure,) = figures
    diagonal, line = figure.axes[0].lines
    assert list(diagonal.get_xdata()) == list(diagonal.get_ydata())
    bulk = abs(line.get_xdata()) < 2
    assert abs(line.get_xdata() - line.get_ydata())[bulk].max() < 0.05
