"""Plots: image grids, film strips from noise to data, and heavy tails.

Needs the extra ``images``. Everything is drawn into files: matplotlib's backend and the user's open
figures stay as they are.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fastmsgm.checks import check_conditions, check_int, check_mapping
from fastmsgm.wrappers import unwrap

if TYPE_CHECKING:
    from fastmsgm.training.report import TrainStep

_FORMATS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".tif", ".tiff", ".pdf", ".svg")
_COLORS = ("black", "tab:blue", "tab:orange")  # of the data, the model, its baseline


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
    _matplotlib()


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
    imsave = _matplotlib().image.imsave
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


def heavy_tails(sets: dict[str, Tensor], path: str | os.PathLike[str], points: int = 4000) -> None:
    """Write a pair plot of each set of vectors, and the survival functions of their norms.

    Args:
        sets: Up to three of (n, d) samples by name, the data first. Features are shown as
            asinh(x / s), s the median of |x| in the data: linear in the bulk, logarithmic in the
            tails.
        path: Path of the file.
        points: Number of samples of each set in the pair plots.

    Raises:
        ImportError: matplotlib is missing.
    """
    data = next(iter(sets.values())).double()
    unit = data.abs().median(0).values
    reach = float(np.quantile(torch.asinh(data / unit).abs().numpy(), 0.9999))
    picture = figure(figsize=(11, 11), layout="constrained")
    blocks = picture.subfigures(2, 2).flatten()
    for block, (name, x), color in zip(blocks, sets.items(), _COLORS, strict=False):
        block.suptitle(name)
        _pairs(block, torch.asinh(x[:points].double() / unit), reach, color)
    axes = blocks[3].subplots()
    for (name, x), color in zip(sets.items(), _COLORS, strict=False):
        norms = x.double().norm(dim=1).sort().values
        above = 1 - np.arange(len(norms)) / len(norms)
        axes.loglog(norms, above, color=color, label=name)
    axes.set(xlabel="r", ylabel="P(|x| > r)", title="survival function of the norm")
    axes.legend(loc="lower left")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(path, dpi=100)


class SampleGrid:
    """A callback of ``fit`` that writes a picture of samples of the averaged model.

    For example ``fit(model, images, steps=20_000, callback=SampleGrid("grids"), every=1000)``. The
    picture of step 500 is ``step_000500.png``. All pictures show the same samples of the noise
    stream. Black to white are the model's bounds, or 0 to 1 where it has none that are finite.

    Args:
        folder: Of the pictures; made if absent.
        n: Number of samples.
        steps: Noise levels on the time grid, as of ``sample``; None is the solver's own.
        seed: Of the noise stream.
        label: Of a class-conditional model, as of ``sample``: one class, or n; None takes the
            classes in turn.
        condition: What else the network is conditioned on, as of ``sample``: (n, ...) by name.

    Raises:
        TypeError: n, steps or seed is not an integer, or a condition not a tensor.
        ValueError: One of them is out of range, or a condition not of n samples.
        ImportError: matplotlib is missing.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        n: int = 36,
        steps: int | None = None,
        seed: int = 0,
        label: int | Sequence[int] | Tensor | None = None,
        condition: Mapping[str, Tensor] | None = None,
    ) -> None:
        _matplotlib()  # is missed now, not after hundreds of steps
        self.folder, self.n = Path(folder), check_int("n", n, 1)
        self.steps = None if steps is None else check_int("steps", steps, 1)
        self.seed, self.label = check_int("seed", seed, 0, 2**64 - 1), label
        self.condition = check_conditions(None, check_mapping(condition), self.n)

    def __call__(self, step: TrainStep) -> None:
        """Sample the model and write the picture.

        Args:
            step: What ``fit`` passes to its callback.

        Raises:
            TypeError: The label is no integer.
            ValueError: The model's samples are no images, it needs another condition, or the label
                is none of its classes.
        """
        from fastmsgm.sampling import sample

        model, path = step.model, self.folder / f"step_{step.step:06d}.png"
        check(model.shape, path)
        needed = getattr(unwrap(model.net), "condition", None)  # as fastmsgm.nets have it
        missing = [
            name
            for name in (needed if isinstance(needed, Mapping) else ())
            if name != "log_norm" and name not in self.condition
        ]
        if missing:
            raise ValueError(
                f"SampleGrid needs the conditions of its {self.n} samples: the network has "
                f"condition={needed}, but {', '.join(map(repr, missing))} is missing: give "
                f"SampleGrid(..., condition={{{missing[0]!r}: tensor}})"
            )
        images = sample(
            model,
            self.n,
            steps=self.steps,
            seed=self.seed,
            label=self.label,
            condition=self.condition,
            progress=False,
        )
        low, high = model.bounds or (0.0, 1.0)
        if not (math.isfinite(low) and math.isfinite(high)):
            low, high = 0.0, 1.0
        grid((images - low) / (high - low), path)


def _pairs(figure: Any, x: Tensor, reach: float, color: str) -> None:
    """Draw scatter plots of every pair of features (n, d) below the diagonal, histograms on it."""
    d = x.shape[1]
    axes = figure.subplots(d, d, sharex=True, squeeze=False)
    for i in range(d):
        for j in range(d):
            panel = axes[i][j]
            if j > i:
                panel.set_visible(False)
                continue
            panel.set(xlim=(-reach, reach), xticks=[], yticks=[])
            if i == j:
                panel.hist(x[:, i], bins=60, range=(-reach, reach), color=color)
            else:
                panel.set_ylim(-reach, reach)
                panel.scatter(x[:, j], x[:, i], s=1, alpha=0.4, linewidths=0, color=color)


def figure(**options: Any) -> Any:
    """Return a new figure that draws into files, apart from those that the user has open.

    Args:
        **options: As of ``matplotlib.figure.Figure``.

    Raises:
        ImportError: matplotlib is missing.
    """
    matplotlib = _matplotlib()
    new = matplotlib.figure.Figure(**options)
    matplotlib.backends.backend_agg.FigureCanvasAgg(new)  # becomes the figure's canvas
    return new


def _matplotlib() -> Any:
    """Return matplotlib with the modules that draw into files.

    Raises:
        ImportError: matplotlib is missing.
    """
    try:
        import matplotlib.backends.backend_agg
        import matplotlib.figure
        import matplotlib.image
    except ImportError as error:
        raise ImportError('plots need matplotlib: pip install "fastmsgm[images]"') from error
    return matplotlib
