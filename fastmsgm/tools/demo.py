"""The demo: sample the shipped models and draw the results."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import fastmsgm
from fastmsgm.checks import check_int
from fastmsgm.data import synthetic
from fastmsgm.evaluation import plots
from fastmsgm.sampling import plan_for


def draw(
    out: str | os.PathLike[str], images: int, vectors: int, device: torch.device | str
) -> Iterator[Path]:
    """Write fashion.png, denoising.png and cauchy.png, and yield the path of each when it is done.

    Args:
        out: Folder of the pictures.
        images: Number of samples of "fashion-gbm".
        vectors: Number of samples of "cauchy-rotation" and of its baseline "cauchy-vp".
        device: Where to sample.

    Raises:
        TypeError: images or vectors is not an int.
        ValueError: One of them is below 1.
        ImportError: matplotlib is missing.
    """
    images, vectors = check_int("images", images, 1), check_int("vectors", vectors, 1)
    model = fastmsgm.load("fashion-gbm", device)
    path = Path(out) / "fashion.png"
    plots.check(model.shape, path)
    # Classes are sampled in turn, so that each has its own columns.
    plots.grid(fastmsgm.sample(model, images), path, columns=2 * model.classes or None)
    yield path
    yield _film(model, Path(out) / "denoising.png")
    yield _heavy_tails(vectors, device, Path(out) / "cauchy.png")


def _film(model: fastmsgm.ScoreModel, path: Path, n: int = 4) -> Path:
    """Draw the trajectories of a few samples, from log-normal noise to images."""
    frames: list[Tensor] = []
    noise_levels: list[float] = []

    def keep(step: fastmsgm.Step) -> None:
        frames.append(step.x)
        noise_levels.append(step.noise_level)

    for _ in fastmsgm.sample_iter(model, n, progress=False, callback=keep):
        pass
    shown = np.unique(np.linspace(0, len(frames) - 1, 10).round().astype(int))
    data = torch.log(frames[-1])
    log_range = (float(data.min()), float(data.max()))
    plots.film_strip([frames[i] for i in shown], [noise_levels[i] for i in shown], path, log_range)
    return path


def _heavy_tails(n: int, device: torch.device | str, path: Path) -> Path:
    """Draw correlated Cauchy vectors by a rotation and by Gaussian diffusion beside test data."""
    sets = {"data": synthetic.correlated_cauchy(10 * n, 4, seed=1)}  # more of them, for their tail
    for name, label in (("cauchy-rotation", "rotation"), ("cauchy-vp", "Gaussian diffusion (VP)")):
        model = fastmsgm.load(name, device)
        nfe = plan_for(model).nfe
        sets[f"{label}, {nfe} network calls"] = fastmsgm.sample(model, n).cpu()
    plots.heavy_tails(sets, synthetic.mixing(4).T, path)
    return path
