"""Solvers of the reversed rotation with exact scores: orders of convergence, laws recovered, no noise left, errors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from exact_rotation import MixtureNet, TiltedNet, exact_model, unit
from torch import Tensor, nn

from fastmsgm import GBM, GBMModel, Rotation, RotationModel, heat_kernel, reference, rng, sample
from fastmsgm.metrics import kolmogorov_smirnov
from fastmsgm.nets import MLP
from fastmsgm.rotation_model import CLOCK_MIN
from fastmsgm.sampling import plan_for
from fastmsgm.solvers import (
    ROTATION_SOLVERS,
    DaleLangevin,
    DPMSolverPP2M,
    EulerMaruyama,
    GeodesicEuler,
    GeodesicHeun,
    RotationPlan,
    Solver,
    SphericalMultistep,
    SphericalSolver,
    StratonovichHeun,
    StratonovichRK4,
)  # fmt: skip

CENTRES, CLOCKS = torch.tensor([[1.0, 0.0, 0.0], [-0.3, 0.8, 0.5]]), [0.1, 0.3]


@pytest.fixture(scope="module")
def mixture() -> RotationModel:
    """Two heat kernels on the sphere in three dimensions; the network keeps its tables from test to test."""
    return exact_model(MixtureNet(CENTRES, CLOCKS), 3)


def draw(model: RotationModel, n: int, solver: str | Solver, steps: int | None = None, **options: Any) -> Tensor:
    """Directions of samples, float64."""
    return unit(sample(model, n, solver=solver, steps=steps, batch_size=n, progress=False, **options))


def angles(a: Tensor, b: Tensor) -> Tensor:
    return 2 * torch.asin(((a - b).norm(dim=1) / 2).clamp(max=1))


def mixture_samples(net: MixtureNet, n: int, seed: int = 0) -> Tensor:
    """The mixture's own law, by the forward process from its centres."""
    process, d = Rotation(), net.centres.shape[1]
    which = torch.randint(len(net.clocks), (n,), generator=torch.Generator().manual_seed(seed))
    t = torch.from_numpy(process.time(net.clocks[which.numpy()]))
    return unit(process.perturb(net.centres[which].float().view(n, d), t, seed=seed))


# ---- orders ----


@pytest.mark.parametrize(
    ("solver", "order", "bound"),
    [
        (SphericalMultistep(order=1), 1, 0.04),
        (SphericalMultistep(), 2, 0.004),
        (GeodesicEuler(lambda_=1.0), 1, 0.06),
        (GeodesicHeun(), 2, 0.006),
    ],
)
def test_ode_solvers_converge_pathwise(mixture: RotationModel, solver: Solver, order: int, bound: float) -> None:
    """Every solver to the same solution of the probability flow, from the same start (median over samples)."""
    n = 400
    exact = draw(mixture, n, SphericalMultistep(), 129)
    errors = [float(angles(draw(mixture, n, solver, steps), exact).median()) for steps in (9, 17, 33)]
    assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.4)
    assert np.log2(errors[1] / errors[2]) == pytest.approx(order, abs=0.4)
    assert errors[2] < bound


def legendre_error(u: Tensor) -> float:
    """Root mean square error of E P_l(u . a), l = 1 .. 4, over axes a: E P_l decays by e^{-l (l + 1) tau / 2}."""
    axes = unit(torch.randn(20, 3, generator=torch.Generator().manual_seed(0)))
    errors = []
    for l in range(1, 5):
        decay = torch.exp(-l * (l + 1) * torch.tensor(CLOCKS, dtype=torch.float64) / 4)
        expected = (torch.special.legendre_polynomial_p(unit(CENTRES) @ axes.T, l) * decay[:, None]).mean(0)
        errors.append(torch.special.legendre_polynomial_p(u @ axes.T, l).mean(0) - expected)
    return float(torch.stack(errors).square().mean().sqrt())


@pytest.mark.parametrize("solver", [SphericalMultistep(eta=1.0), GeodesicEuler()])
def test_stochastic_solvers_converge_weakly(mixture: RotationModel, solver: Solver) -> None:
    n = 12_000
    coarse, fine = (legendre_error(draw(mixture, n, solver, steps, seed=steps)) for steps in (5, 33))
    floor = 0.5 / n**0.5  # of the Monte Carlo error
    assert coarse > 5 * floor
    assert fine < coarse / 3


