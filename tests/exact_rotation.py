"""Laws of directions that rotations keep in a known family, and the networks whose scores are exact for them.

- A mixture of heat kernels, isotropic noise: p_B = sum_i w_i K(. | mu_i, B_i + B), with
  score = P_u sum_i r_i W_i mu_i, r_i the posterior weights. A clock B_i = 0 is a data point.
- A tilted law 1 + m.u, any noise: linear functions are eigenfunctions, or stay linear, so p_B = 1 + (e^{L B} m).u.

The raw output of a rotation's network is f = sqrt(d) score / rho(B), of which only the tangent part counts.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor, nn

from fastmsgm import RadialPrior, Rotation, RotationModel, heat_kernel

NODES = np.linspace(0, math.pi, 129)


class MixtureNet(nn.Module):
    """The mixture of heat kernels around ``centres`` (m, d) with ``clocks`` (m,), alike likely; ``radial`` of the
    output is not tangent, which must not matter."""

    def __init__(self, centres: Tensor, clocks: list[float], radial: float = 0.5) -> None:
        super().__init__()
        self.centres = nn.functional.normalize(centres.double())
        self.clocks, self.radial = np.array(clocks), radial
        self.tables: dict[float, Splines] = {}

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        d = math.prod(x.shape[1:])
        u = nn.functional.normalize(x.flatten(1).double())
        clock = np.exp(3 * c[:, 0].double().cpu().numpy() - 3)
        cos = u @ self.centres.T
        theta = torch.atan2((u[:, None] - cos[:, :, None] * self.centres).norm(dim=2), cos).numpy()
        log_k, w = self.table(float(c[0, 0]), d)(theta) if len(set(clock)) == 1 else self.kernels(theta, clock[:, None])
        posterior = np.exp(log_k - log_k.max(axis=1, keepdims=True))
        posterior /= posterior.sum(axis=1, keepdims=True)
        pull = torch.from_numpy(posterior * w) @ self.centres
        score = pull - (pull * u).sum(1, keepdim=True) * u
        f = score * torch.from_numpy(math.sqrt(d) / heat_kernel.rho(clock, d))[:, None] + self.radial * math.sqrt(d) * u
        return f.to(x.dtype).view_as(x)

    def kernels(self, theta: np.ndarray, clock: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        d = self.centres.shape[1]
        return heat_kernel.log_kernel(theta, (self.clocks + clock) / (d - 1), d)

    def table(self, level: float, d: int) -> Splines:
        """log k and W of every component at one noise level."""
        key = round(level, 5)
        if key not in self.tables:
            self.tables[key] = Splines(*self.kernels(NODES[:, None], np.exp(3 * level - 3)))
        return self.tables[key]


class Splines:
    """Functions (nodes, m) of the angle to each of m centres, called with angles (n, m)."""

    def __init__(self, *values: np.ndarray) -> None:
        self.splines = [[CubicSpline(NODES, column) for column in value.T] for value in values]

    def __call__(self, theta: np.ndarray) -> list[np.ndarray]:
        return [np.stack([s(t) for s, t in zip(row, theta.T, strict=True)], axis=1) for row in self.splines]


class TiltedNet(nn.Module):
    """The law 1 + tilt.u, |tilt| < 1. It can be differentiated, and remembers what it saw and said last."""

    def __init__(self, process: Rotation, tilt: Tensor) -> None:
        super().__init__()
        self.process, self.tilt = process, tilt.double()
        drift = process.ito_drift(torch.eye(len(tilt), dtype=torch.float64))
        self.rates, self.axes = torch.linalg.eigh((drift + drift.T) / 2)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        d = math.prod(x.shape[1:])
        u = nn.functional.normalize(x.flatten(1).double())
        clock = torch.exp(3 * c[:, :1].double() - 3)
        tilt = (torch.exp(clock * self.rates) * (self.tilt @ self.axes)) @ self.axes.T
        score = tilt / (1 + (tilt * u).sum(1, keepdim=True))
        self.seen = (u.detach(), score.detach(), clock.detach()[:, 0])
        return (score * math.sqrt(d) / (d - 1) * torch.expm1(clock).sqrt()).to(x.dtype).view_as(x)

    def draw(self, n: int, seed: int = 0) -> Tensor:
        """Directions: u or -u of a uniform one, with the probabilities (1 + tilt.u) / 2 and (1 - tilt.u) / 2."""
        generator = torch.Generator().manual_seed(seed)
        u = nn.functional.normalize(torch.randn(n, len(self.tilt), generator=generator, dtype=torch.float64))
        heads = torch.rand(n, generator=generator, dtype=torch.float64) < (1 + u @ self.tilt) / 2
        return (torch.where(heads, 1, -1)[:, None] * u).float()


def exact_model(net: nn.Module, d: int, process: Rotation | None = None, **options: Any) -> RotationModel:
    """A model of d features with the given network, and norms of the law exp N(0, 1)."""
    process = process or Rotation()
    norms = torch.exp(torch.randn(1000, 1, generator=torch.Generator().manual_seed(0)))
    prior = RadialPrior.fit(norms * torch.eye(d)[:1])
    options = {"objective": "dsm" if process.noise == "isotropic" else "ssm", **options}
    return RotationModel(net, process, prior, shape=(d,), **options).eval()


def unit(x: Tensor) -> Tensor:
    """Directions, in float64."""
    return nn.functional.normalize(x.flatten(1).double())
