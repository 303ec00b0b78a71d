"""Solvers of the reverse GBM as coefficient tables, in float64 on the host, for one kernel.

``state.py`` describes the rows. With s the noise level, s_prev the previous and s' the next one,
and a = s'/s, the multistep solvers move y by

    Euler (DDIM)       (1 - a) (D - y)
    DPM-Solver++(2M)   (1 - a) (D_h - y),  D_h = D + (D - D_prev) / (2r)    (Lu et al., 2022)
    with noise eta     (1 - a^(1 + eta)) (D_h - y) + s' sqrt(1 - a^(2 eta)) z
    ER-SDE-2           (1 - R) (D - y) + c (D - D_prev) + sqrt(s'^2 - s^2 R^2) z
                                                                            (Cui et al., 2023)
    Heun               the trapezoidal rule, two rows per step              (Karras et al., 2022)

with r = log(s_prev/s) / log(s/s'); every step to s' = 0 is y = D. ER-SDE has R = phi(s')/phi(s)
and c = (s' - s + phi(s') int ds/phi) / (s - s_prev). The samplers of the paper are in
``paper_solvers.py``, fitted tables in ``fitted.py``.
"""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fastmsgm.checks import check_eta, check_int
from fastmsgm.gbm.preconditioning import GBMPreconditioning
from fastmsgm.gbm.state import GBMPlan, check_family, gbm_plan
from fastmsgm.solver import Solver, karras_sigmas
from fastmsgm.types import Array


class LogSolver(Solver):
    """A solver of y = log|x| on the Karras grid from the largest noise level to sigma_min, then 0.

    Attributes:
        multistep: Whether D is kept from step to step.
    """

    default_steps: ClassVar[int] = 18
    multistep: ClassVar[bool] = True

    def plan(self, preconditioning: GBMPreconditioning, steps: int) -> GBMPlan:
        check_family(self, preconditioning)
        steps, process = check_int("steps", steps, 1), preconditioning.process
        if process.log_drift:
            raise ValueError(
                f"{type(self).__name__} needs mu = sigma^2 / 2, got {process}: use DaleLangevin"
            )
        grid = karras_sigmas(steps, preconditioning.sigma_min, process.sigma_max)
        sigmas, rows = self.rows(grid)
        return gbm_plan(preconditioning, sigmas, rows, multistep=self.multistep)

    @abstractmethod
    def rows(self, grid: Array) -> tuple[Array, Array]:
        """Return noise levels (R,) and A, B, B', C, S (R, 5) of all rows, on a grid ending at 0."""


class MultistepSolver(LogSolver):
    """One row per step: y <- y + towards * (D - y) + slope * (D - D_prev) + noise * z."""

    def rows(self, grid: Array) -> tuple[Array, Array]:
        rows = []
        for i in range(len(grid) - 1):
            if grid[i + 1] == 0:
                towards, slope, noise = 1.0, 0.0, 0.0
            else:
                before = grid[i - 1] if i else None
                towards, slope, noise = self.move(before, grid[i], grid[i + 1])
            rows.append((1 - towards, towards + slope, -slope, 0.0, noise))
        return grid[:-1], np.array(rows)

    @abstractmethod
    def move(self, before: float | None, s: float, after: float) -> tuple[float, float, float]:
        """Return towards, slope and noise of the step s -> after > 0.

        Args:
            before: The previous noise level s_prev, None at the first step.
            s: The noise level of the state.
            after: The next noise level.
        """


@dataclass(frozen=True)
class Euler(MultistepSolver):
    """First order: DDIM in log space."""

    multistep = False

    def move(self, before: float | None, s: float, after: float) -> tuple[float, float, float]:
        return 1 - after / s, 0.0, 0.0


@dataclass(frozen=True)
class DPMSolverPP2M(MultistepSolver):
    """DPM-Solver++(2M), second order (Lu et al., 2022).

    It solves dy = -(1 + eta) (y - D) |ds| / s + sqrt(2 eta s |ds|) z, backwards in s.

    Args:
        eta: 0 is the probability-flow ODE, 1 the reverse SDE; more adds more noise and removes
            more. All have the same marginals; noise corrects earlier errors of the network.

    Raises:
        ValueError: eta is negative or not finite.
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "eta", check_eta(self.eta, most=math.inf))

    def move(self, before: float | None, s: float, after: float) -> tuple[float, float, float]:
        a = after / s
        towards = 1 - a ** (1 + self.eta)
        noise = after * math.sqrt(1 - a ** (2 * self.eta))
        slope = 0.0
        if before is not None:
            slope = towards / 2 * math.log(s / after) / math.log(before / s)
        return towards, slope, noise


@dataclass(frozen=True)
class ERSDE2(MultistepSolver):
    """ER-SDE-Solver of second order (Cui et al., 2023) with phi(s) = s (exp(s^0.3) + 10)."""

    def move(self, before: float | None, s: float, after: float) -> tuple[float, float, float]:
        def phi(u: Array) -> Array:
            return u * (np.exp(u**0.3) + 10)

        nodes, weights = np.polynomial.legendre.leggauss(64)
        half = math.log(s / after) / 2
        u = after * np.exp(half * (nodes + 1))
        integral = float(np.sum(weights * half * u / phi(u)))
        phi_after = float(phi(np.array(after)))
        ratio = float(phi(np.array(after)) / phi(np.array(s)))
        slope = 0.0 if before is None else (after - s + phi_after * integral) / (s - before)
        return 1 - ratio, slope, math.sqrt(max(after**2 - (s * ratio) ** 2, 0.0))


@dataclass(frozen=True)
class Heun(LogSolver):
    """Heun's method, second order: 2 steps - 1 network calls (Karras et al., 2022)."""

    def rows(self, grid: Array) -> tuple[Array, Array]:
        sigmas, rows = [], []
        for s, after in itertools.pairwise(grid):
            a = after / s
            sigmas.append(s)
            rows.append((a, 1 - a, 0.0, 0.0, 0.0))
            if after > 0:
                half = (1 - a) / (2 * a)
                sigmas.append(after)
                rows.append((1.0, half, -half, 0.0, 0.0))
        return np.array(sigmas), np.array(rows)
