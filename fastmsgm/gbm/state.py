"""GBMPlan and GBMState: the table of a whole run, and the arrays of a chunk that follows it.

A plan has one row per network call, (A, B, B', C, S, k0, k1, k2, c_in), which does

    D = k0 y + k1 g + k2                         the denoised log-state, g the network's output
    y <- A y + B D + B' D_prev + C + S z         y = log|x|, z a normal
    next network input: c_in y
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastmsgm import ops, rng
from fastmsgm.gbm.preconditioning import GBMPreconditioning
from fastmsgm.gbm.prior import LogNormalPrior
from fastmsgm.model import ScoreModel
from fastmsgm.solver import Plan, Solver
from fastmsgm.state import SamplerState, c_noise_by_step
from fastmsgm.types import Array


class GBMStepFlags(NamedTuple):
    """Compile-time switches of ``gbm_step``.

    Args:
        stein_score: The network gives a Stein score, so g = x f.
        sign_agnostic: The update adds to x instead of log|x|.
        log_state: The row uses log|x|.
    """

    stein_score: bool
    sign_agnostic: bool
    log_state: bool


@dataclass(frozen=True, kw_only=True)
class GBMPlan(Plan):
    """One network call and one ``gbm_step`` for every row of ``reference.GBM_COLUMNS``.

    Args:
        preconditioning: The preconditioning of the model.
        c_in: The network's first input is this times log|x|.
        multistep: D is kept from step to step.
        flags: Step flags of all steps.
    """

    preconditioning: GBMPreconditioning
    c_in: float
    multistep: bool
    flags: GBMStepFlags

    @property
    def numbers(self) -> tuple[Array, ...]:
        return *super().numbers, np.array(self.c_in)

    def state(self, model: Any, size: int) -> GBMState:
        means = (model.prior.means / model.scale).contiguous()
        return GBMState(self, model, LogNormalPrior(means, model.prior.variance), size)


class GBMState(SamplerState):
    """The state x / scale of a chunk.

    Args:
        plan: What it follows.
        model: Gives shape, device and dtype.
        prior: In the units of the state.
        size: Number of samples.
    """

    def __init__(self, plan: GBMPlan, model: ScoreModel, prior: LogNormalPrior, size: int) -> None:
        device = model.device
        self.size, self.means, self.condition = size, prior.means, {}
        self.flags = [plan.flags] * plan.nfe
        self.table = torch.from_numpy(plan.table).to(device, torch.float32)
        self.c_noise = c_noise_by_step(plan.c_noise, size, device)
        first = plan.noise_levels[:1]
        shift = float(plan.preconditioning.shift(first)[0])
        start = [shift, prior.std(float(first[0])), plan.c_in]
        row = torch.tensor(start, dtype=torch.float32, device=device)
        self.prior_coefficients = row.expand(size, 3)
        self._x = torch.empty((size, *model.shape), dtype=torch.float32, device=device)
        self.log_input = (
            torch.empty_like(self._x, dtype=model.input_dtype)
            if plan.preconditioning.denoiser
            else None
        )
        self.model_input = self._x if self.log_input is None else self.log_input
        self.prev_denoised = torch.zeros_like(self._x) if plan.multistep else None

    def sample_prior(self, stream: Tensor, label: Tensor | None) -> None:
        if self.prev_denoised is not None:
            self.prev_denoised.zero_()  # NaN of an earlier chunk would survive a factor of 0
        if label is None:
            label = stream[1] + torch.arange(self.size, dtype=torch.int64, device=self._x.device)
        means = self.means[label % len(self.means)]
        ops.gbm_perturb_(
            means,
            self.prior_coefficients,
            stream,
            rng.Purpose.PRIOR,
            0,
            x_t=self._x,
            model_input=self.log_input,
            z=None,
        )

    def step(
        self,
        flags: GBMStepFlags,
        model_output: Tensor,
        stream: Tensor,
        first_nonfinite_step: Tensor,
    ) -> None:
        ops.gbm_step_(
            self._x,
            model_output,
            self.table,
            stream,
            0,
            first_nonfinite_step,
            self.prev_denoised,
            self.log_input,
            *flags,
        )

    def x(self, samples: slice) -> Tensor:
        return self._x[samples]

    def denoised(self) -> Tensor | None:
        if self.prev_denoised is None:
            return None
        return torch.copysign(torch.exp(self.prev_denoised), self._x)


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
