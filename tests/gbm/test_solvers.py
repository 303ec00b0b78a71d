"""Solvers of GBM: rows against formulas, the paper's updates, orders of convergence, errors.

The orders need no samples. For log-data N(m, d^2) the denoised state D(y, s) = (d^2 y + s^2 m) /
(s^2 + d^2) is linear, so a row of a plan is an affine map of (y, D_prev) plus independent noise:
mean and covariance are propagated exactly, in float64, through the table's own columns and the
exact network's raw output. The sign-agnostic step is not affine; its first two moments are
propagated backwards in time (E[moment(y') | y] as a Chebyshev series, the noise by Gauss-Hermite
quadrature).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.polynomial import chebyshev, hermite_e
from scipy.integrate import quad

from fastmsgm import reference, rng
from fastmsgm.gbm import GBM, GBMModel, LogNormalPrior
from fastmsgm.gbm.paper_solvers import PUBLISHED as AUTHORS
from fastmsgm.gbm.paper_solvers import (
    PUBLISHED_CLASS_AVERAGE,
    PUBLISHED_SCHEDULE,
    DaleLangevin,
    PaperSolver,
    SignAgnostic,
    Stage,
)
from fastmsgm.gbm.solvers import ERSDE2, DPMSolverPP2M, Euler, Heun, LogSolver
from fastmsgm.gbm.state import GBMPlan
from fastmsgm.reference import GBM_COLUMNS
from fastmsgm.types import Array

SIGMA = 0.8
MEAN, SD = 0.3, 0.2  # of the log-data whose scores are exact
LOG_STD = 0.13  # of the preconditioning; not SD, for which an exact denoiser's output is zero
STEPS = (40, 80, 160, 320)

LOG_SOLVERS: dict[str, LogSolver] = {
    "euler": Euler(),
    "dpm++2m": DPMSolverPP2M(),
    "sde-dpm++2m": DPMSolverPP2M(eta=1.0),
    "er-sde-2": ERSDE2(),
    "heun": Heun(),
}


def model(prediction: str, sigma: float = SIGMA, mu: float | None = None) -> GBMModel:
    one = torch.ones(1, 1)
    prior = LogNormalPrior(one, 0.0)
    process = GBM(sigma, mu)
    return GBMModel(
        torch.nn.Identity(), process, prior, prediction=prediction, scale=one, log_std=LOG_STD
    )


# ---- exact networks on Gaussian log-data ----


def exact_output(of: GBMModel) -> Callable[[float, float], float]:
    """Return g(input, c_noise): a denoiser's raw output from (c_in y, log(s) / 4), or q(y, t)."""
    drift = of.process.log_drift

    def denoiser(u: float, c: float) -> float:
        s = math.exp(4 * c)
        total = math.hypot(s, LOG_STD)
        y = u * total
        denoised = (SD**2 * y + s**2 * MEAN) / (s**2 + SD**2)
        return (denoised - LOG_STD**2 / total**2 * y) / (s * LOG_STD / total)

    def hyvarinen(y: float, t: float) -> float:
        return -(y - MEAN - drift * t) / (SD**2 + of.process.sigma**2 * t) - 1

    return denoiser if of.prediction == "denoiser" else hyvarinen


def propagate(of: GBMModel, plan: GBMPlan, mean: float, variance: float) -> tuple[float, float]:
    """Return mean and variance of y after the plan, from N(mean, variance)."""
    g = exact_output(of)
    means, covariance = np.array([mean, 0.0]), np.diag([variance, 0.0])  # of (y, D_prev)
    c_in = of.preconditioning.coefficients(plan.noise_levels[:1])[0, 3]
    for c_noise, row in zip(plan.c_noise, plan.table, strict=True):
        a, b, b_prev, c, noise, k0, k1, k2, next_c_in = row
        slope = k0 + k1 * (g(c_in, c_noise) - g(0.0, c_noise))  # D = slope y + offset
        offset = k1 * g(0.0, c_noise) + k2
        matrix = np.array([[a + b * slope, b_prev], [slope, 0.0]])
        means = matrix @ means + np.array([b * offset + c, offset])
        covariance = matrix @ covariance @ matrix.T + np.diag([noise**2, 0.0])
        c_in = next_c_in
    return float(means[0]), float(covariance[0, 0])


def order(errors: list[float]) -> float:
    return float(-np.polyfit(np.log(STEPS), np.log(np.abs(errors)), 1)[0])


