"""image_recipe: the recipe of a data set of images with ten classes.

Its models are those of ``gbm_models``, and "paper" has the authors' published start and sampler of
the data set. The line at the end is of a distance of pixels, which says little of images:
``fastmsgm eval`` has FID, KID and others. A smoke run trains small networks on random images, so it
needs no download.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fastmsgm.data.files import BY_NAME
from fastmsgm.gbm import published_prior
from fastmsgm.nets import UNet
from fastmsgm.solvers import PUBLISHED

from .gbm_models import GBM_FIT, gbm_models
from .recipe import Build, Recipe

CLASSES = 10
DROPPED = 0.2  # share of the labels, so that samples can be guided
SMALL = {"width": 16, "deep": 32, "blocks": 1, "deep_blocks": 1}  # of a smoke run


def image_recipe(
    name: str,
    dataset: str,
    shape: tuple[int, int, int],
    net: Mapping[str, Any],
    *,
    steps: int,
    batch_size: int = 128,
    fit: Mapping[str, Any] | None = None,
) -> Recipe:
    """Return the recipe of a data set.

    Args:
        name: Of the module.
        dataset: A name of ``fastmsgm.data.NAMES``.
        shape: (channels, height, width) of an image.
        net: Arguments of ``UNet``, but for channels and classes.
        steps: Optimizer steps.
        batch_size: Images of a batch.
        fit: Other arguments of ``fastmsgm.fit``.
    """

    def images(n: int | None) -> Tensor:
        if n is None:
            return BY_NAME[dataset]("train")
        return torch.rand(n, *shape, generator=torch.Generator().manual_seed(0))

    def labels(n: int | None) -> Tensor:
        if n is None:
            return BY_NAME[dataset]("train", labels=True)[1]
        return torch.arange(n) % CLASSES

    def held_out(n: int) -> Tensor:
        return BY_NAME[dataset]("test")[:n]

    def models(**sizes: Any) -> dict[str, Build]:
        return gbm_models(
            lambda classes: UNet(channels=shape[0], classes=classes, **sizes),
            CLASSES,
            published_prior(dataset, shape),
            precision="bf16",
            offset=1.0,
            bounds=(0.0, 1.0),
        )

    return Recipe(
        name=name,
        data=images,
        held_out=held_out,
        models=models(**net),
        steps=steps,
        batch_size=batch_size,
        fit=fit or {},
        samples=1_000,
        labels=labels,
        fit_of={
            "gbm": {**GBM_FIT, "drop": DROPPED},
            **{baseline: {"drop": DROPPED} for baseline in ("vp", "edm", "t-edm")},
        },
        sample_of={"paper": {"solver": PUBLISHED[dataset][0]}},
        smoke_models=models(**{**net, **SMALL}),
    )
