"""EDMLoss: denoising score matching in EDM's weighting."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastmsgm import rng
from fastmsgm.checks import is_number, positive
from fastmsgm.edm.process import EDMPreconditioning
from fastmsgm.model import ScoreModel


@dataclass(frozen=True)
class EDMLoss:
    """Denoising: E |D - y_0|^2 / c_out^2, per feature (Karras et al., 2022, equation 8).

    Args:
        p_mean: Mean of log(s / sd), EDM's P_mean for data of unit spread. None takes log s uniform
            between the smallest and the largest noise level, for data without one scale.
        p_std: Standard deviation of log s, EDM's P_std.

    Raises:
        ValueError: p_mean is not finite, or p_std is not positive.
    """

    p_mean: float | None = -0.507
    p_std: float = 1.2

    def __post_init__(self) -> None:
        if self.p_mean is not None:
            if not is_number(self.p_mean):
                raise ValueError(f"p_mean must be a finite number or None, got {self.p_mean!r}")
            object.__setattr__(self, "p_mean", float(self.p_mean))
        object.__setattr__(self, "p_std", positive("p_std", self.p_std))

    def __call__(
        self, model: ScoreModel, x0: Tensor, stream: Tensor, step: int, **condition: Tensor
    ) -> Tensor:
        """Return (n,) losses of a batch; see ``ScoreModel.default_loss``.

        Raises:
            TypeError: The model is not an EDMModel.
        """
        preconditioning = getattr(model, "preconditioning", None)
        if not isinstance(preconditioning, EDMPreconditioning):
            raise TypeError(f"model must be an EDMModel for this loss, got {type(model).__name__}")
        y0, process = x0.flatten(1), preconditioning.process
        (n, d), (low, high) = y0.shape, preconditioning.noise_levels
        purpose = rng.Purpose.TRAINING_TIME
        if self.p_mean is None:
            uniform = rng.uniforms(n, 1, stream, purpose, step)[:, 0].numpy()
            log_s = math.log(low) + math.log(high / low) * uniform
        else:
            z = rng.normals(n, 1, stream, purpose, step, torch.float64)[:, 0].numpy()
            log_s = math.log(preconditioning.data_std) + self.p_mean + self.p_std * z
        s = np.clip(np.exp(log_s), low, high)
        columns = np.concatenate([preconditioning.coefficients(s), s[:, None]], axis=1)
        c_skip, c_out, c_in, scale = (
            torch.from_numpy(columns).to(x0.device, torch.float32)[..., None].unbind(1)
        )
        noise = process.noise(
            n,
            d,
            stream.to(x0.device),
            rng.Purpose.TRAINING_NOISE,
            rng.Purpose.TRAINING_ANGLE,
            step,
        )
        y = y0 + scale * noise
        c_noise = torch.from_numpy(preconditioning.c_noise(s)).to(x0.device, torch.float32)
        model_input = (c_in * y).view_as(x0).to(model.input_dtype)
        f = model(model_input, c_noise, **condition).float().flatten(1)
        return (f - (y0 - c_skip * y) / c_out).square().mean(1)
