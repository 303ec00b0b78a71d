"""States of Lorenz-96 with 16 sites: a rotation, MSGM's own method and additive baselines.

    python -m fastmsgm.recipes.lorenz96 --out runs/lorenz96 [--model NAME] [--smoke]

MSGM (ICLR 2026), the experiment on the Lorenz-96 flow, with the settings of the authors'
configuration for Lorenz-63: beta from 0.01 to 2, 128 steps of the simulated noising, batch 256, a
perceptron of 3 x 128. Of each state the mean over time and sites, 2.35, is subtracted, so that
directions spread around the origin. Expected figure: not run. Hours on 2 cores: 0.6 for all models,
estimated from the time of a step.
"""

from __future__ import annotations

import functools

from torch import Tensor

import fastmsgm
from fastmsgm.data import synthetic
from fastmsgm.nets import MLP

from .recipe import Recipe, baselines, main
from .vector_models import rotations

SITES, STATES = 16, 2**14
MEAN, DEVIATION = 2.35, 3.63  # at a forcing of 8


@functools.cache
def states(n: int, seed: int) -> Tensor:
    """Return n standardised states, (n, 16)."""
    return (synthetic.lorenz96(n, SITES, seed=seed) - MEAN) / DEVIATION


PAPER = fastmsgm.Rotation(noise="dense", beta_min=0.01, beta_max=2.0)
RECIPE = Recipe(
    name="lorenz96",
    data=lambda n: states(STATES if n is None else n, seed=0),
    held_out=lambda n: states(n, seed=1),
    models={
        **rotations(SITES, PAPER, forward_steps=128, time_min=1e-3),
        **baselines(lambda: MLP(SITES)),
    },
    steps=20_000,
    samples=4_096,
)

if __name__ == "__main__":
    main(RECIPE, __doc__)
