"""Windows of Lorenz-63, 16 values of x: a rotation, MSGM's own method and additive baselines.

    python -m fastmsgm.recipes.lorenz63 --out runs/lorenz63 [--model NAME] [--smoke]

MSGM (ICLR 2026), the experiment on the Lorenz-63 flow in 16 dimensions, with the settings of the
authors' configuration: beta from 0.01 to 2, 128 steps of the simulated noising, batch 256, a
perceptron of 3 x 128. The windows are those of ``data.synthetic.lorenz63``, divided by 8, the
standard deviation of x. Expected figure: not run. Hours on 2 cores: 0.6 for all models, estimated
from the time of a step.
"""

from __future__ import annotations

import functools

from torch import Tensor

import fastmsgm
from fastmsgm.data import synthetic
from fastmsgm.nets import MLP

from .recipe import Recipe, baselines, main
from .vector_models import rotations

WINDOW, WINDOWS, SCALE = 16, 2**14, 8.0


@functools.cache
def windows(n: int, seed: int) -> Tensor:
    """Return n windows, (n, 16)."""
    return synthetic.lorenz63(n, WINDOW, seed=seed) / SCALE


PAPER = fastmsgm.Rotation(noise="dense", beta_min=0.01, beta_max=2.0)
RECIPE = Recipe(
    name="lorenz63",
    data=lambda n: windows(WINDOWS if n is None else n, seed=0),
    held_out=lambda n: windows(n, seed=1),
    models={
        **rotations(WINDOW, PAPER, forward_steps=128, time_min=1e-3),
        **baselines(lambda: MLP(WINDOW)),
    },
    steps=20_000,
    samples=4_096,
)

if __name__ == "__main__":
    main(RECIPE, __doc__)
