"""Sampling with an exact score recovers the law: two log-normals in the plane, from an exact start, every solver."""

from __future__ import annotations

import math

import pytest
import torch
from exact_score import SIGMA, ExactNet, Mixture, draw, exact_model

from fastmsgm.metrics import sliced_wasserstein
from fastmsgm.solvers import ERSDE2, DaleLangevin, DPMSolverPP2M, Heun, SignAgnostic, Solver

N = 4000
MIXTURE = Mixture()


@pytest.fixture(scope="module")
def exact() -> torch.Tensor:
    return torch.log(MIXTURE.draw(20_000, seed=99))


def test_exact_net_is_the_posterior_mean() -> None:
    """Every prediction gives D = sum_k r_k (w_k^2 y + s^2 m_k) / (w_k^2 + s^2), r_k the posterior probabilities."""
    weights, means, widths = (torch.tensor(v).double() for v in (MIXTURE.weights, MIXTURE.means, MIXTURE.widths))
    x = MIXTURE.draw(64, seed=5)
    for s in (0.025, 0.2, 0.8):
        y = torch.log(x).double() + s * torch.randn(64, 2, generator=torch.Generator().manual_seed(1))
        variance = widths**2 + s**2
        densities = torch.exp(-(y[:, None] - means).square().sum(2) / (2 * variance)) * weights / variance
        r = densities / densities.sum(1, keepdim=True)
        components = (widths[:, None] ** 2 * y[:, None] + s**2 * means) / variance[:, None]
        expected = (r[..., None] * components).sum(1)
        for prediction in ("denoiser", "hyvarinen", "score"):
            model = exact_model(MIXTURE, prediction, x[:1])
            k0, k1, k2, c_in = model.preconditioning(torch.tensor([s]).double().numpy())[0]
            if prediction == "denoiser":
                state, c = y * c_in, math.log(s) / 4
            else:
                state, c = torch.exp(y), (s / SIGMA) ** 2
            f = ExactNet(MIXTURE, prediction)(state.float(), torch.full((64,), c)).double()
            g = f * state if prediction == "score" else f
            torch.testing.assert_close(k0 * y + k1 * g + k2, expected, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def floor(exact: torch.Tensor) -> float:
    """The worst of ten distances between N exact samples and the large set: mostly the modes' random weights."""
    return max(sliced_wasserstein(torch.log(MIXTURE.draw(N, seed)), exact, 32) for seed in range(100, 110))


def modes(y: torch.Tensor) -> list[torch.Tensor]:
    """The samples nearest to each mode's mean."""
    nearest = torch.cdist(y, torch.tensor(MIXTURE.means)).argmin(1)
    return [y[nearest == k] for k in range(2)]


@pytest.mark.parametrize(
    ("prediction", "solver", "steps"),
    [
        ("denoiser", DPMSolverPP2M(), 30),
        ("denoiser", DPMSolverPP2M(eta=1.0), 30),
        ("denoiser", DPMSolverPP2M(eta=2.0), 30),
        ("denoiser", ERSDE2(), 30),
        ("denoiser", Heun(), 30),
        ("hyvarinen", DPMSolverPP2M(), 30),
        ("score", DaleLangevin(), 400),
        ("hyvarinen", DaleLangevin(), 400),
        ("score", SignAgnostic(), 400),
        ("hyvarinen", SignAgnostic(), 400),
    ],
)
def test_sampling_recovers_the_law(
    prediction: str, solver: Solver, steps: int, exact: torch.Tensor, floor: float
) -> None:
    x, _ = draw(MIXTURE, prediction, solver, steps, MIXTURE.draw(N, seed=7), seed=0)
    y = torch.log(x)
    assert sliced_wasserstein(y, exact, 32) < 1.5 * floor
    # Five standard errors of N samples, and the solver's own error: 0.002 in a mean, and in a width ``own``. A score
    # network's last level, s = 0.025, and 400 Euler-Maruyama steps both make the narrow mode 10 % too narrow.
    own = 0.05 if prediction == "denoiser" else 0.12
    for got, expected in zip(modes(y), modes(exact), strict=True):
        share, width = len(expected) / len(exact), expected.std(0)
        assert abs(len(got) / N - share) < 5 * math.sqrt(share * (1 - share) / N)
        assert ((got.mean(0) - expected.mean(0)).abs() < 5 * width / math.sqrt(len(got)) + 0.002).all()
        assert ((got.std(0) / width - 1).abs() < 5 / math.sqrt(2 * len(got)) + own).all()
