"""Normality: the Anderson-Darling statistic, and quantile-quantile plots.

Needs the extras ``experiments`` and ``images``.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastmsgm.evaluation import plots


def anderson_darling(x: Tensor) -> float:
    """Return the Anderson-Darling statistic of standardised x against the normal distribution.

    It is above 0.75 for 5 % of normal samples, and infinite where all of x is equal.

    Args:
        x: (n,) float.

    Raises:
        ImportError: scipy is missing.
    """
    from scipy import stats

    if bool(x.min() == x.max()):
        return float("inf")
    with warnings.catch_warnings():  # newer versions of scipy ask for a p-value method
        warnings.simplefilter("ignore", FutureWarning)
        result: Any = stats.anderson(x.double().numpy())
    return float(result.statistic)


def plot(panels: dict[str, list[Tensor]], path: str | os.PathLike[str], columns: int) -> None:
    """Write quantile-quantile plots of standardised samples against the normal distribution.

    Args:
        panels: Samples (n,) by title, a line for each; a normal sample is the diagonal. Their
            number is a multiple of ``columns``.
        path: Path of the file.
        columns: Panels side by side.

    Raises:
        ImportError: matplotlib is missing.
    """
    rows = -(-len(panels) // columns)
    figure = plots.figure(figsize=(4.2 * columns, 4 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for (title, samples), panel in zip(panels.items(), grid.flat, strict=True):
        panel.plot((-4, 4), (-4, 4), color="black", linewidth=1)
        for x in samples:
            ranks = torch.arange(len(x), dtype=torch.float64, device="cpu")
            normal = torch.special.ndtri((ranks + 0.5) / len(x))
            panel.plot(
                normal, ((x - x.mean()) / x.std()).sort().values, color="tab:blue", alpha=0.7
            )
        panel.set(title=title, xlim=(-4, 4), ylim=(-8, 4))
        panel.label_outer()
    figure.supxlabel("quantile of the normal distribution")
    figure.supylabel("quantile of the sample, standardised")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
