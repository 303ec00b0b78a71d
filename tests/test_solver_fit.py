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
    Loss,
    Rotation,
    RotationModel,
    Step,
    fit,
    fit_solver,
    load,
    sample,
)
from fastmsgm.data.synthetic import correlated_cauchy
from fastmsgm.fingerprint import fingerprint
from fastmsgm.gbm.fitted import FittedSolver
from fastmsgm.nets import MLP
from fastmsgm.sampling import plan_for
from fastmsgm.solvers import DPMSolverPP2M, Heun, Solver, karras_sigmas, resolve
from fastmsgm.training.solver_fit import Trajectories
from fastmsgm.training.trainable_table import TrainableTable

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
    table = TrainableTable(model, 6).solver()
    ours, theirs = (s.plan(model.preconditioning, 6) for s in (table, DPMSolverPP2M()))
    assert ours.checksum() == theirs.checksum()
    assert ours.c_in == pytest.approx(theirs.c_in, rel=1e-12)


def test_the_trainable_table_samples_as_the_kernel_does() -> None:
    model = small()
    fitted = quick(model, 5)
    table = TrainableTable(model, 5)
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
    before = sample(model, 5, steps=7, progress=False)
    quick(model, 3)
    assert torch.equal(sample(model, 5, steps=7, progress=False), before)


def test_a_table_is_the_default_only_where_it_is_made_so() -> None:
    model = small()
    fitted = quick(model, 3)
    assert plan_for(model).nfe == model.default_solver.default_steps
    model.default_steps = 3
    assert resolve(None, model) is fitted
    assert plan_for(model).nfe == 3


def test_a_solver_of_a_subclass_stays_its_default() -> None:
    class Own(GBMModel):
        @property
        def default_solver(self) -> Solver:
            return Heun()

    torch.manual_seed(0)
    model = Own.for_data(MLP(3, 8, 1), GBM(8.0), torch.exp(0.3 * torch.randn(200, 3)))
    quick(model, 3)
    assert plan_for(model, steps=5).nfe == 9


def test_guided_samples_take_the_formula() -> None:
    model = conditional()
    model.drop = 0.1
    options: dict[str, Any] = {"condition": {"age": torch.zeros(4)}, "guidance": 2.0}
    before = sample(model, 4, steps=3, progress=False, **options)
    quick(model, 3, condition={"age": torch.randn(8)})
    assert torch.equal(sample(model, 4, steps=3, progress=False, **options), before)


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


def test_a_table_does_not_change_which_model_it_is() -> None:
    model = small()
    before = fingerprint(model)
    quick(model)
    assert fingerprint(model) == before


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
    model.default_steps = 3
    fit(model, data, steps=1, batch_size=8, progress=False)
    assert (model.fitted, model.default_steps) == ({}, None)


def test_the_training_loss_removes_the_tables() -> None:
    model = small()
    quick(model)
    Loss(model).train()(torch.exp(0.3 * torch.randn(8, 3))).backward()
    assert model.fitted == {}


def test_the_loss_of_held_out_data_keeps_the_tables() -> None:
    model = small()
    quick(model)
    Loss(model).eval()(torch.exp(0.3 * torch.randn(8, 3)))
    assert list(model.fitted) == [3]


def test_a_run_that_began_with_tables_is_extended(tmp_path: Path) -> None:
    model, data = small(), torch.exp(0.3 * torch.randn(50, 3))
    quick(model)
    options: dict[str, Any] = {"batch_size": 8, "progress": False, "out": tmp_path, "warmup": 0}
    fit(model, data, steps=2, **options)
    quick(model)
    fit(model, data, steps=3, **options)
    assert model.fitted == {}


def conditional() -> GBMModel:
    torch.manual_seed(0)
    data, labels = torch.exp(0.3 * torch.randn(200, 3)), torch.arange(200) % 4
    net = MLP(3, 8, 1, condition={"age": 1}, classes=4)
    assert net.label is not None
    with torch.no_grad():
        net.label.weight.normal_()
    return GBMModel.for_data(net, GBM(8.0), data, labels=labels, classes=4).eval()


def test_the_fit_sees_the_labels_and_conditions_that_sample_gives() -> None:
    seen: list[tuple[Tensor, Tensor]] = []
    model, age = conditional(), torch.randn(8)

    def record(module: nn.Module, args: Any, kwargs: Any) -> None:
        seen.append((kwargs["label"].clone(), kwargs["age"].clone()))

    model.net.register_forward_pre_hook(record, with_kwargs=True)
    quick(model, 3, condition={"age": age}, label=2, batch_size=8, iterations=1, teacher_steps=4)
    for label, given in seen:
        assert label.tolist() == [2] * 8
        assert torch.equal(given.flatten().sort().values, age.sort().values)


def test_means_of_the_prior_belong_to_the_labels() -> None:
    model = conditional()
    label = torch.tensor([3, 0, 0, 1, 2, 2, 1, 3])
    ends = Trajectories(model, 8, 4, label, {"age": torch.zeros(8)}, 0, progress=False)
    expected = torch.log(model.prior.means / model.scale)[label]
    torch.testing.assert_close(ends.means, expected)
    # Where the means were another class's, the noise would not be that of the stream.
    others = Trajectories(model, 8, 4, 0, {"age": torch.zeros(8)}, 0, progress=False)
    torch.testing.assert_close(ends.noise, others.noise, rtol=0, atol=1e-5)


# ---- features ----


def test_features_are_part_of_the_loss() -> None:
    model = small()
    assert quick(model) != quick(model, features=lambda x: x[:, :1])


def test_several_features_and_those_of_a_module_in_training_mode() -> None:
    torch.manual_seed(0)
    features = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).train()
    before = {k: v.clone() for k, v in features.state_dict().items()}
    quick(small(), features=features)
    quick(small(), features=lambda x: (x, x.square()))
    assert features.training
    assert all(torch.equal(v, before[k]) for k, v in features.state_dict().items())


@pytest.mark.parametrize("wrong", [None, [], torch.zeros(3), torch.zeros(5, 2), 1.0])
def test_what_are_no_features_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match="features must return a tensor"):
        quick(small(), features=lambda x: wrong)
    with pytest.raises(TypeError, match="features must be a function of samples, or None"):
        quick(small(), features=3)


def test_a_gradient_that_is_not_finite_is_reported() -> None:
    with pytest.raises(FloatingPointError, match="its gradient is not finite at iteration 0"):
        quick(small(), features=lambda x: (x - x.detach()).sqrt() + x)


def test_tables_that_differ_in_the_first_input_alone_are_told_apart() -> None:
    row = (1.0, 1.0, 0.0, 1.0, 0.0, 0.0)
    a, b = FittedSolver((row,)), FittedSolver(((1.0, 0.5, *row[2:]),))
    plans = [solver.plan(small().preconditioning, 1).checksum() for solver in (a, b)]
    assert plans[0] != plans[1]
    assert repr(a) != repr(b)


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
    "table",
    [(), None, (1.0,) * 6, ((1.0, 1.0),), ((0.0, 1, 1, 1, 1, 1),), ((1.0, 1, 1, 1, math.nan, 1),)],
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
