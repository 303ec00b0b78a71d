"""Gaussian and Student-t baselines for correlated Cauchy data, as an expert would set them up.

An EDM denoiser (Karras et al., 2022, table 1) of transformed data y, with x_t = y + s n:

    standardised   y = x / median |x|, by feature; n normal, s from 0.01 to 1e5
    asinh          y = asinh(x / median |x|), which is linear in the bulk and a logarithm beyond;
                   n normal, s from 0.002 to 80 standard deviations
    t-EDM          as standardised, with multivariate Student-t noise of 3 degrees of freedom, whose
                   denoiser and flow have the same form (Pandey et al., ICLR 2025)

Noise levels are log-uniform in training. Sampling is EDM's Heun method on the Karras grid; for
normal noise also with its stochastic churn (sums of Student-t variables are none).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fastmsgm.nets import MLP
from fastmsgm.solver import karras_sigmas

NAMES = ("EDM, standardised", "EDM, asinh", "t-EDM, standardised")
FREEDOM = 3.0  # degrees of freedom of the Student-t noise
SAMPLERS = {  # name -> Heun steps and churn: the best one counts
    "Heun, NFE 35": (18, 0.0),
    "Heun, NFE 127": (64, 0.0),
    "stochastic Heun, NFE 255": (128, 0.2),
}


@dataclass
class Baseline:
    """A transformation of the data, their noise, and a denoiser of them.

    Args:
        name: One of ``NAMES``.
        data: (n, d) the training set.
        seed: Of the weights and of all noise.
    """

    name: str
    data: Tensor
    seed: int

    def __post_init__(self) -> None:
        torch.manual_seed(self.seed)
        self.net: Any = MLP(self.data.shape[1])
        self.unit = self.data.abs().median(0).values
        self.y = self.transformed(self.data)
        self.std = float(self.y.std()) if self.asinh else 1.0
        low, high = (0.002, 80.0) if self.asinh else (0.01, 1e5)
        self.sigmas = (low * self.std, high * self.std)
        self.generator = torch.Generator().manual_seed(self.seed)
        self.variance = FREEDOM / (FREEDOM - 2) if self.student else 1.0  # of the noise

    @property
    def student(self) -> bool:
        """Whether the noise is Student-t."""
        return self.name.startswith("t-")

    @property
    def samplers(self) -> list[str]:
        """The samplers that apply."""
        return [name for name, (_, churn) in SAMPLERS.items() if not (churn and self.student)]

    @property
    def asinh(self) -> bool:
        """Whether y is asinh(x / unit)."""
        return "asinh" in self.name

    def transformed(self, x: Tensor) -> Tensor:
        """Return y of data x (n, d)."""
        return torch.asinh(x / self.unit) if self.asinh else x / self.unit

    def restored(self, y: Tensor) -> Tensor:
        """Return the data x of y (n, d)."""
        return (torch.sinh(y) if self.asinh else y) * self.unit

    def noise(self, n: int) -> Tensor:
        """Return (n, d) noise of unit scale."""
        z = torch.randn(n, self.y.shape[1], generator=self.generator)
        if not self.student:
            return z
        gamma = torch.zeros(n, 1)
        for _ in range(int(FREEDOM)):
            gamma += torch.randn(n, 1, generator=self.generator).square()
        return z * torch.sqrt(FREEDOM / gamma)

    def denoised(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return D(x, sigma) for x (n, d) and sigma (n,)."""
        s = math.sqrt(self.variance) * sigma[:, None]
        total = torch.sqrt(s**2 + self.std**2)
        f = self.net(x / total, torch.log(sigma) / 4)
        return self.std**2 / total**2 * x + s * self.std / total * f

    def train(self, steps: int, batch: int, lr: float) -> None:
        """Train by denoising score matching in EDM's weighting; ends with the averaged weights."""
        optimizer = torch.optim.Adam(self.net.parameters(), lr=lr, fused=True)
        average = AveragedModel(self.net, multi_avg_fn=get_ema_multi_avg_fn(0.999))
        low, high = map(math.log, self.sigmas)
        for step in range(steps):
            decay = (1 + math.cos(math.pi * step / steps)) / 2
            optimizer.param_groups[0]["lr"] = lr * decay * min(1.0, (step + 1) / 500)
            index = torch.randint(len(self.y), (batch,), generator=self.generator)
            u = torch.rand(batch, generator=self.generator)
            sigma, y = torch.exp(low + (high - low) * u), self.y[index]
            error = self.denoised(y + sigma[:, None] * self.noise(batch), sigma) - y
            power = self.variance * sigma**2
            weight = (power + self.std**2) / (power * self.std**2)
            loss = (weight[:, None] * error.square()).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
            optimizer.step()
            average.update_parameters(self.net)
        self.net.load_state_dict(average.module.state_dict())

    @torch.inference_mode()
    def sample(self, n: int, sampler: str, chunk: int = 20_000) -> Tensor:
        """Return (n, d) samples in the data's own range; those that are not finite are left out."""
        steps, churn = SAMPLERS[sampler]
        parts = [self._chunk(min(chunk, n - i), steps, churn) for i in range(0, n, chunk)]
        x = torch.cat(parts)
        return x[x.isfinite().all(1) & (x.norm(dim=1) > 0)]

    def _chunk(self, n: int, steps: int, churn: float) -> Tensor:
        grid = karras_sigmas(steps, *self.sigmas)
        x = float(grid[0]) * self.noise(n)
        for sigma, after in zip(map(float, grid[:-1]), map(float, grid[1:]), strict=True):
            noised = min(sigma * (1 + churn), self.sigmas[1])
            x = x + math.sqrt(noised**2 - sigma**2) * self.noise(n)
            slope = (x - self.denoised(x, torch.full((n,), noised))) / noised
            moved = x + (after - noised) * slope
            if after > 0:
                second = (moved - self.denoised(moved, torch.full((n,), after))) / after
                moved = x + (after - noised) * (slope + second) / 2
            x = moved
        return self.restored(x)
