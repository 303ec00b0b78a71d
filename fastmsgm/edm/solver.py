"""EDMHeun: EDM's sampler on the Karras grid, with its stochastic churn.

With slope(y, s) = (y - D(y, s)) / s, a step from s to s' < s first adds noise up to
s_hat = min(s (1 + churn), s_max), then takes Heun's step of dy/ds = slope from s_hat to s'; the
last step, to 0, is Euler's (Karras et al., 2022, algorithm 2, with S_noise = 1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastmsgm import rng
from fastmsgm.checks import check_int, is_number
from fastmsgm.edm.process import EDM, EDMPreconditioning
from fastmsgm.model import ScoreModel
from fastmsgm.solver import Plan, Solver, karras_sigmas
from fastmsgm.state import SamplerState, c_noise_by_step

# Columns of a row: the slope's y and D coefficients of y and f; the length of the step; noise that
# is added when the step ends; and c_in of the next call.
COLUMNS = ("y_part", "f_part", "length", "added_std", "c_in_next")


class EDMStepFlags(NamedTuple):
    """What a row of the table is; the steps are plain PyTorch.

    Args:
        row: Row of the table, from 0.
        corrects: Whether it is the second slope of Heun's step.
        ends: Whether the step ends with it.
    """

    row: int
    corrects: bool
    ends: bool


@dataclass(frozen=True, kw_only=True)
class EDMPlan(Plan):
    """One slope for every row; see ``EDMHeun``.

    Args:
        process: The forward process.
        c_in: Of the first network call.
    """

    process: EDM
    c_in: float

    def state(self, model: Any, size: int) -> EDMState:
        return EDMState(self, model, size)


class EDMState(SamplerState):
    """A chunk of transformed samples y on their way to s = 0."""

    fused = False

    def __init__(self, plan: EDMPlan, model: ScoreModel, size: int) -> None:
        device, d = model.device, math.prod(model.shape)
        self.plan, self.size = plan, size
        last = plan.nfe - 1
        self.flags = [EDMStepFlags(k, k % 2 == 1, k % 2 == 1 or k == last) for k in range(plan.nfe)]
        self.c_noise = c_noise_by_step(plan.c_noise, size, device)
        self.condition = {}
        self.model_input = torch.empty((size, *model.shape), dtype=model.input_dtype, device=device)
        self._y = torch.zeros((size, d), dtype=torch.float32, device=device)
        self._start = self._slope = self._y

    def sample_prior(self, stream: Tensor, label: Tensor | None) -> None:
        n, d = self._y.shape
        purposes = rng.Purpose.PRIOR, rng.Purpose.RADIUS
        noise = self.plan.process.noise(n, d, stream, *purposes, 0)
        self._y = float(self.plan.noise_levels[0]) * noise
        self._feed(self.plan.c_in)

    def step(
        self,
        flags: EDMStepFlags,
        model_output: Tensor,
        stream: Tensor,
        first_nonfinite_step: Tensor,
    ) -> None:
        y_part, f_part, length, added, c_in = self.plan.table[flags.row].tolist()
        slope = y_part * self._y + f_part * model_output.float().flatten(1)
        if flags.corrects:
            slope = (self._slope + slope) / 2
        else:
            self._start, self._slope = self._y, slope
        self._y = self._start + length * slope
        if added:
            z = rng.normals(*self._y.shape, stream, rng.Purpose.STEP, 0)
            self._y = self._y + added * z
        nonfinite = ~torch.isfinite(self._y).all(1) & (first_nonfinite_step < 0)
        first_nonfinite_step.copy_(torch.where(nonfinite, flags.row, first_nonfinite_step))
        self._feed(c_in)

    def _feed(self, c_in: float) -> None:
        self.model_input.copy_((c_in * self._y).view_as(self.model_input))

    def x(self, samples: slice) -> Tensor:
        return self._y.view(self.size, *self.model_input.shape[1:])[samples]

    def denoised(self) -> Tensor | None:
        return None


@dataclass(frozen=True)
class EDMHeun(Solver):
    """Heun's method on the Karras grid: N steps take 2 N - 1 network calls.

    Args:
        churn: Noise added before a step, as a share of its noise level; gamma of Karras et al.
            (2022), there at most sqrt(2) - 1. For normal noise alone.

    Raises:
        ValueError: churn is not in [0, 1].
    """

    churn: float = 0.0

    default_steps: ClassVar[int] = 18

    def __post_init__(self) -> None:
        if not is_number(self.churn) or not 0 <= self.churn <= 1:
            raise ValueError(f"churn must be in [0, 1], got {self.churn!r}")
        object.__setattr__(self, "churn", float(self.churn))

    def plan(self, preconditioning: EDMPreconditioning, steps: int) -> EDMPlan:
        if not isinstance(preconditioning, EDMPreconditioning):
            raise TypeError(f"solver {self!r} is for EDM, got {type(preconditioning).__name__}")
        process, steps = preconditioning.process, check_int("steps", steps, 1)
        if self.churn and process.freedom is not None:
            raise ValueError(
                f"churn must be 0 for Student-t noise, whose sums are not of its kind, got "
                f"{self.churn:g}"
            )
        low, high = preconditioning.noise_levels
        grid = karras_sigmas(steps, low, high)
        noised = np.minimum(grid[:-1] * (1 + self.churn), high)
        # Before the first step there is nothing to add: it starts at the largest level.
        added = np.append(np.sqrt(np.maximum(noised[1:] ** 2 - grid[1:-1] ** 2, 0.0)), 0.0)
        levels, lengths, ends = (np.empty(2 * steps) for _ in range(3))
        levels[0::2], levels[1::2] = noised, grid[1:]
        lengths[0::2] = lengths[1::2] = grid[1:] - noised
        ends[0::2], ends[1::2] = 0.0, added
        levels, lengths, ends = (x[:-1] for x in (levels, lengths, ends))
        c_skip, c_out, c_in = preconditioning.coefficients(levels).T
        columns = ((1 - c_skip) / levels, -c_out / levels, lengths, ends, np.append(c_in[1:], 1.0))
        return EDMPlan(
            noise_levels=levels,
            table=np.stack(columns, axis=1),
            c_noise=preconditioning.c_noise(levels),
            process=process,
            c_in=float(c_in[0]),
        )
