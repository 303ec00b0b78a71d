"""Solvers of the reverse process, by name: each is a coefficient table, computed once in float64 on the host."""

from __future__ import annotations

from collections.abc import Callable

from fastmsgm.model import ScoreModel

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

__all__ = [
    "ALIASES",
    "ERSDE2",
    "PUBLISHED",
    "SOLVERS",
    "DPMSolverPP2M",
    "DaleLangevin",
    "Euler",
    "GBMPlan",
    "Heun",
    "LogSolver",
    "MultistepSolver",
    "PaperSolver",
    "Plan",
    "SignAgnostic",
    "Solver",
    "karras_levels",
    "resolve",
]  # fmt: skip

SOLVERS: dict[str, Callable[[], Solver]] = {
    "euler": Euler,
    "heun": Heun,
    "dpm++2m": DPMSolverPP2M,
    "sde-dpm++2m": lambda: DPMSolverPP2M(stochastic=True),
    "er-sde-2": ERSDE2,
    "dale-langevin": DaleLangevin,
    "sign-agnostic": SignAgnostic,
}
ALIASES = {
    "dls": "dale-langevin",
    "adls": "dale-langevin",
    "ums": "sign-agnostic",
    "aums": "sign-agnostic",
}


def resolve(solver: str | Solver | None, model: ScoreModel) -> Solver:
    """A solver from its name or itself; None is "dpm++2m" for a denoiser and "dale-langevin" for a score network.

    Raises:
        ValueError: an unknown name.
        TypeError: neither a name nor a Solver.
    """
    if solver is None:
        solver = "dpm++2m" if model.prediction == "denoiser" else "dale-langevin"
    if isinstance(solver, Solver):
        return solver
    if not isinstance(solver, str):
        raise TypeError(f"solver must be a name or a Solver, got {solver!r} ({type(solver).__name__})")
    name = ALIASES.get(solver, solver)
    if name not in SOLVERS:
        raise ValueError(f"solver must be one of {', '.join([*SOLVERS, *ALIASES])}, got {solver!r}")
    return SOLVERS[name]()
