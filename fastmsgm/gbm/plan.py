"""gbm_plan: the table of a run of ``gbm_step``, from noise levels and coefficients.

A plan has one row per network call, (A, B, B', C, S, k0, k1, k2, c_in), which does

    D = k0 y + k1 g + k2                         the denoised log-state, g the network's output
    y <- A y + B D + B' D_prev + C + S z         y = log|x|, z a normal
    next network input: c_in y
"""

from __future__ import annotations

import numpy as np

from fastmsgm.gbm.preconditioning import GBMPreconditioning
from fastmsgm.gbm.state import GBMPlan, GBMStepFlags
from fastmsgm.solver import Solver
from fastmsgm.types import Array


def gbm_plan(
    preconditioning: GBMPreconditioning,
    sigmas: Array,
    rows: Array,
    *,
    multistep: bool,
    sign_agnostic: bool = False,
    log_state: bool = True,
    c_in: Array | None = None,
) -> GBMPlan:
    """Return the plan of R network calls.

    Args:
        preconditioning: That of the model.
        sigmas: (R,) noise levels.
        rows: (R, 5) A, B, B', C, S.
        multistep: D is kept from step to step.
        sign_agnostic: The update adds to x instead of log|x|.
        log_state: The rows use log|x|.
        c_in: (R,) scales of the network's input; None are those of the preconditioning.
    """
    k = preconditioning.coefficients(sigmas)
    c_in = k[:, 3] if c_in is None else c_in
    return GBMPlan(
        noise_levels=sigmas,
        table=np.column_stack((rows, k[:, :3], np.append(c_in[1:], 0.0))),
        c_noise=preconditioning.c_noise(sigmas),
        preconditioning=preconditioning,
        c_in=float(c_in[0]),
        multistep=multistep,
        flags=GBMStepFlags(preconditioning.prediction == "score", sign_agnostic, log_state),
    )


def check_family(solver: Solver, preconditioning: object) -> None:
    """Raise TypeError where a preconditioning is not that of a GBM model."""
    if not isinstance(preconditioning, GBMPreconditioning):
        raise TypeError(
            f"solver {solver!r} is for geometric Brownian motion, got a "
            f"{type(preconditioning).__name__}"
        )
