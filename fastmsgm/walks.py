"""Walks: the arrays of one chunk of samples, and how the prior and a step of the plan fill them.

Where steps are fused they are allocated once and filled in place, so that a captured CUDA graph finds them again.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastmsgm import ops, rng
from fastmsgm.additive import VPModel
from fastmsgm.gbm_model import GBMModel
from fastmsgm.model import ScoreModel
from fastmsgm.rotation_model import RotationModel
from fastmsgm.solvers import AmbientPlan, GBMPlan, Plan, RingPlan, RotationPlan


class Walk(ABC):
    """What the sampling loop needs of a chunk: the network's input, its condition and the form of every row, the moves.

    A row's form is what its step needs besides numbers on the device; rows of one form share their compiled code.
    """

    model: ScoreModel
    plan: Plan
    size: int
    net_in: Tensor
    conditions: Sequence[Tensor]
    forms: Sequence[Any]
    fused = True  # whether a step is one operation of ``ops``

    @abstractmethod
    def draw(self, stream: Tensor) -> None:
        """Fill the state, and the network's input, from the prior; row 0 is sample ``stream[1]``."""

    @abstractmethod
    def step(self, form: Any, f: Tensor, stream: Tensor, bad: Tensor) -> None:
        """The row of the plan at which the stream stands, of this form, with the network's raw output f."""

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

    def __init__(self, model: GBMModel, plan: GBMPlan, size: int, label: int | None) -> None:
        device, shape = model.device, (size, *model.shape)
        self.label = label
        self.model, self.plan, self.size, self.scale = model, plan, size, model.scale
        self.table = torch.from_numpy(plan.table).to(device, torch.float32)
        levels = torch.zeros(plan.calls, 4, device=device)[:, :1]  # rows at multiples of 16 bytes
        levels.copy_(torch.from_numpy(model.condition(plan.levels))[:, None])
        levels = levels.expand(-1, size)
        if model.classes:
            levels = torch.stack((levels, torch.zeros_like(levels)), dim=2)
        self.told, self.conditions = levels, levels.unbind(0)
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
        self.forms = [(model.prediction == "score", plan.linear, plan.log_state)] * plan.calls

    def draw(self, stream: Tensor) -> None:
        if self.history is not None:
            self.history.zero_()  # a lost sample's is NaN
        samples = stream[1] + torch.arange(self.size, device=self.x.device)
        if self.label is not None:
            samples = torch.full_like(samples, self.label)
        centre = self.centres[samples % len(self.centres)]
        if self.model.classes:
            self.told[:, :, 1] = samples % self.model.classes
        ops.gbm_perturb_(centre, self.start, stream, rng.Kind.PRIOR, 0, x_t=self.x, net_in=self.log_in, z=None)

    def step(self, form: tuple[bool, bool, bool], f: Tensor, stream: Tensor, bad: Tensor) -> None:
        ops.gbm_step_(self.x, f, self.table, stream, 0, bad, self.history, self.log_in, *form)

    def state(self) -> Tensor:
        return self.x * self.scale

    def denoised(self) -> Tensor | None:
        return None if self.history is None else torch.exp(self.history) * self.scale

    def data(self, rows: slice) -> Tensor:
        return self.model.to_data(self.x[rows])


class DirectionWalk(Walk):
    """Unit directions of a rotation; norms are drawn with the prior and only multiply the result."""

    def __init__(self, model: RotationModel, plan: Plan, size: int, history: bool) -> None:
        device, shape = model.device, (size, *model.shape)
        self.model, self.plan, self.size, self.prior = model, plan, size, model.prior
        self.table = torch.from_numpy(plan.table).to(device, torch.float32)
        self.condition, self.input_scale = model.condition, model.input_scale
        self.u = torch.empty(shape, dtype=torch.float32, device=device)
        self.net_in = torch.empty_like(self.u, dtype=model.input_dtype)
        self.history = torch.zeros_like(self.u) if history else None
        self.norms = torch.empty((size, *[1] * len(model.shape)), dtype=torch.float32, device=device)
        self.conditions = torch.empty((plan.calls, size, 2), dtype=torch.float32, device=device).unbind(0)

    def draw(self, stream: Tensor) -> None:
        ops.fill_normal_(self.u, stream, rng.Kind.PRIOR, 0)
        lengths = self.u.flatten(1).norm(dim=1).view_as(self.norms)
        self.u /= lengths
        self.net_in.copy_(self.u * self.input_scale)
        norms = self.prior.draw(self.size, stream)
        self.norms.copy_(norms.view_as(self.norms))
        if self.history is not None:
            self.history.zero_()  # a lost sample's is NaN
        for condition, level in zip(self.conditions, self.plan.levels, strict=True):
            condition.copy_(self.condition(level[None], norms))

    def state(self) -> Tensor:
        return self.u * self.norms

    def data(self, rows: slice) -> Tensor:
        return self.model.to_data(self.state()[rows])


