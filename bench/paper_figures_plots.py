"""The plots of paper_figures_page.py: curves with bands and direct labels, and ranges of arms."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any, NamedTuple

from bench.paper_figures_rows import ARMS
from fastmsgm.evaluation.plots.canvas import figure

COLORS: dict[str, str] = dict(
    zip(
        ARMS,
        # Rotations are blue and green, additive noise is red and yellow.
        ("#08306b", "#4292c6", "#41ab5d", "#00441b", "#000000", "#d7301f", "#fc8d59", "#dfa800"),
        strict=True,
    )
)
ADDITIVE_LINE, ROTATION_LINE = "--", "-"
GAP = 0.055  # between two labels, in heights of a panel


class Curve(NamedTuple):
    """One arm.

    Args:
        arm: One of ``ARMS``.
        x: Of its points.
        values: Of each point, one for every seed.
    """

    arm: str
    x: list[float]
    values: list[list[float]]


class Panel(NamedTuple):
    """One metric.

    Args:
        title: Above the panel.
        curves: To draw.
        floor: x -> distance of two test sets.
    """

    title: str
    curves: list[Curve]
    floor: dict[float, float]


def curves(path: Path, panels: list[Panel], xlabel: str, *, numbered: bool) -> None:
    """Write a picture of panels side by side, with logarithmic axes.

    Args:
        path: Of the file.
        panels: From left to right.
        xlabel: Of every panel.
        numbered: Whether every x has a tick with its number.
    """
    picture = figure(figsize=(7.4 * len(panels), 5.2))
    for i, panel in enumerate(panels):
        axes = picture.add_axes(
            ((i + 0.1) / len(panels), 0.12, 0.6 / len(panels), 0.78),
            xscale="log",
            yscale="log",
            xlabel=xlabel,
            title=panel.title,
        )
        for curve in panel.curves:
            _draw(axes, curve)
        floor = sorted(panel.floor.items())
        axes.plot([x for x, _ in floor], [y for _, y in floor], ":", color="gray", linewidth=1.2)
        if numbered:
            ticks = sorted({x for curve in panel.curves for x in curve.x})
            axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
            axes.set_xticks([], minor=True)
        axes.grid(alpha=0.25, which="major")
        _label(axes, panel)
    _save(picture, path)


def ranges(path: Path, panels: list[Panel]) -> None:
    """Write a picture of two columns of panels: a row for an arm, its mean and range of seeds."""
    down = -(-len(panels) // 2)
    picture = figure(figsize=(11, 3.2 * down), layout="constrained")
    for axes, panel in zip(picture.subplots(down, 2, squeeze=False).flat, panels, strict=True):
        shown = [c for c in reversed(panel.curves) if all(map(math.isfinite, c.values[0]))]
        axes.set(title=panel.title, xscale="log")
        for height, curve in enumerate(shown):
            (values,), color = curve.values, COLORS[curve.arm]
            mean = statistics.mean(values)
            axes.plot([min(values), max(values)], [height, height], color=color, linewidth=3)
            axes.plot([mean], [height], "o", color=color)
            axes.annotate(
                f"{mean:.3g}", (mean, height), (0, 5), textcoords="offset points", ha="center"
            )
        for floor in panel.floor.values():
            axes.axvline(floor, color="gray", linewidth=1.2, linestyle=":")
            axes.annotate("two test sets", (floor, -0.8), fontsize=8, color="gray")
        axes.set_yticks(range(len(shown)), [curve.arm for curve in shown])
        axes.set_ylim(-1, len(shown) - 0.3)
        axes.tick_params(which="minor", labelbottom=False)
        axes.grid(alpha=0.25, which="both", axis="x")
    _save(picture, path)


def _draw(axes: Any, curve: Curve) -> None:
    """Draw the finite points of a curve: their means, and the range of the seeds."""
    points = [
        (x, values)
        for x, values in zip(curve.x, curve.values, strict=True)
        if all(map(math.isfinite, values))
    ]
    if not points:
        return
    x, color = [x for x, _ in points], COLORS[curve.arm]
    style = ROTATION_LINE if curve.arm.startswith("rotation") else ADDITIVE_LINE
    means = [statistics.mean(values) for _, values in points]
    axes.plot(x, means, style, color=color, marker="o", markersize=3, linewidth=1.6)
    low, high = ([end(values) for _, values in points] for end in (min, max))
    axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)


def _label(axes: Any, panel: Panel) -> None:
    """Write the name of each curve at the right, near its last point, without overlaps."""
    ends = [
        (statistics.mean(c.values[-1]), c.x[-1], c.arm, COLORS[c.arm])
        for c in panel.curves
        if all(map(math.isfinite, c.values[-1]))
    ]
    if panel.floor:
        last = max(panel.floor)
        ends.append((panel.floor[last], last, "two test sets", "gray"))
    low, high = map(math.log, axes.get_ylim())
    ends.sort()
    heights = spread([(math.log(y) - low) / (high - low) for y, *_ in ends])
    for (y, x, name, color), height in zip(ends, heights, strict=True):
        axes.annotate(
            name,
            xy=(x, y),
            xytext=(1.04, height),
            textcoords="axes fraction",
            va="center",
            fontsize=9,
            color=color,
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.5, "alpha": 0.6},
        )


def spread(heights: list[float], gap: float = GAP) -> list[float]:
    """Return heights in rising order that are at least ``gap`` apart, close to those given.

    Heights that are too close share the space around their mean, as a group.
    """
    groups: list[tuple[list[float], float]] = []  # heights of a group, and its centre
    for height in heights:
        members, centre = [height], height
        while groups and centre - groups[-1][1] < gap * (len(members) + len(groups[-1][0])) / 2:
            members = groups.pop()[0] + members
            centre = statistics.mean(members)
        groups.append((members, centre))
    return [
        centre + gap * (i - (len(members) - 1) / 2)
        for members, centre in groups
        for i in range(len(members))
    ]


def _save(picture: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(path, dpi=80)
