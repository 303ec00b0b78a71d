"""Sampling with an exact score: two log-normals in the plane, from an exact start, every solver."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.exact_score import SIGMA, ExactNet, Mixture, exact_model, sample_exact
from fastmsgm.evaluation.metrics import sliced_wasserstein
from fastmsgm.solvers import ERSDE2, DaleLangevin, DPMSolverPP2M, Heun, SignAgnostic, Solver

# Many small operations: a second thread costs more than it gives.
pytestmark = pytest.mark.usefixtures("one_thread")

N = 4000
MIXTURE = Mixture()


@pytest.mark.parametrize("prediction", ["denoiser", "hyvarinen", "score"])
@pytest.mark.parametrize("s", [0.025, 0.2, 0.8])
def test_the_exact_network_gives_the_posterior_mean(s: float, prediction: str) -> None:
    """D = sum_k r_k (w_k^2 y + s^2 m_k) / (w_k^2 + s^2), r_k the posterior probabilities."""
    weights, means, widths = (
        torch.tensor(v).double() for v in (MIXTURE.weights, MIXTURE.means, MIXTURE.widths)
    )
    x = MIXTURE.sample(64, seed=5)
    y = torch.log(x).double() + s * torch.randn(64, 2, generator=torch.Generator().manual_seed(1))
    variance = widths**2 + s**2
    squares = (y[:, None] - means).square().sum(2)
    densities = torch.exp(-squares / (2 * variance)) * weights / variance
    r = densities / densities.sum(1, keepdim=True)
    components = (widths[:, None] ** 2 * y[:, None] + s**2 * means) / variance[:, None]
    expected = (r[..., None] * components).sum(1)
    model = exact_model(MIXTURE, prediction, x[:1])
    k0, k1, k2, c_in = model.preconditioning.coefficients(np.array([s]))[0]
    if prediction == "denoiser":
        state, c = y * c_in, math.log(s) / 4
    else:
        state, c = torch.exp(y), (s / SIGMA) ** 2
    f = ExactNet(MIXTURE, prediction)(state.float(), torch.full((64,), c)).double()
    g = f * state if prediction == "score" else f
    torch.testing.assert_close(k0 * y + k1 * g + k2, expected, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def exact() -> Tensor:
    return torch.log(MIXTURE.sample(20_000, seed=99))


@pytest.fixture(scope="module")
def floor(exact: Tensor) -> float:
    """The largest of ten distances between N exact samples and the large set.

    Most of it is the random share of each mode.
    """
    return max(
        sliced_wasserstein(torch.log(MIXTURE.sample(N, seed)), exact, 32)
        for seed in range(100, 110)
    )


def modes(y: Tensor) -> list[Tensor]:
    """Return the samples nearest to each mode's mean."""
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
def test_samples_have_the_distribution_of_the_data(
    prediction: str, solver: Solver, steps: int, exact: Tensor, floor: float
) -> None:
    """Within five standard errors of N samples, and the solver's own error.

    That is 0.002 in a mean, and ``own`` in a width: the last noise level of a score network, s =
    0.025, and 400 Euler-Maruyama steps both make the narrow mode 10 % too narrow.
    """
    x, _ = sample_exact(MIXTURE, prediction, solver, steps, MIXTURE.sample(N, seed=7), seed=0)
    y = torch.log(x)
    assert sliced_wasserstein(y, exact, 32) < 1.5 * floor
    own = 0.05 if prediction == "denoiser" else 0.12
    for got, expected in zip(modes(y), modes(exact), strict=True):
        share, width = len(expected) / len(exact), expected.std(0)
        assert abs(len(got) / N - share) < 5 * math.sqrt(share * (1 - share) / N)
        mean_error = (got.mean(0) - expected.mean(0)).abs()
        assert bool((mean_error < 5 * width / math.sqrt(len(got)) + 0.002).all())
        width_error = (got.std(0) / width - 1).abs()
        assert bool((width_error < 5 / math.sqrt(2 * len(got)) + own).all())