class RotationWalk(DirectionWalk):
    """Isotropic noise."""

    def __init__(self, model: RotationModel, plan: RotationPlan, size: int) -> None:
        super().__init__(model, plan, size, plan.multistep)
        self.angles = None if plan.angles is None else plan.angles.to(model.device)
        self.forms = plan.geodesic

    def step(self, form: bool, f: Tensor, stream: Tensor, bad: Tensor) -> None:
        angles = None if form else self.angles
        ops.rotation_step_(self.u, f, self.table, angles, stream, 0, bad, self.history, self.net_in, form)

    def denoised(self) -> Tensor | None:
        if self.history is None or any(self.forms):
            return None
        flat = self.history.flatten(1)
        return (flat / flat.norm(dim=1, keepdim=True)).view_as(self.history) * self.norms


class RingWalk(DirectionWalk):
    """Ring noise; the history is where the step began."""

    def __init__(self, model: RotationModel, plan: RingPlan, size: int) -> None:
        super().__init__(model, plan, size, any(plan.restart))
        self.forms = list(zip(plan.restart, plan.noisy, strict=True))

    def step(self, form: tuple[bool, bool], f: Tensor, stream: Tensor, bad: Tensor) -> None:
        ops.ring_step_(self.u, f, self.table, stream, 0, bad, self.history, self.net_in, *form)

    def denoised(self) -> Tensor | None:
        return None


class AmbientWalk(Walk):
    """Runge-Kutta stages in R^d, in plain PyTorch, of a rotation's direction or of the additive baseline."""

    fused = False

    def __init__(self, model: RotationModel | VPModel, plan: AmbientPlan, size: int) -> None:
        device, d = model.device, math.prod(model.shape)
        self.model, self.plan, self.size = model, plan, size
        self.process, self.score, self.condition = model.process, model.score, model.condition
        self.stages, self.lambda_, self.ito = plan.stages, plan.lambda_, plan.ito
        self.rotation, self.input_scale = isinstance(model, RotationModel), model.input_scale
        self.prior = model.prior if isinstance(model, RotationModel) else None
        self.x = torch.empty((size, d), dtype=torch.float32, device=device)
        self.net_in = torch.empty((size, *model.shape), dtype=model.input_dtype, device=device)
        self.norms = torch.ones(size, dtype=torch.float32, device=device)
        self.forms = range(plan.calls)

    def draw(self, stream: Tensor) -> None:
        ops.fill_normal_(self.x, stream, rng.Kind.PRIOR, 0)
        if self.prior is not None:
            self.x /= self.x.norm(dim=1, keepdim=True)
            self.norms = self.prior.draw(self.size, stream)
        self._feed(self.x)
        self.conditions = [self.condition(level[None], self.norms) for level in self.plan.levels]

    def step(self, form: int, f: Tensor, stream: Tensor, bad: Tensor) -> None:
        k = form
        clock, ahead, weight = self.plan.table[k].tolist()
        if k % self.stages == 0:
            self.base, self.sum = self.x, torch.zeros_like(self.x)
            step = k // self.stages - k  # of the noise, counted from row k
            self.noise = rng.normals(*self.x.shape, stream, rng.Kind.STEP, step) * math.sqrt(1 - self.lambda_)
        score = self.score(f.float().flatten(1), self.plan.levels[k : k + 1])
        drift = self.process.reverse_drift(self.x, score, self.lambda_, self.ito)
        velocity = clock * drift + math.sqrt(clock) * self.process.turn(self.x, self.noise)
        self.sum = self.sum + weight * velocity
        if (k + 1) % self.stages:
            self.x = self.base + ahead * velocity
        else:
            self.x = self.base + self.sum
            if self.rotation:
                self.x = self.x / self.x.norm(dim=1, keepdim=True)
        lost = ~torch.isfinite(self.x).all(1) & (bad < 0)
        bad.copy_(torch.where(lost, k, bad))
        self._feed(self.x)

    def _feed(self, x: Tensor) -> None:
        self.net_in.copy_((self.input_scale * x).view_as(self.net_in))

    def state(self) -> Tensor:
        return (self.x * self.norms[:, None]).view_as(self.net_in)

    def denoised(self) -> Tensor | None:
        return None

    def data(self, rows: slice) -> Tensor:
        return self.model.to_data(self.state()[rows])


def walk_of(model: ScoreModel, plan: Plan, size: int, label: int | None = None) -> Walk:
    """The walk of a model along a plan that one of its solvers made; all samples of one class where it has labels."""
    if isinstance(plan, AmbientPlan):
        assert isinstance(model, (RotationModel, VPModel))
        return AmbientWalk(model, plan, size)
    if isinstance(model, RotationModel):
        if isinstance(plan, RingPlan):
            return RingWalk(model, plan, size)
        assert isinstance(plan, RotationPlan)
        return RotationWalk(model, plan, size)
    assert isinstance(model, GBMModel)
    assert isinstance(plan, GBMPlan)
    return GBMWalk(model, plan, size, label)
