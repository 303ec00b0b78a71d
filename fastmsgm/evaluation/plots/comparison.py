"""Samples beside a reference: survival functions, quantiles against quantiles, pairs of features.

Axes of values are inverse hyperbolic sines: linear within the median of |x|, logarithmic beyond, so
that they show the middle and the tails.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastmsgm.evaluation.plots.canvas import figure

_COLORS = ("dimgray", "tab:blue")  # of the reference and the samples
_POINTS = 500  # of a quantile plot, and of a survival function
_SCATTERED = 4000  # samples in a panel
_MOST = 5  # features of a pair plot
_TICKS = 4  # of an axis, about


def survival_functions(sets: dict[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Write the survival functions of sets of norms.

    Args:
        sets: (n,) positive numbers by name, the reference and the samples.
        path: Path of the file.

    Raises:
        ImportError: matplotlib is missing.
    """
    picture = figure(figsize=(6, 4), layout="constrained")
    panel = picture.subplots()
    for (name, norms), color in zip(sets.items(), _COLORS, strict=True):
        ordered = norms.double().sort(descending=True).values
        # Ranks in equal steps of their logarithm, from the largest norm on.
        top = torch.tensor(float(len(ordered)), dtype=torch.float64, device="cpu").log10().item()
        ranks = torch.logspace(0, top, _POINTS, dtype=torch.float64, device="cpu")
        ranks = ranks.round().long().clamp(1, len(ordered)).unique()
        panel.loglog(ordered[ranks - 1], ranks / len(ordered), color=color, label=name)
    panel.set(xlabel="r", ylabel="P(norm > r)", title="survival function of the norm")
    panel.legend()
    _save(picture, path)


def quantiles(columns: dict[str, list[Tensor]], path: str | os.PathLike[str]) -> None:
    """Write quantiles of samples against those of a reference, one panel each.

    Args:
        columns: The reference (n,) and the samples (m,) by title.
        path: Path of the file.

    Raises:
        ImportError: matplotlib is missing.
    """
    across = min(4, len(columns))
    down = -(-len(columns) // across)
    picture = figure(figsize=(3.2 * across, 3.2 * down), layout="constrained")
    panels = list(picture.subplots(down, across, squeeze=False).flat)
    for panel in panels[len(columns) :]:
        panel.set_axis_off()
    for (title, (reference, samples)), panel in zip(columns.items(), panels, strict=False):
        count = min(_POINTS, len(reference), len(samples))
        levels = (torch.arange(count, dtype=torch.float64, device="cpu") + 0.5) / count
        x, y = (_quantiles(values, levels) for values in (reference, samples))
        ends = [min(float(x[0]), float(y[0])), max(float(x[-1]), float(y[-1]))]
        panel.plot(ends, ends, color="black", linewidth=1)
        panel.plot(x, y, ".", markersize=3, color=_COLORS[1])
        panel.set_title(title, fontsize=10)
        _scale(panel, reference, reference)
    picture.supxlabel("quantile of the reference")
    picture.supylabel("quantile of the samples")
    _save(picture, path)


def pairs(sets: dict[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Write the first features against each other: the reference below the diagonal, samples above.

    Args:
        sets: The reference (n, d) and the samples (m, d) by name, d >= 2.
        path: Path of the file.

    Raises:
        ImportError: matplotlib is missing.
    """
    (low_name, low), (high_name, high) = sets.items()
    d = min(_MOST, low.shape[1])
    shown = min(_SCATTERED, len(low), len(high))
    picture = figure(figsize=(2 * d + 0.5, 2 * d + 0.5), layout="constrained")
    panels = picture.subplots(d, d, squeeze=False)
    for i in range(d):
        for j in range(d):
            panel = panels[i][j]
            if i == j:
                panel.text(0.5, 0.5, f"feature {i}", ha="center", va="center")
                panel.set_axis_off()
                continue
            x, color = (low, _COLORS[0]) if j < i else (high, _COLORS[1])
            panel.plot(x[:shown, j], x[:shown, i], ",", color=color)
            _scale(panel, low[:, j], low[:, i])
            both = (low[:shown], high[:shown])
            for axis, k in ((panel.set_xlim, j), (panel.set_ylim, i)):
                axis(
                    min(float(v[:, k].min()) for v in both), max(float(v[:, k].max()) for v in both)
                )
            panel.tick_params(labelsize=6)
    picture.suptitle(f"{low_name}: below the diagonal; {high_name}: above", fontsize=10)
    _save(picture, path)


def _quantiles(x: Tensor, levels: Tensor) -> Tensor:
    """Return empirical quantiles; torch.quantile takes no more than 16 million numbers."""
    return x.double().sort().values[(levels * len(x)).long()]


def _scale(panel: Any, x: Tensor, y: Tensor) -> None:
    """Set axes of inverse hyperbolic sines, or linear ones where half of the values are 0."""
    for scale, axis, values in (
        (panel.set_xscale, panel.xaxis, x),
        (panel.set_yscale, panel.yaxis, y),
    ):
        if median := float(values.double().abs().median()):
            scale("asinh", linear_width=median)
            axis.get_major_locator().set_params(numticks=_TICKS)


def _save(picture: Any, path: str | os.PathLike[str]) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(path, dpi=100)
