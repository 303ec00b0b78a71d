"""Plans and sampler states of rotations: unit directions, with the norms beside them.

Norms are sampled with the prior and only multiply the result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastmsgm import ops, rng
from fastmsgm.sde.model import SDEModel
from fastmsgm.solver import Plan
from fastmsgm.state import SamplerState, c_noise_by_step


class SphericalStepFlags(NamedTuple):
    """Compile-time switches of ``rotation_step``.

    Args:
        geodesic: The step follows a geodesic; else the exact flow towards D.
    """

    geodesic: bool


class RingStepFlags(NamedTuple):
    """Compile-time switches of ``ring_step``.

    Args:
        restart: The step starts from where the row before did: the second row of a midpoint step.
        noisy: The step has noise.
    """

    restart: bool
    noisy: bool


@dataclass(frozen=True, kw_only=True)
class SphericalPlan(Plan):
    """One network call and one ``rotation_step`` for every row of ``ROTATION_COLUMNS``.

    ``noise_levels`` are integrated betas.

    Args:
        c_in: The network sees this times the direction.
        flags: Step flags of each step.
        keeps_previous: D, or the velocity in the geodesic form, is kept for the next step.
        angles: (R, NZ) the angle table of each row's heat-kernel noise, or None without any.
    """

    c_in: float
    flags: tuple[SphericalStepFlags, ...]
    keeps_previous: bool
    angles: Tensor | None = None

    def state(self, model: Any, size: int) -> SphericalState:
        return SphericalState(self, model, size)


@dataclass(frozen=True, kw_only=True)
class RingPlan(Plan):
    """One network call and one ``ring_step`` for every row of ``RING_COLUMNS``.

    ``noise_levels`` are integrated betas.

    Args:
        c_in: The network sees this times the direction.
        flags: Step flags of each step.
    """

    c_in: float
    flags: tuple[RingStepFlags, ...]

    def state(self, model: Any, size: int) -> RingState:
        return RingState(self, model, size)


class DirectionState(SamplerState):
    """Directions and norms of a chunk.

    Args:
        plan: What it follows.
        model: Gives norms, conditioning, shape, device and dtype.
        size: Number of samples.
        has_memory: Whether a step keeps an array for the next one.
    """

    def __init__(
        self, plan: SphericalPlan | RingPlan, model: SDEModel, size: int, has_memory: bool
    ) -> None:
        device, shape = model.device, (size, *model.shape)
        self.size, self.c_in, self.flags = size, plan.c_in, plan.flags
        self.prior, self.condition_of = model.prior, model.condition_of
        self.c_noise = c_noise_by_step(plan.c_noise, size, device)
        self.table = torch.from_numpy(plan.table).to(device, torch.float32)
        self.u = torch.empty(shape, dtype=torch.float32, device=device)
        self.model_input = torch.empty_like(self.u, dtype=model.input_dtype)
        self.memory = torch.zeros_like(self.u) if has_memory else None
        norms_shape = (size, *[1] * len(model.shape))
        self.norms = torch.empty(norms_shape, dtype=torch.float32, device=device)
        ones = torch.ones(size, dtype=torch.float32, device=device)
        self.condition = {k: torch.empty_like(v) for k, v in model.condition_of(ones).items()}

    def sample_prior(self, stream: Tensor, label: Tensor | None) -> None:
        ops.fill_normal_(self.u, stream, rng.Purpose.PRIOR, 0)
        lengths = self.u.flatten(1).norm(dim=1).view_as(self.norms)
        self.u /= lengths
        self.model_input.copy_(self.u * self.c_in)
        norms = self.prior.sample(self.size, stream)
        self.norms.copy_(norms.view_as(self.norms))
        if self.memory is not None:
            self.memory.zero_()  # NaN of an earlier chunk would survive a factor of 0
        for name, value in self.condition_of(norms).items():
            self.condition[name].copy_(value)

    def x(self, samples: slice) -> Tensor:
        return self.u[samples] * self.norms[samples]


class SphericalState(DirectionState):
    """Isotropic noise; the memory of a step is D, or the velocity in the geodesic form."""

    def __init__(self, plan: SphericalPlan, model: SDEModel, size: int) -> None:
        super().__init__(plan, model, size, plan.keeps_previous)
        self.angles = None if plan.angles is None else plan.angles.to(model.device)
        self.memory_is_denoised = plan.keeps_previous and not any(f.geodesic for f in plan.flags)

    def step(
        self,
        flags: SphericalStepFlags,
        model_output: Tensor,
        stream: Tensor,
        first_nonfinite_step: Tensor,
    ) -> None:
        ops.rotation_step_(
            self.u,
            model_output,
            self.table,
            None if flags.geodesic else self.angles,
            stream,
            0,
            first_nonfinite_step,
            self.memory,
            self.model_input,
            *flags,
        )

    def denoised(self) -> Tensor | None:
        if self.memory is None or not self.memory_is_denoised:
            return None
        flat = self.memory.flatten(1)
        return (flat / flat.norm(dim=1, keepdim=True)).view_as(self.memory) * self.norms


class RingState(DirectionState):
    """Ring noise; the memory of a step is the state that it started from."""

    def __init__(self, plan: RingPlan, model: SDEModel, size: int) -> None:
        super().__init__(plan, model, size, any(f.restart for f in plan.flags))

    def step(
        self,
        flags: RingStepFlags,
        model_output: Tensor,
        stream: Tensor,
        first_nonfinite_step: Tensor,
    ) -> None:
        ops.ring_step_(
            self.u,
            model_output,
            self.table,
            stream,
            0,
            first_nonfinite_step,
            self.memory,
            self.model_input,
            *flags,
        )

    def denoised(self) -> Tensor | None:
        return None
