"""Solvers of the reversed isotropic rotation as coefficient tables, for ``rotation_step``.

Noise levels are integrated betas B. With u a direction, D = alpha u + sigma n the denoised
direction, n the tangent part of the network's output over sqrt(d) and s = rho n the score, they
move u by

    Euler (spherical DDIM)   the exact flow of du = P_u D dLam, D held, Lam = -log tanh(B/4) / 2
    DPM-Solver++(2M)         the same with D_i + h_i / (2 h_{i-1}) (D_i - D_{i-1}), h the step
                             in Lam
      with eta > 0           the flow overshoots to a smaller B; heat-kernel noise leads back
    geodesic Euler           Exp_u((1 + eta)/2 dtau s + sqrt(eta dtau) P_u xi), tau = B / (d - 1)
    geodesic Heun            Exp_u of the mean of two velocities, the second transported back;
                             two rows a step

The columns of a row, ``reference.ROTATION_COLUMNS``, are

    alpha, sigma    D = alpha u + sigma n
    w               D_w = D + w (D - D_prev); in the geodesic form the weight of the velocity before
    length          of the flow in Lam; infinite for u = D_w / |D_w|
    drift, noise    of the geodesic form: the velocity is drift n + noise P_u xi
    back            1 where a geodesic row starts from where the row before did
    spread          1 - e^{-B/2} of the heat-kernel noise
    c_in            the next network input is c_in u

The last row ends at B = 0 with u = D / |D|, so that no noise is left. The tests state the order of
each solver.
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fastmsgm.checks import check_eta, check_int
from fastmsgm.reference import ROTATION_COLUMNS
from fastmsgm.rotation.angle_table import angle_table
from fastmsgm.rotation.heat_kernel import Lam, inverse_Lam
from fastmsgm.rotation.preconditioning import RotationPreconditioning
from fastmsgm.rotation.state import SphericalPlan, SphericalStepFlags
from fastmsgm.solver import Solver, karras_sigmas
from fastmsgm.types import Array


class SphericalSolver(Solver):
    """A solver from uniform directions at the process's largest B, over the smallest B, to 0."""

    default_steps: ClassVar[int] = 20

    def plan(self, preconditioning: RotationPreconditioning, steps: int) -> SphericalPlan:
        if not isinstance(preconditioning, RotationPreconditioning):
            raise TypeError(
                f"solver {self!r} is for rotations, got a {type(preconditioning).__name__}"
            )
        if preconditioning.process.noise != "isotropic":
            raise ValueError(
                f"solver {self!r} needs isotropic noise, got {preconditioning.process}"
            )
        return self.plan_isotropic(preconditioning, check_int("steps", steps, 1))

    @abstractmethod
    def plan_isotropic(self, preconditioning: RotationPreconditioning, steps: int) -> SphericalPlan:
        """Return the plan for isotropic noise."""


@dataclass(frozen=True)
class SphericalMultistep(SphericalSolver):
    """Exponential integrator of the probability flow, on a grid evenly spaced in Lam.

    Args:
        order: 1 (spherical DDIM) or 2 (DPM-Solver++(2M)).
        eta: 0 is the probability-flow ODE, 1 the reverse SDE to leading order.

    Raises:
        ValueError: order or eta is out of range.
    """

    order: int = 2
    eta: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "order", check_int("order", self.order, 1, 2))
        object.__setattr__(self, "eta", check_eta(self.eta))

    def plan_isotropic(self, preconditioning: RotationPreconditioning, steps: int) -> SphericalPlan:
        ends = Lam(np.array([preconditioning.process.B_max, preconditioning.B_min]))
        B = inverse_Lam(np.linspace(ends[0], ends[1], steps) if steps > 1 else ends[:1])
        after = np.append(B[1:], 0.0)
        with np.errstate(divide="ignore"):
            half = np.tanh(after / 4)
            overshot = np.where(after > 0, (half / np.tanh(B / 4)) ** self.eta * half, 0.0)
        middle = 4 * np.arctanh(overshot)  # where the flow stops and the heat kernel takes over
        with np.errstate(divide="ignore"):
            length = Lam(middle) - Lam(B)
            whole = Lam(after) - Lam(B)
        w = np.zeros(steps)
        if self.order == 2:
            w[1:-1] = length[1:-1] / (2 * whole[:-2])
        noise = after - middle
        columns = _denoiser(preconditioning, B)
        columns |= {"w": w, "length": length, "spread": -np.expm1(-noise / 2)}
        return _plan(
            preconditioning,
            B,
            _table(columns, steps),
            [False] * steps,
            keeps_previous=self.order == 2,
            noise=noise if self.eta else None,
        )


