"""GBM on MNIST, conditioned on the digit, beside the paper's training and an additive baseline.

    python -m fastmsgm.recipes.mnist_gbm --out runs/mnist-gbm [--model NAME] [--smoke]

"Dale meets Langevin" (arXiv 2510.02730), the experiment on MNIST, with the authors' published start
and sampler for "paper". Needs torchvision to download the data. Expected figure: not run at this
size; the table of bench/image_runs.py is of a smaller network at equal CPU time. Hours on 2 cores:
4 for each model, estimated from the time of a step. A smoke run trains on random images.
"""

from __future__ import annotations

from .image_recipe import image_recipe
from .recipe import main

RECIPE = image_recipe(
    "mnist_gbm",
    "mnist",
    (1, 28, 28),
    {"width": 64, "deep": 128, "blocks": 1, "deep_blocks": 3},
    steps=20_000,
)

if __name__ == "__main__":
    main(RECIPE, __doc__)
