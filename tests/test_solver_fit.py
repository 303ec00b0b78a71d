"""fit_solver: tables of few network calls, fitted to many-call samples of a network."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastmsgm import (
    GBM,
    GBMModel,
    Rotation,
    RotationModel,
    Step,
    fit,
    fit_solver,
    load,
    sample,
)
from fastmsgm.data.synthetic import correlated_cauchy
from fastmsgm.gbm.fitted import FittedSolver, TrainableTable
from fastmsgm.nets import MLP
from fastmsgm.sampling import plan_for
from fastmsgm.solvers import DPMSolverPP2M, Solver, karras_sigmas

MODES = torch.tensor([-0.5, 0.5])  # of log x, with deviation WIDTH
WIDTH = 0.1


class TwoModes(nn.Module):
    """The exact denoiser of two log-normals, in the form of a network.

    Args:
        log_std: That of the preconditioning.
    """

    def __init__(self, log_std: float) -> None:
        super().__init__()
        self.log_std, self.unused = log_std, nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        s = torch.exp(4 * c_noise)[:, None]
        total = torch.sqrt(s**2 + self.log_std**2)
        y, variance = x * total, WIDTH**2 + s**2
        off = MODES - y[..., None]
        weights = torch.softmax(-off.square() / (2 * variance[..., None]), -1)
        denoised = y + s**2 / variance * (weights * off).sum(-1)
        return (denoised - (self.log_std / total) ** 2 * y) * total / (s * self.log_std)


def two_modes() -> GBMModel:
    """Return the exact model of vectors of 3 independent features."""
    g = torch.Generator().manual_seed(0)
    mode = MODES[torch.randint(2, (2000, 3), generator=g)]
    data = torch.exp(mode + WIDTH * torch.randn(2000, 3, generator=g))
    model = GBMModel.for_data(nn.Identity(), GBM(8.0), data)
    model.net = TwoModes(model.log_std)
    model.scale.fill_(1.0)
    return model.eval()


def small(**options: Any) -> GBMModel:
    torch.manual_seed(0)
    data = torch.exp(0.3 * torch.randn(200, 3))
    return GBMModel.for_data(MLP(3, 8, 1), GBM(8.0), data, **options).eval()


def quick(model: GBMModel, steps: int = 3, **options: Any) -> FittedSolver:
    options = {"n": 8, "iterations": 3, "batch_size": 4, "progress": False} | options
    return fit_solver(model, steps, **options)


def error(model: GBMModel, solver: Solver, seed: int) -> float:
    """Return the mean error of log x against 60 calls, from the same noise."""
    ends = [
        sample(model, 200, steps=steps, solver=chosen, seed=seed, progress=False).log()
        for steps, chosen in ((4, solver), (60, DPMSolverPP2M()))
    ]
    return float((ends[0] - ends[1]).abs().mean())


def test_the_fitted_table_is_closer_to_many_calls_than_the_formula_on_other_noise() -> None:
    model = two_modes()
    fitted = fit_solver(model, 4, teacher_steps=40, n=200, iterations=150, progress=False)
    assert error(model, fitted, seed=99) < 0.5 * error(model, DPMSolverPP2M(), seed=99)


def test_the_start_of_a_fit_is_the_formula() -> None:
    model = small()
    table = TrainableTable(model, DPMSolverPP2M(), 6).solver()
    ours, theirs = (s.plan(model.preconditioning, 6) for s in (table, DPMSolverPP2M()))
    assert ours.checksum() == theirs.checksum()
    assert ours.c_in == pytest.approx(theirs.c_in, rel=1e-12)


def test_the_trainable_table_samples_as_the_kernel_does() -> None:
    model = small()
    fitted = quick(model, 5)
    table = TrainableTable(model, DPMSolverPP2M(), 5)
    ends: dict[int, Tensor] = {}

    def keep(step: Step) -> None:
        ends[step.index] = step.x

    with torch.no_grad():
        rows = torch.tensor(fitted.table)
        table.log_inputs.copy_(rows[:, :2].log())
        table.coefficients.copy_(rows[:, 2:])
        x = sample(model, 8, steps=5, progress=False, callback=keep)
        means = torch.log(model.prior.means / model.scale).expand(8, 3)
        std = math.sqrt(model.variance + fitted.table[0][0] ** 2)
        noise = (torch.log(ends[0] / model.scale) - means) / std
        y = table(noise, means, {})
    torch.testing.assert_close(torch.exp(y) * model.scale, x, rtol=1e-4, atol=0)


def test_sample_finds_the_table_of_its_steps() -> None:
    model = small()
    fitted = quick(model, 3)
    assert model.fitted == {3: fitted}
    found = sample(model, 5, steps=3, progress=False)
    assert torch.equal(found, sample(model, 5, solver=fitted, progress=False))
    assert not torch.equal(found, sample(model, 5, steps=3, solver="dpm++2m", progress=False))


def test_other_steps_take_the_formula() -> None:
    model = small()
    expected = sample(model, 5, steps=7, solver=model.default_solver, progress=False)
    quick(model, 3)
    assert torch.equal(sample(model, 5, steps=7, solver="sde-dpm++2m", progress=False), expected)


def test_tables_are_saved_with_the_weights(tmp_path: Path) -> None:
    model = small()
    quick(model, 3)
    quick(model, 2)
    model.save(tmp_path, dtype=torch.float32)
    found = load(tmp_path, net=MLP(3, 8, 1))
    assert found.fitted == model.fitted
    assert torch.equal(
        sample(found, 5, steps=2, progress=False), sample(model, 5, steps=2, progress=False)
    )


def test_the_same_arguments_give_the_same_table() -> None:
    assert quick(small()) == quick(small())
    assert quick(small()) != quick(small(), seed=1)


def test_the_weights_and_their_gradients_stay() -> None:
    model = small()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.train()
    quick(model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert model.training


def test_training_removes_the_tables() -> None:
    model, data = small(), torch.exp(0.3 * torch.randn(50, 3))
    quick(model)
    fit(model, data, steps=1, batch_size=8, progress=False)
    assert model.fitted == {}


def test_class_labels_and_conditions_reach_the_network() -> None:
    torch.manual_seed(0)
    data, labels = torch.exp(0.3 * torch.randn(200, 3)), torch.arange(200) % 4
    net = MLP(3, 8, 1, condition={"age": 1}, classes=4)
    model = GBMModel.for_data(net, GBM(8.0), data, labels=labels, classes=4).eval()
    fitted = quick(model, 3, condition={"age": torch.randn(8)}, label=2)
    x = sample(model, 4, steps=3, condition={"age": torch.zeros(4)}, progress=False)
    assert x.isfinite().all()
    assert model.fitted[3] is fitted


def test_a_table_is_for_its_number_of_steps() -> None:
    model = small()
    fitted = quick(model, 3)
    with pytest.raises(ValueError, match=r"steps must be 3, .* got 4: leave steps out"):
        sample(model, 5, steps=4, solver=fitted, progress=False)
    assert plan_for(model, fitted).nfe == 3


def test_what_cannot_be_fitted_is_refused() -> None:
    rotation = RotationModel.for_data(
        MLP(4, 8, 1, condition={"log_norm": 1}), Rotation(), correlated_cauchy(64, 4)
    )
    wrong: Any = rotation
    with pytest.raises(TypeError, match="model must be a GBMModel, got RotationModel"):
        fit_solver(wrong)
    with pytest.raises(ValueError, match="fitted solvers need a denoiser"):
        quick(small(prediction="score"))
    for name, value in (("steps", 0), ("teacher_steps", 3), ("n", 0), ("iterations", 0)):
        with pytest.raises(ValueError, match=f"{name} must be"):
            quick(small(), **{"steps": 3, name: value})
    with pytest.raises(ValueError, match=r"batch_size must be in 1 \.\. 8, got 9"):
        quick(small(), batch_size=9)


@pytest.mark.parametrize(
    "table", [(), ((1.0, 1.0),), ((0.0, 1, 1, 1, 1, 1),), ((1.0, 1, 1, 1, math.nan, 1),)]
)
def test_a_wrong_table_is_refused(table: Any) -> None:
    with pytest.raises(ValueError, match="table must be rows of sigma, c_in, A, B, B', C"):
        FittedSolver(table)


def test_a_plan_starts_at_the_first_noise_level_of_the_table() -> None:
    model = small()
    sigmas = karras_sigmas(3, 0.01, 5.0)[:-1]
    rows = tuple((s, 1.0, 0.0, 1.0, 0.0, 0.0) for s in sigmas)
    plan = FittedSolver(rows).plan(model.preconditioning, 3)
    assert plan.noise_levels.tolist() == pytest.approx(sigmas.tolist())
