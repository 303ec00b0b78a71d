"""Heavy tails: where extremes point, and how many there are."""

from __future__ import annotations

import math
import os
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastmsgm.evaluation.metrics import angle_to_nearest_axis
from fastmsgm.evaluation.metrics.checks import check_samples
from fastmsgm.evaluation.plots.canvas import figure

_COLORS = ("dimgray", "tab:blue", "tab:orange")  # of the data, the model, its baseline
_OFF_AXIS_COLOR = "red"
_OFF_AXIS = 10.0  # degrees from every axis, beyond which an extreme is drawn in red
_SMALLEST = 1e-5  # degrees: below, directions in float32 are equal
_LEVELS = (0.1, 0.5, 0.9)  # of the angle given the norm
_IN_A_BIN = 50  # vectors at least
_IN_A_TAIL = 10  # norms beyond the end of a survival function, which fewer do not determine


class _Vectors(NamedTuple):
    """A set (n, d) in falling order of its norms (n,), with angles to the nearest axis (n,)."""

    x: Tensor
    norms: Tensor
    angles: Tensor

    @property
    def extremes(self) -> _Vectors:
        """The largest 1 %, one at least."""
        count = max(1, round(0.01 * len(self.x)))
        return _Vectors(*(values[:count] for values in self))

    @property
    def off_axis(self) -> Tensor:
        """Which are far from every axis, (n,) bool."""
        return self.angles > _OFF_AXIS


def heavy_tails(sets: dict[str, Tensor], axes: Tensor, path: str | os.PathLike[str]) -> None:
    """Write a picture of sets of vectors whose extremes lie along lines through the origin.

    A column for each set. Above, the directions of its largest 1 %, seen in the two features in
    which the lines are farthest apart; the distance from the centre grows with the logarithm of the
    norm, as far as the rim. In the middle, the angle to the nearest line against the norm, with the
    quantiles of the data in every panel, and the set's own median. Vectors of the largest 1 % that
    are more than 10 degrees off are red in both. Titles state their share, and quantiles of the
    angle. Below, the survival functions of the norms, as far as ten of them are larger.

    Args:
        sets: Up to three of (n, d) samples by name, d >= 2, the data first, on any device. The
            scatter plots show the first vectors of each, as many as the smallest set has; figures
            are of all.
        axes: (k, d) directions of the lines, k >= 2; for ``correlated_cauchy``
            ``synthetic.mixing(d).T``.
        path: Path of the file.

    Raises:
        TypeError: A set or axes is not of floating point.
        ValueError: Another number of sets or axes, wrong shapes, no samples, values that are not
            finite, or zero vectors.
        ImportError: matplotlib is missing.
    """
    if not 1 <= len(sets) <= len(_COLORS):
        raise ValueError(f"sets must be 1 to {len(_COLORS)}, got {len(sets)}: draw fewer")
    if axes.ndim != 2 or len(axes) < 2:
        raise ValueError(
            f"axes must be at least 2 vectors, got shape {tuple(axes.shape)}: give (k, d)"
        )
    sets, axes = {name: _on_cpu(name, x) for name, x in sets.items()}, axes.cpu()
    whole = {name: _ordered(x, axes) for name, x in sets.items()}
    data = next(iter(whole.values()))
    pair, band, shown = _clearest_pair(axes), _band(data), min(len(x) for x in sets.values())
    limits = {
        "xlim": (float(data.norms[int(0.99 * len(data.norms))]), 5 * float(band[0].max())),
        "ylim": (max(_SMALLEST, float(band[1].min()) / 5), 90),
    }
    picture = figure(figsize=(4.4 * len(sets), 11.5), layout="constrained")
    layout = picture.add_gridspec(3, len(sets), height_ratios=(4.7, 4.5, 2.3))
    for i, (name, x) in enumerate(sets.items()):
        vectors, extremes, color = _ordered(x[:shown], axes), whole[name].extremes, _COLORS[i]
        rays = picture.add_subplot(layout[0, i])
        _rays(rays, vectors.extremes, axes[:, pair].double(), pair, float(band[0].max()), color)
        share = float(extremes.off_axis.double().mean())
        rays.set_title(
            f"{name}\nlargest 1 % of {len(x):,} vectors: {100 * share:.1f} % over "
            f"{_OFF_AXIS:g}° off",
            fontsize=10,
        )
        panel = picture.add_subplot(layout[1, i])
        # Limits come first: a set without positive angles would have no logarithmic scale.
        panel.set(**limits, xlabel="norm")
        _angles(panel, vectors, band, color)
        if i:
            own = _band(whole[name])
            panel.plot(own[0], own[1][1], color="white", linewidth=4)
            panel.plot(own[0], own[1][1], color=color, linewidth=2, label="its own median")
            panel.legend(loc="lower left")
        middle, high = (float(extremes.angles.quantile(level)) for level in _LEVELS[1:])
        panel.set_title(
            f"angle of the largest 1 %: median {middle:.2g}°, 90 % {high:.2g}°", fontsize=10
        )
        if i == 0:
            panel.set_ylabel("angle to the nearest axis (degrees)")
            rays.legend(loc="lower left", fontsize=8)
            panel.legend(loc="lower left")
    _survival(picture.add_subplot(layout[2, :]), {name: v.norms for name, v in whole.items()})
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(path, dpi=100)