def phi(name: str, s: float) -> float:
    """Return phi, by which the continuous solver moves a displaced mean.

    d(mean - m) / (mean - m) = s^2 / (s^2 + d^2) dphi / phi.
    """
    return {"sde-dpm++2m": s**2, "er-sde-2": s * (math.exp(s**0.3) + 10)}.get(name, s)


@pytest.mark.parametrize("prediction", ["denoiser", "hyvarinen"])
@pytest.mark.parametrize("name", LOG_SOLVERS)
def test_order_of_log_solvers(name: str, prediction: str) -> None:
    exact_model = model(prediction)
    sigma_min, sigma_max = exact_model.preconditioning.sigma_min, SIGMA
    # The last step is y = D, so the exact distribution at the end is that of D at sigma_min. The
    # mean of the start is displaced by 1.
    last = SD**2 / (sigma_min**2 + SD**2)

    def log_phi_slope(v: float) -> float:  # d log(phi) / d log(s), s = exp(v)
        return (
            math.log(phi(name, math.exp(v + 1e-5))) - math.log(phi(name, math.exp(v - 1e-5)))
        ) / 2e-5

    kept, _ = quad(
        lambda v: log_phi_slope(v) / (1 + SD**2 * math.exp(-2 * v)),
        math.log(sigma_min),
        math.log(sigma_max),
    )
    mean_errors, sd_errors = [], []
    for steps in STEPS:
        plan = LOG_SOLVERS[name].plan(exact_model.preconditioning, steps)
        mean, variance = propagate(exact_model, plan, MEAN + 1, sigma_max**2 + SD**2)
        mean_errors.append(mean - MEAN - math.exp(-kept) * last)
        sd_errors.append(math.sqrt(variance) - SD * math.sqrt(last))
    expected = 1 if name == "euler" else 2
    assert order(sd_errors) == pytest.approx(expected, abs=0.4), sd_errors
    if name == "sde-dpm++2m":
        # E[D] is constant along the reverse SDE, so every step moves the mean exactly.
        assert np.abs(mean_errors).max() < 1e-11
    else:
        assert order(mean_errors) == pytest.approx(expected, abs=0.4), mean_errors


@pytest.mark.parametrize("mu", [None, 0.1, 0.7])
def test_order_of_dale_langevin(mu: float | None) -> None:
    exact_model = model("hyvarinen", mu=mu)
    moments = [
        propagate(
            exact_model,
            DaleLangevin().plan(exact_model.preconditioning, n),
            MEAN + exact_model.process.log_drift,
            SIGMA**2 + SD**2,
        )
        for n in STEPS
    ]
    assert order([math.sqrt(v) - SD for _, v in moments]) == pytest.approx(1, abs=0.4)
    mean_errors = [mean - MEAN for mean, _ in moments]
    if mu is None:  # nothing moves the mean
        assert np.abs(mean_errors).max() < 1e-12
    else:
        assert order(mean_errors) == pytest.approx(1, abs=0.4)


def propagate_moments(of: GBMModel, plan: GBMPlan) -> tuple[float, float]:
    """Return mean and variance of y after rows without log_state, by quadrature.

    The start has the exact distribution at time T.
    """
    g, drift = exact_output(of), of.process.log_drift
    z, weights = hermite_e.hermegauss(16)
    weights = weights / weights.sum()
    nodes = np.cos(np.pi * (np.arange(13) + 0.5) / 13)
    moments: list[Callable[[Array], Array]] = [lambda y: y - MEAN, lambda y: (y - MEAN) ** 2]

    def series(values: Array, middle: float, half: float) -> Callable[[Array], Array]:
        coefficients = chebyshev.chebfit(nodes, values, len(nodes) - 1)
        return lambda y: np.asarray(chebyshev.chebval((y - middle) / half, coefficients))

    for t, row in zip(plan.c_noise[::-1], plan.table[::-1], strict=True):
        a, b, _, c, noise, k0, k1, k2, _ = row
        middle, half = MEAN + drift * t, 6 * math.sqrt(SD**2 + SIGMA**2 * t)
        y = middle + half * nodes
        q = np.array([g(value, t) for value in y])
        increment = ((a - 1) * y + b * (k0 * y + k1 * q + k2) + c)[:, None] + noise * z
        sign_agnostic = plan.flags.sign_agnostic
        after = y[:, None] + (np.log(np.abs(1 + increment)) if sign_agnostic else increment)
        moments = [series(moment(after) @ weights, middle, half) for moment in moments]
    start = MEAN + drift + math.sqrt(SD**2 + SIGMA**2) * z
    first, second = (float(moment(start) @ weights) for moment in moments)
    return MEAN + first, second - first**2


