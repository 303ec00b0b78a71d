"""Solvers of the reversed isotropic rotation with exact scores.

Orders of convergence, distributions recovered, no noise left at the end, norms, plans, errors.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastmsgm import reference, rng, sample
from fastmsgm.evaluation.metrics import kolmogorov_smirnov
from fastmsgm.rotation import Rotation, RotationModel, heat_kernel
from fastmsgm.rotation.preconditioning import B_MIN
from fastmsgm.rotation.spherical import (
    SOLVERS,
    GeodesicEuler,
    GeodesicHeun,
    SphericalMultistep,
    SphericalSolver,
)
from fastmsgm.rotation.state import SphericalPlan
from fastmsgm.sampling import plan_for
from fastmsgm.sde.runge_kutta import StratonovichHeun
from fastmsgm.solver import Solver
from tests.rotation.exact import (
    BETAS,
    MEANS,
    MixtureNet,
    TiltedNet,
    angles,
    cheap_normals,
    exact_model,
    legendre_error,
    mixture_samples,
    rough_model,
    sample_directions,
    tilted_cdf,
    unit,
)

# Many small operations: a second thread costs more than it gives.
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def mixture() -> RotationModel:
    """Two heat kernels in three dimensions; the network keeps its tables from test to test."""
    return exact_model(MixtureNet(MEANS, BETAS), 3)


# ---- orders ----


@pytest.fixture(scope="module")
def exact_flow(mixture: RotationModel) -> Tensor:
    """The solution of the probability flow, from the prior of seed 0."""
    return sample_directions(mixture, 400, SphericalMultistep(), 129)


@pytest.mark.parametrize(
    ("solver", "order", "bound"),
    [
        (SphericalMultistep(order=1), 1, 0.04),
        (SphericalMultistep(), 2, 0.004),
        (GeodesicEuler(eta=0.0), 1, 0.06),
        (GeodesicHeun(), 2, 0.006),
    ],
)
def test_ode_solvers_converge_pathwise(
    mixture: RotationModel, exact_flow: Tensor, solver: Solver, order: int, bound: float
) -> None:
    """Every solver converges to one solution, from one start (median over samples)."""
    errors = [
        float(angles(sample_directions(mixture, 400, solver, steps), exact_flow).median())
        for steps in (9, 17, 33)
    ]
    assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.4)
    assert np.log2(errors[1] / errors[2]) == pytest.approx(order, abs=0.4)
    assert errors[2] < bound


@pytest.mark.parametrize("solver", [SphericalMultistep(eta=1.0), GeodesicEuler()])
def test_stochastic_solvers_converge_weakly(mixture: RotationModel, solver: Solver) -> None:
    n = 12_000
    coarse, fine = (
        legendre_error(sample_directions(mixture, n, solver, steps, seed=steps))
        for steps in (5, 33)
    )
    floor = 0.5 / n**0.5  # of the Monte Carlo error
    assert coarse > 5 * floor
    assert fine < coarse / 3


# ---- distributions ----


@pytest.fixture(scope="module")
def mixture_reference(mixture: RotationModel) -> Tensor:
    return mixture_samples(mixture.net, 6000)


@pytest.mark.parametrize(
    ("solver", "steps"),
    [
        ("euler", 65),
        ("dpm++2m", 33),
        ("sde-dpm++2m", 33),
        (SphericalMultistep(eta=1.0), 33),
        ("geodesic-heun", 33),
        ("geodesic-euler", 65),
    ],
)
def test_reversal_recovers_a_mixture_of_heat_kernels(
    mixture: RotationModel, mixture_reference: Tensor, solver: str | Solver, steps: int
) -> None:
    u = sample_directions(mixture, 6000, solver, steps)
    for axis in (*unit(MEANS), torch.tensor([0.0, 0.6, -0.8]).double()):
        assert kolmogorov_smirnov(u @ axis, mixture_reference @ axis)[1] >= 1e-5


@pytest.mark.parametrize("solver", ["dpm++2m", "sde-dpm++2m"])
def test_reversal_in_sixteen_dimensions(solver: str) -> None:
    net = MixtureNet(torch.eye(16)[:2] + 0.2, [0.3, 0.8])
    u = sample_directions(exact_model(net, 16), 4000, solver, 33)
    expected = mixture_samples(net, 4000)
    for axis in net.means:
        statistic, p = kolmogorov_smirnov(u @ axis, expected @ axis)
        assert p >= 1e-5, statistic


@pytest.mark.parametrize(
    "solver", [SphericalMultistep(eta=0.3), GeodesicHeun(), StratonovichHeun()]
)
def test_reversal_recovers_a_tilted_distribution(solver: Solver) -> None:
    """The one distribution whose score is known for every noise."""
    axis, process = torch.tensor([0.6, 0.0, 0.8]).double(), Rotation("isotropic")
    model = exact_model(TiltedNet(process, 0.9 * axis), 3, process)
    u = sample_directions(model, 4000, solver, 24)
    assert kolmogorov_smirnov(u @ axis, tilted_cdf(0.9))[1] >= 1e-5
    assert kolmogorov_smirnov(u[:, 1], tilted_cdf(0.0))[1] >= 1e-5
    assert kolmogorov_smirnov(u @ axis, tilted_cdf(0.6))[1] < 1e-5


@pytest.fixture(scope="module", params=[3, 16])
def point(request: pytest.FixtureRequest) -> RotationModel:
    """A data set of one point."""
    mean = torch.randn(1, request.param, generator=torch.Generator().manual_seed(0))
    return exact_model(MixtureNet(mean, [0.0]), request.param)


@pytest.mark.parametrize(
    "solver", [*SOLVERS, SphericalMultistep(eta=1.0), SphericalMultistep(order=1, eta=1.0)]
)
def test_no_noise_is_left(point: RotationModel, solver: str | Solver) -> None:
    """Samples of one data point are that point.

    Before its last step a direction is about sqrt(B) = 0.01 away from it, and D / |D| is right up
    to the cube of that angle.
    """
    errors = angles(sample_directions(point, 500, solver), point.net.means)
    assert float(errors.quantile(0.9)) < 1e-5
    assert float(errors.max()) < 1e-4


@pytest.mark.parametrize("solver", SOLVERS)
def test_one_step_gives_the_denoised_direction(solver: str) -> None:
    """u' = D / |D| with D = alpha u + sigma n, u the direction sampled from the prior."""
    model, f = exact_model(nn.Identity(), 5), torch.tensor([1.0, -2.0, 0.5, 3.0, 0.0])
    model.net.forward = lambda x, c, **_: f.expand_as(x)
    start = unit(rng.normals(20, 5, rng.stream(0), rng.Purpose.PRIOR, 0))
    alpha, sigma, _ = model.preconditioning.coefficients(np.array([model.process.B_max]))[0]
    tangent = f.double() - (start @ f.double())[:, None] * start
    expected = unit(alpha * start + sigma * tangent)
    got = sample_directions(model, 20, solver, 1)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


