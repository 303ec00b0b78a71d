"""Solvers of all families: names, the time grid, eta from the ODE to the SDE, and refusals."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastmsgm import rng, sample, solvers
from fastmsgm.families import FAMILIES, solver_names
from fastmsgm.gbm import GBM, GBMModel
from fastmsgm.model import ScoreModel
from fastmsgm.nets import MLP
from fastmsgm.rotation import Rotation, RotationModel
from fastmsgm.sampling import plan_for
from fastmsgm.sde import VP, VPModel
from fastmsgm.solver import Plan, Solver, karras_sigmas
from fastmsgm.solvers import (
    ERSDE2,
    DaleLangevin,
    DPMSolverPP2M,
    Euler,
    EulerMaruyama,
    GeodesicEuler,
    GeodesicHeun,
    Heun,
    RingSplitting,
    RungeKuttaSolver,
    SignAgnostic,
    SphericalMultistep,
    StratonovichHeun,
    StratonovichRK4,
    resolve,
)


def vectors(d: int = 3) -> Tensor:
    return torch.rand(50, d, generator=torch.Generator().manual_seed(0)) + 1


def gbm(prediction: str = "denoiser") -> GBMModel:
    torch.manual_seed(0)
    process = GBM(5.0 if prediction == "denoiser" else 0.8)
    return GBMModel.for_data(MLP(3, 8, 1), process, vectors(), prediction=prediction).eval()


def rotation(noise: str = "isotropic") -> RotationModel:
    torch.manual_seed(0)
    net = MLP(3, 8, 1, condition={"log_norm": 1})
    return RotationModel.for_data(net, Rotation(noise=noise), vectors()).eval()


def vp() -> VPModel:
    torch.manual_seed(0)
    return VPModel.for_data(MLP(3, 8, 1), VP(), vectors()).eval()


# ---- names ----


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (gbm, DPMSolverPP2M(eta=1.0)),
        (lambda: gbm("score"), DaleLangevin()),
        (lambda: gbm("hyvarinen"), DaleLangevin()),
        (rotation, SphericalMultistep()),
        (lambda: rotation("ring"), RingSplitting()),
        (lambda: rotation("dense"), StratonovichRK4()),
        (vp, StratonovichRK4()),
    ],
)
def test_default_solvers(build: Callable[[], ScoreModel], expected: Solver) -> None:
    model = build()
    assert model.default_solver == resolve(None, model) == expected


@pytest.mark.parametrize(
    ("build", "names"),
    [
        (
            gbm,
            {
                "euler": Euler(),
                "heun": Heun(),
                "dpm++2m": DPMSolverPP2M(),
                "sde-dpm++2m": DPMSolverPP2M(eta=1.0),
                "er-sde-2": ERSDE2(),
                "dale-langevin": DaleLangevin(),
                "sign-agnostic": SignAgnostic(),
                "dls": DaleLangevin(),
                "ums": SignAgnostic(),
            },
        ),
        (
            rotation,
            {
                "euler": SphericalMultistep(order=1),
                "dpm++2m": SphericalMultistep(),
                "sde-dpm++2m": SphericalMultistep(eta=0.6),
                "geodesic-euler": GeodesicEuler(),
                "geodesic-heun": GeodesicHeun(),
                "ring-splitting": RingSplitting(),
                "sde-ring-splitting": RingSplitting(eta=1.0),
                "euler-maruyama": EulerMaruyama(),
                "stratonovich-heun": StratonovichHeun(),
                "stratonovich-rk4": StratonovichRK4(),
            },
        ),
        (
            vp,
            {
                "euler-maruyama": EulerMaruyama(),
                "stratonovich-heun": StratonovichHeun(),
                "stratonovich-rk4": StratonovichRK4(),
            },
        ),
    ],
)
def test_every_name_gives_its_solver(
    build: Callable[[], ScoreModel], names: dict[str, Solver]
) -> None:
    model = build()
    assert {name: resolve(name, model) for name in model.solvers} == names


def test_a_solver_is_returned_as_it_is() -> None:
    own = DaleLangevin(anneal=0.5)
    assert resolve(own, gbm()) is own


def test_solver_names_are_those_of_all_families() -> None:
    names = solver_names()
    assert len(names) == len(set(names))
    assert set(names) == {name for model in FAMILIES.values() for name in model.solvers}


@pytest.mark.parametrize(
    ("build", "names", "allowed"),
    [
        (
            gbm,
            ("rk4", "geodesic-euler", "ring-splitting", "sde-ring-splitting"),
            "euler, .*dale-langevin.*ums",
        ),
        (rotation, ("heun", "dale-langevin", "dls", "er-sde-2", "x"), "euler, .*geodesic-heun.*"),
        (vp, ("euler", "heun", "dpm++2m"), "euler-maruyama, stratonovich-heun, stratonovich-rk4"),
    ],
)
def test_an_unknown_name_is_refused(
    build: Callable[[], ScoreModel], names: tuple[str, ...], allowed: str
) -> None:
    model = build()
    for name in names:
        message = rf"solver must be one of {allowed}, got '.*' for a {model.family} model"
        with pytest.raises(ValueError, match=message):
            resolve(name, model)
        with pytest.raises(ValueError, match=message):
            sample(model, 5, solver=name)


def test_what_is_no_solver_is_refused() -> None:
    wrong: Any
    for wrong in (3, Heun, ["heun"]):
        with pytest.raises(TypeError, match="solver must be a name or a Solver, got"):
            resolve(wrong, gbm())
        with pytest.raises(TypeError, match="solver must be a name or a Solver, got"):
            sample(rotation(), 5, solver=wrong)


# ---- the time grid ----


@pytest.mark.parametrize("rho", [1.0, 7.0])
def test_karras_sigmas_are_evenly_spaced_in_their_root(rho: float) -> None:
    grid = karras_sigmas(9, 0.002, 80.0, rho)
    assert grid[[0, -2, -1]] == pytest.approx([80.0, 0.002, 0.0])
    spacing = np.diff(grid[:-1] ** (1 / rho))
    assert spacing == pytest.approx([spacing[0]] * 8)
    assert spacing[0] < 0


def test_one_step_goes_from_the_largest_noise_level_to_zero() -> None:
    assert karras_sigmas(1, 0.002, 80.0) == pytest.approx([80.0, 0.0])
    steps: Any
    for steps in (0, -1):
        with pytest.raises(ValueError, match=f"steps must be at least 1, got {steps}"):
            karras_sigmas(steps, 0.002, 80.0)
    for steps in (2.0, True):
        with pytest.raises(TypeError, match=f"steps must be an int, got {steps}"):
            karras_sigmas(steps, 0.002, 80.0)


# ---- eta ----


ETA: dict[type[Any], list[Callable[[], ScoreModel]]] = {
    DPMSolverPP2M: [gbm],
    SphericalMultistep: [rotation],
    GeodesicEuler: [rotation],
    RingSplitting: [lambda: rotation("ring")],
    EulerMaruyama: [lambda: rotation("ring"), lambda: rotation("dense"), vp],
    StratonovichHeun: [rotation, lambda: rotation("ring"), vp],
    StratonovichRK4: [lambda: rotation("dense"), vp],
}
CASES = [(solver, build) for solver, builds in ETA.items() for build in builds]


def test_the_table_has_every_solver_with_eta() -> None:
    classes = [getattr(solvers, name) for name in solvers.__all__ if name != "RungeKuttaSolver"]
    found = {
        c
        for c in classes
        if dataclasses.is_dataclass(c) and isinstance(c, type) and issubclass(c, Solver)
        if "eta" in {field.name for field in dataclasses.fields(c)}
    }
    assert found == set(ETA)
    assert issubclass(EulerMaruyama, RungeKuttaSolver)


def after_a_step(model: ScoreModel, plan: Plan, step: int, steps: int, seed: int, n: int) -> Tensor:
    """Return the state after one step from the prior, with the noise of a seed.

    Args:
        model: Its network returns zero, so that noise is all that moves the state at random.
        plan: Of ``steps`` steps.
        step: Which of them is taken.
        steps: Of the plan.
        seed: Of the step's noise; the prior has seed 0.
        n: Number of samples.

    Returns:
        (n, d) log x for GBM, directions for rotations, x for VP; float64.
    """
    state, rows = plan.state(model, n), math.ceil(plan.nfe / steps)
    first_nonfinite_step = torch.full((n,), -1, dtype=torch.int32)
    state.sample_prior(rng.stream(0), None)
    streams = rng.by_step(rng.stream(seed), plan.nfe)
    for row in range(step * rows, (step + 1) * rows):
        output = torch.zeros_like(state.model_input)
        state.step(state.flags[row], output, streams[row], first_nonfinite_step)
    assert bool((first_nonfinite_step == -1).all())
    x = state.x(slice(None)).double()
    if model.family == "GBM":
        return torch.log(x.abs())
    return x if model.family == "VP" else x / x.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("solver", "build"), CASES)
def test_eta_is_the_share_of_the_noise_of_the_forward_process(
    solver: type[Any], build: Callable[[], ScoreModel], eta: float
) -> None:
    """Eta = 0 is deterministic; at eta = 1 a short step has the noise of the reverse SDE.

    Its variance is then that of the forward process over the step: s^2 - s'^2 in every feature of
    log x, B - B' in every feature of VP's x, and B - B' in all for a direction.
    """
    steps, step, model = 400, 200, build()
    plan = solver(eta=eta).plan(model.preconditioning, steps)
    n = 20_000 if eta else 200
    first, second = (after_a_step(model, plan, step, steps, seed, n) for seed in (1, 2))
    if eta == 0:
        assert torch.equal(first, second)
        return
    rows = math.ceil(plan.nfe / steps)
    before, after = plan.noise_levels[[step * rows, (step + 1) * rows]]
    forward = 3 * (before**2 - after**2) if model.family == "GBM" else before - after
    if model.family == "VP":
        forward *= 3
    variance = float((first - second).square().sum(1).mean()) / 2
    assert variance == pytest.approx(eta * forward, rel=0.05)


@pytest.mark.parametrize(("solver", "build"), CASES)
def test_samples_of_eta_zero_depend_on_the_prior_alone(
    solver: type[Any], build: Callable[[], ScoreModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With another seed for the steps the samples of the ODE stay; those of the SDE change."""
    model = build()
    options: dict[str, Any] = {"steps": 5, "batch_size": 8, "progress": False}
    plain = {eta: sample(model, 8, solver=solver(eta=eta), **options) for eta in (0.0, 1.0)}
    by_step = rng.by_step

    def other_seed(stream: Tensor, steps: int) -> Tensor:
        return by_step(stream + torch.tensor([1, 0, 0]), steps)

    monkeypatch.setattr(rng, "by_step", other_seed)
    other = {eta: sample(model, 8, solver=solver(eta=eta), **options) for eta in (0.0, 1.0)}
    assert torch.equal(plain[0.0], other[0.0])
    assert not torch.isclose(plain[1.0], other[1.0], rtol=1e-4).all(1).any()


