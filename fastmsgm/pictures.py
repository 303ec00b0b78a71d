"""Pictures: a grid of samples and a film strip of one chunk's way from noise to data. Needs the extra ``images``."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def check(shape: tuple[int, ...]) -> None:
    """Raise where samples of this shape cannot be drawn: no images, or matplotlib is missing."""
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise ValueError(f"pictures need samples of shape (1 or 3, height, width), the model's are {shape}")
    _pyplot()


def grid(images: Tensor, path: str | os.PathLike[str], columns: int | None = None, scale: int = 2) -> None:
    """Write images (n, 1 or 3, height, width) in [0, 1] as one picture, ``columns`` wide (None: about square)."""
    n, channels, height, width = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    gap = 2
    sheet = torch.ones(channels, rows * (height + gap) - gap, columns * (width + gap) - gap)
    for i, image in enumerate(images.detach().cpu().float().clamp(0, 1)):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        sheet[:, top : top + height, left : left + width] = image
    sheet = sheet.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    _pyplot().imsave(path, sheet.permute(1, 2, 0).expand(-1, -1, 3).numpy())


def film_strip(
    frames: list[Tensor], levels: list[float], path: str | os.PathLike[str], log_range: tuple[float, float]
) -> None:
    """Write the states of a few samples on their way from noise to data: a row per sample, a column per noise level.

    Args:
        frames: one (rows, channels, height, width) tensor of positive states per noise level.
        levels: the noise level of every frame.
        log_range: the data's smallest and largest log x; each column shows log x over this range widened by its level,
            so that the noise is seen as it is, not as saturated black and white.
    """
    pyplot = _pyplot()
    rows = len(frames[0])
    figure, axes = pyplot.subplots(rows, len(frames), figsize=(1.1 * len(frames), 1.1 * rows + 0.3), squeeze=False)
    for column, (frame, level) in enumerate(zip(frames, levels, strict=True)):
        low, high = log_range[0] - 2 * level, log_range[1] + 2 * level
        shown = ((frame.detach().cpu().abs().log() - low) / (high - low)).clamp(0, 1)
        for row in range(rows):
            axes[row][column].imshow(shown[row].permute(1, 2, 0).expand(-1, -1, 3).numpy())
            axes[row][column].set_axis_off()
        axes[0][column].set_title(f"s = {level:.2g}", fontsize=8)
    figure.tight_layout(pad=0.2)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError('pictures need matplotlib: pip install "fastmsgm[images]"') from error
    matplotlib.use("agg")
    from matplotlib import pyplot

    return pyplot
