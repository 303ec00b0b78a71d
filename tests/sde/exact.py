"""Gaussian data for the additive process, with the network whose score is exact for them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastmsgm.sde import VP, VPModel

MEAN = torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64)
COVARIANCE = torch.tensor(
    [[1.0, 0.6, 0.0], [0.6, 2.0, -0.3], [0.0, -0.3, 0.5]], dtype=torch.float64
)
DEVIATION = COVARIANCE.diagonal().sqrt()
CORRELATION = COVARIANCE / (DEVIATION[:, None] * DEVIATION)  # of the standardised state


def gaussian_data(n: int, seed: int = 0) -> Tensor:
    """Return (n, 3) samples of the data."""
    z = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (MEAN + z @ torch.linalg.cholesky(COVARIANCE).T).float()


class GaussianNet(nn.Module):
    """f = gain (sigma C_B^-1 x) + bias, C_B = alpha^2 CORRELATION + sigma^2.

    It is the exact network at gain 1 and bias 0.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gain, self.bias = nn.Parameter(torch.ones(3)), nn.Parameter(torch.zeros(3))
        self.rates, self.axes = torch.linalg.eigh(CORRELATION)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        B = torch.exp(3 * c.double() - 3)[:, None]
        alpha2, sigma2 = torch.exp(-B), -torch.expm1(-B)
        score = ((x.double() @ self.axes) / (alpha2 * self.rates + sigma2)) @ self.axes.T
        return self.gain * (sigma2.sqrt() * score).to(x.dtype) + self.bias


def exact_model() -> VPModel:
    """Return a model of the data with the exact network."""
    return VPModel(GaussianNet(), VP(), MEAN.float()[None], DEVIATION.float()[None]).eval()