@pytest.mark.parametrize("eta", [-0.1, math.nan, math.inf, "1", True, None])
@pytest.mark.parametrize("solver", ETA)
def test_eta_out_of_range_is_refused(solver: type[Any], eta: object) -> None:
    with pytest.raises(ValueError, match=rf"eta must be .* \(0 the ODE, 1 the SDE\), got {eta!r}"):
        solver(eta=eta)


@pytest.mark.parametrize("solver", ETA)
def test_eta_may_be_a_numpy_number(solver: type[Any]) -> None:
    """A manifest then shows the same solver."""
    assert repr(solver(eta=np.float32(0.5))) == repr(solver(eta=0.5))


@pytest.mark.parametrize("solver", [s for s in ETA if s is not DPMSolverPP2M])
def test_eta_above_one_is_refused(solver: type[Any]) -> None:
    with pytest.raises(ValueError, match=r"eta must be in \[0, 1\] \(0 the .*, got 1\.5"):
        solver(eta=1.5)


# ---- other families ----


@pytest.mark.parametrize("solver", [DPMSolverPP2M(), Heun(), DaleLangevin(), SignAgnostic()])
def test_a_gbm_solver_refuses_other_families(solver: Solver) -> None:
    message = rf"solver {type(solver).__name__}\(.* is for geometric Brownian motion, got a "
    with pytest.raises(TypeError, match=message + "RotationPreconditioning"):
        sample(rotation(), 5, solver=solver)
    with pytest.raises(TypeError, match=message + "VPPreconditioning"):
        sample(vp(), 5, solver=solver)


