"""Daily returns of 20 stocks of the S&P 500: a rotation and additive baselines.

    python -m fastmsgm.recipes.stocks --out runs/stocks

Real heavy tails, which neither paper has: the tail index of the norms is about 3.5. Trained on 1990
to 2015, compared with 2016 to 2022. Needs the extra ``experiments``. Expected figures are those of
bench/stock_runs.py, in docs/experiments/stocks.md. About two minutes on one core for each model.

Returns are divided by the standard deviation of each stock up to 2015. Their means are 1 to 4 % of
that, so the origin is their centre. The tail of the norms is a Pareto distribution beyond 2 %.
"""

from __future__ import annotations

import torch
from torch import Tensor

import fastmsgm
from fastmsgm import data
from fastmsgm.nets import MLP

from .recipe import Recipe, baselines, main

STOCKS = 20


def returns(split: str = "train") -> Tensor:
    """Return the standardised returns of a split, (n, 20)."""
    return data.stock_returns(split) / scale()


def scale() -> Tensor:
    """Return the standard deviations of the training set in per cent, (20,)."""
    return data.stock_returns("train").std(0)


def training_set(n: int | None) -> Tensor:
    """Return the days of the training set in a random order, or n of them."""
    x = returns()
    return x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))][:n]


def held_out(n: int) -> Tensor:
    """Return n days of the test set in a random order, of all its years."""
    x = returns("test")
    return x[torch.randperm(len(x), generator=torch.Generator().manual_seed(1))][:n]


def rotation(x: Tensor) -> fastmsgm.ScoreModel:
    """Return an untrained rotation."""
    net = MLP(STOCKS, condition={"log_norm": 1})
    return fastmsgm.RotationModel.for_data(net, fastmsgm.Rotation(), x, pareto=0.02)


RECIPE = Recipe(
    name="stocks",
    data=training_set,
    held_out=held_out,
    models={"rotation": rotation, **baselines(lambda: MLP(STOCKS))},
    steps=4_000,
    samples=880,
)

if __name__ == "__main__":
    main(RECIPE, __doc__)
