"""The data sets of image_runs.py and classifier.py, with their networks and budgets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fastmsgm import data


@dataclass(frozen=True)
class ImageSet:
    """A set of images (n, 1, 28, 28) with ten classes.

    Args:
        read: Returns the images of a split, in [0, 1], and their labels with ``labels=True``.
        benchmark: Name of its rows in results.csv.
        mirrored: Whether a mirrored image is one of the set.
        net: Arguments of the U-Net of the equal-budget runs.
        minutes: CPU time of one thread for each training.
        samples: Of each row.
    """

    read: Callable[..., Any]
    benchmark: str
    mirrored: bool
    net: Mapping[str, Any]
    minutes: float
    samples: int


SETS = {
    "fashion-mnist": ImageSet(
        read=data.fashion_mnist,
        benchmark="fashion_runs",
        mirrored=True,
        net={"width": 32, "deep": 64, "blocks": 1, "deep_blocks": 2},
        minutes=45.0,
        samples=1_000,
    ),
    "mnist": ImageSet(
        read=data.mnist,
        benchmark="mnist_runs",
        mirrored=False,
        net={"width": 24, "deep": 48, "blocks": 1, "deep_blocks": 1},
        minutes=10.0,
        samples=250,
    ),
}
