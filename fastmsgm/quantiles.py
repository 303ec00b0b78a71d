"""How normal numbers are: the Anderson-Darling statistic, and quantile-quantile plots. Need the extras ``experiments``
and ``images``."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastmsgm.pictures import pyplot


def anderson_darling(x: Tensor) -> float:
    """The statistic of x (n,), standardised, against the normal law: above 0.75 for 5 % of normal samples; infinite
    where all of x is equal."""
    from scipy import stats

    if bool(x.min() == x.max()):
        return float("inf")
    with warnings.catch_warnings():  # newer versions of scipy want to be told how to compute a p-value
        warnings.simplefilter("ignore", FutureWarning)
        result: Any = stats.anderson(x.double().numpy())
    return float(result.statistic)


def plot(panels: dict[str, list[Tensor]], path: str | os.PathLike[str], columns: int) -> None:
    """Write the quantiles of standardised samples over those of the normal law, ``columns`` panels side by side.

    Args:
        panels: samples (n,) by title, a line for each; a normal law is the diagonal. As many as fill their rows.
    """
    plt = pyplot()
    rows = -(-len(panels) // columns)
    figure = plt.figure(figsize=(4.2 * columns, 4 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for (title, samples), panel in zip(panels.items(), grid.flat, strict=True):
        panel.plot((-4, 4), (-4, 4), color="black", linewidth=1)
        for x in samples:
            normal = torch.special.ndtri((torch.arange(len(x), dtype=torch.float64) + 0.5) / len(x))
            panel.plot(normal, ((x - x.mean()) / x.std()).sort().values, color="tab:blue", alpha=0.7)
        panel.set(title=title, xlim=(-4, 4), ylim=(-8, 4))
        panel.label_outer()
    figure.supxlabel("quantile of the normal law")
    figure.supylabel("quantile of the sample, standardised")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)
