"""Smallest time and forward steps of sliced score matching: stored, and obeyed by solvers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastmsgm import load, rng
from fastmsgm.fingerprint import fingerprint
from fastmsgm.nets import MLP
from fastmsgm.rotation import Rotation, RotationModel
from fastmsgm.rotation.preconditioning import B_MIN
from fastmsgm.sde import VP, SlicedScoreMatching, VPModel
from fastmsgm.solver import Solver
from fastmsgm.solvers import (
    EulerMaruyama,
    GeodesicEuler,
    GeodesicHeun,
    RingSplitting,
    SphericalMultistep,
    StratonovichHeun,
    StratonovichRK4,
)


def vectors(n: int = 60, d: int = 3) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(0))


def rotation(noise: str = "ring", **options: Any) -> RotationModel:
    torch.manual_seed(0)
    net = MLP(3, 8, 1, condition={"log_norm": 1})
    return RotationModel.for_data(net, Rotation(noise), vectors(), **options)


def vp(**options: Any) -> VPModel:
    torch.manual_seed(0)
    return VPModel.for_data(MLP(3, 8, 1), VP(), vectors(), **options)


class Spy(torch.nn.Module):
    """Keeps the noise levels that it is called with, and returns zero."""

    def forward(self, x: Tensor, c: Tensor, **condition: Tensor) -> Tensor:
        self.c = c
        return 0 * x


# ---- training ----


@pytest.mark.parametrize("time_min", [1e-4, 0.5])
@pytest.mark.parametrize(
    "build",
    [
        lambda t: rotation("isotropic", objective="ssm", time_min=t),
        lambda t: rotation("ring", time_min=t, forward_steps=2),
        lambda t: vp(time_min=t),
    ],
)
def test_times_of_training_are_uniform_above_time_min(build: Any, time_min: float) -> None:
    model = build(time_min)
    model.net = Spy()
    n = 4000
    with torch.no_grad():
        SlicedScoreMatching()(model, vectors(n), rng.stream(3), 0)
    times = torch.from_numpy(model.process.time(torch.exp(3 * model.net.c.double() - 3).numpy()))
    assert time_min * (1 - 1e-4) < float(times.min()) < time_min + 10 / n
    assert float(times.max()) < 1 + 1e-5
    spread = (1 - time_min) / 12**0.5
    assert float(times.mean()) == pytest.approx((1 + time_min) / 2, abs=4.5 * spread / n**0.5)


@pytest.mark.parametrize("noise", ["ring", "dense"])
def test_forward_steps_are_those_of_the_simulation(noise: str) -> None:
    x0 = vectors(5)
    B = torch.linspace(0.1, 3, 5).double().numpy()
    for steps in (3, 64):
        model = rotation(noise, forward_steps=steps)
        u0 = x0 / x0.norm(dim=1, keepdim=True)
        expected = model.process.simulate(u0, B, rng.stream(1), 2, steps)
        assert torch.equal(model.perturb_state(x0, B, rng.stream(1), 2), expected)


# ---- sampling ----


@pytest.mark.parametrize("time_min", [1e-4, 0.02, 0.3])
@pytest.mark.parametrize(
    ("noise", "solver"),
    [
        ("ring", RingSplitting()),
        ("ring", RingSplitting(midpoint=False, eta=1.0)),
        ("isotropic", SphericalMultistep()),
        ("isotropic", GeodesicEuler()),
        ("isotropic", GeodesicHeun()),
        ("dense", EulerMaruyama()),
        ("dense", StratonovichHeun()),
        ("ring", StratonovichRK4()),
    ],
)
def test_solvers_evaluate_no_earlier_time_than_trained(
    noise: str, solver: Solver, time_min: float
) -> None:
    model = rotation(noise, objective="ssm", time_min=time_min)
    trained = float(model.process.integrated_beta(time_min))
    levels = solver.plan(model.preconditioning, 40).noise_levels
    assert levels.min() >= trained * (1 - 1e-9)
    assert levels.max() == pytest.approx(model.process.B_max)
    if time_min == 0.3:  # where it is what ends the grid
        assert levels.min() == pytest.approx(trained)


def test_vp_evaluates_no_earlier_time_than_trained() -> None:
    levels = StratonovichRK4().plan(vp(time_min=0.25).preconditioning, 40).noise_levels
    assert levels.min() == pytest.approx(VP().integrated_beta(0.25))


def test_grids_of_the_default_are_what_they_were() -> None:
    for model in (rotation("ring"), rotation("isotropic")):
        assert model.preconditioning.B_min == B_MIN
        levels = model.default_solver.plan(model.preconditioning, 20).noise_levels
        assert levels.min() == pytest.approx(B_MIN)


# ---- checkpoints ----


def test_a_rotation_keeps_its_settings(tmp_path: Path) -> None:
    model = rotation("dense", time_min=1e-4, forward_steps=128)
    model.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["time_min"], config["forward_steps"]) == (1e-4, 128)
    again = load(tmp_path)
    assert isinstance(again, RotationModel)
    assert (again.preconditioning.time_min, again.forward_steps) == (1e-4, 128)
    assert fingerprint(again) == fingerprint(model) != fingerprint(rotation("dense"))
    x0, stream = vectors(8), rng.stream(2)
    torch.testing.assert_close(
        again.default_loss(again, x0, stream, 1), model.default_loss(model, x0, stream, 1)
    )


def test_vp_keeps_its_smallest_time(tmp_path: Path) -> None:
    vp(time_min=0.01).save(tmp_path)
    assert load(tmp_path).preconditioning.time_min == 0.01


@pytest.mark.parametrize("build", [rotation, vp])
def test_models_of_the_defaults_are_stored_as_before_there_was_a_choice(
    build: Any, tmp_path: Path
) -> None:
    """So checkpoints of then load, and runs and files of then go on."""
    model = build()
    assert not {"time_min", "forward_steps"} & model.config().keys()
    model.save(tmp_path)
    again = load(tmp_path)
    assert again.preconditioning.time_min == 1e-3
    assert getattr(again, "forward_steps", 64) == 64


# ---- errors ----


@pytest.mark.parametrize("time_min", [0.0, 1.0, -1e-3, float("nan"), "0.1", True, None])
@pytest.mark.parametrize("build", [rotation, vp])
def test_smallest_times_are_refused(build: Any, time_min: Any) -> None:
    with pytest.raises(ValueError, match="time_min must be between 0 and 1, both excluded, got"):
        build(time_min=time_min)


@pytest.mark.parametrize(("steps", "error"), [(0, ValueError), (2.0, TypeError), (True, TypeError)])
def test_forward_steps_are_refused(steps: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="forward_steps must be"):
        rotation(forward_steps=steps)


@pytest.mark.parametrize("option", [{"time_min": 1e-4}, {"forward_steps": 16}])
def test_denoising_score_matching_has_no_such_settings(option: dict[str, Any]) -> None:
    (name, value), *_ = option.items()
    with pytest.raises(ValueError, match=f"{name} is for sliced score matching, got {value} with"):
        rotation("isotropic", **option)
    assert rotation("isotropic", objective="ssm", **option).objective == "ssm"
