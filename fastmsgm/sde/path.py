"""Sliced score matching over whole simulated paths: ``ssm_intT`` in the code of MSGM (ICLR 2026).

    E mean_k beta(t_k) [|a_k|^2 / 2 + v_k . grad(v_k . G a_k)],  t_k = k / K,

along one path x_{t_1}, .., x_{t_K} of each sample, where ``SlicedScoreMatching`` takes one random t
a sample. Its minimum is the same. A step of the simulation is used instead of thrown away, but the
states of one path depend on each other, and the network is called on K times the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastmsgm import rng
from fastmsgm.checks import check_int
from fastmsgm.model import ScoreModel
from fastmsgm.probes import check_probes, sample_probes
from fastmsgm.sde.model import SDEPreconditioning
from fastmsgm.sde.sliced import check_sde_model, sliced_integrand


@dataclass(frozen=True)
class PathScoreMatching:
    """Sliced score matching at all times of a path of ``steps`` steps, per feature.

    Times up to ``model.preconditioning.time_min`` are left out, as the authors do. The network is
    called once, on all times together: divide the batch size by ``steps`` for equal memory.

    Args:
        probes: Distribution of the probes: "rademacher", "gaussian" or "sphere".
        steps: K, the number of steps of a path, of equal length in t.

    Raises:
        TypeError: steps is not an int.
        ValueError: An unknown distribution, or steps below 1.
    """

    probes: str = "rademacher"
    steps: int = 64

    def __post_init__(self) -> None:
        check_probes(self.probes)
        object.__setattr__(self, "steps", check_int("steps", self.steps, 1))

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
        times = np.arange(1, self.steps + 1) / self.steps
        increments = np.diff(preconditioning.process.integrated_beta(times), prepend=0.0)
        x, noise = x0.flatten(1), stream.to(x0.device)
        states, probes = [], []
        for k, (time, dB) in enumerate(zip(times, increments, strict=True)):
            counter = rng.substep(step, self.steps, k)
            x = model.forward_step(x, np.full(n, dB), noise, counter)
            if time > preconditioning.time_min:
                states.append(x)
                probes.append(sample_probes(self.probes, n, d, noise, counter))
        kept = len(states)
        condition |= model.condition_of(x0.flatten(1).norm(dim=1))
        repeated = {k: v.repeat(kept, *[1] * (v.ndim - 1)) for k, v in condition.items()}
        losses = sliced_integrand(
            model,
            torch.cat(states),
            np.repeat(times[-kept:], n),
            torch.cat(probes),
            repeated,
        )
        return losses.view(kept, n).mean(0)
