"""All solvers, by class and by name.

``GBMModel.solvers``, ``RotationModel.solvers`` and ``VPModel.solvers`` hold those of a family by
name; ``resolve`` looks a name up.
"""

from __future__ import annotations

from fastmsgm.edm.solver import EDMHeun, EDMPlan
from fastmsgm.gbm.fitted import FittedSolver
from fastmsgm.gbm.paper_solvers import (
    PUBLISHED,
    PUBLISHED_CLASS_AVERAGE,
    PUBLISHED_SCHEDULE,
    DaleLangevin,
    PaperSolver,
    SignAgnostic,
    Stage,
)
from fastmsgm.gbm.solvers import (
    ERSDE2,
    DPMSolverPP2M,
    Euler,
    Heun,
    LogSolver,
    MultistepSolver,
)
from fastmsgm.gbm.state import GBMPlan
from fastmsgm.model import ScoreModel
from fastmsgm.rotation.ring import RingSplitting
from fastmsgm.rotation.spherical import (
    GeodesicEuler,
    GeodesicHeun,
    SphericalMultistep,
    SphericalSolver,
)
from fastmsgm.rotation.state import RingPlan, SphericalPlan
from fastmsgm.sde.runge_kutta import (
    EulerMaruyama,
    RungeKuttaPlan,
    RungeKuttaSolver,
    StratonovichHeun,
    StratonovichRK4,
)
from fastmsgm.solver import Plan, Solver, karras_sigmas

__all__ = [
    "ERSDE2",
    "PUBLISHED",
    "PUBLISHED_CLASS_AVERAGE",
    "PUBLISHED_SCHEDULE",
    "DPMSolverPP2M",
    "DaleLangevin",
    "EDMHeun",
    "EDMPlan",
    "Euler",
    "EulerMaruyama",
    "FittedSolver",
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
    "RungeKuttaPlan",
    "RungeKuttaSolver",
    "SignAgnostic",
    "Solver",
    "SphericalMultistep",
    "SphericalPlan",
    "SphericalSolver",
    "Stage",
    "StratonovichHeun",
    "StratonovichRK4",
    "karras_sigmas",
    "resolve",
]


def resolve(
    solver: str | Solver | None,
    model: ScoreModel,
    steps: int | None = None,
    guided: bool = False,
) -> Solver:
    """Return a solver from its name, from itself, or the model's default for None.

    Args:
        solver: A key of ``model.solvers``, a Solver, or None.
        model: The model to be sampled.
        steps: Number of steps asked for, where the solver is None: a solver that was fitted for
            them comes before the default.
        guided: Whether with guidance, for which no solver was fitted.

    Raises:
        TypeError: Neither a name nor a Solver.
        ValueError: A name that the model's family does not have.

    Example:
        >>> resolve(None, fastmsgm.load("fashion-gbm"), steps=18)
        DPMSolverPP2M(eta=0.0)
    """
    if solver is None:
        return model.solver_of(steps, guided)
    if isinstance(solver, Solver):
        return solver
    if not isinstance(solver, str):
        raise TypeError(
            f"solver must be a name or a Solver, got {solver!r} ({type(solver).__name__})"
        )
    if solver not in model.solvers:
        raise ValueError(
            f"solver must be one of {', '.join(model.solvers)}, got {solver!r} for a "
            f"{model.family} model"
        )
    return model.solvers[solver]()