# ---- norms ----


@pytest.mark.parametrize(
    "solver",
    [
        SphericalMultistep(),
        SphericalMultistep(eta=0.5),
        GeodesicEuler(),
        GeodesicEuler(eta=0.0),
        GeodesicHeun(),
    ],
)
def test_norms_are_kept_by_1000_steps(solver: Solver, monkeypatch: pytest.MonkeyPatch) -> None:
    cheap_normals(monkeypatch)
    model, steps = rough_model(), 500 if solver == GeodesicHeun() else 1000
    x = sample(model, 8, solver=solver, steps=steps, batch_size=8, progress=False)
    expected = model.prior.sample(8, rng.stream(0)).double()
    assert float((x.double().norm(dim=1) / expected - 1).abs().max()) < 1e-6


@pytest.mark.parametrize(
    "solver", [SphericalMultistep(), SphericalMultistep(eta=0.5), GeodesicEuler(), GeodesicHeun()]
)
def test_norms_are_kept_in_float64(
    solver: SphericalSolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows of a plan, applied by the reference in float64."""
    cheap_normals(monkeypatch)
    plan = solver.plan(rough_model().preconditioning, 500 if solver == GeodesicHeun() else 1000)
    table, stream = torch.from_numpy(plan.table), rng.stream(0)
    first_nonfinite_step = torch.full((4,), -1, dtype=torch.int32)
    u = unit(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)))
    start, memory = u.clone(), torch.zeros_like(u) if plan.keeps_previous else None
    f = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for row, flags in enumerate(plan.flags):
        angles = None if flags.geodesic else plan.angles
        reference.rotation_step(
            u, f, table, angles, stream, row, first_nonfinite_step, u, memory, None, *flags
        )
        assert float((u.norm(dim=1) - 1).abs().max()) < 1e-13
    assert float((u - start).norm(dim=1).min()) > 1e-3


# ---- plans ----


@pytest.mark.parametrize("steps", [1, 2, 3, 20])
@pytest.mark.parametrize("solver", [*SOLVERS, SphericalMultistep(eta=1.0)])
def test_plans(solver: str | Solver, steps: int) -> None:
    model = rough_model()
    plan = plan_for(model, solver, steps)
    assert isinstance(plan, SphericalPlan)
    assert plan.nfe == len(plan.flags) == (2 * steps - 1 if solver == "geodesic-heun" else steps)
    assert plan.noise_levels[0] == pytest.approx(model.process.B_max)
    assert steps == 1 or plan.noise_levels[-1] == pytest.approx(B_MIN)
    assert bool((np.diff(plan.noise_levels) <= 0).all())
    assert plan.c_noise == pytest.approx((np.log(plan.noise_levels) + 3) / 3)
    assert not np.isnan(plan.table).any()
    last = dict(zip(reference.ROTATION_COLUMNS, plan.table[-1], strict=True))
    assert not plan.flags[-1].geodesic
    assert last["length"] == math.inf
    assert (last["w"], last["spread"], last["noise"]) == (0, 0, 0)
    noisy = solver in ("sde-dpm++2m", SphericalMultistep(eta=1.0))
    assert (plan.angles is not None) == noisy


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_overshoot_and_noise_make_up_a_step(eta: float) -> None:
    """The flow goes to a smaller B, and noise leads back to B'.

    tanh(B_mid / 4) = (tanh(B' / 4) / tanh(B / 4))^eta tanh(B' / 4).
    """
    plan = SphericalMultistep(eta=eta).plan(rough_model().preconditioning, 10)
    length, spread, w = (
        plan.table[:-1, reference.ROTATION_COLUMNS.index(c)] for c in ("length", "spread", "w")
    )
    before, after = plan.noise_levels[:-1], plan.noise_levels[1:]
    middle = heat_kernel.inverse_Lam(heat_kernel.Lam(before) + length)
    noise = -2 * np.log1p(-spread)
    assert middle + noise == pytest.approx(after, rel=1e-9)
    assert np.tanh(middle / 4) == pytest.approx(
        (np.tanh(after / 4) / np.tanh(before / 4)) ** eta * np.tanh(after / 4)
    )
    whole = np.diff(heat_kernel.Lam(plan.noise_levels))
    assert w[0] == 0
    assert w[1:] == pytest.approx(length[1:] / (2 * whole[:-1]))
    assert whole == pytest.approx([whole[0]] * 9)


# ---- errors ----


@pytest.mark.parametrize("order", [0, 3, np.int64(3)])
def test_an_order_other_than_one_or_two_is_refused(order: Any) -> None:
    with pytest.raises(ValueError, match=rf"order must be in 1 \.\. 2, got {order}"):
        SphericalMultistep(order=order)


@pytest.mark.parametrize("order", [1.0, 2.0, True, "2", None])
def test_the_order_is_an_integer(order: Any) -> None:
    with pytest.raises(TypeError, match=f"order must be an int, got {order!r}"):
        SphericalMultistep(order=order)


def test_the_order_may_be_a_numpy_integer() -> None:
    order: Any = np.int64(1)
    assert repr(SphericalMultistep(order=order)) == "SphericalMultistep(order=1, eta=0.0)"