def test_moments_by_quadrature_are_those_of_exact_propagation() -> None:
    exact_model = model("hyvarinen", mu=0.1)
    plan = DaleLangevin().plan(exact_model.preconditioning, 40)
    exact = propagate(exact_model, plan, MEAN + exact_model.process.log_drift, SIGMA**2 + SD**2)
    assert propagate_moments(exact_model, plan) == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize("mu", [None, 0.1])
def test_order_of_sign_agnostic(mu: float | None) -> None:
    exact_model = model("hyvarinen", mu=mu)
    moments = [
        propagate_moments(exact_model, SignAgnostic().plan(exact_model.preconditioning, n))
        for n in STEPS
    ]
    assert order([mean - MEAN for mean, _ in moments]) == pytest.approx(1, abs=0.4)
    assert order([math.sqrt(v) - SD for _, v in moments]) == pytest.approx(1, abs=0.4)


# ---- rows ----


def karras(steps: int, sigma_min: float) -> list[float]:
    a, b = SIGMA ** (1 / 7), sigma_min ** (1 / 7)
    return [(a + i / (steps - 1) * (b - a)) ** 7 for i in range(steps)] + [0.0]


def moved(row: Array, y: float, denoised: float, previous: float, z: float) -> float:
    a, b, b_prev, c, noise = row[:5]
    return a * y + b * denoised + b_prev * previous + c + noise * z


Y, D, D_PREV, Z = 0.7, 0.41, 0.52, -1.3


def formula(name: str, before: float | None, s: float, after: float) -> float:
    """Return the increment of y over one step to after > 0, as published."""
    a = after / s
    if name == "euler":
        return (1 - a) * (D - Y)
    if name == "er-sde-2":
        r = phi(name, after) / phi(name, s)
        integral, _ = quad(lambda u: 1 / phi(name, u), after, s)
        slope = 0.0 if before is None else (D - D_PREV) / (s - before)
        noise = math.sqrt(after**2 - s**2 * r**2)
        return (1 - r) * (D - Y) + (after - s + phi(name, after) * integral) * slope + noise * Z
    # r = h_prev / h, h the step in log s; without a previous step first order
    correction = (
        0.0 if before is None else (D - D_PREV) / (2 * math.log(before / s) / math.log(s / after))
    )
    if name == "dpm++2m":
        return (1 - a) * (D + correction - Y)
    return (1 - a**2) * (D - Y) + (1 - a**2) * correction + after * math.sqrt(1 - a**2) * Z


@pytest.mark.parametrize("name", [name for name in LOG_SOLVERS if name != "heun"])
def test_multistep_rows(name: str) -> None:
    of = model("denoiser")
    plan = LOG_SOLVERS[name].plan(of.preconditioning, 9)
    grid = karras(9, of.preconditioning.sigma_min)
    assert plan.noise_levels == pytest.approx(grid[:-1], rel=1e-12)
    for i, row in enumerate(plan.table[:-1]):
        step = formula(name, grid[i - 1] if i else None, grid[i], grid[i + 1])
        assert moved(row, Y, D, D_PREV, Z) == pytest.approx(Y + step, abs=1e-12)
    assert plan.multistep == (name != "euler")
    assert plan.multistep or not plan.table[:, GBM_COLUMNS.index("B_prev")].any()


def test_heun_rows() -> None:
    of = model("denoiser")
    plan = Heun().plan(of.preconditioning, 6)
    grid = karras(6, of.preconditioning.sigma_min)
    assert plan.multistep
    assert plan.noise_levels == pytest.approx([grid[0], *np.repeat(grid[1:-1], 2)], rel=1e-12)
    for i, (s, after) in enumerate(itertools.pairwise(grid[:-1])):
        predictor, corrector = plan.table[2 * i], plan.table[2 * i + 1]
        y1 = moved(predictor, Y, D, D_PREV, Z)
        assert y1 == pytest.approx(Y + (1 - after / s) * (D - Y), abs=1e-12)
        d1 = 0.38
        trapezoid = Y + (after - s) / 2 * ((Y - D) / s + (y1 - d1) / after)
        assert moved(corrector, y1, d1, D, Z) == pytest.approx(trapezoid, abs=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 18])
