"""The demo: it samples the shipped models and writes three pictures."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

import fastmsgm
from fastmsgm.evaluation import plots
from fastmsgm.evaluation.metrics import angle_to_nearest_axis
from fastmsgm.tools import cli, demo


def test_demo_writes_the_pictures(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.INFO)
    arguments = ["--out", str(tmp_path), "--images", "4", "--vectors", "40", "--device", "cpu"]
    assert cli.main(["demo", *arguments]) == 0
    printed = capsys.readouterr().out
    for name in ("fashion.png", "denoising.png", "cauchy.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
        assert str(tmp_path / name) in printed
    assert "4 samples, 6 network calls each" in caplog.text
    assert "40 samples, 20 network calls each" in caplog.text


def test_every_path_is_yielded_when_its_picture_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fastmsgm, "sample", lambda model, n: torch.rand(n, *model.shape))
    monkeypatch.setattr(demo, "_film", lambda model, path: path)
    monkeypatch.setattr(demo, "_heavy_tails", lambda n, device, path: path)
    paths = demo.draw(tmp_path / "new", 2, 2, "cpu")
    assert not (tmp_path / "new").exists()
    assert next(paths) == tmp_path / "new" / "fashion.png"
    assert (tmp_path / "new" / "fashion.png").exists()
    assert [path.name for path in paths] == ["denoising.png", "cauchy.png"]


def test_the_axes_of_the_picture_are_those_of_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []
    monkeypatch.setattr(fastmsgm, "sample", lambda model, n: torch.randn(n, *model.shape))
    monkeypatch.setattr(plots, "heavy_tails", lambda *arguments: given.extend(arguments))
    demo._heavy_tails(2000, "cpu", tmp_path / "cauchy.png")
    sets, axes, path = given
    data = sets["data"]
    largest = data[data.norm(dim=1).topk(20).indices]
    assert angle_to_nearest_axis(largest, axes).median() < 0.1
    assert path == tmp_path / "cauchy.png"
