"""Training objectives for geometric Brownian motion; each is one noising pass, one network call and a mean square.

- ``denoising``: E |f - F*|^2, the preconditioned log-space denoising error. With D = c_skip y + c_out f and
  y = y0 + s z the network's own target is F* = (s / sd * y0 - sd * z) / sqrt(s^2 + sd^2), of unit variance at every s
  (EDM's weighting).
- ``m_dsm``: E |s^2 (q + 1) + s z|^2, the paper's multiplicative denoising score matching as its authors weight it
  ((t sigma^2)^2 times M-DSM): with D = y + s^2 (q + 1) it is the plain log-space denoising error E |D - y0|^2.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from fastmsgm import ops, rng
from fastmsgm.gbm_model import LEVELS, GBMModel


def denoising(
    model: GBMModel, x0: Tensor, stream: Tensor, step: int, levels: tuple[float, float] | None = None,
    labels: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Preconditioned log-space denoising at log s ~ N(mean, std^2), cut off at sigma_max.

    ``levels`` is (mean, std); None is EDM's (log sd - 0.507, 1.2) (table 1).
    """
    sd = model.log_std
    mean, std = levels or (math.log(sd) - 0.507, 1.2)
    normal = rng.normals(x0.shape[0], 1, stream, rng.Kind.TRAINING_TIME, step, torch.float64)[:, 0].numpy()
    s = np.minimum(np.exp(mean + std * normal), model.process.sigma_max)
    c_in = model.preconditioning(s)[:, 3]
    net_in = torch.empty_like(x0, dtype=model.input_dtype)
    z = torch.empty_like(x0)
    coefficients = _table(x0, np.zeros_like(s), s, c_in)
    ops.gbm_perturb_(
        x0, coefficients, stream.to(x0.device), rng.Kind.TRAINING_NOISE, step, x_t=None, net_in=net_in, z=z
    )
    f = model(net_in, _conditions(model, x0, s, labels))
    y0_part, z_part = _table(x0, s / sd * c_in, sd * c_in).reshape(x0.shape[0], 2, *[1] * (x0.ndim - 1)).unbind(1)
    return (f.float() - (y0_part * torch.log(x0.abs()) - z_part * z)).square().mean()


def m_dsm(model: GBMModel, x0: Tensor, stream: Tensor, step: int, labels: Tensor | None = None) -> Tensor:
    """Multiplicative denoising score matching at the paper's levels, k uniform in 1 .. N - 1, t = k T / N."""
    uniform = rng.uniforms(x0.shape[0], 1, stream, rng.Kind.TRAINING_TIME, step)[:, 0].numpy()
    t = (1 + np.floor(uniform * (LEVELS - 1))) * model.process.T / LEVELS
    s = model.process.sigma * np.sqrt(t)
    x_t, z = torch.empty_like(x0), torch.empty_like(x0)
    coefficients = _table(x0, model.process.drift * t, s, np.ones_like(s))
    ops.gbm_perturb_(x0, coefficients, stream.to(x0.device), rng.Kind.TRAINING_NOISE, step, x_t=x_t, net_in=None, z=z)
    f = model(x_t, _conditions(model, x0, s, labels)).float()
    q = x_t * f if model.prediction == "score" else f
    square, level = _table(x0, s**2, s).reshape(x0.shape[0], 2, *[1] * (x0.ndim - 1)).unbind(1)
    return (square * (q + 1) + level * z).square().mean()


def _conditions(model: GBMModel, x0: Tensor, s: np.ndarray, labels: Tensor | None) -> Tensor:
    """The network's conditioning numbers, (n,), or (n, 2) with the classes."""
    level = _table(x0, model.condition(s))[:, 0]
    return level if labels is None else torch.stack((level, labels.to(level)), dim=1)


def _table(like: Tensor, *columns: np.ndarray) -> Tensor:
    """Per-sample numbers, computed in float64 on the host, as a float32 (n, columns) tensor where ``like`` is."""
    return torch.from_numpy(np.stack(columns, axis=1)).float().to(like.device)