def _on_cpu(name: str, x: Tensor) -> Tensor:
    """Return a set (n, d) on the CPU, where figures are drawn; ValueError for another shape."""
    check_samples(f"sets[{name!r}]", x, least=1)
    if x.ndim != 2 or x.shape[1] < 2:
        raise ValueError(
            f"sets[{name!r}] must have shape (n, d) with d >= 2, got {tuple(x.shape)}: flatten "
            "the features"
        )
    return x.cpu()


def _ordered(x: Tensor, axes: Tensor) -> _Vectors:
    norms, order = x.double().norm(dim=1).sort(descending=True)
    return _Vectors(x[order].double(), norms, angle_to_nearest_axis(x, axes)[order])


def _clearest_pair(axes: Tensor) -> list[int]:
    """Return the two features in which no two axes are close, and none is short."""
    unit = axes.double() / axes.double().norm(dim=1, keepdim=True)

    def apart(pair: tuple[int, int]) -> float:
        first, second = unit[:, pair[0]], unit[:, pair[1]]
        areas = (first[:, None] * second - second[:, None] * first).abs()
        return float(areas[torch.ones_like(areas).triu(1) > 0].min())

    return list(max(combinations(range(axes.shape[1]), 2), key=apart))


def _band(data: _Vectors) -> tuple[Tensor, Tensor]:
    """Return norms (b,), and quantiles (3, b) of the angle given the norm.

    Every bin is about a quarter of what lies beyond it, so that bins are about equally wide on a
    logarithmic scale.
    """
    edges = [0, min(_IN_A_BIN, len(data.x))]
    while edges[-1] < len(data.x):
        edges.append(min(len(data.x), edges[-1] + max(_IN_A_BIN, edges[-1] // 4)))
    levels = torch.tensor(_LEVELS, dtype=torch.float64, device="cpu")
    bins = [slice(*bounds) for bounds in pairwise(edges)]
    quantiles = torch.stack([data.angles[i].quantile(levels) for i in bins], dim=1)
    return torch.stack([data.norms[i].median() for i in bins]), quantiles


def _rays(
    panel: Any, extremes: _Vectors, axes: Tensor, pair: list[int], end: float, color: str
) -> None:
    """Draw extremes in two features, and lines along the axes (k, 2)."""
    start = float(extremes.norms.min())
    hole, rim = 0.4, 0.4 + max(1.0, math.log(end / start))  # a hole, where rays would meet
    for axis in axes / axes.norm(dim=1, keepdim=True):
        x, y = (rim * float(value) for value in axis)
        panel.plot((-x, x), (-y, y), color="black", linewidth=0.8, alpha=0.5)
    panel.lines[0].set_label("axes")
    flat = extremes.x[:, pair]
    radii = ((extremes.norms / start).log() + hole).clamp(max=rim)
    points = flat / flat.norm(dim=1, keepdim=True) * radii[:, None]
    for red, shade in ((False, color), (True, _OFF_AXIS_COLOR)):
        at = points[extremes.off_axis == red]
        label = f"over {_OFF_AXIS:g}° off" if red else f"within {_OFF_AXIS:g}°"
        panel.scatter(
            at[:, 0], at[:, 1], s=14, alpha=0.6, linewidths=0, color=shade, label=label, zorder=3
        )
    panel.set(xlim=(-rim, rim), ylim=(-rim, rim), aspect="equal")
    panel.set_axis_off()
    panel.text(rim, -rim, "distance from the centre: log norm", ha="right", va="bottom", fontsize=8)


def _angles(panel: Any, vectors: _Vectors, band: tuple[Tensor, Tensor], color: str) -> None:
    """Draw angles against norms, and the quantiles of the data."""
    panel.scatter(vectors.norms, vectors.angles, s=5, alpha=0.5, linewidths=0, color=color)
    red = vectors.extremes.off_axis.nonzero()[:, 0]  # extremes come first
    panel.scatter(vectors.norms[red], vectors.angles[red], s=8, linewidths=0, color=_OFF_AXIS_COLOR)
    at, (low, middle, high) = band
    panel.plot(at, middle, color="black", linewidth=2, label="data: median")
    panel.plot(at, low, color="black", linewidth=1, linestyle="--", label="data: 10 %, 90 %")
    panel.plot(at, high, color="black", linewidth=1, linestyle="--")
    panel.set(xscale="log", yscale="log")


def _survival(panel: Any, norms: dict[str, Tensor]) -> None:
    """Draw the survival function of each set of norms, which are in falling order."""
    for (name, r), color in zip(norms.items(), _COLORS, strict=False):
        ranks = torch.arange(1, len(r) + 1, dtype=torch.float64, device="cpu")
        first = min(_IN_A_TAIL, len(r) - 1)
        panel.loglog(r[first:], ranks[first:] / len(r), color=color, label=name)
    panel.set(xlabel="r", ylabel="P(norm > r)", title="survival function of the norm")
    panel.legend(loc="lower left")
