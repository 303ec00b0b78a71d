"""Report: the figures of an evaluation, as a table and as JSON."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fastmsgm.evaluation.neighbours import Neighbours
from fastmsgm.files import write_atomically

_COLUMNS = ("figure", "value", "error", "expected", "note")


@dataclass(frozen=True)
class Figure:
    """One figure.

    Args:
        metric: Which metric it belongs to, as ``evaluate`` names it.
        name: What it is.
        value: Of the samples.
        error: Its standard error, or None.
        expected: Its value for other data of the reference's distribution, or None where it is
            unknown.
        note: How it was computed.
    """

    metric: str
    name: str
    value: float
    error: float | None = None
    expected: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Report:
    """The figures of an evaluation, and what they are of.

    ``print(report)`` shows the table.

    Args:
        figures: In the order of the table.
        settings: Sizes, types and sources of the sets, the extractor and the versions, by name.
        neighbours: Of the samples in the training set, by the kind of distance; not written.
    """

    figures: tuple[Figure, ...]
    settings: dict[str, dict[str, Any]]
    neighbours: Mapping[str, Neighbours] = field(default_factory=dict, repr=False)

    def __getitem__(self, name: str) -> Figure:
        """Return the figure of a name; KeyError, which lists the names, where there is none."""
        for figure in self.figures:
            if figure.name == name:
                return figure
        raise KeyError(f"no figure {name!r}: there are {[figure.name for figure in self.figures]}")

    def __str__(self) -> str:
        cells = [_COLUMNS, *(_cells(figure) for figure in self.figures)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        rows = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in cells
        ]
        return "\n".join([*self._header(), "", *rows])

    def markdown(self) -> str:
        """Return the report as Markdown."""
        lines = ["# Evaluation", "", *(f"- {line}" for line in self._header()), ""]
        rows = [_COLUMNS, ("---",) * len(_COLUMNS), *map(_cells, self.figures)]
        lines += [f"| {' | '.join(row)} |" for row in rows]
        return "\n".join(lines) + "\n"

    def as_json(self) -> str:
        """Return the report as JSON; a figure that is infinite is null."""
        content = {
            "settings": self.settings,
            "figures": [
                {key: _json(value) for key, value in asdict(figure).items()}
                for figure in self.figures
            ],
        }
        return json.dumps(content, indent=1) + "\n"

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Write ``report.json`` and ``report.md`` into a folder, which is made if absent.

        Raises:
            OSError: They cannot be written.
        """
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name, text in (("report.json", self.as_json()), ("report.md", self.markdown())):
            write_atomically(Path(folder) / name, lambda p, t=text: p.write_text(t, "utf-8"))

    def _header(self) -> list[str]:
        return [
            f"{name}: " + ", ".join(f"{key} {_shown(value)}" for key, value in what.items())
            for name, what in self.settings.items()
        ]


def _shown(value: Any) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return " x ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _cells(figure: Figure) -> tuple[str, ...]:
    numbers = (figure.value, figure.error, figure.expected)
    return (figure.name, *("" if x is None else f"{x:.5g}" for x in numbers), figure.note)


def _json(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
