"""Additive baselines for heavy tails, trained as an expert would: EDM on correlated Cauchy vectors.

    standardised   divided by the median of |x|, normal noise, s from 0.01 to 1e5
    asinh          compressed by asinh, normal noise, s from 0.002 to 80 standard deviations
    t-EDM          as standardised, with Student-t noise of 3 degrees of freedom

Noise levels are log-uniform in training. The rows of results.csv before this module used
``fastmsgm.EDMModel`` are of the same formulas, written out here.
"""

from __future__ import annotations

from pathlib import Path

import torch

import fastmsgm
from fastmsgm.edm import EDMHeun
from fastmsgm.nets import MLP
from train import cauchy_rotation as recipe
from train.recipe import baselines

CACHE = Path(__file__).parent / "cache" / "cauchy_baselines"
MODELS = {
    "EDM, standardised": "edm",
    "EDM, asinh": "edm-asinh",
    "t-EDM, standardised": "t-edm",
}
SAMPLERS = {  # name -> solver and steps: the best one counts
    "Heun, NFE 35": (EDMHeun(), 18),
    "Heun, NFE 127": (EDMHeun(), 64),
    "stochastic Heun, NFE 255": (EDMHeun(churn=0.2), 128),
}


def samplers_of(name: str) -> dict[str, tuple[EDMHeun, int]]:
    """Return the samplers that apply: sums of Student-t variables are none, so without churn."""
    return {
        sampler: (solver, steps)
        for sampler, (solver, steps) in SAMPLERS.items()
        if not (solver.churn and name.startswith("t-"))
    }


def train(name: str) -> fastmsgm.ScoreModel:
    """Train a baseline at the recipe's budget, or resume it, or load it where it is finished."""
    data = recipe.training_set(seed=0)
    torch.manual_seed(0)
    model = baselines(lambda: MLP(4), heavy=True)[MODELS[name]](data)
    return fastmsgm.fit(
        model,
        data,
        steps=recipe.STEPS,
        batch_size=recipe.BATCH,
        lr=recipe.LR,
        ema=recipe.EMA,
        out=CACHE / name.replace(", ", "-"),
    )