@pytest.mark.parametrize(
    "solver", [SphericalMultistep(), GeodesicEuler(), GeodesicHeun(), RingSplitting()]
)
def test_a_rotation_solver_refuses_other_families(solver: Solver) -> None:
    message = rf"solver {type(solver).__name__}\(.* is for rotations, got a "
    with pytest.raises(TypeError, match=message + "GBMPreconditioning"):
        sample(gbm(), 5, solver=solver)
    with pytest.raises(TypeError, match=message + "VPPreconditioning"):
        sample(vp(), 5, solver=solver)


@pytest.mark.parametrize("solver", [EulerMaruyama(), StratonovichHeun(), StratonovichRK4()])
def test_a_runge_kutta_solver_refuses_gbm(solver: Solver) -> None:
    message = rf"solver {type(solver).__name__}\(.* is for rotations and VP, got a GBMPrecond"
    with pytest.raises(TypeError, match=message):
        sample(gbm(), 5, solver=solver)


@pytest.mark.parametrize("solver", [SphericalMultistep(), GeodesicEuler(), GeodesicHeun()])
@pytest.mark.parametrize("noise", ["ring", "dense"])
def test_a_spherical_solver_refuses_other_noise(solver: Solver, noise: str) -> None:
    message = rf"solver {type(solver).__name__}\(.* needs isotropic noise, got .*{noise}"
    with pytest.raises(ValueError, match=message):
        sample(rotation(noise), 5, solver=solver)


