"""Distributions of directions that a rotation keeps in a known family, with their exact scores.

- A mixture of heat kernels, isotropic noise: p_B = sum_i w_i K(. | mu_i, B_i + B), with
  score = P_u sum_i r_i W_i mu_i, r_i the posterior weights. With B_i = 0 it is a data point.
- A tilted distribution 1 + m.u, any noise: p_B = 1 + (e^{L B} m).u, because linear functions stay
  linear.

The raw output of a rotation's network is f = sqrt(d) score / rho(B); only its tangent part counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor, nn

from fastmsgm import rng, sample
from fastmsgm.nets import MLP
from fastmsgm.rotation import RadialPrior, Rotation, RotationModel
from fastmsgm.rotation.heat_kernel import log_kernel, rho
from fastmsgm.solver import Solver
from fastmsgm.types import Array

NODES = np.linspace(0, math.pi, 129)
# A mixture of two heat kernels in three dimensions.
MEANS, BETAS = torch.tensor([[1.0, 0.0, 0.0], [-0.3, 0.8, 0.5]]), [0.1, 0.3]


class MixtureNet(nn.Module):
    """The exact network of a mixture of heat kernels with equal weights.

    Args:
        means: (m, d) of the kernels; normalised here.
        betas: (m,) integrated betas of the kernels.
        radial: Added to the output along u; it is not tangent, so it must not matter.
    """

    def __init__(self, means: Tensor, betas: list[float], radial: float = 0.5) -> None:
        super().__init__()
        self.means = nn.functional.normalize(means.double())
        self.betas, self.radial = np.array(betas), radial
        self.tables: dict[float, Splines] = {}

    def forward(self, x: Tensor, c: Tensor, **condition: Tensor) -> Tensor:
        d = math.prod(x.shape[1:])
        u = nn.functional.normalize(x.flatten(1).double())
        c_noise = c.double().cpu().numpy()
        one_level = bool((c_noise == c_noise[0]).all())
        B = np.exp(3 * (c_noise[:1] if one_level else c_noise) - 3)
        cos = u @ self.means.T
        sin = torch.stack(
            [(u - cos[:, i, None] * mean).norm(dim=1) for i, mean in enumerate(self.means)], dim=1
        )
        theta = torch.atan2(sin, cos).numpy()
        table = self.table(float(c[0]), d) if one_level else None
        log_k, w = table(theta) if table else self.kernels(theta, B[:, None])
        posterior = torch.from_numpy(log_k).softmax(dim=1)
        pull = (posterior * torch.from_numpy(w)) @ self.means
        scale = torch.from_numpy(math.sqrt(d) / rho(B, d))[:, None]
        radial = self.radial * math.sqrt(d) - scale * (pull * u).sum(1, keepdim=True)
        return (scale * pull + radial * u).to(x.dtype).view_as(x)

    def kernels(self, theta: Array, B: Array | float) -> tuple[Array, Array]:
        """Return log k and W of every component, after noise of the integrated beta B."""
        d = self.means.shape[1]
        return log_kernel(theta, (self.betas + B) / (d - 1), d)

    def table(self, c_noise: float, d: int) -> Splines:
        """Return log k and W of every component at one noise level, as splines."""
        key = round(c_noise, 5)
        if key not in self.tables:
            self.tables[key] = Splines(*self.kernels(NODES[:, None], math.exp(3 * c_noise - 3)))
        return self.tables[key]


class Splines:
    """Functions (nodes, m) of the angle to each of m means, called with angles (n, m)."""

    def __init__(self, *values: Array) -> None:
        self.splines = [[CubicSpline(NODES, column) for column in value.T] for value in values]

    def __call__(self, theta: Array) -> list[Array]:
        return [
            np.stack([s(t) for s, t in zip(row, theta.T, strict=True)], axis=1)
            for row in self.splines
        ]


class TiltedNet(nn.Module):
    """The exact network of the distribution 1 + tilt.u, |tilt| < 1.

    It can be differentiated, and keeps the directions, scores and integrated betas of its last
    call in ``seen``.
    """

    seen: tuple[Tensor, Tensor, Tensor]

    def __init__(self, process: Rotation, tilt: Tensor) -> None:
        super().__init__()
        self.process, self.tilt = process, tilt.double()
        drift = process.ito_drift(torch.eye(len(tilt), dtype=torch.float64))
        self.rates, self.axes = torch.linalg.eigh((drift + drift.T) / 2)

    def forward(self, x: Tensor, c: Tensor, **condition: Tensor) -> Tensor:
        d = math.prod(x.shape[1:])
        u = nn.functional.normalize(x.flatten(1).double())
        B = torch.exp(3 * c[:, None].double() - 3)
        tilt = (torch.exp(B * self.rates) * (self.tilt @ self.axes)) @ self.axes.T
        score = tilt / (1 + (tilt * u).sum(1, keepdim=True))
        self.seen = (u.detach(), score.detach(), B.detach()[:, 0])
        return (score * math.sqrt(d) / (d - 1) * torch.expm1(B).sqrt()).to(x.dtype).view_as(x)

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """Return (n, d) directions: u with probability (1 + tilt.u) / 2, else -u, u uniform."""
        generator = torch.Generator().manual_seed(seed)
        u = nn.functional.normalize(
            torch.randn(n, len(self.tilt), generator=generator, dtype=torch.float64)
        )
        heads = torch.rand(n, generator=generator, dtype=torch.float64) < (1 + u @ self.tilt) / 2
        return (torch.where(heads, 1, -1)[:, None] * u).float()


def exact_model(
    net: nn.Module, d: int, process: Rotation | None = None, **options: Any
) -> RotationModel:
    """Return a model of d features with the given network; its norms have the distribution exp z.

    Args:
        net: The network.
        d: Number of features.
        process: None is isotropic noise.
        options: Of ``RotationModel``.
    """
    process = process or Rotation()
    norms = torch.exp(torch.randn(1000, 1, generator=torch.Generator().manual_seed(0)))
    prior = RadialPrior.fit(norms * torch.eye(d)[:1])
    options = {"objective": "dsm" if process.noise == "isotropic" else "ssm", **options}
    return RotationModel(net, process, prior, shape=(d,), **options).eval()


def heavy_tails(n: int = 200, d: int = 3, seed: int = 0) -> Tensor:
    """Return heavy-tailed vectors (n, d), more of them on one side."""
    z = torch.randn(n, d + 1, generator=torch.Generator().manual_seed(seed))
    return (z[:, :d] + 1) * torch.exp(z[:, d:])


def vectors(process: Rotation | None = None, d: int = 3, **options: Any) -> RotationModel:
    """Return an untrained model of ``heavy_tails``."""
    torch.manual_seed(0)
    net = MLP(d, 16, 2, condition={"log_norm": 1})
    return RotationModel.for_data(net, process or Rotation(), heavy_tails(d=d), **options).eval()


def rough_model(process: Rotation | None = None) -> RotationModel:
    """Return a model of three features with a random network, whose samples wander about."""
    torch.manual_seed(0)
    net = MLP(3, 16, 2, condition={"log_norm": 1})
    nn.init.normal_(net.out.weight, std=0.5)
    return exact_model(net, 3, process)


def cheap_normals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put torch's normals in place of the stream's, where it does not matter which they are."""
    generator = torch.Generator().manual_seed(0)

    def normals(
        n: int, d: int, stream: Tensor, purpose: int, step: int, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        return torch.randn(n, d, generator=generator, dtype=dtype)

    monkeypatch.setattr(rng, "normals", normals)


def mixture_samples(net: MixtureNet, n: int, seed: int = 0) -> Tensor:
    """Return (n, d) directions of a mixture's own distribution, by noising its means."""
    process, d = Rotation(), net.means.shape[1]
    which = torch.randint(len(net.betas), (n,), generator=torch.Generator().manual_seed(seed))
    t = torch.from_numpy(process.time(net.betas[which.numpy()]))
    return unit(process.perturb(net.means[which].float().view(n, d), t, seed=seed))


def legendre_error(u: Tensor) -> float:
    """Return the root mean square error of E P_l(u.a) of ``MEANS`` and ``BETAS``, l = 1 .. 4.

    Over axes a: E P_l decays by e^{-l (l + 1) tau / 2}.
    """
    axes = unit(torch.randn(20, 3, generator=torch.Generator().manual_seed(0)))
    errors = []
    for l in range(1, 5):
        decay = torch.exp(-l * (l + 1) * torch.tensor(BETAS, dtype=torch.float64) / 4)
        expected = (
            torch.special.legendre_polynomial_p(unit(MEANS) @ axes.T, l) * decay[:, None]
        ).mean(0)
        errors.append(torch.special.legendre_polynomial_p(u @ axes.T, l).mean(0) - expected)
    return float(torch.stack(errors).square().mean().sqrt())


def sample_directions(
    model: RotationModel,
    n: int,
    solver: str | Solver | None,
    steps: int | None = None,
    **options: Any,
) -> Tensor:
    """Return the directions (n, d) of samples, float64."""
    options = {"batch_size": n, "progress": False, **options}
    return unit(sample(model, n, solver=solver, steps=steps, **options))


def tilted_cdf(tilt: float) -> Callable[[Tensor], Tensor]:
    """Return the cdf of c = u.axis in three dimensions, whose density is (1 + tilt c) / 2."""
    return lambda c: (((c + 1) / 2) + tilt * (c * c - 1) / 4).clamp(0, 1)


def unit(x: Tensor) -> Tensor:
    """Return the directions of x (n, ...) as (n, d) float64."""
    return nn.functional.normalize(x.flatten(1).double())


def angles(a: Tensor, b: Tensor) -> Tensor:
    """Return the angles between unit vectors (n, d)."""
    return 2 * torch.asin(((a - b).norm(dim=1) / 2).clamp(max=1))


def z_scores(x: Tensor, mean: Tensor | float) -> Tensor:
    """Return how many standard errors the sample mean of x (n, ...) is from the mean."""
    x = x.double()
    return (x.mean(0) - mean) / (x.std(0) / len(x) ** 0.5)
