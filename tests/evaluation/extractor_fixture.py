"""A small fixed extractor, as ``--extractor module:function`` names it."""

from __future__ import annotations

import torch
from torch import Tensor

WEIGHTS = torch.randn(3, 64, 12, generator=torch.Generator().manual_seed(5)) / 8


def small(images: Tensor) -> Tensor:
    """Return 12 features of images (n, 1 or 3, 8, 8) in [0, 1]."""
    pixels = images.expand(-1, 3, -1, -1).flatten(2)
    return torch.einsum("ncp,cpk->nk", pixels, WEIGHTS).relu()


def integers(images: Tensor) -> Tensor:
    return images.flatten(1).long()


def images_as_they_are(images: Tensor) -> Tensor:
    return images


def infinite(images: Tensor) -> Tensor:
    return images.flatten(1) / 0


def broken(images: Tensor) -> Tensor:
    raise KeyError("weights")


CONSTANT = 3