@pytest.mark.parametrize(
    ("build", "solver"),
    [
        (gbm, DPMSolverPP2M()),
        (lambda: gbm("score"), DaleLangevin()),
        (rotation, SphericalMultistep()),
        (lambda: rotation("ring"), RingSplitting()),
        (vp, StratonovichRK4()),
    ],
)
def test_steps_of_a_plan_are_integers(build: Callable[[], ScoreModel], solver: Solver) -> None:
    """A bool and a float are refused, NumPy's integers are taken."""
    preconditioning = build().preconditioning
    steps: Any
    for steps in (2.0, True, "2", None):
        with pytest.raises(TypeError, match=f"steps must be an int, got {steps!r}"):
            solver.plan(preconditioning, steps)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        solver.plan(preconditioning, 0)
    steps = np.int64(3)
    assert solver.plan(preconditioning, steps).nfe == solver.plan(preconditioning, 3).nfe


def test_plan_for_gives_the_plan_that_sample_follows() -> None:
    model = gbm()
    plan = plan_for(model)
    assert plan.nfe == len(plan.noise_levels) == 18
    assert plan_for(model, "heun", 5).nfe == 9
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        plan_for(model, steps=0)
    with pytest.raises(TypeError, match=r"steps must be an int, got 2\.5 \(float\)"):
        plan_for(model, steps=2.5)  # type: ignore[arg-type]
