"""The ring's splitting solver with exact scores: orders of convergence, laws recovered, no noise left, walk, errors.

At d = 3 ring noise is isotropic noise, so that mixtures of heat kernels have known scores; beyond, quadratic laws.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from exact_rotation import MixtureNet, exact_model, unit
from oracle import assert_close
from test_rotation_solvers import CENTRES, CLOCKS, angles, draw, legendre_error, mixture_samples, rough_model
from torch import Tensor, nn

from fastmsgm import GBM, GBMModel, NonFiniteError, Rotation, RotationModel, heat_kernel, reference, rng, sample
from fastmsgm.metrics import kolmogorov_smirnov, sliced_wasserstein
from fastmsgm.nets import MLP, UNet
from fastmsgm.rotation_model import CLOCK_MIN
from fastmsgm.sampling import plan_for
from fastmsgm.solvers import (
    RingPlan,
    RingSplitting,
    Solver,
    SphericalMultistep,
    StratonovichHeun,
    StratonovichRK4,
    resolve,
)  # fmt: skip

RING = Rotation("ring")
KINDS = [RingSplitting(), RingSplitting(eta=1.0), RingSplitting(midpoint=False), RingSplitting(midpoint=False, eta=1.0)]


class QuadraticNet(nn.Module):
    """The law 1 + m.u + u'Qu under ring noise, which lets m shrink and acts on Q by sum_k (G^k . + . G^k')^2 / 2."""

    def __init__(self, m: Tensor, q: Tensor) -> None:
        super().__init__()
        self.m, self.q, eye = m, q, torch.eye(len(m), dtype=torch.float64)
        generators = [RING.turn(eye, row.expand_as(eye)).T.contiguous() for row in eye]
        actions = [torch.kron(g, eye) + torch.kron(eye, g) for g in generators]
        self.rate = sum(a @ a for a in actions) / 2

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        d, clock = x.shape[1], math.exp(3 * float(c[0, 0]) - 3)
        u = unit(x)
        q = (torch.linalg.matrix_exp(clock * self.rate) @ self.q.flatten()).view(d, d)
        m = self.m * math.exp(-clock / 2)
        score = (m + 2 * u @ q) / (1 + u @ m + ((u @ q) * u).sum(1))[:, None]
        return (score * math.sqrt(d) / float(heat_kernel.rho(clock, d))).to(x.dtype)


@pytest.fixture(scope="module")
def mixture() -> RotationModel:
    """Two heat kernels on the sphere in three dimensions; the network keeps its tables from test to test."""
    return exact_model(MixtureNet(CENTRES, CLOCKS), 3, RING)


@pytest.fixture(scope="module")
def quadratic() -> RotationModel:
    """Of six features, with a density of at least a tenth of the uniform one's."""
    generator = torch.Generator().manual_seed(0)
    m, q = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((6,), (6, 6)))
    q = q + q.T - torch.eye(6) * q.trace() / 3
    q, m = 0.5 * q / -torch.linalg.eigvalsh(q).min(), 0.4 * m / m.norm()
    return exact_model(QuadraticNet(m, q), 6, RING)


# ---- orders ----


ORDERS = pytest.mark.parametrize(("solver", "order"), [(RingSplitting(), 2), (RingSplitting(midpoint=False), 1)])


def check_order(errors: list[float], order: int) -> None:
    """Of steps that are halved from error to error; an extrapolation of the last error bounds what else is wrong."""
    rates = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert rates == pytest.approx([order] * len(rates), abs=0.4), errors
    assert errors[-1] < 0.01


@ORDERS
def test_the_flow_converges_to_the_isotropic_solvers(mixture: RotationModel, solver: Solver, order: int) -> None:
    """Pathwise from the same start (median over samples)."""
    exact = draw(exact_model(mixture.net, 3), 400, SphericalMultistep(), 257)
    check_order([float(angles(draw(mixture, 400, solver, k), exact).median()) for k in (9, 17, 33)], order)


@ORDERS
def test_the_flow_converges_to_the_ambient_solvers(quadratic: RotationModel, solver: Solver, order: int) -> None:
    """The same in six features, where ring noise is a noise of its own."""
    exact = draw(quadratic, 400, StratonovichRK4(lambda_=1.0), 128)
    check_order([float(angles(draw(quadratic, 400, solver, k), exact).median()) for k in (9, 17, 33)], order)


