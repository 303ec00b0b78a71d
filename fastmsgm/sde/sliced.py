"""Sliced score matching, for rotations of any noise and for the additive baseline.

    E beta(t) [|a|^2 / 2 + v . grad(v . G a)],  a = G^T score,  t uniform,

with a random probe v (Song et al., 2020). Without the probes' noise it is the negative ELBO up to a
constant: the objective of MSGM (ICLR 2026).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastmsgm import rng
from fastmsgm.model import ScoreModel
from fastmsgm.sde.beta_schedule import TIME_MIN
from fastmsgm.sde.model import SDEModel, SDEPreconditioning

PROBES = ("rademacher", "gaussian", "sphere")


@dataclass(frozen=True)
class SlicedScoreMatching:
    """Sliced score matching at t uniform in [``TIME_MIN``, 1], per feature.

    Args:
        probes: Distribution of the probes: "rademacher", "gaussian" or "sphere".

    Raises:
        ValueError: An unknown distribution.
    """

    probes: str = "rademacher"

    def __post_init__(self) -> None:
        if self.probes not in PROBES:
            raise ValueError(f"probes must be one of {', '.join(PROBES)}, got {self.probes!r}")

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
            TypeError: The model's process is not an SDE in R^d.
        """
        if not isinstance(model, SDEModel):
            raise TypeError(
                "model must be a RotationModel or a VPModel for sliced score matching, got "
                f"{type(model).__name__}"
            )
        preconditioning: SDEPreconditioning = model.preconditioning
        process = preconditioning.process
        n, d = x0.flatten(1).shape
        uniform = rng.uniforms(n, 1, stream, rng.Purpose.TRAINING_TIME, step)[:, 0].numpy()
        times = TIME_MIN + (1 - TIME_MIN) * uniform
        B = process.integrated_beta(times)
        beta = torch.from_numpy(process.beta(times)).to(x0.device, torch.float32)
        noise = stream.to(x0.device)
        v, training = self._probes(n, d, noise, step), torch.is_grad_enabled()
        c_noise = torch.from_numpy(preconditioning.c_noise(B)).to(x0.device, torch.float32)
        condition |= model.condition_of(x0.flatten(1).norm(dim=1))
        with torch.enable_grad():  # the divergence is a derivative in an evaluation too
            x = model.perturb_state(x0.flatten(1), B, noise, step).requires_grad_()
            model_input = (preconditioning.c_in * x).view_as(x0)
            f = model(model_input, c_noise, **condition).float().flatten(1)
            a = process.g_transpose_prod(x, preconditioning.score(f, B))
            with torch.autocast(x.device.type, enabled=False):  # which reaches backward passes too
                (gradient,) = torch.autograd.grad(
                    (process.g_prod(x, a) * v).sum(), x, create_graph=training
                )
        return beta * (a.square().sum(1) / 2 + (gradient * v).sum(1)) / d

    def _probes(self, n: int, d: int, stream: Tensor, step: int) -> Tensor:
        """Return (n, d) random vectors of unit covariance."""
        z = rng.normals(n, d, stream, rng.Purpose.PROBE, step)
        if self.probes == "rademacher":
            return torch.sign(z)
        if self.probes == "gaussian":
            return z
        return z * (math.sqrt(d) / z.norm(dim=1, keepdim=True))
