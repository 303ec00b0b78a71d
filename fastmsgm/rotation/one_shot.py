"""One-shot noising for isotropic noise: with a gradient in the direction, and in the plane."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastmsgm import ops, reference, rng
from fastmsgm.rotation import heat_kernel
from fastmsgm.rotation.angle_table import TABLE_B_MAX
from fastmsgm.types import Array


class PerturbDirections(torch.autograd.Function):
    """``ops.rotation_perturb_`` with its gradient in u0, which is computed by the reference."""

    @staticmethod
    def forward(
        u0: Tensor, coefficients: Tensor, table: Tensor, stream: Tensor, step: int
    ) -> Tensor:
        u_t = torch.empty_like(u0)
        ops.rotation_perturb_(
            u0, coefficients, table, stream, step, u_t=u_t, model_input=None, target=None
        )
        return u_t

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        u0, *ctx.arguments = inputs
        ctx.save_for_backward(u0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (u0,), again = ctx.saved_tensors, torch.is_grad_enabled()
        coefficients, table, stream, step = ctx.arguments
        with torch.enable_grad():
            u = u0.flatten(1)
            u_t = torch.empty_like(u)
            reference.rotation_perturb(u, coefficients, table, stream, step, u_t, None, None)
            (gradient,) = torch.autograd.grad(
                u_t, u0, gradients[0].reshape(u.shape), create_graph=again
            )
        return gradient, None, None, None, None


def rotate_in_the_plane(x0: Tensor, B: Array, stream: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Sample for d = 2, where the angle is a wrapped normal of variance B.

    No table: float32 has no digits left in 1 - cos(angle) near the antipode, which here is as
    likely as other places. The score is E[unwrapped angle | wrapped angle] / B.

    Returns:
        u_t, and its score over kappa, both like x0.
    """
    normal = rng.normals(
        len(x0), 1, stream.cpu(), rng.Purpose.TRAINING_ANGLE, step, torch.float64
    ).numpy()
    angle = np.sqrt(B)[:, None] * normal
    variance = np.clip(B, 1e-300, TABLE_B_MAX)[:, None]  # beyond, the score is that at its end
    nearest = np.remainder(angle + math.pi, 2 * math.pi) - math.pi
    images = nearest + 2 * math.pi * np.arange(-8, 9)
    weights = np.exp((nearest**2 - images**2) / (2 * variance))
    pull = (weights * images).sum(1, keepdims=True) / weights.sum(1, keepdims=True) / variance
    parts = np.stack((np.cos(angle), np.sin(angle), pull / heat_kernel.kappa(variance, 2)))
    cos, sin, back = torch.from_numpy(parts).to(x0.device, x0.dtype).unbind()
    u0 = x0.reshape(-1, 2) / x0.reshape(-1, 2).norm(dim=1, keepdim=True)
    side = torch.stack((-u0[:, 1], u0[:, 0]), dim=1)
    u_t, score = cos * u0 + sin * side, back * (sin * u0 - cos * side)
    return u_t.view_as(x0), score.view_as(x0)
