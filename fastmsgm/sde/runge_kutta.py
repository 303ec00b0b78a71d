"""Solvers in R^d of any process with a reverse drift, in plain PyTorch: the papers' own.

Steps are uniform in t from 1 to 0. With V(x) = beta dt (reverse drift) + sqrt(eta beta dt) G(x) xi,
xi held over a step, they are

    Euler-Maruyama   x + V(x), V in Ito form                                    1 call a step
    Heun             x + (V_1 + V_2) / 2, in Stratonovich form                  2
    RK4              x + (V_1 + 2 V_2 + 2 V_3 + V_4) / 6, in Stratonovich form  4

after each of which the process projects the state (a rotation restores its norms). eta = 0 is the
probability-flow ODE, 1 the reverse SDE.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastmsgm import ops, rng
from fastmsgm.checks import check_eta, check_int
from fastmsgm.sde.model import SDEModel, SDEPreconditioning
from fastmsgm.solver import Plan, Solver
from fastmsgm.state import SamplerState, c_noise_by_step


class RungeKuttaStepFlags(NamedTuple):
    """Which row of the table a stage is; the steps are plain PyTorch.

    Args:
        row: Row of the table, from 0.
    """

    row: int


@dataclass(frozen=True, kw_only=True)
class RungeKuttaPlan(Plan):
    """One network call and one stage of an explicit Runge-Kutta step for every row.

    ``noise_levels`` are integrated betas. The columns of ``table`` are beta dt, how far along V
    the next stage lies, and V's weight in the step.

    Args:
        preconditioning: The preconditioning of the model.
        stages: Rows of one step.
        eta: 0 the probability-flow ODE .. 1 the reverse SDE.
        ito: Whether the drift is in Ito form.
    """

    preconditioning: SDEPreconditioning
    stages: int
    eta: float
    ito: bool

    def state(self, model: Any, size: int) -> RungeKuttaState:
        return RungeKuttaState(self, model, size)


class RungeKuttaState(SamplerState):
    """Runge-Kutta stages of a chunk: x in R^d, and for a rotation the norms beside it."""

    fused = False

    def __init__(self, plan: RungeKuttaPlan, model: SDEModel, size: int) -> None:
        device, d = model.device, math.prod(model.shape)
        self.plan, self.size, self.preconditioning = plan, size, plan.preconditioning
        self.process, self.prior = plan.preconditioning.process, model.prior
        self.condition_of = model.condition_of
        self.flags = [RungeKuttaStepFlags(row) for row in range(plan.nfe)]
        self._x = torch.empty((size, d), dtype=torch.float32, device=device)
        self.model_input = torch.empty((size, *model.shape), dtype=model.input_dtype, device=device)
        self.norms = torch.ones(size, dtype=torch.float32, device=device)
        self.c_noise = c_noise_by_step(plan.c_noise, size, device)
        self.condition = model.condition_of(self.norms)
        self.step_start = self.noise = self.total = torch.zeros_like(self._x)

    def sample_prior(self, stream: Tensor, label: Tensor | None) -> None:
        ops.fill_normal_(self._x, stream, rng.Purpose.PRIOR, 0)
        self._x = self.process.project(self._x)
        self.norms = self.prior.sample(self.size, stream)
        self._feed()
        self.condition = self.condition_of(self.norms)

    def step(
        self,
        flags: RungeKuttaStepFlags,
        model_output: Tensor,
        stream: Tensor,
        first_nonfinite_step: Tensor,
    ) -> None:
        row, stages, eta = flags.row, self.plan.stages, self.plan.eta
        length, ahead, weight = self.plan.table[row].tolist()
        if row % stages == 0:
            self.step_start, self.total = self._x, torch.zeros_like(self._x)
            step = row // stages - row  # of the noise, counted from the stream's step
            xi = rng.normals(*self._x.shape, stream, rng.Purpose.STEP, step)
            self.noise = xi * math.sqrt(eta)
        B = self.plan.noise_levels[row : row + 1]
        score = self.preconditioning.score(model_output.float().flatten(1), B)
        drift = self.process.reverse_drift(self._x, score, eta, self.plan.ito)
        noise = math.sqrt(length) * self.process.g_prod(self._x, self.noise)
        velocity = length * drift + noise
        self.total = self.total + weight * velocity
        if (row + 1) % stages:
            self._x = self.step_start + ahead * velocity
        else:
            self._x = self.process.project(self.step_start + self.total)
        nonfinite = ~torch.isfinite(self._x).all(1) & (first_nonfinite_step < 0)
        first_nonfinite_step.copy_(torch.where(nonfinite, row, first_nonfinite_step))
        self._feed()

    def _feed(self) -> None:
        self.model_input.copy_((self.preconditioning.c_in * self._x).view_as(self.model_input))

    def x(self, samples: slice) -> Tensor:
        return (self._x * self.norms[:, None]).view_as(self.model_input)[samples]

    def denoised(self) -> Tensor | None:
        return None


@dataclass(frozen=True)
class RungeKuttaSolver(Solver):
    """An explicit Runge-Kutta method whose stages use only the stage before.

    Args:
        eta: 0 is the probability-flow ODE, 1 the reverse SDE.

    Raises:
        ValueError: eta is out of [0, 1].
    """

    eta: float = 1.0

    default_steps: ClassVar[int] = 128
    nodes: ClassVar[tuple[float, ...]]
    weights: ClassVar[tuple[float, ...]]
    ito: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "eta", check_eta(self.eta))

    def plan(self, preconditioning: SDEPreconditioning, steps: int) -> RungeKuttaPlan:
        if not isinstance(preconditioning, SDEPreconditioning):
            raise TypeError(
                f"solver {self!r} is for rotations and VP, got a {type(preconditioning).__name__}"
            )
        steps, process = check_int("steps", steps, 1), preconditioning.process
        start = np.arange(steps, 0, -1) / steps
        times = (start[:, None] - np.array(self.nodes) / steps).ravel()
        times = np.maximum(times, preconditioning.time_min)
        ahead = np.append(np.array(self.nodes)[1:], 0.0)
        columns = (
            process.beta(times) / steps,
            np.tile(ahead, steps),
            np.tile(self.weights, steps),
        )
        B = process.integrated_beta(times)
        return RungeKuttaPlan(
            noise_levels=B,
            table=np.stack(columns, axis=1),
            c_noise=preconditioning.c_noise(B),
            preconditioning=preconditioning,
            stages=len(self.nodes),
            eta=self.eta,
            ito=self.ito,
        )


@dataclass(frozen=True)
class EulerMaruyama(RungeKuttaSolver):
    """Euler-Maruyama in Ito form: weak order 1. Arguments as of ``RungeKuttaSolver``."""

    nodes = (0.0,)
    weights = (1.0,)
    ito = True


@dataclass(frozen=True)
class StratonovichHeun(RungeKuttaSolver):
    """Heun's method in Stratonovich form. Arguments as of ``RungeKuttaSolver``."""

    nodes = (0.0, 1.0)
    weights = (0.5, 0.5)


@dataclass(frozen=True)
class StratonovichRK4(RungeKuttaSolver):
    """The classical Runge-Kutta method in Stratonovich form. Arguments as ``RungeKuttaSolver``."""

    nodes = (0.0, 0.5, 0.5, 1.0)
    weights = (1 / 6, 1 / 3, 1 / 3, 1 / 6)


SOLVERS: dict[str, Callable[[], Solver]] = {
    "euler-maruyama": EulerMaruyama,
    "stratonovich-heun": StratonovichHeun,
    "stratonovich-rk4": StratonovichRK4,
}