@pytest.mark.parametrize("name", LOG_SOLVERS)
def test_log_solvers_end_with_the_denoised_state(name: str, steps: int) -> None:
    for prediction in ("denoiser", "hyvarinen"):
        of = model(prediction)
        plan = LOG_SOLVERS[name].plan(of.preconditioning, steps)
        assert plan.nfe == len(plan.table) == (2 * steps - 1 if name == "heun" else steps)
        assert plan.table[-1, :5].tolist() == [0, 1, 0, 0, 0]
        assert plan.noise_levels[0] == pytest.approx(SIGMA)
        last = of.preconditioning.sigma_min if steps > 1 else SIGMA
        assert plan.noise_levels[-1] == pytest.approx(last)
        assert plan.flags.log_state
        assert not plan.flags.sign_agnostic


def test_preconditioning_columns() -> None:
    plan = Euler().plan(model("denoiser").preconditioning, 5)
    s, k = plan.noise_levels, plan.table[:, 5:]
    total = np.hypot(s, LOG_STD)
    assert k[:, 0] == pytest.approx(LOG_STD**2 / total**2)
    assert k[:, 1] == pytest.approx(s * LOG_STD / total)
    assert not k[:, 2].any()
    # A row prepares the input of the next call.
    assert k[:, 3] == pytest.approx([*1 / total[1:], 0])
    plan = Euler().plan(model("score").preconditioning, 5)
    assert plan.table[:, 5:8] == pytest.approx(
        np.stack((np.ones(5), plan.noise_levels**2, plan.noise_levels**2), axis=1)
    )


@pytest.mark.parametrize("inner", [1, 3])
@pytest.mark.parametrize("solver", [DaleLangevin, SignAgnostic])
def test_nfe_of_paper_solvers(solver: type[PaperSolver], inner: int) -> None:
    plan = solver(inner=inner, tweedie=2).plan(model("score").preconditioning, 10)
    assert plan.nfe == len(plan.table) == 10 * inner + 2
    time = [k / 10 for k in range(9, -1, -1) for _ in range(inner)] + [0, 0]
    assert plan.noise_levels == pytest.approx(SIGMA * np.sqrt(time))
    assert plan.flags.stein_score
    assert plan.flags.sign_agnostic == (solver is SignAgnostic)
    assert not plan.flags.log_state
    assert not plan.multistep


@pytest.mark.parametrize("solver", [DaleLangevin, SignAgnostic])
def test_a_denoiser_is_not_called_at_noise_level_zero(solver: type[PaperSolver]) -> None:
    plan = solver(inner=2, sigma=0.5).plan(model("denoiser").preconditioning, 10)
    time = [k / 10 for k in range(9, 0, -1) for _ in range(2)]
    assert plan.noise_levels == pytest.approx(0.5 * np.sqrt(time))
    assert plan.flags.log_state


@pytest.mark.parametrize("mu", [None, 0.1, 0.7])
@pytest.mark.parametrize("prediction", ["score", "hyvarinen"])
@pytest.mark.parametrize("solver", [DaleLangevin, SignAgnostic])
def test_rows_without_the_logarithm_do_not_need_it(
    solver: type[PaperSolver], prediction: str, mu: float | None
) -> None:
    of = model(prediction, mu=mu)
    plan = solver(delta=3e-3, inner=2, tweedie=3).plan(of.preconditioning, 50)
    a, b, k0 = (plan.table[:, GBM_COLUMNS.index(name)] for name in ("A", "B", "k0"))
    assert not plan.flags.log_state
    assert a + b * k0 == pytest.approx(np.ones(103), abs=1e-14)


PUBLISHED = {
    "mnist": ((6.165455e-4, 1, 0.995, 0), (1.438450e-4, 4, 0.995, 0)),
    "fashion-mnist": ((5.862727e-4, 1, 0.995, 0), (1.467799e-3, 3, 0.9995, 0)),
    "kmnist": ((2.113158e-4, 3, 0.995, 0), (2.113158e-4, 3, 1.0, 0)),
    "cifar-10": ((1.142105e-4, 6, 0.9995, 25), (1.438450e-4, 5, 0.9995, 25)),
}


