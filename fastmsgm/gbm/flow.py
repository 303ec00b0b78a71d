"""The probability flow of a GBM model, in logarithms.

For y = log|x| without its drift and D = E[y_0 | y] it is dy/ds = -(D - y) / s, from the smallest
noise level s of the preconditioning to the largest. The state is w = y / sqrt(s^2 + sd^2), which
keeps its scale (sd is the data's log_std), and l = log s:

    dw/dl = c_skip w - D / sqrt(s^2 + sd^2),    c_skip = sd^2 / (s^2 + sd^2).

The Jacobian of the logarithm gives log p(x) = log p(y) - sum log|x|. The density at the smallest
noise level is that of y + s z, so the spikes and edges of p(y) that are narrower are smoothed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from fastmsgm.denoising_bound import LOG_2PI, denoising_bound
from fastmsgm.flow import FlowStart, ProbabilityFlow
from fastmsgm.gbm.preconditioning import GBMPreconditioning
from fastmsgm.gbm.prior import LogNormalPrior
from fastmsgm.model import ScoreModel


class GBMFlow(ProbabilityFlow):
    """The probability flow of a GBM model.

    Args:
        model: The network with its offset.
        prior: Where sampling starts, in the units of the process. Of several means a sample's
            class chooses one; without classes the density is the mean over them.
        scale: (1, ...) that divides the data.

    Raises:
        ValueError: Means of different signs, whose mixture has no one sign in every feature.
    """

    def __init__(self, model: ScoreModel, prior: LogNormalPrior, scale: Tensor) -> None:
        self.model, self.scale = model, scale.double()
        self.preconditioning: GBMPreconditioning = model.preconditioning
        sigma_max = self.preconditioning.process.sigma_max
        self.noise_levels = (self.preconditioning.sigma_min, sigma_max)
        self.unit = self.preconditioning.log_std or 1.0  # 0 for functions
        means = (prior.means.double() / self.scale).expand(-1, *model.shape).flatten(1)
        self.sign, self.log_means = torch.sign(means[:1]), torch.log(means.abs())
        self.prior_std = prior.std(sigma_max)
        if not bool((torch.sign(means) == self.sign).all()):
            raise ValueError(
                "the prior's means must have the same signs in every feature, got both: give a "
                "prior of one sign, as GBMModel.for_data does"
            )

    def start(self, data: Tensor, condition: Mapping[str, Tensor]) -> FlowStart:
        y, log_factor = self._log_state(data)
        total = math.hypot(self.noise_levels[0], self.unit)
        log_factor = log_factor - y.shape[1] * math.log(total)
        return FlowStart(y / total, log_factor, dict(condition))

    def velocity(self, state: Tensor, noise_level: Tensor, condition: dict[str, Tensor]) -> Tensor:
        total = torch.sqrt(noise_level**2 + self.unit**2).to(state.device)[:, None]
        denoised = self._denoised(state * total, noise_level, condition)
        return self.unit**2 / total**2 * state - denoised / total

    def log_prior(self, state: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        total = math.hypot(self.noise_levels[1], self.unit)
        return self._log_prior(state * total, condition) + state.shape[1] * math.log(total)

    def lower_bound(
        self,
        data: Tensor,
        condition: Mapping[str, Tensor],
        stream: Tensor,
        draw: int,
        draws: int,
    ) -> Tensor:
        """See ``ProbabilityFlow``, and ``denoising_bound``."""
        y0, log_factor = self._log_state(data)
        bound = denoising_bound(
            y0,
            self.noise_levels,
            lambda y, s: self._denoised(y, s, dict(condition)),
            lambda y: self._log_prior(y, condition),
            self.unit,
            stream,
            draw,
            draws,
        )
        return log_factor + bound

    def _log_state(self, data: Tensor) -> tuple[Tensor, Tensor]:
        """Return log|x / scale| (n, d) and -sum log|x| (n,), x the data with the offset."""
        shifted = data.double() + self.model.offset
        states = (shifted / self.scale).flatten(1)
        wrong = ~(states * self.sign > 0)
        if bool(wrong.any()):
            raise ValueError(
                "x must have the signs of the model's data, as multiplication never changes a "
                f"sign and never reaches zero; got {int(wrong.any(1).sum())} of {len(states)} "
                f"samples with zeros or other signs after the offset of {self.model.offset:g}: "
                "their density is zero, leave them out"
            )
        return torch.log(states.abs()), -torch.log(shifted.abs()).flatten(1).sum(1)

    def _denoised(self, y: Tensor, s: Tensor, condition: dict[str, Tensor]) -> Tensor:
        """Return D of log-states y (n, d), without drift, at noise levels s (n,)."""
        preconditioning, levels = self.preconditioning, s.numpy()
        k0, k1, k2, c_in, shift = (
            torch.from_numpy(column).to(y.device)[:, None]
            for column in (*preconditioning.coefficients(levels).T, preconditioning.shift(levels))
        )
        log_x = y + shift
        x = self.sign * torch.exp(log_x)
        model_input = c_in * log_x if preconditioning.denoiser else x
        c_noise = torch.from_numpy(preconditioning.c_noise(levels)).to(y.device, torch.float32)
        shaped = model_input.to(self.model.input_dtype).view(-1, *self.model.shape)
        f = self.model(shaped, c_noise, **condition).double().flatten(1)
        g = x * f if preconditioning.prediction == "score" else f
        return k0 * log_x + k1 * g + k2

    def _log_prior(self, y: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        """Return the log-density (n,) of log-states y (n, d) at the largest noise level."""
        means, label = self.log_means, condition.get("label")
        own = means[:, None] if label is None else means[label % len(means)][None]
        z = (y - own) / self.prior_std
        log_densities = -z.square().sum(2) / 2 - y.shape[1] * (
            LOG_2PI / 2 + math.log(self.prior_std)
        )
        return torch.logsumexp(log_densities, 0) - math.log(len(log_densities))
