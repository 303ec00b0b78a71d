"""Image grids, and film strips from noise to data."""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch
from torch import Tensor

from fastmsgm.evaluation.plots.canvas import figure, load_matplotlib

_FORMATS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".tif", ".tiff", ".pdf", ".svg")


def check(shape: tuple[int, ...], path: str | os.PathLike[str]) -> None:
    """Raise where samples of this shape cannot be drawn into a file.

    Args:
        shape: Shape of one sample; images have 1 or 3 channels.
        path: Path of the file, whose suffix names the format.

    Raises:
        ValueError: Not images, or another format.
        ImportError: matplotlib is missing.
    """
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise ValueError(
            f"plots need samples of shape (1 or 3, height, width), the model's are {shape}"
        )
    if Path(path).suffix.lower() not in _FORMATS:
        raise ValueError(
            f"a picture's name must end in one of {', '.join(_FORMATS)}, got {str(path)!r}"
        )
    load_matplotlib()


def grid(
    images: Tensor, path: str | os.PathLike[str], columns: int | None = None, scale: int = 2
) -> None:
    """Write images as one picture.

    Args:
        images: (n, 1 or 3, height, width) in [0, 1].
        path: Path of the file.
        columns: Images side by side; None makes the picture about square.
        scale: Pixels of the picture per pixel of an image.

    Raises:
        ImportError: matplotlib is missing.
    """
    n, channels, height, width = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    gap = 2
    size = (channels, rows * (height + gap) - gap, columns * (width + gap) - gap)
    sheet = torch.ones(size, dtype=torch.float32, device="cpu")
    for i, image in enumerate(images.detach().cpu().float().clamp(0, 1)):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        sheet[:, top : top + height, left : left + width] = image
    sheet = sheet.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    imsave = load_matplotlib().image.imsave
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    imsave(path, sheet.permute(1, 2, 0).expand(-1, -1, 3).numpy())


def film_strip(
    frames: list[Tensor],
    noise_levels: list[float],
    path: str | os.PathLike[str],
    log_range: tuple[float, float],
) -> None:
    """Write the states of a few samples from noise to data: a column per noise level.

    Args:
        frames: One (n, channels, height, width) tensor of positive states per noise level.
        noise_levels: Noise level of every frame.
        path: Path of the file.
        log_range: Smallest and largest log x of the data. Each column shows log x over this range,
            widened by its noise level, so that noise is not saturated.

    Raises:
        ImportError: matplotlib is missing.
    """
    n = len(frames[0])
    picture = figure(figsize=(1.1 * len(frames), 1.1 * n + 0.3))
    axes = picture.subplots(n, len(frames), squeeze=False)
    for column, (frame, noise_level) in enumerate(zip(frames, noise_levels, strict=True)):
        low, high = log_range[0] - 2 * noise_level, log_range[1] + 2 * noise_level
        shown = ((frame.detach().cpu().abs().log() - low) / (high - low)).clamp(0, 1)
        for row in range(n):
            axes[row][column].imshow(shown[row].permute(1, 2, 0).expand(-1, -1, 3).numpy())
            axes[row][column].set_axis_off()
        axes[0][column].set_title(f"s = {noise_level:.2g}", fontsize=8)
    picture.tight_layout(pad=0.2)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(path, dpi=150)
