"""The models of the recipes of positive data.

    gbm     ours: a log-space denoiser for GBM to sigma = 10, of the data's classes where it has any
    paper   "Dale meets Langevin" (arXiv 2510.02730): a Stein score for GBM to sigma = 0.8, M-DSM,
            sampled by Dale-Langevin in 1,000 noise levels; without classes, as theirs
    vp      additive noise, sliced score matching: the papers' additive baseline
    edm     additive noise, denoising score matching in EDM's form
    t-edm   the same with Student-t noise of 3 degrees of freedom

All have networks of one size and one number of steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import fastmsgm
from fastmsgm.gbm import DenoisingLoss, LogNormalPrior

from .recipe import Build

# Noise levels that reach the large shapes, as in the shipped "fashion-gbm".
GBM_FIT = {"loss": DenoisingLoss(p_mean=-0.5, p_std=1.4)}


def gbm_models(
    net: Callable[[int], nn.Module],
    classes: int = 0,
    start: LogNormalPrior | None = None,
    precision: str = "fp32",
    **options: Any,
) -> dict[str, Build]:
    """Return functions of the data, and of their labels, that return an untrained model, by name.

    Args:
        net: Returns the network for a number of classes, 0 for none.
        classes: Number of classes.
        start: Where "paper" starts; None fits a log-normal prior.
        precision: What the networks compute in.
        options: ``offset`` and ``bounds`` of ``GBMModel.for_data``.
    """

    def gbm(x: Tensor, labels: Tensor | None = None) -> fastmsgm.ScoreModel:
        return fastmsgm.GBMModel.for_data(
            net(classes),
            fastmsgm.GBM(10.0),
            x,
            labels=labels,
            classes=classes,
            precision=precision,
            **options,
        )

    def paper(x: Tensor, labels: Tensor | None = None) -> fastmsgm.ScoreModel:
        return fastmsgm.GBMModel.for_data(
            net(0),
            fastmsgm.GBM(0.8),
            x,
            prior=start,
            prediction="score",
            precision=precision,
            **options,
        )

    def vp(x: Tensor, labels: Tensor | None = None) -> fastmsgm.ScoreModel:
        # One mean and one deviation: pixels at the border of images do not vary.
        mean, std = (torch.full_like(x[:1], float(value)) for value in (x.mean(), x.std()))
        return fastmsgm.VPModel(
            net(classes), fastmsgm.VP(), mean, std, classes=classes, precision=precision
        )

    def edm(freedom: int | None) -> Build:
        process, bounds = fastmsgm.EDM(freedom=freedom), options.get("bounds")
        return lambda x, labels=None: fastmsgm.EDMModel.for_data(
            net(classes), process, x, classes=classes, bounds=bounds, precision=precision
        )

    return {"gbm": gbm, "paper": paper, "vp": vp, "edm": edm(None), "t-edm": edm(3)}