@pytest.mark.parametrize("data", PUBLISHED)
def test_published_settings(data: str) -> None:
    assert AUTHORS.keys() == PUBLISHED.keys()
    for solver, expected, (delta, inner, anneal, tweedie) in zip(
        AUTHORS[data], (DaleLangevin, SignAgnostic), PUBLISHED[data], strict=True
    ):
        assert type(solver) is expected
        plan = solver.plan(model("score").preconditioning, solver.default_steps)
        noise = [
            anneal**i * SIGMA * math.sqrt(delta) for i in range(1000) for _ in range(inner)
        ] + [0.0] * tweedie
        assert plan.table[:, GBM_COLUMNS.index("S")] == pytest.approx(noise, rel=1e-12)
        assert plan.noise_levels[: 1000 * inner : inner] == pytest.approx(
            SIGMA * np.sqrt(np.arange(999, -1, -1) / 1000)
        )


CLASS_AVERAGE = {"fashion-mnist": (2.592944e-4, 3, 0.9995), "kmnist": (3.359818e-4, 2, 0.995)}


@pytest.mark.parametrize("data", PUBLISHED)
def test_published_settings_of_the_class_average_start(data: str) -> None:
    """Only the sign-agnostic sampler of two data sets differs from that of the other start."""
    assert PUBLISHED_CLASS_AVERAGE.keys() == AUTHORS.keys()
    langevin, agnostic = PUBLISHED_CLASS_AVERAGE[data]
    assert langevin == AUTHORS[data][0]
    if data not in CLASS_AVERAGE:
        assert agnostic == AUTHORS[data][1]
    else:
        assert agnostic == SignAgnostic(*CLASS_AVERAGE[data])


# ---- schedules ----


@pytest.mark.parametrize("solver", [DaleLangevin, SignAgnostic])
def test_the_published_schedule(solver: type[PaperSolver]) -> None:
    """The authors' loop over k = 999 .. 0, with the factors multiplied up, then Tweedie's passes.

    Each row is the row of the solver with the constant delta of its stage, but for the noise.
    """
    of = model("score").preconditioning
    plan = solver(schedule=PUBLISHED_SCHEDULE, tweedie=2).plan(of, 1000)
    anneal, levels, deltas, noises = 1.0, [], [], []
    delta = math.nan
    for k in range(999, -1, -1):
        if k > 100:
            delta, updates, factor = 1e-3, 1, 1.0
        elif k > 50:
            delta, updates, factor = 5e-4, 2, 0.9995
        elif k > 25:
            delta, updates, factor = 6e-4, 3, 0.9993
        else:
            delta, updates, factor = 5e-4, 3, 0.999
        levels += [SIGMA * math.sqrt(k / 1000)] * updates
        deltas += [delta] * updates
        noises += [anneal * SIGMA * math.sqrt(delta)] * updates
        anneal *= factor
    levels, deltas, noises = [*levels, 0, 0], [*deltas, delta, delta], [*noises, 0, 0]
    assert plan.nfe == 899 + 50 * 2 + 25 * 3 + 26 * 3 + 2
    assert plan.noise_levels == pytest.approx(levels)
    column = GBM_COLUMNS.index("S")
    assert plan.table[:, column] == pytest.approx(noises, rel=1e-12)
    constant = {d: solver(d, tweedie=1).plan(of, 1000) for d in set(deltas)}
    rows = [
        constant[d].table[np.abs(constant[d].noise_levels - s).argmin()]
        for s, d in zip(levels, deltas, strict=True)
    ]
    others = [i for i, name in enumerate(GBM_COLUMNS) if name not in ("S", "c_in")]  # of this call
    assert plan.table[:, others] == pytest.approx(np.stack(rows)[:, others], rel=1e-12)


@pytest.mark.parametrize("solver", [DaleLangevin, SignAgnostic])
@pytest.mark.parametrize("prediction", ["score", "denoiser"])
def test_stages_of_equal_settings_are_one_stage(solver: type[PaperSolver], prediction: str) -> None:
    of = model(prediction).preconditioning
    one = solver(2e-3, 2, 0.99).plan(of, 50)
    stages = [Stage(start, 2e-3, 2, 0.99) for start in (1, 0.4, 0.1, 0.001)]
    two = solver(schedule=stages).plan(of, 50)  # type: ignore[arg-type]
    assert np.array_equal(one.noise_levels, two.noise_levels)
    assert two.table == pytest.approx(one.table, rel=1e-13)
    assert solver(schedule=stages) == solver(schedule=tuple(stages))  # type: ignore[arg-type]


