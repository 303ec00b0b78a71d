"""GBM on CIFAR-10, conditioned on the class, beside the paper's training and an additive baseline.

    torchrun --nproc-per-node=8 -m fastmsgm.recipes.cifar10_gbm --out runs/cifar10-gbm
                                                                 [--model NAME] [--smoke]

"Dale meets Langevin" (arXiv 2510.02730), the experiment on CIFAR-10, with the authors' published
start and sampler for "paper". The U-Net has 31 million parameters on three levels. Images are
mirrored at random, two batches of 64 are accumulated for each step, and the residual blocks have a
dropout of 0.1. Needs torchvision to download the data. Expected figure: not run, and left open.
This is work for GPUs. Hours on 2 cores: 1,000 for each model, estimated from the time of a step. A
smoke run trains a small network on random images.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .image_recipe import image_recipe
from .recipe import main


def mirrored(x: Tensor) -> Tensor:
    """Return an image (3, 32, 32), mirrored with probability one half."""
    return x.flip(2) if torch.randint(2, ()).item() else x


RECIPE = image_recipe(
    "cifar10_gbm",
    "cifar-10",
    (3, 32, 32),
    {"width": 192, "deep": 320, "blocks": 2, "deep_blocks": 3, "levels": 3, "dropout": 0.1},
    steps=200_000,
    batch_size=64,
    fit={
        "transform": mirrored,
        "accumulate": 2,
        "lr": 2e-4,
        "warmup": 5_000,
        "ema": 0.9999,
    },
)

if __name__ == "__main__":
    main(RECIPE, __doc__)
