"""Gaussian-Cauchy vectors, heavy tails in every direction: a rotation, MSGM's and baselines.

    python -m fastmsgm.recipes.gaussian_cauchy --out runs/gaussian-cauchy [--model NAME] [--smoke]

MSGM (ICLR 2026), the experiment on Gaussian vectors times a Cauchy variable, here of 4 dimensions,
with the settings of the authors' configuration for Cauchy data: beta from 0.01 to 1, 128 steps of
the simulated noising, times from 1e-4, batch 256, a perceptron of 3 x 128. The authors' code takes
one Cauchy variable for a whole batch, this one a variable for every vector. "vp" gets the vectors
with the rows of their mixing matrix normalised. Expected figure: not run. Hours on 2 cores: 0.4 for
all models, estimated from the time of a step.
"""

from __future__ import annotations

from torch import Tensor

import fastmsgm
from fastmsgm.data import synthetic
from fastmsgm.nets import MLP

from .recipe import Recipe, baselines, main
from .vector_models import PAPER_FIT, compressed, rotations, vp_of

D, VECTORS = 4, 100_000


def training_set(n: int | None) -> Tensor:
    """Return n vectors of seed 0, (n, 4); 100,000 if n is None."""
    return synthetic.gaussian_cauchy(VECTORS if n is None else n, D, seed=0)


PAPER = fastmsgm.Rotation(noise="dense", beta_min=0.01, beta_max=1.0)
RECIPE = Recipe(
    name="gaussian_cauchy",
    data=training_set,
    held_out=lambda n: synthetic.gaussian_cauchy(n, D, seed=1),
    models={
        **rotations(D, PAPER, forward_steps=128, time_min=1e-4, heavy=True),
        **baselines(lambda: MLP(D), heavy=True),
        "vp": vp_of(synthetic.mixing(D)),
    },
    steps=20_000,
    measured=compressed,
    fit_of={"msgm": PAPER_FIT},
)

if __name__ == "__main__":
    main(RECIPE, __doc__)
