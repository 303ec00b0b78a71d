"""Sliced score matching, for rotations of any noise and for the additive baseline.

    E beta(t) [|a|^2 / 2 + v . grad(v . G a)],  a = G^T score,  t uniform,

with a random probe v (Song et al., 2020). Without the probes' noise it is the negative ELBO up to a
constant: the objective of MSGM (ICLR 2026).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastmsgm import rng
from fastmsgm.model import ScoreModel
from fastmsgm.probes import check_probes, sample_probes
from fastmsgm.sde.model import SDEModel, SDEPreconditioning
from fastmsgm.types import Array


@dataclass(frozen=True)
class SlicedScoreMatching:
    """Sliced score matching at t uniform in [``model.preconditioning.time_min``, 1], per feature.

    Args:
        probes: Distribution of the probes: "rademacher", "gaussian" or "sphere".

    Raises:
        ValueError: An unknown distribution.
    """

    probes: str = "rademacher"

    def __post_init__(self) -> None:
        check_probes(self.probes)

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
        model = check_sde_model(model)
        preconditioning: SDEPreconditioning = model.preconditioning
        n, d = x0.flatten(1).shape
        uniform = rng.uniforms(n, 1, stream, rng.Purpose.TRAINING_TIME, step)[:, 0].numpy()
        times = preconditioning.time_min + (1 - preconditioning.time_min) * uniform
        B, noise = preconditioning.process.integrated_beta(times), stream.to(x0.device)
        v = sample_probes(self.probes, n, d, noise, step)
        condition |= model.condition_of(x0.flatten(1).norm(dim=1))
        x = model.perturb_state(x0.flatten(1), B, noise, step)
        return sliced_integrand(model, x, times, v, condition)


def sliced_integrand(
    model: SDEModel, x: Tensor, times: Array, v: Tensor, condition: dict[str, Tensor]
) -> Tensor:
    """Return beta (|a|^2 / 2 + v . grad(v . G a)) / d, (n,).

    Args:
        model: Its network gives the score.
        x: (n, d) states, without gradient.
        times: (n,) of the states.
        v: (n, d) probes.
        condition: What the network is conditioned on, by name, the family's own included.
    """
    preconditioning: SDEPreconditioning = model.preconditioning
    process = preconditioning.process
    B, training = process.integrated_beta(times), torch.is_grad_enabled()
    beta = torch.from_numpy(process.beta(times)).to(x.device, torch.float32)
    c_noise = torch.from_numpy(preconditioning.c_noise(B)).to(x.device, torch.float32)
    with torch.enable_grad():  # the divergence is a derivative in an evaluation too
        x = x.requires_grad_()
        model_input = (preconditioning.c_in * x).view(-1, *model.shape)
        f = model(model_input, c_noise, **condition).float().flatten(1)
        a = process.g_transpose_prod(x, preconditioning.score(f, B))
        with torch.autocast(x.device.type, enabled=False):  # which reaches backward passes too
            (gradient,) = torch.autograd.grad(
                (process.g_prod(x, a) * v).sum(), x, create_graph=training
            )
    return beta * (a.square().sum(1) / 2 + (gradient * v).sum(1)) / x.shape[1]


def check_sde_model(model: ScoreModel) -> SDEModel:
    """Return a model whose process is an SDE in R^d; TypeError for others."""
    if isinstance(model, SDEModel):
        return model
    raise TypeError(
        "model must be a RotationModel or a VPModel for sliced score matching, got "
        f"{type(model).__name__}"
    )
