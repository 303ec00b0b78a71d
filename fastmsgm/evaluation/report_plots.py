"""The plots of an evaluation, in one folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from fastmsgm.data.items import as_float
from fastmsgm.evaluation.neighbours import Neighbours
from fastmsgm.evaluation.plots.comparison import pairs, quantiles, survival_functions
from fastmsgm.evaluation.plots.images import grid

STRIPS = 12  # samples beside their neighbours


def draw(
    folder: Path,
    samples: Tensor,
    reference: Tensor,
    train: Tensor | None,
    neighbours: Mapping[str, Neighbours],
) -> list[Path]:
    """Write the plots of an evaluation.

    survival.png, the survival functions of the norms; quantiles.png, quantiles of samples against
    those of the reference; pairs.png, pairs of features, of data that are no images;
    neighbours-KIND.png, for images: above the samples that are closest to the training set, below
    each its nearest neighbour.

    Args:
        folder: Of the plots.
        samples: (n, ...).
        reference: (m, ...).
        train: (k, ...), or None.
        neighbours: Of the samples in train, by the kind of distance.

    Returns:
        Their paths.

    Raises:
        ImportError: matplotlib is missing.
        OSError: They cannot be written.
    """
    flat = {"reference": as_float(reference).flatten(1), "samples": as_float(samples).flatten(1)}
    paths = [folder / "survival.png", folder / "quantiles.png"]
    survival_functions({name: x.norm(dim=1) for name, x in flat.items()}, paths[0])
    images = samples.ndim == 4 and samples.shape[1] in (1, 3)
    columns = {"norm": [x.double().norm(dim=1) for x in flat.values()]}
    if images:
        columns["mean"] = [x.double().mean(1) for x in flat.values()]
    else:
        for i in range(min(6, flat["samples"].shape[1])):
            columns[f"feature {i}"] = [x[:, i].double() for x in flat.values()]
    quantiles(columns, paths[1])
    if not images and flat["samples"].shape[1] > 1:
        paths.append(folder / "pairs.png")
        pairs(flat, paths[-1])
    for kind, found in neighbours.items():
        if not images or train is None:
            continue
        paths.append(folder / f"neighbours-{''.join(c if c.isalnum() else '-' for c in kind)}.png")
        closest = found.distances.argsort()[:STRIPS]
        rows = (samples[closest], train[found.indices[closest]])
        grid(torch.cat([as_float(x) for x in rows]), paths[-1], columns=len(closest))
    return paths
