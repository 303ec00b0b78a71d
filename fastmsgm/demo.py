"""The demo: sample the shipped models and draw what they do, one picture at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import fastmsgm
from fastmsgm import pictures, simulated
from fastmsgm.sampling import plan_for


def draw(out: str | os.PathLike[str], images: int, vectors: int, device: torch.device | str) -> Iterator[Path]:
    """Write fashion.png, denoising.png and cauchy.png into the folder ``out`` and yield each as it is done.

    Args:
        images: samples of "fashion-gbm".    vectors: samples of "cauchy-rotation" and of its baseline "cauchy-vp".

    Raises:
        ImportError: matplotlib is missing.
    """
    model = fastmsgm.load("fashion-gbm", device)
    path = Path(out) / "fashion.png"
    pictures.check(model.shape, path)
    pictures.grid(fastmsgm.sample(model, images), path, columns=2 * model.classes or None)  # a class has its columns
    yield path
    yield _film(model, Path(out) / "denoising.png")
    yield _heavy_tails(vectors, device, Path(out) / "cauchy.png")


def _film(model: fastmsgm.ScoreModel, path: Path, rows: int = 4) -> Path:
    """One trajectory of a few samples, from log-normal noise to images."""
    frames: list[Tensor] = []
    levels: list[float] = []

    def keep(step: fastmsgm.Step) -> None:
        frames.append(step.x[:rows])
        levels.append(step.level)

    for _ in fastmsgm.sample_iter(model, rows, progress=False, callback=keep):
        pass
    shown = np.unique(np.linspace(0, len(frames) - 1, 10).round().astype(int))
    data = torch.log(frames[-1])
    log_range = (float(data.min()), float(data.max()))
    pictures.film_strip([frames[i] for i in shown], [levels[i] for i in shown], path, log_range)
    return path


def _heavy_tails(n: int, device: torch.device | str, path: Path) -> Path:
    """Correlated Cauchy vectors by a rotation and by Gaussian diffusion, beside data that neither has seen."""
    sets = {"data": simulated.correlated_cauchy(10 * n, 4, seed=1)}  # more of them, for their tail
    for name, label in (("cauchy-rotation", "rotation"), ("cauchy-vp", "Gaussian diffusion (VP)")):
        model = fastmsgm.load(name, device)
        calls = plan_for(model, None, None).calls
        sets[f"{label}, {calls} network calls"] = fastmsgm.sample(model, n, batch_size=min(n, 5000)).cpu()
    pictures.heavy_tails(sets, path)
    return path
