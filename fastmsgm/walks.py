"""Walks: the arrays of one chunk of samples, allocated once, and how the prior and a step of the plan fill them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from fastmsgm import ops, rng
from fastmsgm.gbm_model import GBMModel
from fastmsgm.model import ScoreModel
from fastmsgm.solvers import GBMPlan, Plan


class Walk(ABC):
    """What the sampling loop needs of a chunk: the network's input, its condition at every row, and the moves."""

    model: ScoreModel
    plan: Plan
    size: int
    net_in: Tensor
    conditions: Sequence[Tensor]

    @abstractmethod
    def draw(self, stream: Tensor) -> None:
        """Fill the state, and the network's input, from the prior; row 0 is sample ``stream[1]``."""

    @abstractmethod
    def step(self, k: int, f: Tensor, stream: Tensor, bad: Tensor) -> None:
        """Row k of the plan, with the network's raw output f."""

    @abstractmethod
    def state(self) -> Tensor:
        """A copy of the state in the units of the process (data + offset)."""

    @abstractmethod
    def denoised(self) -> Tensor | None:
        """What the network took the last state for, in the same units, where it is kept."""

    @abstractmethod
    def data(self, rows: slice) -> Tensor:
        """Rows of the state in the data's own range."""


class GBMWalk(Walk):
    """Geometric Brownian motion: the state x / scale."""

    def __init__(self, model: GBMModel, plan: GBMPlan, size: int) -> None:
        device, shape = model.device, (size, *model.shape)
        self.model, self.plan, self.size, self.scale = model, plan, size, model.scale
        self.table = torch.from_numpy(plan.table).to(device, torch.float32)
        conditions = torch.from_numpy(model.condition(plan.levels)).to(device, torch.float32)
        self.conditions = conditions[:, None].expand(-1, size).unbind(0)
        first = float(plan.levels[0])
        shift = model.process.drift * (first / model.process.sigma) ** 2
        c_in = model.preconditioning(plan.levels[:1])[0, 3]
        start = torch.tensor([shift, model.prior.std(first), c_in])
        self.start = start.to(device, torch.float32).expand(size, 3)
        self.centres = (model.prior.centres / self.scale).contiguous()
        self.x = torch.empty(shape, dtype=torch.float32, device=device)
        denoiser = model.prediction == "denoiser"
        self.log_in = torch.empty_like(self.x, dtype=model.input_dtype) if denoiser else None
        self.net_in = self.x if self.log_in is None else self.log_in
        self.history = torch.zeros_like(self.x) if plan.multistep else None
        self.flags = (model.prediction == "score", plan.linear, plan.log_state)

    def draw(self, stream: Tensor) -> None:
        samples = stream[1] + torch.arange(self.size, device=self.x.device)
        centre = self.centres[samples % len(self.centres)]
        ops.gbm_perturb_(centre, self.start, stream, rng.Kind.PRIOR, 0, x_t=self.x, net_in=self.log_in, z=None)

    def step(self, k: int, f: Tensor, stream: Tensor, bad: Tensor) -> None:
        ops.gbm_step_(self.x, f, self.table, stream, k, bad, self.history, self.log_in, *self.flags)

    def state(self) -> Tensor:
        return self.x * self.scale

    def denoised(self) -> Tensor | None:
        return None if self.history is None else torch.exp(self.history) * self.scale

    def data(self, rows: slice) -> Tensor:
        return self.model.to_data(self.x[rows])


def walk_of(model: ScoreModel, plan: Plan, size: int) -> Walk:
    """The walk of a model along a plan that one of its solvers made."""
    assert isinstance(model, GBMModel)
    assert isinstance(plan, GBMPlan)
    return GBMWalk(model, plan, size)