@dataclass(frozen=True)
class GeodesicEuler(SphericalSolver):
    """First order along geodesics, with Gaussian tangent noise.

    Args:
        eta: 0 is the probability-flow ODE, 1 the reverse SDE.

    Raises:
        ValueError: eta is out of range.
    """

    eta: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "eta", check_eta(self.eta))

    def plan_isotropic(self, preconditioning: RotationPreconditioning, steps: int) -> SphericalPlan:
        B = karras_sigmas(steps, preconditioning.B_min, preconditioning.process.B_max)
        time = -np.diff(B) / (preconditioning.d - 1)
        rho = preconditioning.coefficients(B[:-1])[:, 2]
        last = np.arange(steps) == steps - 1
        columns = _denoiser(preconditioning, B[:-1])
        columns |= {
            "length": np.where(last, np.inf, 0.0),
            "drift": np.where(last, 0.0, (1 + self.eta) / 2 * time * rho),
            "noise": np.where(last, 0.0, np.sqrt(self.eta * time)),
        }
        geodesic = (~last).tolist()
        table = _table(columns, steps)
        return _plan(preconditioning, B[:-1], table, geodesic, keeps_previous=False)


@dataclass(frozen=True)
class GeodesicHeun(SphericalSolver):
    """Heun's method along geodesics for the probability flow: 2 steps - 1 network calls."""

    def plan_isotropic(self, preconditioning: RotationPreconditioning, steps: int) -> SphericalPlan:
        grid = karras_sigmas(steps, preconditioning.B_min, preconditioning.process.B_max)
        B, rows, geodesic = [], [], []
        for before, after in itertools.pairwise(grid):
            at = _denoiser(preconditioning, np.array([before]))
            B.append(before)
            if after == 0:
                rows.append(_table(at | {"length": np.array([np.inf])}, 1))
                geodesic.append(False)
                continue
            half = (before - after) / (preconditioning.d - 1) / 2
            rho = preconditioning.coefficients(np.array([before, after]))[:, 2]
            velocity = half * rho
            rows.append(_table(at | {"drift": velocity[:1]}, 1))
            corrector = {"drift": velocity[1:] / 2, "w": np.array([0.5]), "back": np.ones(1)}
            rows.append(_table(_denoiser(preconditioning, np.array([after])) | corrector, 1))
            B.append(after)
            geodesic += [True, True]
        return _plan(
            preconditioning, np.array(B), np.concatenate(rows), geodesic, keeps_previous=True
        )


ETA = 0.6  # of the stochastic default; docs/solvers.md has the curve
SOLVERS: dict[str, Callable[[], Solver]] = {
    "euler": lambda: SphericalMultistep(order=1),
    "dpm++2m": SphericalMultistep,
    "sde-dpm++2m": lambda: SphericalMultistep(eta=ETA),
    "geodesic-euler": GeodesicEuler,
    "geodesic-heun": GeodesicHeun,
}


def _plan(
    preconditioning: RotationPreconditioning,
    B: Array,
    table: Array,
    geodesic: list[bool],
    *,
    keeps_previous: bool,
    noise: Array | None = None,
) -> SphericalPlan:
    """Return the plan; ``noise`` (R,) is the integrated beta of each row's heat-kernel noise."""
    angles = None if noise is None else angle_table(preconditioning.d).spread(noise)
    return SphericalPlan(
        noise_levels=B,
        table=table,
        c_noise=preconditioning.c_noise(B),
        c_in=preconditioning.c_in,
        flags=tuple(map(SphericalStepFlags, geodesic)),
        keeps_previous=keeps_previous,
        angles=angles,
    )


def _denoiser(preconditioning: RotationPreconditioning, B: Array) -> dict[str, Array]:
    alpha, sigma, _ = preconditioning.coefficients(B).T
    return {"alpha": alpha, "sigma": sigma, "c_in": np.full_like(B, preconditioning.c_in)}


def _table(columns: dict[str, Array], rows: int) -> Array:
    """Return (rows, 9): the columns of the kernel's table, zero where not given."""
    return np.stack([columns.get(name, np.zeros(rows)) for name in ROTATION_COLUMNS], axis=1)
