"""The probability flow of an EDM model: dy/ds = (y - D) / s (Karras et al., 2022, equation 1).

The state is w = y / t with t^2 = (v s)^2 + sd^2, which keeps its scale, and l = log s:

    dw/dl = c_skip w - D / t.

For Student-t noise of scale s it is the same flow with t-EDM's denoiser (Pandey et al., 2025).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from fastmsgm.denoising_bound import LOG_2PI, denoising_bound
from fastmsgm.edm.process import EDMPreconditioning
from fastmsgm.flow import FlowStart, ProbabilityFlow
from fastmsgm.model import ScoreModel


class EDMFlow(ProbabilityFlow):
    """The probability flow of an EDM model.

    Args:
        model: The network.
        centre: (1, ...) subtracted from the data.
        scale: (1, ...) that divides them.
        asinh: Whether the state is the inverse hyperbolic sine of that.
    """

    def __init__(self, model: ScoreModel, centre: Tensor, scale: Tensor, asinh: bool) -> None:
        self.model, self.asinh = model, asinh
        self.centre, self.scale = centre.double(), scale.double()
        self.preconditioning: EDMPreconditioning = model.preconditioning
        self.noise_levels = self.preconditioning.noise_levels

    def start(self, data: Tensor, condition: Mapping[str, Tensor]) -> FlowStart:
        y, log_factor = self._state(data)
        total = self._total(self.noise_levels[0])
        return FlowStart(y / total, log_factor - y.shape[1] * math.log(total), dict(condition))

    def velocity(self, state: Tensor, noise_level: Tensor, condition: dict[str, Tensor]) -> Tensor:
        c_skip, _, c_in = self._coefficients(noise_level, state.device)
        return c_skip * state - self._denoised(state / c_in, noise_level, condition) * c_in

    def log_prior(self, state: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        total = self._total(self.noise_levels[1])
        return self._log_prior(state * total) + state.shape[1] * math.log(total)

    def lower_bound(
        self,
        data: Tensor,
        condition: Mapping[str, Tensor],
        stream: Tensor,
        draw: int,
        draws: int,
    ) -> Tensor:
        """See ``ProbabilityFlow``, and ``denoising_bound``.

        Raises:
            ValueError: Student-t noise, for which the bound is another one.
        """
        if self.preconditioning.process.freedom is not None:
            raise ValueError(
                "the lower bound is for normal noise, got Student-t noise: use log_likelihood"
            )
        y0, log_factor = self._state(data)
        bound = denoising_bound(
            y0,
            self.noise_levels,
            lambda y, s: self._denoised(y, s, dict(condition)),
            self._log_prior,
            self.preconditioning.data_std,
            stream,
            draw,
            draws,
        )
        return log_factor + bound

    def _state(self, data: Tensor) -> tuple[Tensor, Tensor]:
        """Return y (n, d) and the logarithm of |dy/dx|, (n,)."""
        y = ((data.double() - self.centre) / self.scale).flatten(1)
        log_factor = -torch.log(self.scale).sum().expand(len(y))
        if not self.asinh:
            return y, log_factor
        return torch.asinh(y), log_factor - torch.log1p(y.square()).sum(1) / 2

    def _total(self, s: float) -> float:
        return float(1 / self.preconditioning.coefficients(np.array(s))[2])

    def _coefficients(self, s: Tensor, device: torch.device) -> tuple[Tensor, ...]:
        columns = torch.from_numpy(self.preconditioning.coefficients(s.numpy()))
        return columns.to(device)[..., None].unbind(1)

    def _denoised(self, y: Tensor, s: Tensor, condition: dict[str, Tensor]) -> Tensor:
        c_skip, c_out, c_in = self._coefficients(s, y.device)
        c_noise = torch.from_numpy(self.preconditioning.c_noise(s.numpy()))
        shaped = (c_in * y).to(self.model.input_dtype).view(-1, *self.model.shape)
        f = self.model(shaped, c_noise.to(y.device, torch.float32), **condition)
        return c_skip * y + c_out * f.double().flatten(1)

    def _log_prior(self, y: Tensor) -> Tensor:
        """Return the log-density (n,) of noise of the largest level, where sampling starts."""
        d, log_s = y.shape[1], math.log(self.noise_levels[1])
        z2 = (y / self.noise_levels[1]).square().sum(1)
        freedom = self.preconditioning.process.freedom
        if freedom is None:
            return -z2 / 2 - d * (LOG_2PI / 2 + log_s)
        constant = math.lgamma((freedom + d) / 2) - math.lgamma(freedom / 2)
        constant -= d / 2 * math.log(freedom * math.pi) + d * log_s
        return constant - (freedom + d) / 2 * torch.log1p(z2 / freedom)