@pytest.mark.parametrize(
    ("solver", "order", "steps"),
    [(RingSplitting(eta=1.0), 2, (7, 13)), (RingSplitting(midpoint=False, eta=1.0), 1, (5, 9))],
)
def test_the_reversed_sde_converges_weakly(
    mixture: RotationModel, solver: Solver, order: int, steps: tuple[int, int]
) -> None:
    n = 320_000
    errors = [legendre_error(draw(mixture, n, solver, k)) for k in steps]
    assert errors[0] > 5 * 0.5 / n**0.5  # of the Monte Carlo error
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.4), errors


# ---- laws ----


@pytest.mark.parametrize("solver", KINDS)
def test_reversal_recovers_a_mixture_of_heat_kernels(mixture: RotationModel, solver: RingSplitting) -> None:
    """At the network calls that the isotropic solvers are given for it."""
    n = 6000
    u, expected = draw(mixture, n, solver, 17 if solver.midpoint else 65), mixture_samples(mixture.net, n)
    for axis in (*unit(CENTRES), torch.tensor([0.0, 0.6, -0.8]).double()):
        assert kolmogorov_smirnov(u @ axis, expected @ axis)[1] >= 1e-5


def test_it_is_as_exact_as_the_isotropic_solver_at_equal_calls(mixture: RotationModel) -> None:
    """Sliced Wasserstein-2 and moments; of the Monte Carlo error, which is the same, both have little more."""
    n = 12_000
    ring = draw(mixture, n, RingSplitting(), 10)
    isotropic = draw(exact_model(mixture.net, 3), n, SphericalMultistep(), 19)
    expected = mixture_samples(mixture.net, n, seed=5)
    assert legendre_error(ring) < legendre_error(isotropic) + 0.5 / n**0.5
    floor = max(sliced_wasserstein(mixture_samples(mixture.net, n, seed), expected, 32) for seed in range(6, 11))
    assert sliced_wasserstein(ring, expected, 32) < 1.5 * floor


@pytest.mark.parametrize("solver", KINDS)
def test_reversal_recovers_a_quadratic_law(quadratic: RotationModel, solver: RingSplitting) -> None:
    """E u = m / d and E u u' = I / d + 2 Q / (d (d + 2)), within 4.5 standard errors."""
    n, d, net = 12_000, 6, quadratic.net
    u = draw(quadratic, n, solver, 17 if solver.midpoint else 65)
    products = u[:, :, None] * u[:, None]
    uniform = torch.eye(d, dtype=torch.float64) / d
    for got, expected, start in (
        (u, net.m / d, torch.zeros(d)),
        (products, uniform + 2 * net.q / (d * (d + 2)), uniform),
    ):
        error = got.std(0) / n**0.5
        assert float(((got.mean(0) - expected) / error).abs().max()) < 4.5
        assert float(((start - expected) / error).abs().max()) > 9  # what no drift would do


@pytest.mark.parametrize("solver", [*KINDS, RingSplitting(eta=0.3)])
@pytest.mark.parametrize("d", [2, 3])
def test_no_noise_is_left(d: int, solver: Solver) -> None:
    """Samples of one data point are that point: before its last step a direction is about sqrt(B) = 0.01 away from it,
    and the step is right up to the cube of that angle."""
    net = MixtureNet(torch.randn(1, d, generator=torch.Generator().manual_seed(0)), [0.0])
    errors = angles(draw(exact_model(net, d, RING), 500, solver), net.centres)
    assert float(errors.quantile(0.9)) < 1e-5
    assert float(errors.max()) < 1e-4


