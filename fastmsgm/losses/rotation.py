"""Training objectives for rotations, and for the additive baseline.

- ``spherical_denoising``: E |P_u f - f*|^2 / d, denoising score matching with the heat kernel of the sphere, log B
  uniform. The target f* = sqrt(d) g sin(theta) / sigma e, with e the unit tangent at u that points back to u_0, is of
  unit variance at every clock.
- ``sliced``: the paper's sliced score matching, E beta(t) [|a|^2 / 2 + v . grad(v . G a)] at uniform t, with
  a = G^T score and a random probe v: without the probes' noise it is the negative ELBO up to a constant.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from fastmsgm import heat_kernel, rng
from fastmsgm.additive import VPModel
from fastmsgm.rotation_model import CLOCK_MIN, RotationModel

TIME_MIN = 1e-3  # the paper's truncation of t


def spherical_denoising(model: RotationModel, x0: Tensor, stream: Tensor, step: int) -> Tensor:
    """Denoising score matching at log B uniform between ``CLOCK_MIN`` and the process's largest clock."""
    uniform = rng.uniforms(x0.shape[0], 1, stream, rng.Kind.TRAINING_TIME, step)[:, 0].numpy()
    clocks = CLOCK_MIN * np.exp(uniform * math.log(model.process.clock_max / CLOCK_MIN))
    net_in, target = torch.empty_like(x0, dtype=model.input_dtype), torch.empty_like(x0)
    scale = math.sqrt(model.dimension) / heat_kernel.sigma(clocks)
    u_t = model.process.one_shot(
        x0, clocks, stream.to(x0.device), step, net_in=net_in, c_in=model.input_scale, target=target, scale=scale
    )
    f = model(net_in, model.condition(clocks, _norms(x0))).float().flatten(1)
    u_t, target = u_t.flatten(1), target.flatten(1)
    return (f - (f * u_t).sum(1, keepdim=True) * u_t - target).square().mean()


def sliced(model: RotationModel | VPModel, x0: Tensor, stream: Tensor, step: int, probes: str = "rademacher") -> Tensor:
    """Sliced score matching at t uniform in [``TIME_MIN``, 1], per feature, with "rademacher", "gaussian" or "sphere"
    probes."""
    process, (n, d) = model.process, x0.flatten(1).shape
    uniform = rng.uniforms(n, 1, stream, rng.Kind.TRAINING_TIME, step)[:, 0].numpy()
    times = TIME_MIN + (1 - TIME_MIN) * uniform
    clocks, beta = process.clock(times), torch.from_numpy(process.beta(times)).to(x0.device, torch.float32)
    noise = stream.to(x0.device)
    v, training = _probes(probes, n, d, noise, step), torch.is_grad_enabled()
    with torch.enable_grad():  # the divergence is a derivative in an evaluation too
        x = model.noised(x0.flatten(1), clocks, noise, step).requires_grad_()
        f = model((model.input_scale * x).view_as(x0), model.condition(clocks, _norms(x0))).float().flatten(1)
        a = process.turn_transposed(x, model.score(f, clocks))
        (gradient,) = torch.autograd.grad((process.turn(x, a) * v).sum(), x, create_graph=training)
    return (beta * (a.square().sum(1) / 2 + (gradient * v).sum(1))).mean() / d


def _norms(x0: Tensor) -> Tensor:
    return x0.flatten(1).norm(dim=1)


def _probes(law: str, n: int, d: int, stream: Tensor, step: int) -> Tensor:
    """Random vectors of unit covariance."""
    z = rng.normals(n, d, stream, rng.Kind.PROBE, step)
    if law == "rademacher":
        return torch.sign(z)
    return z if law == "gaussian" else z * (math.sqrt(d) / z.norm(dim=1, keepdim=True))
