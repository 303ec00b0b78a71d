"""Image grids, film strips and heavy tails: what the files show, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from fastmsgm.evaluation import plots

pyplot = pytest.importorskip("matplotlib.pyplot")


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
    assert not pyplot.get_fignums()


def test_heavy_tails(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    sets = {name: torch.randn(50, 3, generator=generator) for name in ("data", "ours", "theirs")}
    path = tmp_path / "new" / "tails.png"
    plots.heavy_tails(sets, path, points=20)
    assert pyplot.imread(path).shape[:2] == (1100, 1100)
    assert not pyplot.get_fignums()


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
