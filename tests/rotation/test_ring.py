"""The ring's splitting solver with exact scores.

Orders of convergence, distributions recovered, no noise left at the end, plans, states, errors. At
d = 3 ring noise is isotropic noise, so that mixtures of heat kernels have known scores; in more
dimensions quadratic distributions have.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastmsgm import NonFiniteError, Step, reference, rng, sample
from fastmsgm.evaluation.metrics import kolmogorov_smirnov, sliced_wasserstein
from fastmsgm.nets import UNet
from fastmsgm.rotation import Rotation, RotationModel
from fastmsgm.rotation.heat_kernel import rho
from fastmsgm.rotation.preconditioning import B_MIN
from fastmsgm.rotation.ring import RingSplitting
from fastmsgm.rotation.spherical import SphericalMultistep
from fastmsgm.rotation.state import RingPlan
from fastmsgm.sampling import plan_for
from fastmsgm.sde.runge_kutta import StratonovichHeun, StratonovichRK4
from fastmsgm.solver import Solver
from tests.ops.cases import assert_close
from tests.rotation.exact import (
    BETAS,
    MEANS,
    MixtureNet,
    angles,
    cheap_normals,
    exact_model,
    legendre_error,
    mixture_samples,
    rough_model,
    sample_directions,
    unit,
)

RING = Rotation("ring")
SOLVERS = [
    RingSplitting(),
    RingSplitting(eta=1.0),
    RingSplitting(midpoint=False),
    RingSplitting(midpoint=False, eta=1.0),
]


class QuadraticNet(nn.Module):
    """The exact network of the distribution 1 + m.u + u'Qu under ring noise.

    The noise shrinks m and acts on Q by sum_k (G^k . + . G^k')^2 / 2.
    """

    def __init__(self, m: Tensor, q: Tensor) -> None:
        super().__init__()
        self.m, self.q, eye = m, q, torch.eye(len(m), dtype=torch.float64)
        generators = [RING.g_prod(eye, e.expand_as(eye)).T.contiguous() for e in eye]
        actions = [torch.kron(g, eye) + torch.kron(eye, g) for g in generators]
        self.rate = torch.stack([a @ a for a in actions]).sum(0) / 2

    def forward(self, x: Tensor, c: Tensor, log_norm: Tensor) -> Tensor:
        d, B = x.shape[1], math.exp(3 * float(c[0]) - 3)
        u = unit(x)
        q = (torch.linalg.matrix_exp(B * self.rate) @ self.q.flatten()).view(d, d)
        m = self.m * math.exp(-B / 2)
        score = (m + 2 * u @ q) / (1 + u @ m + ((u @ q) * u).sum(1))[:, None]
        return (score * math.sqrt(d) / float(rho(B, d))).to(x.dtype)


@pytest.fixture(scope="module")
def mixture() -> RotationModel:
    """Two heat kernels in three dimensions; the network keeps its tables from test to test."""
    return exact_model(MixtureNet(MEANS, BETAS), 3, RING)


@pytest.fixture(scope="module")
def quadratic() -> RotationModel:
    """Six features, with a density of at least a tenth of the uniform one."""
    generator = torch.Generator().manual_seed(0)
    m, q = (
        torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((6,), (6, 6))
    )
    q = q + q.T - torch.eye(6) * q.trace() / 3
    q, m = 0.5 * q / -torch.linalg.eigvalsh(q).min(), 0.4 * m / m.norm()
    return exact_model(QuadraticNet(m, q), 6, RING)


# ---- orders ----


ORDERS = pytest.mark.parametrize(
    ("solver", "order"), [(RingSplitting(), 2), (RingSplitting(midpoint=False), 1)]
)


def check_order(errors: list[float], order: int) -> None:
    """Assert the order of errors whose steps are halved from one to the next.

    The bound of the last error is for what else may be wrong.
    """
    rates = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert rates == pytest.approx([order] * len(rates), abs=0.4), errors
    assert errors[-1] < 0.01


def flow_errors(model: RotationModel, solver: Solver, exact: Tensor) -> list[float]:
    """Return the median angles to ``exact`` after 9, 17 and 33 steps from the same start."""
    n = len(exact)
    return [
        float(angles(sample_directions(model, n, solver, steps), exact).median())
        for steps in (9, 17, 33)
    ]


@pytest.fixture(scope="module")
def isotropic_flow(mixture: RotationModel) -> Tensor:
    return sample_directions(exact_model(mixture.net, 3), 400, SphericalMultistep(), 257)


@ORDERS
def test_the_flow_converges_to_that_of_the_isotropic_solvers(
    mixture: RotationModel, isotropic_flow: Tensor, solver: Solver, order: int
) -> None:
    check_order(flow_errors(mixture, solver, isotropic_flow), order)


@pytest.fixture(scope="module")
def runge_kutta_flow(quadratic: RotationModel) -> Tensor:
    return sample_directions(quadratic, 400, StratonovichRK4(eta=0.0), 128)


@ORDERS
def test_the_flow_converges_to_that_of_the_runge_kutta_solvers(
    quadratic: RotationModel, runge_kutta_flow: Tensor, solver: Solver, order: int
) -> None:
    """In six features, where ring noise differs from isotropic noise."""
    check_order(flow_errors(quadratic, solver, runge_kutta_flow), order)


@pytest.mark.parametrize(
    ("solver", "order", "steps"),
    [(RingSplitting(eta=1.0), 2, (7, 13)), (RingSplitting(midpoint=False, eta=1.0), 1, (5, 9))],
)
def test_the_reversed_sde_converges_weakly(
    mixture: RotationModel, solver: Solver, order: int, steps: tuple[int, int]
) -> None:
    n = 320_000
    errors = [legendre_error(sample_directions(mixture, n, solver, k)) for k in steps]
    assert errors[0] > 5 * 0.5 / n**0.5  # of the Monte Carlo error
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.4), errors


# ---- distributions ----


@pytest.fixture(scope="module")
def mixture_reference(mixture: RotationModel) -> Tensor:
    return mixture_samples(mixture.net, 6000)


@pytest.mark.parametrize("solver", SOLVERS)
def test_reversal_recovers_a_mixture_of_heat_kernels(
    mixture: RotationModel, mixture_reference: Tensor, solver: RingSplitting
) -> None:
    """With as many network calls as the isotropic solvers have for it."""
    u = sample_directions(mixture, 6000, solver, 17 if solver.midpoint else 65)
    for axis in (*unit(MEANS), torch.tensor([0.0, 0.6, -0.8]).double()):
        assert kolmogorov_smirnov(u @ axis, mixture_reference @ axis)[1] >= 1e-5


def test_it_is_as_exact_as_the_isotropic_solver_at_equal_nfe(mixture: RotationModel) -> None:
    """By sliced Wasserstein-2 and moments; the Monte Carlo error of both is the same."""
    n = 12_000
    ring = sample_directions(mixture, n, RingSplitting(), 10)
    isotropic = sample_directions(exact_model(mixture.net, 3), n, SphericalMultistep(), 19)
    expected = mixture_samples(mixture.net, n, seed=5)
    assert legendre_error(ring) < legendre_error(isotropic) + 0.5 / n**0.5
    floor = max(
        sliced_wasserstein(mixture_samples(mixture.net, n, seed), expected, 32)
        for seed in range(6, 11)
    )
    assert sliced_wasserstein(ring, expected, 32) < 1.5 * floor


@pytest.mark.parametrize("solver", SOLVERS)
def test_reversal_recovers_a_quadratic_distribution(
    quadratic: RotationModel, solver: RingSplitting
) -> None:
    """E u = m / d and E u u' = I / d + 2 Q / (d (d + 2)), within 4.5 standard errors."""
    n, d, net = 12_000, 6, quadratic.net
    u = sample_directions(quadratic, n, solver, 17 if solver.midpoint else 65)
    products = u[:, :, None] * u[:, None]
    uniform = torch.eye(d, dtype=torch.float64) / d
    for got, expected, start in (
        (u, net.m / d, torch.zeros(d)),
        (products, uniform + 2 * net.q / (d * (d + 2)), uniform),
    ):
        error = got.std(0) / n**0.5
        assert float(((got.mean(0) - expected) / error).abs().max()) < 4.5
        # Without a drift samples would stay at the start.
        assert float(((start - expected) / error).abs().max()) > 9


@pytest.mark.parametrize("solver", [*SOLVERS, RingSplitting(eta=0.3)])
@pytest.mark.parametrize("d", [2, 3])
def test_no_noise_is_left(d: int, solver: Solver) -> None:
    """Samples of one data point are that point.

    Before its last step a direction is about sqrt(B) = 0.01 away from it, and the step is right up
    to the cube of that angle.
    """
    net = MixtureNet(torch.randn(1, d, generator=torch.Generator().manual_seed(0)), [0.0])
    errors = angles(sample_directions(exact_model(net, d, RING), 500, solver), net.means)
    assert float(errors.quantile(0.9)) < 1e-5
    assert float(errors.max()) < 1e-4


@pytest.mark.parametrize("solver", SOLVERS)
def test_one_step_rotates_by_twice_the_flow(solver: RingSplitting) -> None:
    """At d = 2 both pairs rotate the same way: the angle grows by B s, s the score along it."""
    model, f = exact_model(nn.Identity(), 2, RING), torch.tensor([1.0, -2.0])
    model.net.forward = lambda x, c, **_: f.expand_as(x)
    start = unit(rng.normals(20, 2, rng.stream(0), rng.Purpose.PRIOR, 0))
    B = model.process.B_max
    score = float(rho(B, 2)) / math.sqrt(2) * (start[:, 0] * f[1] - start[:, 1] * f[0])
    angle = torch.atan2(start[:, 1], start[:, 0]) + B * score
    got = sample_directions(model, 20, solver, 1)
    torch.testing.assert_close(got, torch.stack((angle.cos(), angle.sin()), 1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("solver", SOLVERS)
def test_norms_are_kept_by_1000_steps(
    solver: RingSplitting, monkeypatch: pytest.MonkeyPatch
) -> None:
    cheap_normals(monkeypatch)
    model, steps = rough_model(RING), 500 if solver.midpoint else 1000
    x = sample(model, 8, solver=solver, steps=steps, batch_size=8, progress=False)
    expected = model.prior.sample(8, rng.stream(0)).double()
    assert float((x.double().norm(dim=1) / expected - 1).abs().max()) < 1e-6


# ---- plans ----


@pytest.mark.parametrize("steps", [1, 2, 3, 20])
@pytest.mark.parametrize("solver", SOLVERS)
def test_plans(solver: RingSplitting, steps: int) -> None:
    model, calls = rough_model(RING), []
    plan = plan_for(model, solver, steps)
    assert isinstance(plan, RingPlan)
    assert plan.nfe == len(plan.flags) == (2 * steps - 1 if solver.midpoint else steps)
    forward = model.net.forward
    model.net.forward = lambda x, c, **cond: [calls.append(float(c[0])), forward(x, c, **cond)][1]
    sample(model, 5, solver=solver, steps=steps, progress=False)
    assert calls == pytest.approx((np.log(plan.noise_levels) + 3) / 3, abs=1e-6)
    assert plan.noise_levels[0] == pytest.approx(model.process.B_max)
    assert steps == 1 or plan.noise_levels[-1] == pytest.approx(B_MIN)
    drift, noise, c_in = plan.table.T
    drift = math.pi * drift
    assert np.isfinite(drift).all()
    assert (c_in == math.sqrt(3)).all()
    assert noise[-1] == 0
    rho_last = model.preconditioning.coefficients(plan.noise_levels[-1:])[0, 2]
    assert drift[-1] == pytest.approx(plan.noise_levels[-1] / 2 * rho_last)
    pair = (False, True) if solver.midpoint else (False,)
    assert tuple(f.restart for f in plan.flags) == (*pair * (steps - 1), False)
    assert [f.noisy for f in plan.flags] == (noise > 0).tolist()


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_overshoot_and_noise_make_up_a_step(eta: float) -> None:
    """The flow goes to B' (B' / B)^eta, and noise leads back to B'.

    The flow lasts for a B of 4 sqrt(d) drift / rho, the noise for a B of 2 noise^2.
    """
    model = rough_model(RING)
    plan = RingSplitting(eta=eta).plan(model.preconditioning, 10)
    drift, noise = math.pi * plan.table.T[:2]
    length = 4 * drift / model.preconditioning.coefficients(plan.noise_levels)[:, 2]
    before, after = plan.noise_levels[:-2:2], plan.noise_levels[2::2]
    assert (noise[::2] == 0).all()
    end = after - 2 * noise[1::2] ** 2
    assert end == pytest.approx(after * (after / before) ** eta)
    assert length[1::2] == pytest.approx(before - end)
    assert np.sqrt(plan.noise_levels[1::2]) == pytest.approx((np.sqrt(before) + np.sqrt(end)) / 2)
    assert length[:-1:2] == pytest.approx(np.sqrt(before) * (np.sqrt(before) - np.sqrt(end)))


# ---- states ----


def by_reference(model: RotationModel, plan: RingPlan, n: int) -> Tensor:
    """Return directions, all in float64, with the noise of seed 0."""
    stream, preconditioning = rng.stream(0), model.preconditioning
    first_nonfinite_step = torch.full((n,), -1, dtype=torch.int32)
    u = unit(rng.normals(n, preconditioning.d, stream, rng.Purpose.PRIOR, 0, torch.float64))
    norms, table = model.prior.sample(n, stream), torch.from_numpy(plan.table)
    step_start, model_input = torch.zeros_like(u), u * preconditioning.c_in
    for row, flags in enumerate(plan.flags):
        c_noise = torch.full((n,), float(plan.c_noise[row]))
        f = model.net(model_input, c_noise, **model.condition_of(norms))
        reference.ring_step(
            u, f, table, stream, row, first_nonfinite_step, u, step_start, model_input, *flags
        )
    return u


@pytest.mark.parametrize("solver", SOLVERS)
def test_backends_agree_on_whole_samples(
    quadratic: RotationModel, solver: RingSplitting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within the bound of a single step's tests."""
    n, samples = 200, {}
    for backend in ("cpu", "reference"):
        monkeypatch.setenv("FASTMSGM_BACKEND", backend)
        samples[backend] = sample_directions(quadratic, n, solver, 6)
    exact = by_reference(quadratic, solver.plan(quadratic.preconditioning, 6), n)
    assert_close(samples["cpu"], samples["reference"], exact)


def images(**options: Any) -> RotationModel:
    torch.manual_seed(0)
    net = UNet(1, 16, 32, 1, 2, condition={"log_norm": 1})
    nn.init.normal_(net.out.weight, std=0.05)
    data = torch.rand(20, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    return RotationModel.for_data(net, RING, data, **options)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_part_of_the_stream_is_bit_equal(solver: Solver) -> None:
    model = images(offset=-0.5, precision="bf16")
    options: dict[str, Any] = {"solver": solver, "steps": 4, "batch_size": 32, "progress": False}
    whole = sample(model, 100, seed=3, **options)
    assert whole.shape == (100, 1, 4, 4)
    assert torch.equal(whole[40:60], sample(model, 20, seed=3, start=40, **options))
    assert torch.equal(whole[99:], sample(model, 1, seed=3, start=99, **options))
    assert not torch.equal(whole, sample(model, 100, seed=4, **options))
    assert len(whole.unique(dim=0)) == 100
    norms = model.prior.sample(100, rng.stream(3))
    torch.testing.assert_close((whole - 0.5).flatten(1).norm(dim=1), norms, rtol=1e-5, atol=0)


@pytest.mark.parametrize("row", [0, 1, 6])
def test_a_nonfinite_sample_is_named_and_harms_no_other(row: int) -> None:
    """NaN from the network at one row, for sample 3 of the first chunk.

    The other samples and the next chunk are as without it.
    """
    model = rough_model(RING)
    options: dict[str, Any] = {"steps": 4, "batch_size": 8, "progress": False}
    whole, forward = sample(model, 16, **options), model.net.forward
    for start in (0, 4):
        calls = itertools.count()

        def fail(x: Tensor, c: Tensor, log_norm: Tensor, calls: Iterator[int] = calls) -> Tensor:
            f = forward(x, c, log_norm=log_norm)
            return f.index_fill(0, torch.tensor([3]), math.nan) if next(calls) == row else f

        model.net.forward = fail
        if start == 0:
            with pytest.raises(
                NonFiniteError, match=rf"non-finite state at step {row} in 1 samples \(3\)"
            ):
                sample(model, 16, **options)
        else:
            assert torch.equal(sample(model, 12, start=start, **options), whole[4:])


def test_callbacks_see_states_of_the_samples_norm() -> None:
    model, steps = images(), list[Step]()
    x = sample(model, 20, steps=3, batch_size=32, progress=False, callback=steps.append)
    expected = [*plan_for(model, None, 3).noise_levels, 0]
    assert [step.noise_level for step in steps] == pytest.approx(expected)
    norms = x.flatten(1).norm(dim=1)
    for step in steps:
        torch.testing.assert_close(step.x[:20].flatten(1).norm(dim=1), norms, rtol=2e-6, atol=0)
        assert step.denoised is None
    assert torch.equal(steps[-1].x[:20], x)


# ---- names and errors ----


def test_the_default_solver_is_that_of_the_name() -> None:
    ring = rough_model(RING)
    x = sample(ring, 5, progress=False)
    assert torch.equal(x, sample(ring, 5, solver="ring-splitting", progress=False))
    assert not torch.equal(x, sample(ring, 5, solver=StratonovichHeun(), steps=5, progress=False))


@pytest.mark.parametrize("solver", [*SOLVERS, "ring-splitting", "sde-ring-splitting"])
@pytest.mark.parametrize("noise", ["isotropic", "dense"])
def test_other_noise_is_refused(noise: str, solver: str | Solver) -> None:
    message = rf"solver RingSplitting\(.* needs ring noise, got Rotation\(.*'{noise}'"
    with pytest.raises(ValueError, match=message):
        sample(rough_model(Rotation(noise)), 5, solver=solver)
