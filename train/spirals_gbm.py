"""Two spirals in the positive quadrant: GBM, the paper's method and an additive baseline.

    python -m fastmsgm.recipes.spirals_gbm --out runs/spirals-gbm [--model NAME] [--smoke]

"Dale meets Langevin" (arXiv 2510.02730) in the plane, where samples can be seen beside the data.
The models are those of ``gbm_models`` with a perceptron of 3 x 128: "paper" has the paper's loss,
sigma and sampler with 1,000 network calls, and its log-normal start is fitted to the data. Expected
figure: not run. Hours on 2 cores: 0.1 for all models, estimated from the time of a step.
"""

from __future__ import annotations

from torch import Tensor, nn

from fastmsgm.data import synthetic
from fastmsgm.nets import MLP

from .gbm_models import GBM_FIT, gbm_models
from .recipe import Recipe, main

VECTORS, SCALE = 100_000, 4.0


def training_set(n: int | None) -> Tensor:
    """Return n vectors of seed 0, (n, 2), 100,000 if n is None, divided by 4."""
    return synthetic.spirals(VECTORS if n is None else n, seed=0) / SCALE


def net(classes: int) -> MLP:
    """Return the network, whose last layer starts at zero, as a U-Net's."""
    mlp = MLP(2, classes=classes)
    nn.init.zeros_(mlp.out.weight)
    nn.init.zeros_(mlp.out.bias)
    return mlp


RECIPE = Recipe(
    name="spirals_gbm",
    data=training_set,
    held_out=lambda n: synthetic.spirals(n, seed=1) / SCALE,
    models=gbm_models(net),
    steps=20_000,
    fit_of={"gbm": GBM_FIT},
)

if __name__ == "__main__":
    main(RECIPE, __doc__)
