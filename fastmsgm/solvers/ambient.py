"""Solvers in R^d of any process that has a reverse drift, in plain PyTorch: what the papers use, for comparison.

Steps are uniform in t from 1 to 0. With V(x) = beta dt (reverse drift) + sqrt((1 - lambda) beta dt) G(x) xi, xi held
over a step, they are

    Euler-Maruyama      x + V(x), V in Ito form                                     1 network call a step
    Heun                x + (V_1 + V_2) / 2, in Stratonovich form                    2
    RK4                 x + (V_1 + 2 V_2 + 2 V_3 + V_4) / 6, in Stratonovich form    4

after each of which the norms of a rotation are restored. lambda = 0 is the reverse SDE, 1 the probability flow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fastmsgm.additive import VPModel
from fastmsgm.clock import TIME_MIN
from fastmsgm.model import ScoreModel
from fastmsgm.rotation_model import RotationModel
from fastmsgm.solvers.base import Plan, Solver


@dataclass(frozen=True)
class AmbientPlan(Plan):
    """One network call and one stage of an explicit Runge-Kutta step per row.

    Args:
        levels: (R,) the clock of each network call.
        table: (R, 3): beta dt; how far along V the next stage lies; V's weight in the step.
        stages: rows a step.
        lambda_: 0 the reverse SDE .. 1 the probability flow.
        ito: the form of the drift.
    """

    stages: int
    lambda_: float
    ito: bool


@dataclass(frozen=True)
class AmbientSolver(Solver):
    """An explicit Runge-Kutta method whose stages use only the stage before.

    Args:
        lambda_: 0 is the reverse SDE, 1 the probability flow.
    """

    lambda_: float = 0.0

    default_steps: ClassVar[int] = 128
    nodes: ClassVar[tuple[float, ...]]
    weights: ClassVar[tuple[float, ...]]
    ito: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 <= self.lambda_ <= 1:
            raise ValueError(f"lambda_ must be in [0, 1] (0 the SDE, 1 the ODE), got {self.lambda_!r}")

    def plan(self, model: ScoreModel, steps: int) -> AmbientPlan:
        if not isinstance(model, (RotationModel, VPModel)):
            raise TypeError(f"solver {self!r} is for rotations and VP, got a {type(model).__name__}")
        start = np.arange(steps, 0, -1) / steps
        times = np.maximum((start[:, None] - np.array(self.nodes) / steps).ravel(), TIME_MIN)
        ahead = np.append(np.array(self.nodes)[1:], 0.0)
        columns = (model.process.beta(times) / steps, np.tile(ahead, steps), np.tile(self.weights, steps))
        table = np.stack(columns, axis=1)
        return AmbientPlan(model.process.clock(times), table, len(self.nodes), self.lambda_, self.ito)


@dataclass(frozen=True)
class EulerMaruyama(AmbientSolver):
    """Euler-Maruyama in Ito form: weak order 1."""

    nodes = (0.0,)
    weights = (1.0,)
    ito = True


@dataclass(frozen=True)
class StratonovichHeun(AmbientSolver):
    """Heun's method in Stratonovich form."""

    nodes = (0.0, 1.0)
    weights = (0.5, 0.5)


@dataclass(frozen=True)
class StratonovichRK4(AmbientSolver):
    """The classical Runge-Kutta method in Stratonovich form."""

    nodes = (0.0, 0.5, 0.5, 1.0)
    weights = (1 / 6, 1 / 3, 1 / 3, 1 / 6)
