"""elbo: the evidence lower bound of log p(x), of which the training loss is the negative.

For rotations and VP it is sliced score matching up to factors and a constant, which is what MSGM
(ICLR 2026) trains: with the loss per feature at t uniform on [t_min, 1],

    rotation    log p(r) - (d - 1) log r - log A - d (1 - t_min) E loss
    VP          E[log N(x_T; 0, I) | x_0] - d (B_T - B_min) / 2 - d (1 - t_min) E loss

and the Jacobian of the data's range; t_min is where training begins. The interval below it is left
out, as in the likelihood by the probability flow. For GBM and EDM with normal noise it is the
continuous bound of variational diffusion models (Kingma et al., 2021), an integral of the denoising
error of y = log x (GBM) or of the transformed data (EDM). Their last step is N(y, s_min^2 I), so
nothing is left out.

It bounds the density of the reverse SDE, and is tight for the exact score. For an inexact score it
may exceed ``log_likelihood``, which is the flow's.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastmsgm.checks import check_int
from fastmsgm.evaluation.density_job import Batch, DensityJob
from fastmsgm.evaluation.likelihood import LogLikelihood
from fastmsgm.flow import ProbabilityFlow
from fastmsgm.model import ScoreModel


def elbo(
    model: ScoreModel | str | os.PathLike[str],
    x: Tensor,
    *,
    label: int | Sequence[int] | Tensor | None = None,
    condition: Mapping[str, Any] | None = None,
    draws: int = 64,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool = True,
) -> LogLikelihood:
    """Return an unbiased estimate of a lower bound of log p(x), for each sample.

    Args:
        model: As of ``log_likelihood``.
        x: (n, ...) samples in the data's own range; uint8 images are divided by 255.
        label: Of a class-conditional model: one class for all samples, or n classes.
        condition: What else the network is conditioned on: tensors (n, ...) by name.
        draws: Samples of the noise, each at a noise level of its own, for each sample of x. Each is
            a network call; their noise levels are stratified.
        seed: Of the noise, 0 .. 2^64 - 1.
        batch_size: Samples at a time; None is 2^16 / d, between 16 and 4096.
        progress: Show a progress bar.

    Returns:
        The bounds with their mean and standard error. The noise is part of it.

    Raises:
        TypeError: An argument of the wrong type; the message names it.
        ValueError: An argument out of range, or samples where the model has no density.

    Example:
        >>> x = fastmsgm.sample("cauchy-rotation", n=20, progress=False)
        >>> elbo("cauchy-rotation", x, draws=4, progress=False).values.shape
        torch.Size([20])
    """
    draws = check_int("draws", draws, 1)
    job = DensityJob(model, x, label, condition, seed, batch_size)

    def bound(flow: ProbabilityFlow, batch: Batch) -> tuple[Tensor, Tensor]:
        total = torch.zeros(len(batch.data), dtype=torch.float64, device=batch.data.device)
        for draw in range(draws):
            total += flow.lower_bound(batch.data, batch.condition, batch.stream, draw, draws)
        return total / draws, total

    values, _ = job.run(bound, progress, "evidence lower bound")
    return LogLikelihood(values, {"draws": draws, **job.settings()})
