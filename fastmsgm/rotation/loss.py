"""Denoising score matching for isotropic rotations, with the heat kernel of the sphere.

E |P_u f - f*|^2 / d, with the target f* = sqrt(d) g sin(theta) / sigma e of unit variance at every
B; e is the unit tangent at u that points back to u_0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastmsgm import rng
from fastmsgm.model import ScoreModel
from fastmsgm.rotation.preconditioning import B_MIN, RotationPreconditioning
from fastmsgm.sde.beta_schedule import sigma
from fastmsgm.sde.model import SDEModel


@dataclass(frozen=True)
class SphericalDenoisingLoss:
    """Denoising score matching at log B uniform between ``B_MIN`` and the process's largest B."""

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
            TypeError: The model is not a rotation of isotropic noise.
        """
        preconditioning = getattr(model, "preconditioning", None)
        if (
            not isinstance(preconditioning, RotationPreconditioning)
            or preconditioning.process.noise != "isotropic"
            or not isinstance(model, SDEModel)
        ):
            raise TypeError(
                "model must be a RotationModel of isotropic noise for this loss, got "
                f"{type(model).__name__}"
            )
        process = preconditioning.process
        uniform = rng.uniforms(x0.shape[0], 1, stream, rng.Purpose.TRAINING_TIME, step)[:, 0]
        B = B_MIN * np.exp(uniform.numpy() * math.log(process.B_max / B_MIN))
        model_input = torch.empty_like(x0, dtype=model.input_dtype)
        target = torch.empty_like(x0)
        u_t = process.perturb_by_heat_kernel(
            x0,
            B,
            stream.to(x0.device),
            step,
            model_input=model_input,
            c_in=preconditioning.c_in,
            target=target,
            scale=math.sqrt(preconditioning.d) / sigma(B),
        )
        c_noise = torch.from_numpy(preconditioning.c_noise(B)).to(x0.device, torch.float32)
        condition |= model.condition_of(x0.flatten(1).norm(dim=1))
        f = model(model_input, c_noise, **condition).float().flatten(1)
        u_t, target = u_t.flatten(1), target.flatten(1)
        return (f - (f * u_t).sum(1, keepdim=True) * u_t - target).square().mean(1)
