"""The exact denoiser of a Gaussian mixture, as the network of an EDM model."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fastmsgm.edm import EDM, EDMModel

MEANS = torch.tensor([[1.2, -0.8], [-0.9, 0.6]], dtype=torch.float64, device="cpu")
STDS = torch.tensor([0.1, 0.4], dtype=torch.float64, device="cpu")
WEIGHTS = torch.tensor([0.3, 0.7], dtype=torch.float64, device="cpu")


def log_density(y: Tensor, s: float | Tensor = 0.0) -> Tensor:
    """Return (n,) the log-density of the mixture with normal noise of level s, in the plane."""
    variance = STDS**2 + torch.as_tensor(s, dtype=torch.float64).reshape(-1, 1) ** 2
    square = (y.double()[:, None] - MEANS).square().sum(2)
    logs = torch.log(WEIGHTS) - square / (2 * variance) - torch.log(2 * math.pi * variance)
    return torch.logsumexp(logs, 1)


class ExactDenoiser(nn.Module):
    """F such that c_skip y + c_out F is the posterior mean."""

    def __init__(self, data_std: float = 1.0) -> None:
        super().__init__()
        self.data_std = data_std

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        s, sd = torch.exp(4 * c_noise.double())[:, None], self.data_std
        total = torch.sqrt(s**2 + sd**2)
        y = x.double() * total
        variance = STDS**2 + s**2  # (n, 2)
        square = (y[:, None] - MEANS).square().sum(2)
        logs = torch.log(WEIGHTS) - square / (2 * variance) - torch.log(variance)
        share = torch.softmax(logs, 1)[..., None]
        part = (STDS**2 / variance)[..., None]
        denoised = (share * (MEANS + part * (y[:, None] - MEANS))).sum(1)
        return ((denoised - sd**2 / total**2 * y) * total / (s * sd)).to(x.dtype)


def exact_model() -> EDMModel:
    """Return a model of the mixture, whose data are not transformed."""
    zero, one = torch.zeros(1, 2), torch.ones(1, 2)
    return EDMModel(ExactDenoiser(), EDM(), zero, one)


def mixture(n: int, seed: int) -> Tensor:
    """Return samples of the mixture, (n, 2) float32."""
    generator = torch.Generator().manual_seed(seed)
    which = (torch.rand(n, generator=generator) < 0.3).long() ^ 1
    z = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    return (MEANS[which] + STDS[which, None] * z).float()
