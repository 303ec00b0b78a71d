"""Solvers of the reverse process, by name: each is a coefficient table, computed once in float64 on the host."""

from __future__ import annotations

from collections.abc import Callable

from fastmsgm.additive import VPModel
from fastmsgm.gbm_model import GBMModel
from fastmsgm.model import ScoreModel
from fastmsgm.rotation_model import RotationModel

from .ambient import AmbientPlan, AmbientSolver, EulerMaruyama, StratonovichHeun, StratonovichRK4
from .base import Plan, Solver
from .gbm import (
    ERSDE2,
    PUBLISHED,
    DaleLangevin,
    DPMSolverPP2M,
    Euler,
    GBMPlan,
    Heun,
    LogSolver,
    MultistepSolver,
    PaperSolver,
    SignAgnostic,
    karras_levels,
)  # fmt: skip
from .ring import RingPlan, RingSplitting
from .rotation import GeodesicEuler, GeodesicHeun, RotationPlan, SphericalMultistep, SphericalSolver

__all__ = [
    "ALIASES",
    "AMBIENT_SOLVERS",
    "ERSDE2",
    "GBM_SOLVERS",
    "PUBLISHED",
    "RING_SOLVERS",
    "ROTATION_SOLVERS",
    "AmbientPlan",
    "AmbientSolver",
    "DPMSolverPP2M",
    "DaleLangevin",
    "Euler",
    "EulerMaruyama",
    "GBMPlan",
    "GeodesicEuler",
    "GeodesicHeun",
    "Heun",
    "LogSolver",
    "MultistepSolver",
    "PaperSolver",
    "Plan",
    "RingPlan",
    "RingSplitting",
    "RotationPlan",
    "SignAgnostic",
    "Solver",
    "SphericalMultistep",
    "SphericalSolver",
    "StratonovichHeun",
    "StratonovichRK4",
    "karras_levels",
    "resolve",
]

GBM_SOLVERS: dict[str, Callable[[], Solver]] = {
    "euler": Euler,
    "heun": Heun,
    "dpm++2m": DPMSolverPP2M,
    "sde-dpm++2m": lambda: DPMSolverPP2M(eta=1.0),
    "er-sde-2": ERSDE2,
    "dale-langevin": DaleLangevin,
    "sign-agnostic": SignAgnostic,
}
ROTATION_SOLVERS: dict[str, Callable[[], Solver]] = {
    "euler": lambda: SphericalMultistep(order=1),
    "dpm++2m": SphericalMultistep,
    "sde-dpm++2m": lambda: SphericalMultistep(eta=0.3),
    "geodesic-euler": GeodesicEuler,
    "geodesic-heun": GeodesicHeun,
}
RING_SOLVERS: dict[str, Callable[[], Solver]] = {
    "ring-splitting": RingSplitting,
    "sde-ring-splitting": lambda: RingSplitting(eta=1.0),
}
AMBIENT_SOLVERS: dict[str, Callable[[], Solver]] = {
    "euler-maruyama": EulerMaruyama,
    "stratonovich-heun": StratonovichHeun,
    "stratonovich-rk4": StratonovichRK4,
}
ALIASES = {
    "dls": "dale-langevin",
    "adls": "dale-langevin",
    "ums": "sign-agnostic",
    "aums": "sign-agnostic",
}


def resolve(solver: str | Solver | None, model: ScoreModel) -> Solver:
    """A solver from its name or itself.

    None is "sde-dpm++2m" for a GBM denoiser, whose errors its noise repairs, "dpm++2m" for isotropic rotations,
    "ring-splitting" for the ring's, else the paper's: "dale-langevin" for a GBM score network, "stratonovich-rk4".

    Raises:
        ValueError: a name that is unknown for the model's process.
        TypeError: neither a name nor a Solver.
    """
    if solver is None:
        return _default(model)
    if isinstance(solver, Solver):
        return solver
    if not isinstance(solver, str):
        raise TypeError(f"solver must be a name or a Solver, got {solver!r} ({type(solver).__name__})")
    if isinstance(model, RotationModel):
        known = ROTATION_SOLVERS | RING_SOLVERS | AMBIENT_SOLVERS
    else:
        known = AMBIENT_SOLVERS if isinstance(model, VPModel) else GBM_SOLVERS
    name = ALIASES.get(solver, solver)
    if name not in known:
        names = [*known, *(alias for alias, of in ALIASES.items() if of in known)]
        raise ValueError(f"solver must be one of {', '.join(names)}, got {solver!r}")
    return known[name]()


def _default(model: ScoreModel) -> Solver:
    if isinstance(model, GBMModel):
        return DPMSolverPP2M(eta=1.0) if model.prediction == "denoiser" else DaleLangevin()
    noise = model.process.noise if isinstance(model, RotationModel) else ""
    return {"isotropic": SphericalMultistep, "ring": RingSplitting}.get(noise, StratonovichRK4)()