def test_one_step_turns_by_twice_the_flow() -> None:
    """At d = 2 both pairs turn the same way, and the angle of u grows by B s for a score s along the circle."""
    model, f = exact_model(nn.Identity(), 2, RING), torch.tensor([1.0, -2.0])
    model.net.forward = lambda x, c: f.expand_as(x)
    start = unit(torch.empty(20, 2).copy_(rng.normals(20, 2, rng.stream(0), rng.Kind.PRIOR, 0)))
    clock = model.process.clock_max
    rho = float(heat_kernel.rho(clock, 2))
    score = rho / math.sqrt(2) * (start[:, 0] * f[1] - start[:, 1] * f[0])
    angle = torch.atan2(start[:, 1], start[:, 0]) + clock * score
    for solver in KINDS:
        got = draw(model, 20, solver, 1)
        torch.testing.assert_close(got, torch.stack((angle.cos(), angle.sin()), 1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("solver", KINDS)
def test_norms_are_kept_by_1000_steps(solver: RingSplitting) -> None:
    model = rough_model(RING)
    x = sample(model, 8, solver=solver, steps=500 if solver.midpoint else 1000, batch_size=8, progress=False)
    expected = model.prior.draw(8, rng.stream(0)).double()
    assert float((x.double().norm(dim=1) / expected - 1).abs().max()) < 1e-6


# ---- plans ----


@pytest.mark.parametrize("steps", [1, 2, 3, 20])
@pytest.mark.parametrize("solver", KINDS)
def test_plans(solver: RingSplitting, steps: int) -> None:
    model, calls = rough_model(RING), []
    plan = plan_for(model, solver, steps)
    assert isinstance(plan, RingPlan)
    assert plan.calls == len(plan.restart) == (2 * steps - 1 if solver.midpoint else steps)
    forward = model.net.forward
    model.net.forward = lambda x, c: [calls.append(float(c[0, 0])), forward(x, c)][1]
    sample(model, 5, solver=solver, steps=steps, progress=False)
    assert calls == pytest.approx((np.log(plan.levels) + 3) / 3, abs=1e-6)
    assert plan.levels[0] == pytest.approx(model.process.clock_max)
    assert steps == 1 or plan.levels[-1] == pytest.approx(CLOCK_MIN)
    drift, noise, c_in = plan.table.T
    drift = math.pi * drift
    assert np.isfinite(drift).all()
    assert (c_in == math.sqrt(3)).all()
    assert noise[-1] == 0
    assert drift[-1] == pytest.approx(plan.levels[-1] / 2 * model.coefficients(plan.levels[-1:])[0, 2])
    assert plan.restart == ((False, True) * (steps - 1) if solver.midpoint else (False,) * (steps - 1)) + (False,)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_overshoot_and_noise_make_up_a_step(eta: float) -> None:
    """Flow for a clock of 4 sqrt(d) drift / rho to B' (B' / B)^eta, then noise of a clock of 2 noise^2 back to B'."""
    model = rough_model(RING)
    plan = RingSplitting(eta=eta).plan(model, 10)
    drift, noise = math.pi * plan.table.T[:2]
    clock = 4 * drift / model.coefficients(plan.levels)[:, 2]
    before, after = plan.levels[:-2:2], plan.levels[2::2]
    assert (noise[::2] == 0).all()
    end = after - 2 * noise[1::2] ** 2
    assert end == pytest.approx(after * (after / before) ** eta)
    assert clock[1::2] == pytest.approx(before - end)
    assert np.sqrt(plan.levels[1::2]) == pytest.approx((np.sqrt(before) + np.sqrt(end)) / 2)
    assert clock[:-1:2] == pytest.approx(np.sqrt(before) * (np.sqrt(before) - np.sqrt(end)))


# ---- the walk ----


def draw_by_reference(model: RotationModel, plan: RingPlan, n: int) -> Tensor:
    """Directions, all in float64, from the normals of the stream of seed 0."""
    stream, bad = rng.stream(0), torch.full((n,), -1, dtype=torch.int32)
    u = unit(rng.normals(n, model.dimension, stream, rng.Kind.PRIOR, 0, torch.float64))
    norms, table = model.prior.draw(n, stream), torch.from_numpy(plan.table)
    history, net_in = torch.zeros_like(u), u * model.input_scale
    for k, form in enumerate(zip(plan.restart, plan.noisy, strict=True)):
        f = model.net(net_in, model.condition(plan.levels[k][None], norms))
        reference.ring_step(u, f, table, stream, k, bad, u, history, net_in, *form)
    return u


@pytest.mark.parametrize("solver", KINDS)
def test_backends_agree_on_whole_samples(
    quadratic: RotationModel, solver: Solver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within the bound of a single step's tests."""
    n, drawn = 200, {}
    for backend in ("cpu", "reference"):
        monkeypatch.setenv("FASTMSGM_BACKEND", backend)
        drawn[backend] = draw(quadratic, n, solver, 6)
    exact = draw_by_reference(quadratic, solver.plan(quadratic, 6), n)
    assert_close(drawn["cpu"], drawn["reference"], exact)


def pictures(**options: Any) -> RotationModel:
    torch.manual_seed(0)
    net = UNet(1, 16, 32, 1, 2, conditions=2)
    nn.init.normal_(net.out.weight, std=0.05)
    images = torch.rand(20, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    return RotationModel.for_data(net, RING, images, **options)


@pytest.mark.parametrize("solver", KINDS)
def test_a_part_of_the_stream_is_bit_equal(solver: Solver) -> None:
    model = pictures(offset=-0.5, precision="bf16")
    options: dict[str, Any] = {"solver": solver, "steps": 4, "batch_size": 32, "progress": False}
    whole = sample(model, 100, seed=3, **options)
    assert whole.shape == (100, 1, 4, 4)
    assert torch.equal(whole[40:60], sample(model, 20, seed=3, start=40, **options))
    assert torch.equal(whole[99:], sample(model, 1, seed=3, start=99, **options))
    assert not torch.equal(whole, sample(model, 100, seed=4, **options))
    assert len(whole.unique(dim=0)) == 100
    norms = model.prior.draw(100, rng.stream(3))
    torch.testing.assert_close((whole - 0.5).flatten(1).norm(dim=1), norms, rtol=1e-5, atol=0)


@pytest.mark.parametrize("row", [0, 1, 6])
def test_a_lost_sample_is_named_and_harms_no_other(row: int) -> None:
    """NaN from the network at one row, for a sample of the first chunk: the rest and the next chunk are as without."""
    model = rough_model(RING)
    options: dict[str, Any] = {"steps": 4, "batch_size": 8, "progress": False}
    whole, forward = sample(model, 16, **options), model.net.forward
    for start in (0, 4):
        calls = itertools.count()

        def lose(x: Tensor, c: Tensor, calls: Iterator[int] = calls) -> Tensor:
            f = forward(x, c)
            return f.index_fill(0, torch.tensor([3]), math.nan) if next(calls) == row else f

        model.net.forward = lose
        if start == 0:
            with pytest.raises(NonFiniteError, match=rf"non-finite state at step {row} in 1 samples \(3\)"):
                sample(model, 16, **options)
        else:
            assert torch.equal(sample(model, 12, start=start, **options), whole[4:])


def test_callbacks_see_states_of_the_samples_norm() -> None:
    model, steps = pictures(), []
    x = sample(model, 20, steps=3, batch_size=32, progress=False, callback=steps.append)
    assert [step.level for step in steps] == pytest.approx([*plan_for(model, None, 3).levels, 0])
    for step in steps:
        torch.testing.assert_close(step.x[:20].flatten(1).norm(dim=1), x.flatten(1).norm(dim=1), rtol=2e-6, atol=0)
        assert step.denoised is None
    assert torch.equal(steps[-1].x[:20], x)


# ---- names and errors ----


def test_rings_have_it_by_name_and_by_default() -> None:
    ring, isotropic, dense = (rough_model(Rotation(noise)) for noise in ("ring", "isotropic", "dense"))
    assert resolve(None, ring) == resolve("ring-splitting", ring) == RingSplitting()
    assert resolve(None, isotropic) == SphericalMultistep()
    assert resolve("sde-ring-splitting", ring) == RingSplitting(eta=1.0)
    assert resolve(None, dense) == StratonovichRK4()
    x = sample(ring, 5, progress=False)
    assert torch.equal(x, sample(ring, 5, solver="ring-splitting", progress=False))
    assert not torch.equal(x, sample(ring, 5, solver=StratonovichHeun(), steps=5, progress=False))


@pytest.mark.parametrize("solver", [*KINDS, "ring-splitting", "sde-ring-splitting"])
def test_other_noises_and_processes_are_refused(solver: str | Solver) -> None:
    for noise in ("isotropic", "dense"):
        with pytest.raises(ValueError, match=rf"solver RingSplitting\(.* needs ring noise, got Rotation\(.*'{noise}'"):
            sample(rough_model(Rotation(noise)), 5, solver=solver)
    positive = GBMModel.for_data(MLP(3, 8, 1), GBM(5.0), torch.linspace(1, 2, 60).view(20, 3))
    if isinstance(solver, str):
        with pytest.raises(ValueError, match=rf"solver must be one of .*dale-langevin.*, got '{solver}'"):
            sample(positive, 5, solver=solver)
    else:
        with pytest.raises(TypeError, match=r"solver RingSplitting\(.* is for rotations, got a GBMModel"):
            sample(positive, 5, solver=solver)


@pytest.mark.parametrize("eta", [-0.1, 1.5, math.nan])
def test_options_out_of_range_are_refused(eta: float) -> None:
    with pytest.raises(ValueError, match=rf"eta must be in \[0, 1\] \(0 the ODE, 1 the SDE\), got {eta}"):
        RingSplitting(eta=eta)
