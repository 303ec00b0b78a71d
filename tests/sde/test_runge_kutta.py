"""Runge-Kutta solvers with exact scores: distributions, orders of convergence, plans, norms."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastmsgm import rng, sample
from fastmsgm.evaluation.metrics import kolmogorov_smirnov
from fastmsgm.rotation import Rotation
from fastmsgm.sampling import plan_for
from fastmsgm.sde.beta_schedule import TIME_MIN
from fastmsgm.sde.runge_kutta import (
    EulerMaruyama,
    RungeKuttaPlan,
    RungeKuttaSolver,
    StratonovichHeun,
    StratonovichRK4,
)
from tests.rotation.exact import TiltedNet, cheap_normals, rough_model, tilted_cdf, unit
from tests.rotation.exact import exact_model as exact_rotation
from tests.sde.exact import CORRELATION, COVARIANCE, DEVIATION, MEAN, exact_model

# Many small operations: a second thread costs more than it gives.
pytestmark = pytest.mark.usefixtures("one_thread")

# The slowest mean of this tensor decays as e^{-0.29 B}; most others in three dimensions are slower.
DENSE = Rotation("dense", seed=4, beta_max=40.0)
STAGES: dict[type[RungeKuttaSolver], int] = {
    EulerMaruyama: 1,
    StratonovichHeun: 2,
    StratonovichRK4: 4,
}


# ---- distributions ----


@pytest.mark.parametrize("solver", [EulerMaruyama(), StratonovichHeun(), StratonovichHeun(eta=0.0)])
def test_samples_of_the_exact_score_have_mean_and_covariance_of_the_data(
    solver: RungeKuttaSolver,
) -> None:
    """In standard errors; the bias of the steps in t adds one or two."""
    n = 4000
    x = sample(exact_model(), n, solver=solver, steps=100, seed=1, progress=False).double()
    assert float(((x.mean(0) - MEAN) / DEVIATION * math.sqrt(n)).abs().max()) < 5
    error = (torch.cov(x.T) - COVARIANCE) / (DEVIATION[:, None] * DEVIATION)
    scale = ((1 + CORRELATION**2) / n).sqrt()
    assert float((error / scale).abs().max()) < 6


@pytest.mark.parametrize(
    ("process", "solver"),
    [
        (Rotation("ring"), StratonovichHeun()),
        (Rotation("ring"), StratonovichHeun(eta=0.0)),
        (DENSE, StratonovichHeun()),
        (DENSE, StratonovichHeun(eta=0.5)),
        (DENSE, StratonovichRK4(eta=0.0)),
        (DENSE, EulerMaruyama(eta=0.5)),
    ],
)
def test_reversal_recovers_a_tilted_distribution(
    process: Rotation, solver: RungeKuttaSolver
) -> None:
    """From the ODE to the SDE, for noises whose score is known for this distribution alone."""
    axis = torch.tensor([0.6, 0.0, 0.8]).double()
    model = exact_rotation(TiltedNet(process, 0.9 * axis), 3, process)
    steps = 80 if solver.ito else 24
    u = unit(sample(model, 4000, solver=solver, steps=steps, batch_size=4000, progress=False))
    assert kolmogorov_smirnov(u @ axis, tilted_cdf(0.9))[1] >= 1e-5
    assert kolmogorov_smirnov(u[:, 1], tilted_cdf(0.0))[1] >= 1e-5
    assert kolmogorov_smirnov(u @ axis, tilted_cdf(0.6))[1] < 1e-5


# ---- orders ----


@pytest.fixture(scope="module")
def exact_flow() -> Tensor:
    """The solution of the probability flow of the Gaussian data, from the prior of seed 0."""
    return flow(StratonovichRK4(eta=0.0), 64)


def flow(solver: RungeKuttaSolver, steps: int) -> Tensor:
    """Return states (200, 3) after a solver's steps."""
    model = exact_model()
    return model.to_state(sample(model, 200, solver=solver, steps=steps, progress=False))


@pytest.mark.parametrize(
    ("solver", "order"), [(EulerMaruyama(eta=0.0), 1), (StratonovichHeun(eta=0.0), 2)]
)
def test_the_ode_converges_at_the_order_of_the_method(
    solver: RungeKuttaSolver, order: int, exact_flow: Tensor
) -> None:
    """Pathwise from the same start (median over samples)."""
    errors = [
        float((flow(solver, steps) - exact_flow).norm(dim=1).median()) for steps in (8, 16, 32)
    ]
    rates = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert rates == pytest.approx([order] * 2, abs=0.4), errors
    assert errors[-1] < 0.004


def test_eight_steps_of_rk4_are_better_than_32_of_heun(exact_flow: Tensor) -> None:
    error = float((flow(StratonovichRK4(eta=0.0), 8) - exact_flow).norm(dim=1).median())
    heun = float((flow(StratonovichHeun(eta=0.0), 32) - exact_flow).norm(dim=1).median())
    assert error < 0.5 * heun


# ---- plans and states ----


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize(("solver", "stages"), STAGES.items())
def test_plans(solver: type[RungeKuttaSolver], stages: int, steps: int) -> None:
    model = exact_model()
    plan = plan_for(model, solver(eta=0.3), steps)
    assert isinstance(plan, RungeKuttaPlan)
    assert plan.nfe == stages * steps
    assert (plan.stages, plan.eta, plan.ito) == (stages, 0.3, solver is EulerMaruyama)
    length, ahead, weight = plan.table.T.reshape(3, steps, stages)
    assert weight.sum(1) == pytest.approx(np.ones(steps))
    assert (ahead[:, -1] == 0).all()
    process, starts = model.process, np.arange(steps, 0, -1) / steps
    assert plan.noise_levels[::stages] == pytest.approx(process.integrated_beta(starts))
    assert length[:, 0] == pytest.approx(process.beta(starts) / steps)
    assert plan.noise_levels.min() >= process.integrated_beta(TIME_MIN)
    assert plan.c_noise == pytest.approx((np.log(plan.noise_levels) + 3) / 3)


def test_stages_of_a_step_share_their_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step has normals of its own, sampled once."""
    steps, normals = [], rng.normals

    def remember(
        n: int, d: int, stream: Tensor, purpose: int, step: int, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        if purpose == rng.Purpose.STEP:
            steps.append(int(stream[2]) + step)
        return normals(n, d, stream, purpose, step, dtype)

    monkeypatch.setattr(rng, "normals", remember)
    sample(exact_model(), 4, solver=StratonovichRK4(), steps=5, batch_size=4, progress=False)
    assert steps == list(range(5))


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("noise", ["ring", "dense"])
def test_norms_are_kept_by_1000_steps(
    noise: str, eta: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    cheap_normals(monkeypatch)
    model, options = rough_model(Rotation(noise)), {"batch_size": 8, "progress": False}
    solver: Any = EulerMaruyama(eta=eta)
    x = sample(model, 8, solver=solver, steps=1000, **options)
    expected = model.prior.sample(8, rng.stream(0)).double()
    assert float((x.double().norm(dim=1) / expected - 1).abs().max()) < 1e-6
