"""Training losses of geometric Brownian motion: one noising pass, a network call, a mean square.

- ``DenoisingLoss``: E |f - F*|^2, the preconditioned log-space denoising error. With
  D = c_skip y + c_out f and y = y0 + s z the target of the network is
  F* = (s / sd * y0 - sd * z) / sqrt(s^2 + sd^2), of unit variance at every s (EDM's weighting).
- ``MDSMLoss``: E |s^2 (q + 1) + s z|^2, the paper's multiplicative denoising score matching as its
  authors weight it ((t sigma^2)^2 times M-DSM): with D = y + s^2 (q + 1) it is the plain log-space
  denoising error E |D - y0|^2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastmsgm import ops, rng
from fastmsgm.checks import is_number, positive
from fastmsgm.gbm.preconditioning import TRAINING_LEVELS, GBMPreconditioning
from fastmsgm.model import ScoreModel
from fastmsgm.types import Array


@dataclass(frozen=True)
class DenoisingLoss:
    """Preconditioned log-space denoising at log s ~ N(p_mean, p_std^2), cut off at sigma_max.

    For a model with ``prediction="denoiser"``.

    Args:
        p_mean: Mean of log s (EDM's P_mean). Low noise levels teach detail, high ones large
            shapes. None is EDM's choice, log(log_std) - 0.507 (Karras et al., 2022, table 1).
        p_std: Standard deviation of log s (EDM's P_std).

    Raises:
        ValueError: p_mean is not finite, or p_std is not positive.
    """

    p_mean: float | None = None
    p_std: float = 1.2

    def __post_init__(self) -> None:
        if self.p_mean is not None:
            if not is_number(self.p_mean):
                raise ValueError(f"p_mean must be a finite number or None, got {self.p_mean!r}")
            object.__setattr__(self, "p_mean", float(self.p_mean))
        object.__setattr__(self, "p_std", positive("p_std", self.p_std))

    def __call__(
        self,
        model: ScoreModel,
        x0: Tensor,
        stream: Tensor,
        step: int,
        **condition: Tensor,
    ) -> Tensor:
        """Return (n,) losses of a batch; see ``ScoreModel.default_loss``.

        Raises:
            TypeError: The model is not a denoiser of GBM.
        """
        preconditioning = _preconditioning(model)
        if not preconditioning.denoiser:
            raise TypeError(
                f"DenoisingLoss is for prediction='denoiser', got {preconditioning.prediction!r}: "
                "use MDSMLoss"
            )
        sd = preconditioning.log_std  # of the data
        p_mean = math.log(sd) - 0.507 if self.p_mean is None else self.p_mean
        normal = rng.normals(
            x0.shape[0], 1, stream, rng.Purpose.TRAINING_TIME, step, torch.float64
        )[:, 0].numpy()
        s = np.minimum(np.exp(p_mean + self.p_std * normal), preconditioning.process.sigma_max)
        c_in = preconditioning.coefficients(s)[:, 3]
        model_input = torch.empty_like(x0, dtype=model.input_dtype)
        z = torch.empty_like(x0)
        ops.gbm_perturb_(
            x0,
            _per_sample(x0, np.zeros_like(s), s, c_in),
            stream.to(x0.device),
            rng.Purpose.TRAINING_NOISE,
            step,
            x_t=None,
            model_input=model_input,
            z=z,
        )
        c_noise = _per_sample(x0, preconditioning.c_noise(s))[:, 0]
        f = model(model_input, c_noise, **condition).float()
        y0_part, z_part = broadcast(x0, s / sd * c_in, sd * c_in)
        error = f - (y0_part * torch.log(x0.abs()) - z_part * z)
        return error.square().flatten(1).mean(1)


@dataclass(frozen=True)
class MDSMLoss:
    """Multiplicative denoising score matching ("Dale meets Langevin", arXiv 2510.02730).

    At the paper's noise levels, t = k T / N with k uniform in 1 .. N - 1. For a model with
    ``prediction="hyvarinen"`` or ``"score"``.
    """

    def __call__(
        self,
        model: ScoreModel,
        x0: Tensor,
        stream: Tensor,
        step: int,
        **condition: Tensor,
    ) -> Tensor:
        """Return (n,) losses of a batch; see ``ScoreModel.default_loss``.

        Raises:
            TypeError: The model is not a score network of GBM.
        """
        preconditioning = score_preconditioning(self, model)
        x_t, z, s, c_noise = perturb_to_paper_levels(preconditioning, x0, stream, step)
        f = model(x_t, c_noise, **condition).float()
        q = x_t * f if preconditioning.prediction == "score" else f
        square, std = broadcast(x0, s**2, s)
        return (square * (q + 1) + std * z).square().flatten(1).mean(1)


class PaperNoise(NamedTuple):
    """A batch at the paper's noise levels.

    Args:
        x_t: (n, ...) the noised states.
        z: (n, ...) the normals.
        s: (n,) float64, the noise levels.
        c_noise: (n,) float32, the times, as a score network is given them.
    """

    x_t: Tensor
    z: Tensor
    s: Array
    c_noise: Tensor


def perturb_to_paper_levels(
    preconditioning: GBMPreconditioning, x0: Tensor, stream: Tensor, step: int
) -> PaperNoise:
    """Noise each sample up to t = k T / N, with k uniform in 1 .. N - 1.

    Args:
        preconditioning: Of a score network.
        x0: (n, ...) states.
        stream: The noise stream, on the CPU.
        step: The step of training.
    """
    process = preconditioning.process
    uniform = rng.uniforms(x0.shape[0], 1, stream, rng.Purpose.TRAINING_TIME, step)[:, 0]
    k = 1 + np.floor(uniform.numpy() * (TRAINING_LEVELS - 1))
    t = k * process.T / TRAINING_LEVELS
    s = process.sigma * np.sqrt(t)
    x_t, z = torch.empty_like(x0), torch.empty_like(x0)
    ops.gbm_perturb_(
        x0,
        _per_sample(x0, process.log_drift * t, s, np.ones_like(s)),
        stream.to(x0.device),
        rng.Purpose.TRAINING_NOISE,
        step,
        x_t=x_t,
        model_input=None,
        z=z,
    )
    return PaperNoise(x_t, z, s, _per_sample(x0, preconditioning.c_noise(s))[:, 0])


def score_preconditioning(loss: object, model: ScoreModel) -> GBMPreconditioning:
    """Return the preconditioning of a score network of GBM; TypeError for other models."""
    preconditioning = _preconditioning(model)
    if preconditioning.denoiser:
        raise TypeError(
            f"{type(loss).__name__} is for score networks, got a denoiser: use DenoisingLoss"
        )
    return preconditioning


def _preconditioning(model: ScoreModel) -> GBMPreconditioning:
    preconditioning = getattr(model, "preconditioning", None)
    if not isinstance(preconditioning, GBMPreconditioning):
        raise TypeError(f"model must be a GBMModel for this loss, got {type(model).__name__}")
    return preconditioning


def _per_sample(like: Tensor, *columns: Array) -> Tensor:
    """Return numbers computed in float64 on the host as float32 (n, columns) beside ``like``."""
    return torch.from_numpy(np.stack(columns, axis=1)).float().to(like.device)


def broadcast(like: Tensor, *columns: Array) -> tuple[Tensor, ...]:
    """Return each column, computed in float64 on the host, as float32 (n, 1, ...)."""
    shape = (like.shape[0], len(columns), *[1] * (like.ndim - 1))
    return _per_sample(like, *columns).reshape(shape).unbind(1)
