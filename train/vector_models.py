"""The models of the recipes of vectors: our rotation, and those of MSGM (ICLR 2026).

    rotation   isotropic noise and denoising score matching
    msgm       dense noise, simulated in training, and sliced score matching, sampled by the
               classical Runge-Kutta method in 128 steps: the paper's, at its settings

Their networks are perceptrons of 3 layers of 128, the paper's in size, and their norms are those of
the training set. What this package adds for heavy tails (``DirectionMLP``, a Pareto tail, saturated
log-norms, batches with more extremes) is in "rotation" alone. ``vp_of`` is the paper's additive
baseline of Cauchy data; the others are ``recipe.baselines``.
"""

from __future__ import annotations

import torch
from torch import Tensor

import fastmsgm
from fastmsgm.nets import MLP, DirectionMLP

from .recipe import Build

TAIL = 0.01  # share of the largest norms of heavy-tailed data that a Pareto tail replaces
PAPER_FIT = {"tail": 0.0}  # arguments of ``fastmsgm.fit`` for "msgm"
MSGM_STEPS = 128  # of the paper's sampler


def rotations(
    d: int, paper: fastmsgm.Rotation, *, forward_steps: int, time_min: float, heavy: bool = False
) -> dict[str, Build]:
    """Return functions of the training set that return an untrained rotation, by name.

    Args:
        d: Features of a vector.
        paper: The process of "msgm".
        forward_steps: Steps of its simulation in training.
        time_min: The smallest time at which it is trained and sampled.
        heavy: Whether the data are heavy-tailed.
    """

    def rotation(x: Tensor) -> fastmsgm.ScoreModel:
        net = DirectionMLP(d) if heavy else MLP(d, condition={"log_norm": 1})
        pareto = TAIL if heavy else 0.0
        return fastmsgm.RotationModel.for_data(net, fastmsgm.Rotation(), x, pareto=pareto)

    def msgm(x: Tensor) -> fastmsgm.ScoreModel:
        net = MLP(d, condition={"log_norm": 1})
        settings = {"forward_steps": forward_steps, "time_min": time_min}
        return fastmsgm.RotationModel.for_data(net, paper, x, saturate=0.0, **settings)

    return {"rotation": rotation, "msgm": msgm}


def vp_of(matrix: Tensor) -> Build:
    """Return the additive baseline of data A c, (n, d), as the paper trains it on Cauchy vectors.

    Heavy tails have no variance to be divided by. The rows of A are normalised instead.

    Args:
        matrix: A, (d, d).
    """
    scale = matrix.norm(dim=1)[None].float()

    def vp(x: Tensor) -> fastmsgm.ScoreModel:
        return fastmsgm.VPModel(MLP(len(matrix)), fastmsgm.VP(), torch.zeros_like(scale), scale)

    return vp


def compressed(x: Tensor) -> Tensor:
    """Return vectors whose norm r is log(1 + 50 r), (n, d): distances that no extreme dominates."""
    norm = x.double().norm(dim=1, keepdim=True)  # squares of extremes leave float32
    return (x * torch.where(norm > 0, torch.log1p(50 * norm) / norm, 50.0)).float()
