"""Sliced score matching, for rotations of any noise and for the additive baseline.

    E beta(t) [|a|^2 / 2 + v . grad(v . G a)],  a = G^T score,  t uniform,

with a random probe v: without the probes' noise it is the negative ELBO up to a constant (MSGM's own objective).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastmsgm import rng
from fastmsgm.additive import VPModel
from fastmsgm.clock import TIME_MIN
from fastmsgm.rotation_model import RotationModel


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
        f = (
            model((model.input_scale * x).view_as(x0), model.condition(clocks, x0.flatten(1).norm(dim=1)))
            .float()
            .flatten(1)
        )
        a = process.turn_transposed(x, model.score(f, clocks))
        (gradient,) = torch.autograd.grad((process.turn(x, a) * v).sum(), x, create_graph=training)
    return (beta * (a.square().sum(1) / 2 + (gradient * v).sum(1))).mean() / d


def _probes(law: str, n: int, d: int, stream: Tensor, step: int) -> Tensor:
    """Random vectors of unit covariance."""
    z = rng.normals(n, d, stream, rng.Kind.PROBE, step)
    if law == "rademacher":
        return torch.sign(z)
    return z if law == "gaussian" else z * (math.sqrt(d) / z.norm(dim=1, keepdim=True))
