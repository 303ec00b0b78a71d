"""Log-normal data, for which the best network is known: y_0 ~ N(mean, variance), every feature.

With y = y_0 + shift + s z,  E[y_0 | y] = (variance (y - shift) + s^2 mean) / (variance + s^2)  and
q = x grad_x log p_t(x) = -1 - (y - shift - mean) / (variance + s^2).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastmsgm.gbm import GBM, GBMModel, LogNormalPrior

MEAN = torch.tensor([0.5, -0.2, 0.1])
VARIANCE = torch.tensor([0.04, 0.3, 0.1])


class ExactNet(nn.Module):
    """gain * (the exact output) + bias, with gain 1 and bias 0 unless a test changes them."""

    def __init__(self, process: GBM, prediction: str, mean: Tensor, log_std: float) -> None:
        super().__init__()
        self.process, self.prediction, self.mean, self.log_std = process, prediction, mean, log_std
        self.gain = nn.Parameter(torch.ones(len(mean)))
        self.bias = nn.Parameter(torch.zeros(len(mean)))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.gain * self.exact(x, c[:, None]) + self.bias

    def exact(self, x: Tensor, c: Tensor) -> Tensor:
        if self.prediction == "denoiser":
            s2, v = torch.exp(8 * c), self.log_std**2
            y = x * torch.sqrt(s2 + v)
            denoised = (VARIANCE * y + s2 * self.mean) / (VARIANCE + s2)
            return (denoised - v / (s2 + v) * y) * torch.sqrt(s2 + v) / torch.sqrt(s2 * v)
        s2 = self.process.sigma**2 * c
        q = -1 - (torch.log(x.abs()) - self.process.log_drift * c - self.mean) / (VARIANCE + s2)
        return q / x if self.prediction == "score" else q


def exact_model(prediction: str, sigma: float = 0.8, mu: float | None = None) -> GBMModel:
    """Return a model of the data above with the exact network.

    A denoiser's scale is off by 10 %, as a fitted one may be.
    """
    process = GBM(sigma, mu)
    log_std = float(VARIANCE.mean().sqrt())
    scale = torch.exp(MEAN - 0.1)[None] if prediction == "denoiser" else torch.ones(1, len(MEAN))
    prior = LogNormalPrior(torch.exp(MEAN)[None], float(VARIANCE.mean()))
    net = ExactNet(process, prediction, MEAN - torch.log(scale[0]), log_std)
    return GBMModel(net, process, prior, prediction=prediction, scale=scale, log_std=log_std).eval()


def log_normal_data(n: int, seed: int = 0) -> Tensor:
    """Return (n, 3) samples of the data."""
    z = torch.randn(n, len(MEAN), generator=torch.Generator().manual_seed(seed))
    return torch.exp(MEAN + VARIANCE.sqrt() * z)