# ---- laws ----


@pytest.mark.parametrize(
    ("solver", "steps"),
    [("euler", 65), ("dpm++2m", 33), ("sde-dpm++2m", 33), (SphericalMultistep(eta=1.0), 33), ("geodesic-heun", 33),
     ("geodesic-euler", 65)],
)  # fmt: skip
def test_reversal_recovers_a_mixture_of_heat_kernels(mixture: RotationModel, solver: str | Solver, steps: int) -> None:
    n = 6000
    u, expected = draw(mixture, n, solver, steps), mixture_samples(mixture.net, n)
    for axis in (*unit(CENTRES), torch.tensor([0.0, 0.6, -0.8]).double()):
        assert kolmogorov_smirnov(u @ axis, expected @ axis)[1] >= 1e-5


@pytest.mark.parametrize("solver", ["dpm++2m", "sde-dpm++2m"])
def test_reversal_in_sixteen_dimensions(solver: str) -> None:
    net = MixtureNet(torch.eye(16)[:2] + 0.2, [0.3, 0.8])
    u, expected = draw(exact_model(net, 16), 4000, solver, 33), mixture_samples(net, 4000)
    for axis in net.centres:
        statistic, p = kolmogorov_smirnov(u @ axis, expected @ axis)
        assert p >= 1e-5, statistic


# The slowest mean of this tensor decays as e^{-0.29 B}, of most others in three dimensions more slowly still.
DENSE = Rotation("dense", seed=4, beta_max=40.0)


def tilted_cdf(tilt: float) -> Any:
    """Of c = u . axis in three dimensions, with density (1 + tilt c) / 2."""
    return lambda c: (((c + 1) / 2) + tilt * (c * c - 1) / 4).clamp(0, 1)


@pytest.mark.parametrize(
    ("process", "solver"),
    [
        (Rotation("isotropic"), SphericalMultistep(eta=0.3)),
        (Rotation("isotropic"), GeodesicHeun()),
        (Rotation("ring"), StratonovichHeun()),
        (Rotation("ring"), StratonovichHeun(lambda_=1.0)),
        (DENSE, StratonovichHeun()),
        (DENSE, StratonovichHeun(lambda_=0.5)),
        (DENSE, StratonovichRK4(lambda_=1.0)),
        (DENSE, EulerMaruyama(lambda_=0.5)),
    ],
)
def test_reversal_recovers_a_tilted_law(process: Rotation, solver: Solver) -> None:
    """The one law whose score is known for every noise: between the SDE and the ODE all must bring it back."""
    axis = torch.tensor([0.6, 0.0, 0.8]).double()
    model = exact_model(TiltedNet(process, 0.9 * axis), 3, process)
    u = draw(model, 4000, solver, 80 if isinstance(solver, EulerMaruyama) else 24)
    assert kolmogorov_smirnov(u @ axis, tilted_cdf(0.9))[1] >= 1e-5
    assert kolmogorov_smirnov(u[:, 1], tilted_cdf(0.0))[1] >= 1e-5
    assert kolmogorov_smirnov(u @ axis, tilted_cdf(0.6))[1] < 1e-5


@pytest.fixture(scope="module", params=[3, 16])
def point(request: pytest.FixtureRequest) -> RotationModel:
    centre = torch.randn(1, request.param, generator=torch.Generator().manual_seed(0))
    return exact_model(MixtureNet(centre, [0.0]), request.param)


@pytest.mark.parametrize(
    "solver", [*ROTATION_SOLVERS, SphericalMultistep(eta=1.0), SphericalMultistep(order=1, eta=1.0)]
)
def test_no_noise_is_left(point: RotationModel, solver: str | Solver) -> None:
    """Samples of one data point are that point: before its last step a direction is about sqrt(B) = 0.01 away from it,
    and D / |D| is right up to the cube of that angle."""
    errors = angles(draw(point, 500, solver), point.net.centres)
    assert float(errors.quantile(0.9)) < 1e-5
    assert float(errors.max()) < 1e-4