def test_a_stage_without_a_delta_has_that_of_the_levels() -> None:
    of = model("score").preconditioning
    plan = DaleLangevin(schedule=(Stage(), Stage(0.5, inner=2))).plan(of, 10)
    assert plan.nfe == 4 + 6 * 2
    rows = [0, 1, 2, 3, *np.repeat(range(4, 10), 2)]
    expected = DaleLangevin().plan(of, 10).table[rows, :-1]
    assert plan.table[:, :-1] == pytest.approx(expected)  # the last column is of the next call


@pytest.mark.parametrize(
    ("schedule", "error", "message"),
    [
        (Stage(), TypeError, r"schedule must be a tuple of stages \(Stage\), got Stage"),
        (((1.0, 1e-3),), TypeError, "schedule must be a tuple of stages"),
        (None, TypeError, "schedule must be a tuple of stages"),
        ((Stage(0.5),), ValueError, r"that start at 1.0 and then at falling shares, got \[0.5\]"),
        ((Stage(), Stage(0.2), Stage(0.2)), ValueError, r"falling shares, got \[1.0, 0.2, 0.2\]"),
        ([], ValueError, r"falling shares, got \[\]"),
    ],
)
def test_schedules_refuse_stages(schedule: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        DaleLangevin(schedule=schedule)


@pytest.mark.parametrize("option", [{"delta": 1e-3}, {"inner": 2}, {"anneal": 0.9}])
def test_a_schedule_replaces_the_constant_settings(option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="schedule must be given without delta, inner and anneal"):
        SignAgnostic(schedule=(Stage(),), **option)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"start": 0.0}, ValueError, r"start must be in \(0, 1\], got 0.0"),
        ({"start": 1.1}, ValueError, r"start must be in \(0, 1\], got 1.1"),
        ({"delta": 0}, ValueError, "delta must be a positive number, got 0"),
        ({"inner": 1.5}, TypeError, "inner must be an int, got 1.5"),
        ({"anneal": 2}, ValueError, r"anneal must be in \[0, 1\], got 2"),
    ],
)
def test_stages_refuse_options(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Stage(**options)


# ---- the paper's updates ----


def applied(
    plan: GBMPlan, row: int, x: torch.Tensor, f: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the state after a row in float64, and the noise of the row."""
    stream, table = rng.stream(3, 11), torch.from_numpy(plan.table)
    out, first_nonfinite_step = torch.empty_like(x), torch.full(x.shape[:1], -1, dtype=torch.int32)
    reference.gbm_step(x, f, table, stream, row, first_nonfinite_step, out, None, None, *plan.flags)
    assert (first_nonfinite_step == -1).all()
    n, d = x.shape
    return out, rng.normals(n, d, stream, rng.Purpose.STEP, row, torch.float64)


def state_and_output() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    size, f = torch.randn(2, 50, 3, dtype=torch.float64, generator=generator)
    return size.exp() * torch.tensor([1.0, -1.0, 1.0]), f


DELTA, ANNEAL = 6.165455e-4, 0.97


@pytest.mark.parametrize("row", [0, 37, 98, 99, 100])
@pytest.mark.parametrize("mu", [None, 0.1, 0.7])
@pytest.mark.parametrize("prediction", ["score", "hyvarinen"])
@pytest.mark.parametrize("solver", [DaleLangevin, SignAgnostic])
def test_rows_are_the_papers_updates(
    solver: type[PaperSolver], prediction: str, mu: float | None, row: int
) -> None:
    of = model(prediction, mu=mu)
    plan = solver(DELTA, anneal=ANNEAL, tweedie=1).plan(of.preconditioning, 100)
    x, f = state_and_output()
    new, z = applied(plan, row, x, f)
    q = x * f if prediction == "score" else f
    mu = SIGMA**2 / 2 if mu is None else mu
    noise = (ANNEAL**row if row < 100 else 0.0) * SIGMA * math.sqrt(DELTA) * z
    if solver is DaleLangevin:
        expected = x * torch.exp(DELTA * (SIGMA**2 * q - mu + 1.5 * SIGMA**2) + noise)
    else:
        expected = x * (1 + DELTA * (SIGMA**2 * q - mu + 2 * SIGMA**2) + noise)
    torch.testing.assert_close(new, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("sigma", "mu"), [(0.8, None), (5.0, None), (5.0, 12.5)])
def test_papers_updates_of_a_denoiser(sigma: float, mu: float | None) -> None:
    """Its q is (D - y) / s^2 - 1; the paper's process has no drift, whatever the model's sigma."""
    preconditioning = model("denoiser", sigma, mu).preconditioning
    langevin, agnostic = (
        solver(DELTA, anneal=ANNEAL, sigma=SIGMA).plan(preconditioning, 100)
        for solver in (DaleLangevin, SignAgnostic)
    )
    x, f = state_and_output()
    y = x.abs().log()
    for row in (0, 50, 98):
        s = SIGMA * math.sqrt((99 - row) / 100)
        total = math.hypot(s, LOG_STD)
        q = (LOG_STD**2 / total**2 * y + s * LOG_STD / total * f - y) / s**2 - 1
        noise = ANNEAL**row * SIGMA * math.sqrt(DELTA)
        new, z = applied(langevin, row, x, f)
        exponent = DELTA * SIGMA**2 * (q + 1) + noise * z
        torch.testing.assert_close(new, x * torch.exp(exponent), rtol=1e-11, atol=0)
        new, z = applied(agnostic, row, x, f)
        increment = DELTA * SIGMA**2 * (q + 1.5) + noise * z
        torch.testing.assert_close(new, x * (1 + increment), rtol=1e-11, atol=1e-13)


# ---- errors ----


@pytest.mark.parametrize("name", LOG_SOLVERS)
def test_log_solvers_refuse_a_drift(name: str) -> None:
    with pytest.raises(ValueError, match=r"needs mu = sigma\^2 / 2, got GBM\(sigma=0.8, mu=0.5"):
        LOG_SOLVERS[name].plan(model("score", mu=0.5).preconditioning, 10)


@pytest.mark.parametrize("prediction", ["denoiser", "hyvarinen"])
def test_the_mu_of_the_paper_is_no_drift(prediction: str) -> None:
    """0.32 and 0.8^2 / 2 differ by rounding."""
    explicit, implied = (
        DPMSolverPP2M().plan(model(prediction, mu=mu).preconditioning, 5) for mu in (0.32, None)
    )
    assert np.array_equal(explicit.table, implied.table)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("delta", 0.0),
        ("delta", -1e-3),
        ("delta", math.nan),
        ("inner", 0),
        ("anneal", -0.1),
        ("anneal", 1.01),
        ("tweedie", -1),
        ("sigma", 0.0),
        ("sigma", -0.8),
    ],
)
@pytest.mark.parametrize("solver", [DaleLangevin, SignAgnostic])
def test_paper_solvers_refuse_options(solver: type[PaperSolver], name: str, value: float) -> None:
    options: dict[str, Any] = {name: value}
    with pytest.raises(ValueError, match=rf"{name} must be .*got {value}"):
        solver(**options)


@pytest.mark.parametrize("name", ["inner", "tweedie"])
@pytest.mark.parametrize("value", [2.0, True, "2", None])
@pytest.mark.parametrize("solver", [DaleLangevin, SignAgnostic])
def test_counts_of_paper_solvers_are_integers(
    solver: type[PaperSolver], name: str, value: object
) -> None:
    options: dict[str, Any] = {name: value}
    with pytest.raises(TypeError, match=rf"{name} must be an int, got {value!r}"):
        solver(**options)
    both: list[dict[str, Any]] = [{name: 2}, {name: np.int64(2)}]
    plans = [solver(**o).plan(model("score").preconditioning, 5) for o in both]
    assert plans[0].nfe == plans[1].nfe


def test_paper_solvers_refuse_what_the_model_cannot_do() -> None:
    with pytest.raises(
        ValueError, match=r"sigma must be the process's own, 0.8, for a score network, got 0.5"
    ):
        DaleLangevin(sigma=0.5).plan(model("score").preconditioning, 10)
    with pytest.raises(ValueError, match=r"sigma must be at most the process's, 0.8, got 0.9"):
        DaleLangevin(sigma=0.9).plan(model("denoiser").preconditioning, 10)
    for solver, steps in ((DaleLangevin(tweedie=1), 10), (SignAgnostic(), 1)):
        with pytest.raises(
            ValueError, match=rf"a denoiser needs tweedie=0 and steps >= 2, got .*steps={steps}"
        ):
            solver.plan(model("denoiser").preconditioning, steps)
