"""Mixtures whose scores are exact at every noise level, as differentiable networks.

- Log-normal mixtures of GBM, and Gaussian mixtures of VP: sum_k w_k N(m_k, v_k I).
- Von Mises-Fisher mixtures of isotropic rotations. With lam = d/2 - 1 and t = mu.u a component is

      sum_l (l + lam) / lam I_{l+lam}(kappa) / I_lam(kappa) C_l^lam(t)

  relative to uniform, and the heat kernel multiplies the terms by e^{-l (l + 2 lam) tau / 2}.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.special import ive
from torch import Tensor, nn

from fastmsgm.gbm import GBM, GBMModel, LogNormalPrior
from fastmsgm.rotation import RadialPrior, Rotation, RotationModel
from fastmsgm.sde import VP, VPModel

TERMS = 24  # of the series; those left out are below 1e-12 for kappa <= 6


class Gaussians:
    """A mixture of isotropic Gaussians.

    Args:
        means: (k, d).
        variances: (k,).
        weights: (k,).
    """

    def __init__(self, means: Tensor, variances: Tensor, weights: Tensor) -> None:
        self.means, self.variances = means.double(), variances.double()
        self.log_weights = torch.log(weights.double())

    def log_prob(self, y: Tensor) -> Tensor:
        """Return the log-density (n,) of y (n, d)."""
        return torch.logsumexp(self.log_terms(y, 1.0, 0.0), 1)

    def log_terms(self, y: Tensor, alpha: Tensor | float, noise: Tensor | float) -> Tensor:
        """Return log w_k N(y; alpha m_k, alpha^2 v_k + noise), (n, k)."""
        variance = alpha**2 * self.variances + noise
        squares = (y[:, None] - torch.as_tensor(alpha)[..., None] * self.means).square().sum(2)
        d = y.shape[1]
        return (
            self.log_weights - squares / (2 * variance) - d / 2 * torch.log(2 * math.pi * variance)
        )

    def score(self, y: Tensor, alpha: Tensor, noise: Tensor) -> Tensor:
        """Return the score (n, d) of alpha y_0 + sqrt(noise) z, for alpha and noise (n, 1)."""
        posterior = self.log_terms(y, alpha, noise).softmax(1)
        pull = (alpha[..., None] * self.means - y[:, None]) / (alpha**2 * self.variances + noise)[
            ..., None
        ]
        return (posterior[..., None] * pull).sum(1)

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """Return (n, d) samples, float64."""
        generator = torch.Generator().manual_seed(seed)
        k = torch.multinomial(self.log_weights.exp(), n, replacement=True, generator=generator)
        z = torch.randn(n, self.means.shape[1], generator=generator, dtype=torch.float64)
        return self.means[k] + self.variances[k].sqrt()[:, None] * z


class LogNormals(nn.Module):
    """The exact denoiser of a log-normal mixture; a label chooses one component of it."""

    def __init__(self, mixture: Gaussians, log_std: float) -> None:
        super().__init__()
        self.mixture, self.log_std = mixture, log_std

    def forward(self, x: Tensor, c: Tensor, label: Tensor | None = None) -> Tensor:
        s, v = torch.exp(4 * c.double())[:, None], self.log_std**2
        total = torch.sqrt(s**2 + v)
        y = x.double() * total
        if label is None:
            denoised = y + s**2 * self.mixture.score(y, torch.ones_like(s), s**2)
        else:
            mean, variance = self.mixture.means[label], self.mixture.variances[label][:, None]
            denoised = (variance * y + s**2 * mean) / (variance + s**2)
        return ((denoised - v / total**2 * y) * total / (s * self.log_std)).to(x.dtype)


def log_normal_model(mixture: Gaussians, *, sigma: float = 12.0, classes: int = 0) -> GBMModel:
    """Return the model of exp y with y of the mixture; with classes, of its components."""
    weights = mixture.log_weights.exp()
    mean = weights @ mixture.means
    squares = mixture.variances[:, None] + (mixture.means - mean).square()
    variance = float((weights @ squares).mean())
    means = torch.exp(mixture.means if classes else mean[None]).float()
    prior = LogNormalPrior(means, float(mixture.variances.mean()) if classes else variance)
    net, scale = LogNormals(mixture, 0.7), torch.ones_like(means[:1])
    process = GBM(sigma)
    return GBMModel(
        net, process, prior, prediction="denoiser", scale=scale, log_std=0.7, classes=classes
    ).eval()


class Diffused(nn.Module):
    """The exact network of VP for a Gaussian mixture of the state."""

    def __init__(self, mixture: Gaussians) -> None:
        super().__init__()
        self.mixture = mixture

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        B = torch.exp(3 * c.double() - 3)[:, None]
        noise = -torch.expm1(-B)
        score = self.mixture.score(x.double(), torch.exp(-B / 2), noise)
        return (-noise.sqrt() * score).to(x.dtype)


def vp_model(mixture: Gaussians, mean: Tensor, scale: Tensor) -> VPModel:
    """Return the model of mean + scale y with y of the mixture."""
    return VPModel(Diffused(mixture), VP(), mean[None], scale[None]).eval()


class VonMisesFisher(nn.Module):
    """The exact network of a von Mises-Fisher mixture with equal weights.

    Args:
        means: (k, d); normalised here.
        kappas: (k,) concentrations, at most 6.
    """

    def __init__(self, means: Tensor, kappas: list[float]) -> None:
        super().__init__()
        self.means = nn.functional.normalize(means.double())
        self.kappas, self.lam = torch.tensor(kappas).double(), means.shape[1] / 2 - 1
        orders = torch.arange(TERMS).double()
        self.log_bessel = torch.from_numpy(np.log(ive(self.lam, kappas)))
        bessel = torch.from_numpy(ive((orders[:, None] + self.lam).numpy(), kappas))
        ratio = bessel / self.log_bessel.exp()
        self.coefficients = (orders + self.lam)[:, None] / self.lam * ratio  # (terms, k)
        self.rates = orders * (orders + 2 * self.lam) / 2

    def log_prob(self, u: Tensor) -> Tensor:
        """Return the log-density of directions (n, d) with respect to the area, in closed form."""
        d, lam, kappa = self.means.shape[1], self.lam, self.kappas
        log_norm = lam * torch.log(kappa) - d / 2 * math.log(2 * math.pi) - self.log_bessel - kappa
        return torch.logsumexp(log_norm + kappa * (u @ self.means.T), 1) - math.log(len(kappa))

    def forward(self, x: Tensor, c: Tensor, **condition: Tensor) -> Tensor:
        d = x.shape[1]
        u = nn.functional.normalize(x.double())
        B = torch.exp(3 * c.double() - 3)[:, None]
        decay = torch.exp(-self.rates * B / (d - 1))  # (n, terms)
        cosines = u @ self.means.T
        density = self.series(cosines, decay, self.lam, 0)
        slope = 2 * self.lam * self.series(cosines, decay, self.lam + 1, 1)
        score = (slope @ self.means) / density.sum(1, keepdim=True)
        return (math.sqrt(d) / (d - 1) * torch.expm1(B).sqrt() * score).to(x.dtype)

    def series(self, t: Tensor, decay: Tensor, lam: float, first: int) -> Tensor:
        """Return sum_l a_l C_{l-first}^lam(t) of every component, (n, k)."""
        before, polynomial = torch.zeros_like(t), torch.ones_like(t)
        total = torch.zeros_like(t)
        for l in range(first, TERMS):
            total = total + decay[:, l : l + 1] * self.coefficients[l] * polynomial
            m = l - first + 1
            after = (2 * t * (m + lam - 1) * polynomial - (m + 2 * lam - 2) * before) / m
            before, polynomial = polynomial, after
        return total

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """Return (n, d) directions, float64, by rejection from uniform ones."""
        generator = torch.Generator().manual_seed(seed)
        many = 20 * n  # of which at least a tenth is accepted, for kappa <= 6
        z = torch.randn(many, self.means.shape[1], generator=generator, dtype=torch.float64)
        u = nn.functional.normalize(z)
        log_p = self.log_prob(u)
        uniform = torch.rand(many, generator=generator, dtype=torch.float64)
        accepted = u[torch.log(uniform) < log_p - log_p.max()]
        assert len(accepted) >= n
        return accepted[:n]


def log_normal_norms(m: int = 4096, bandwidth: float = 0.05) -> RadialPrior:
    """Return a prior of norms exp z, z ~ N(0, 1), to about the square of the bandwidth."""
    ranks = (torch.arange(m).double() + 0.5) / m
    return RadialPrior(torch.special.ndtri(ranks).float(), bandwidth)


def rotation_model(net: nn.Module, d: int, process: Rotation | None = None) -> RotationModel:
    """Return the model of log-normal norms times the network's directions."""
    process = process or Rotation()
    objective = "dsm" if process.noise == "isotropic" else "ssm"
    return RotationModel(net, process, log_normal_norms(), shape=(d,), objective=objective).eval()


def with_norms(u: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return directions (n, d) times norms exp z, and the log-density that the norms contribute."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(len(u), generator=generator, dtype=torch.float64)
    density = -z.square() / 2 - math.log(2 * math.pi) / 2 - z - (u.shape[1] - 1) * z
    return torch.exp(z)[:, None] * u, density
