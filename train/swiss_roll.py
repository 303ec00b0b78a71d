"""The Swiss roll in the plane: a rotation, MSGM's own method and additive baselines.

    python -m fastmsgm.recipes.swiss_roll --out runs/swiss-roll [--model NAME] [--smoke]

MSGM (ICLR 2026), the experiment on the Swiss roll, with the settings of the authors' configuration:
beta from 0.1 to 20, 16 steps of the simulated noising, batch 256, a perceptron of 3 x 128. Of a
vector in the plane only the angle is noised; the norm is sampled from the training set. Expected
figure: not run. Hours on 2 cores: 0.2 for all models, estimated from the time of a step.
"""

from __future__ import annotations

import functools

from torch import Tensor

import fastmsgm
from fastmsgm.data import synthetic
from fastmsgm.nets import MLP

from .recipe import Recipe, baselines, main
from .vector_models import rotations

VECTORS = 100_000


@functools.cache
def training_set(n: int | None) -> Tensor:
    """Return n vectors of seed 0, (n, 2); 100,000 if n is None."""
    return synthetic.swiss_roll(VECTORS if n is None else n, seed=0)


RECIPE = Recipe(
    name="swiss_roll",
    data=training_set,
    held_out=lambda n: synthetic.swiss_roll(n, seed=1),
    models={
        **rotations(2, fastmsgm.Rotation(noise="dense"), forward_steps=16, time_min=1e-3),
        **baselines(lambda: MLP(2)),
    },
    steps=20_000,
)

if __name__ == "__main__":
    main(RECIPE, __doc__)
