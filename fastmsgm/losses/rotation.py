"""Denoising score matching for isotropic rotations, with the heat kernel of the sphere: E |P_u f - f*|^2 / d.

The target f* = sqrt(d) g sin(theta) / sigma e, with e the unit tangent at u that points back to u_0, is of unit
variance at every clock.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from fastmsgm import heat_kernel, rng
from fastmsgm.rotation_model import CLOCK_MIN, RotationModel


def spherical_denoising(model: RotationModel, x0: Tensor, stream: Tensor, step: int) -> Tensor:
    """Denoising score matching at log B uniform between ``CLOCK_MIN`` and the process's largest clock."""
    uniform = rng.uniforms(x0.shape[0], 1, stream, rng.Kind.TRAINING_TIME, step)[:, 0].numpy()
    clocks = CLOCK_MIN * np.exp(uniform * math.log(model.process.clock_max / CLOCK_MIN))
    net_in, target = torch.empty_like(x0, dtype=model.input_dtype), torch.empty_like(x0)
    scale = math.sqrt(model.dimension) / heat_kernel.sigma(clocks)
    u_t = model.process.one_shot(
        x0, clocks, stream.to(x0.device), step, net_in=net_in, c_in=model.input_scale, target=target, scale=scale
    )
    f = model(net_in, model.condition(clocks, x0.flatten(1).norm(dim=1))).float().flatten(1)
    u_t, target = u_t.flatten(1), target.flatten(1)
    return (f - (f * u_t).sum(1, keepdim=True) * u_t - target).square().mean()
