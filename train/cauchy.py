"""Cauchy vectors of 2, 4 and 8 dimensions: a rotation, MSGM's own method and additive baselines.

    python -m fastmsgm.recipes.cauchy --out runs/cauchy [--variant correlated-4] [--model NAME]
                                      [--smoke]

MSGM (ICLR 2026), the experiments on correlated and uncorrelated Cauchy data, with the settings of
the authors' configuration: beta from 0.01 to 1, 128 steps of the simulated noising, times from
1e-4, scale 1/50, batch 256, a perceptron of 3 x 128. As in the paper, "vp" gets the correlated
vectors with the rows of their mixing matrix normalised. The shipped "cauchy-rotation", with more
vectors and steps, is the recipe cauchy_rotation. Expected figure: not run. Hours on 2 cores: 0.4
for all models of a variant, 2.5 for all variants, estimated from the time of a step.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

import fastmsgm
from fastmsgm.data import synthetic
from fastmsgm.nets import MLP

from .recipe import Recipe, baselines, main
from .vector_models import PAPER_FIT, compressed, rotations, vp_of

VECTORS = 100_000
KINDS = {"correlated": synthetic.correlated_cauchy, "uncorrelated": synthetic.uncorrelated_cauchy}


def variant(kind: str, d: int) -> Recipe:
    """Return the recipe of a key of ``KINDS`` in d dimensions."""
    matrix = synthetic.mixing(d) if kind == "correlated" else torch.eye(d)

    def vectors(n: int | None) -> Tensor:
        return KINDS[kind](VECTORS if n is None else n, d, seed=0)

    paper = fastmsgm.Rotation(noise="dense", beta_min=0.01, beta_max=1.0)
    return Recipe(
        name="cauchy",
        data=vectors,
        held_out=functools.partial(KINDS[kind], d=d, seed=1),
        models={
            **rotations(d, paper, forward_steps=128, time_min=1e-4, heavy=True),
            **baselines(lambda: MLP(d), heavy=True),
            "vp": vp_of(matrix),
        },
        steps=20_000,
        measured=compressed,
        fit_of={"msgm": PAPER_FIT},
    )


RECIPE = {f"{kind}-{d}": variant(kind, d) for kind in KINDS for d in (2, 4, 8)}

if __name__ == "__main__":
    main(RECIPE, __doc__)
