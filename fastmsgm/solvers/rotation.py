"""Solvers of the reversed isotropic rotation as coefficient tables, for ``rotation_step``; levels are clocks B.

With u a direction, D = alpha u + sigma n the network's denoised direction and s = rho n its score, they move u by

    Euler (spherical DDIM)      the exact flow of du = P_u D dLam, D held, Lam = -log tanh(B/4) / 2
    DPM-Solver++(2M)            the same with D_n + h_n / (2 h_{n-1}) (D_n - D_{n-1}), h the step in Lam
    the same with eta > 0       the flow overshoots to an earlier clock, and the heat kernel brings it back
    geodesic Euler              Exp_u((1 - lambda/2) dtau s + sqrt((1 - lambda) dtau) P_u xi), tau = B / (d - 1)
    geodesic Heun               Exp_u of the mean of two velocities, the second transported back; two rows a step

Every step to B = 0 is u = D / |D|, so that no noise is left. The tests say how fast each converges.
"""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fastmsgm import heat_kernel
from fastmsgm.angle_table import angle_table
from fastmsgm.model import ScoreModel
from fastmsgm.reference import ROTATION_COLUMNS
from fastmsgm.rotation_model import CLOCK_MIN, RotationModel
from fastmsgm.solvers.base import Plan, Solver
from fastmsgm.solvers.gbm import karras_levels

Array = NDArray[np.float64]


@dataclass(frozen=True)
class RotationPlan(Plan):
    """What sampling does: one network call and one ``rotation_step`` per row.

    Args:
        levels: (R,) the clock of each network call.
        table: (R, 9) the rows of ``reference.ROTATION_COLUMNS``.
        angles: (R, NZ) the angle table of each row's heat-kernel noise, or None where no row has any.
        geodesic: the form of each row.
        multistep: D, or the velocity, is kept from row to row.
    """

    angles: Tensor | None
    geodesic: tuple[bool, ...]
    multistep: bool


class SphericalSolver(Solver):
    """A solver from uniform directions at the process's largest clock, over ``CLOCK_MIN``, to 0."""

    default_steps = 20

    def plan(self, model: ScoreModel, steps: int) -> RotationPlan:
        if not isinstance(model, RotationModel):
            raise TypeError(f"solver {self!r} is for rotations, got a {type(model).__name__}")
        if model.process.noise != "isotropic":
            raise ValueError(f"solver {self!r} needs isotropic noise, got {model.process}")
        return self.rows(model, steps)

    @abstractmethod
    def rows(self, model: RotationModel, steps: int) -> RotationPlan:
        """The plan of a model of isotropic noise."""


@dataclass(frozen=True)
class SphericalMultistep(SphericalSolver):
    """Exponential integrator of the probability flow, on clocks evenly spaced in Lam.

    Args:
        order: 1 (spherical DDIM) or 2 (DPM-Solver++(2M)).
        eta: 0 is the ODE, 1 the reverse SDE to leading order.
    """

    order: int = 2
    eta: float = 0.0

    def __post_init__(self) -> None:
        if self.order not in (1, 2):
            raise ValueError(f"order must be 1 or 2, got {self.order!r}")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must be in [0, 1] (0 the ODE, 1 the SDE), got {self.eta!r}")

    def rows(self, model: RotationModel, steps: int) -> RotationPlan:
        ends = heat_kernel.Lam(np.array([model.process.clock_max, CLOCK_MIN]))
        clocks = heat_kernel.inverse_Lam(np.linspace(ends[0], ends[1], steps) if steps > 1 else ends[:1])
        after = np.append(clocks[1:], 0.0)
        with np.errstate(divide="ignore"):
            half = np.tanh(after / 4)
            turned = np.where(after > 0, (half / np.tanh(clocks / 4)) ** self.eta * half, 0.0)
        middle = 4 * np.arctanh(turned)  # where the flow stops and the heat kernel takes over
        with np.errstate(divide="ignore"):
            length = heat_kernel.Lam(middle) - heat_kernel.Lam(clocks)
            whole = heat_kernel.Lam(after) - heat_kernel.Lam(clocks)
        w = np.zeros(steps)
        if self.order == 2:
            w[1:-1] = length[1:-1] / (2 * whole[:-2])
        noise = after - middle
        columns = _denoiser(model, clocks) | {"w": w, "length": length, "spread": -np.expm1(-noise / 2)}
        angles = angle_table(model.dimension).spread(noise) if self.eta else None
        return RotationPlan(clocks, _table(columns, steps), angles, (False,) * steps, multistep=self.order == 2)


@dataclass(frozen=True)
class GeodesicEuler(SphericalSolver):
    """First order along geodesics, with Gaussian tangent noise.

    Args:
        lambda_: 0 is the reverse SDE, 1 the probability flow.
    """

    lambda_: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.lambda_ <= 1:
            raise ValueError(f"lambda_ must be in [0, 1] (0 the SDE, 1 the ODE), got {self.lambda_!r}")

    def rows(self, model: RotationModel, steps: int) -> RotationPlan:
        clocks = karras_levels(steps, CLOCK_MIN, model.process.clock_max)
        time = -np.diff(clocks) / (model.dimension - 1)
        drift = (1 - self.lambda_ / 2) * time * model.coefficients(clocks[:-1])[:, 2]
        last = np.arange(steps) == steps - 1
        columns = _denoiser(model, clocks[:-1]) | {
            "length": np.where(last, np.inf, 0.0),
            "drift": np.where(last, 0.0, drift),
            "noise": np.where(last, 0.0, np.sqrt((1 - self.lambda_) * time)),
        }
        return RotationPlan(clocks[:-1], _table(columns, steps), None, tuple(~last), multistep=False)


@dataclass(frozen=True)
class GeodesicHeun(SphericalSolver):
    """Heun's method along geodesics for the probability flow: 2 steps - 1 network calls."""

    def rows(self, model: RotationModel, steps: int) -> RotationPlan:
        clocks = karras_levels(steps, CLOCK_MIN, model.process.clock_max)
        levels, rows, geodesic = [], [], []
        for before, after in itertools.pairwise(clocks):
            at = _denoiser(model, np.array([before]))
            levels.append(before)
            if after == 0:
                rows.append(_table(at | {"length": np.array([np.inf])}, 1))
                geodesic.append(False)
                continue
            half = (before - after) / (model.dimension - 1) / 2
            velocity = half * model.coefficients(np.array([before, after]))[:, 2]
            rows.append(_table(at | {"drift": velocity[:1]}, 1))
            columns = {"drift": velocity[1:] / 2, "w": np.array([0.5]), "back": np.ones(1)}
            rows.append(_table(_denoiser(model, np.array([after])) | columns, 1))
            levels.append(after)
            geodesic += [True, True]
        return RotationPlan(np.array(levels), np.concatenate(rows), None, tuple(geodesic), multistep=True)


def _denoiser(model: RotationModel, clocks: Array) -> dict[str, Array]:
    alpha, sigma, _ = model.coefficients(clocks).T
    return {"alpha": alpha, "sigma": sigma, "c_in": np.full_like(clocks, math.sqrt(model.dimension))}


def _table(columns: dict[str, Array], rows: int) -> Array:
    """(rows, 9): the columns of the kernel's table, zero where not given."""
    return np.stack([columns.get(name, np.zeros(rows)) for name in ROTATION_COLUMNS], axis=1)