def test_one_step_is_the_denoised_direction() -> None:
    """u' = D / |D| with D = alpha u + sigma n, of the direction that the prior drew."""
    model, f = exact_model(nn.Identity(), 5), torch.tensor([1.0, -2.0, 0.5, 3.0, 0.0])
    model.net.forward = lambda x, c: f.expand_as(x)
    start = unit(torch.empty(20, 5).copy_(rng.normals(20, 5, rng.stream(0), rng.Kind.PRIOR, 0)))
    alpha, sigma, _ = model.coefficients(np.array([model.process.clock_max]))[0]
    tangent = f.double() - (start @ f.double())[:, None] * start
    for solver in ROTATION_SOLVERS:
        torch.testing.assert_close(draw(model, 20, solver, 1), unit(alpha * start + sigma * tangent), rtol=0, atol=1e-6)


# ---- norms ----


def rough_model(process: Rotation | None = None) -> RotationModel:
    """A random network, whose samples wander about."""
    torch.manual_seed(0)
    net = MLP(3, 16, 2, conditions=2)
    nn.init.normal_(net.out.weight, std=0.5)
    return exact_model(net, 3, process)


@pytest.fixture
def cheap_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's normals in place of the stream's, where nothing depends on which they are."""
    generator = torch.Generator().manual_seed(0)

    def normals(n: int, d: int, stream: Tensor, kind: int, step: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(n, d, generator=generator, dtype=dtype)

    monkeypatch.setattr(rng, "normals", normals)


@pytest.mark.parametrize(
    ("process", "solver"),
    [
        (Rotation(), SphericalMultistep()),
        (Rotation(), SphericalMultistep(eta=0.5)),
        (Rotation(), GeodesicEuler()),
        (Rotation(), GeodesicEuler(lambda_=1.0)),
        (Rotation(), GeodesicHeun()),
        *((Rotation(noise), EulerMaruyama(lambda_=lambda_)) for noise in ("ring", "dense") for lambda_ in (0.0, 1.0)),
    ],
)
@pytest.mark.usefixtures("cheap_noise")
def test_norms_are_kept_by_1000_steps(process: Rotation, solver: Solver) -> None:
    model = rough_model(process)
    steps = 500 if isinstance(solver, GeodesicHeun) else 1000
    x = sample(model, 8, solver=solver, steps=steps, batch_size=8, progress=False)
    expected = model.prior.draw(8, rng.stream(0)).double()
    assert float((x.double().norm(dim=1) / expected - 1).abs().max()) < 1e-6


@pytest.mark.usefixtures("cheap_noise")
@pytest.mark.parametrize("solver", [SphericalMultistep(), SphericalMultistep(eta=0.5), GeodesicEuler(), GeodesicHeun()])
def test_norms_are_kept_in_float64(solver: SphericalSolver) -> None:
    """The same rows of the same plan, applied by the reference: 1000 calls of it."""
    model = rough_model()
    plan = solver.plan(model, 500 if isinstance(solver, GeodesicHeun) else 1000)
    table, stream, bad = torch.from_numpy(plan.table), rng.stream(0), torch.full((4,), -1, dtype=torch.int32)
    u = unit(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)))
    start, history = u.clone(), torch.zeros_like(u) if plan.multistep else None
    f = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for k in range(plan.calls):
        geodesic = plan.geodesic[k]
        drawn = None if geodesic else plan.angles
        reference.rotation_step(u, f, table, drawn, stream, k, bad, u, history, None, geodesic)
        assert float((u.norm(dim=1) - 1).abs().max()) < 1e-13
    assert float((u - start).norm(dim=1).min()) > 1e-3


# ---- plans ----


@pytest.mark.parametrize("steps", [1, 2, 3, 20])
@pytest.mark.parametrize("solver", [*ROTATION_SOLVERS, SphericalMultistep(eta=1.0)])
def test_plans(solver: str | Solver, steps: int) -> None:
    model = rough_model()
    plan = plan_for(model, solver, steps)
    assert isinstance(plan, RotationPlan)
    assert plan.calls == (2 * steps - 1 if solver == "geodesic-heun" else steps)
    assert plan.levels[0] == pytest.approx(model.process.clock_max)
    assert steps == 1 or plan.levels[-1] == pytest.approx(CLOCK_MIN)
    assert bool((np.diff(plan.levels) <= 0).all())
    assert not np.isnan(plan.table).any()
    last = dict(zip(reference.ROTATION_COLUMNS, plan.table[-1], strict=True))
    assert not plan.geodesic[-1]
    assert last["length"] == math.inf
    assert (last["w"], last["spread"], last["noise"]) == (0, 0, 0)
    assert (plan.angles is not None) == (solver == "sde-dpm++2m" or isinstance(solver, SphericalMultistep))


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_overshoot_and_noise_make_up_a_step(eta: float) -> None:
    """Flow to an earlier clock, by tanh(B_mid / 4) = (tanh(B' / 4) / tanh(B / 4))^eta tanh(B' / 4), then noise."""
    plan = SphericalMultistep(eta=eta).plan(rough_model(), 10)
    length, spread, w = (plan.table[:-1, reference.ROTATION_COLUMNS.index(c)] for c in ("length", "spread", "w"))
    before, after = plan.levels[:-1], plan.levels[1:]
    middle = heat_kernel.inverse_Lam(heat_kernel.Lam(before) + length)
    noise = -2 * np.log1p(-spread)
    assert middle + noise == pytest.approx(after, rel=1e-9)
    assert np.tanh(middle / 4) == pytest.approx((np.tanh(after / 4) / np.tanh(before / 4)) ** eta * np.tanh(after / 4))
    whole = np.diff(heat_kernel.Lam(plan.levels))
    assert w[0] == 0
    assert w[1:] == pytest.approx(length[1:] / (2 * whole[:-1]))
    assert whole == pytest.approx([whole[0]] * 9)


# ---- errors ----


def positive_model() -> GBMModel:
    return GBMModel.for_data(MLP(3, 8, 1), GBM(5.0), torch.rand(20, 3, generator=torch.Generator().manual_seed(0)) + 1)


@pytest.mark.parametrize("solver", [SphericalMultistep(), GeodesicEuler(), GeodesicHeun()])
def test_a_rotations_solver_refuses_other_processes(solver: Solver) -> None:
    with pytest.raises(TypeError, match=rf"solver {type(solver).__name__}\(.* is for rotations, got a GBMModel"):
        sample(positive_model(), 5, solver=solver)
    for noise in ("ring", "dense"):
        message = rf"solver {type(solver).__name__}\(.* needs isotropic noise, got .*{noise}"
        with pytest.raises(ValueError, match=message):
            sample(rough_model(Rotation(noise)), 5, solver=solver)


@pytest.mark.parametrize("solver", [DPMSolverPP2M(), DaleLangevin()])
def test_a_gbm_solver_refuses_rotations(solver: Solver) -> None:
    message = rf"solver {type(solver).__name__}\(.* is for geometric Brownian motion, got a RotationModel"
    with pytest.raises(TypeError, match=message):
        sample(rough_model(), 5, solver=solver)


def test_solvers_are_known_by_the_process() -> None:
    for name in ("heun", "dale-langevin", "dls", "er-sde-2", "nonsense"):
        with pytest.raises(ValueError, match=rf"solver must be one of euler, .*geodesic-heun.*, got '{name}'"):
            sample(rough_model(), 5, solver=name)
    with pytest.raises(ValueError, match=r"solver must be one of .*dale-langevin.*, got 'geodesic-euler'"):
        sample(positive_model(), 5, solver="geodesic-euler")
    with pytest.raises(TypeError, match="solver must be a name or a Solver, got 3"):
        sample(rough_model(), 5, solver=3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("solver", "options", "message"),
    [
        (SphericalMultistep, {"order": 3}, "order must be 1 or 2, got 3"),
        (SphericalMultistep, {"eta": 1.5}, r"eta must be in \[0, 1\] .*, got 1\.5"),
        (SphericalMultistep, {"eta": math.nan}, r"eta must be in \[0, 1\] .*, got nan"),
        (GeodesicEuler, {"lambda_": -0.5}, r"lambda_ must be in \[0, 1\] .*, got -0\.5"),
    ],
)
def test_solvers_refuse_options(solver: type[Solver], options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        solver(**options)
