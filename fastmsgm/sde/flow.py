"""The probability flow of processes with a reverse drift: VP, and with its own state rotations.

Per unit of the integrated beta B the flow is dx/dB = -(reverse drift at eta = 0), so that
dx/dl = B dx/dB for l = log B. The evidence lower bound is the negative loss of sliced score
matching up to factors and a constant (Song et al., 2021, "Maximum likelihood training"; MSGM),

    log p(x) >= E[log p_prior(x_T)] - int E[|a|^2 / 2 + div(G a)] dB + constant,   a = G^T score,

with a constant of the process. ``lower_bound`` takes the integrand of the loss, per feature, at
times t that are stratified over the samples of the noise.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from fastmsgm import rng
from fastmsgm.flow import FlowStart, ProbabilityFlow
from fastmsgm.probes import sample_probes
from fastmsgm.sde.model import SDEModel, SDEPreconditioning
from fastmsgm.sde.sliced import sliced_integrand

LOG_2PI = math.log(2 * math.pi)


class SDEFlow(ProbabilityFlow):
    """The probability flow of an ``SDEModel``.

    Args:
        model: The network with its process.
        noise_levels: The smallest and the largest integrated beta.
    """

    def __init__(self, model: SDEModel, noise_levels: tuple[float, float]) -> None:
        self.model, self.noise_levels = model, noise_levels
        self.preconditioning: SDEPreconditioning = model.preconditioning

    def velocity(self, state: Tensor, noise_level: Tensor, condition: dict[str, Tensor]) -> Tensor:
        preconditioning, B = self.preconditioning, noise_level.numpy()
        x = preconditioning.process.project(state)
        model_input = (preconditioning.c_in * x).to(self.model.input_dtype)
        c_noise = torch.from_numpy(preconditioning.c_noise(B)).to(x.device, torch.float32)
        shaped = model_input.view(-1, *self.model.shape)
        f = self.model(shaped, c_noise, **condition).double().flatten(1)
        drift = preconditioning.process.reverse_drift(x, preconditioning.score(f, B), eta=0.0)
        return -noise_level.to(x.device)[:, None] * drift

    def lower_bound(
        self,
        data: Tensor,
        condition: Mapping[str, Tensor],
        stream: Tensor,
        draw: int,
        draws: int,
    ) -> Tensor:
        """See ``ProbabilityFlow``; the integral begins where training does."""
        start, x0 = self.start(data, condition), self.model.to_state(data.float()).flatten(1)
        n, d = x0.shape
        process, noise = self.preconditioning.process, stream.to(x0.device)
        first = max(self.preconditioning.time_min, float(process.time(self.noise_levels[0])))
        uniform = rng.uniforms(n, 1, stream, rng.Purpose.TRAINING_TIME, draw)[:, 0].numpy()
        times = first + (1 - first) * (draw + uniform) / draws
        x = self.model.perturb_state(x0, process.integrated_beta(times), noise, draw)
        v = sample_probes("rademacher", n, d, noise, draw)
        loss = sliced_integrand(self.model, x, times, v, start.condition).double()
        return start.log_factor + self.expected_log_prior(start.state) - d * (1 - first) * loss

    @abstractmethod
    def expected_log_prior(self, state: Tensor) -> Tensor:
        """Return E[log p_prior(x_T) | x_0] and the constant of the bound, (n,) or one number.

        Args:
            state: (n, d) float64, x_0.
        """


class VPFlow(SDEFlow):
    """The probability flow of a ``VPModel``, from the smallest time to N(0, I).

    Args:
        model: The network with its process.
        mean: (1, ...) subtracted from the data.
        scale: (1, ...) that divides them.
    """

    def __init__(self, model: SDEModel, mean: Tensor, scale: Tensor) -> None:
        times = (model.preconditioning.time_min, 1.0)
        first, last = model.preconditioning.process.integrated_beta(times).tolist()
        super().__init__(model, (first, last))
        self.mean, self.scale = mean.double(), scale.double()

    def start(self, data: Tensor, condition: Mapping[str, Tensor]) -> FlowStart:
        state = ((data.double() - self.mean) / self.scale).flatten(1)
        log_factor = -torch.log(self.scale).sum().expand(len(state))
        return FlowStart(state, log_factor, dict(condition))

    def log_prior(self, state: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        return -state.square().sum(1) / 2 - state.shape[1] * LOG_2PI / 2

    def expected_log_prior(self, state: Tensor) -> Tensor:
        # The drift -x / 2 dB has the divergence -d / 2, the constant of the bound.
        first, last = self.noise_levels
        squares = math.exp(-last) * state.square().sum(1) - state.shape[1] * math.expm1(-last)
        return -squares / 2 - state.shape[1] * (LOG_2PI + last - first) / 2
