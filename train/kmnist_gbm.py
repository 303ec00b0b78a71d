"""GBM on Kuzushiji-MNIST, conditioned on the character, the paper's training and a baseline.

    python -m fastmsgm.recipes.kmnist_gbm --out runs/kmnist-gbm [--model NAME] [--smoke]

"Dale meets Langevin" (arXiv 2510.02730), the experiment on Kuzushiji-MNIST, with the authors'
published start and sampler for "paper". Needs torchvision to download the data. Expected figure:
not run. Hours on 2 cores: 4 for each model, estimated from the time of a step. A smoke run trains
on random images.
"""

from __future__ import annotations

from .image_recipe import image_recipe
from .recipe import main

RECIPE = image_recipe(
    "kmnist_gbm",
    "kmnist",
    (1, 28, 28),
    {"width": 64, "deep": 128, "blocks": 1, "deep_blocks": 3},
    steps=20_000,
)

if __name__ == "__main__":
    main(RECIPE, __doc__)
