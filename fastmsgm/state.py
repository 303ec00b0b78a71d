"""SamplerState: the arrays of one chunk of samples, and how the prior and a step fill them.

A plan makes the state that follows it (``plan.state(model, size)``). Where steps are fused, the
arrays are allocated once and filled in place, so that a captured CUDA graph finds them again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from fastmsgm.types import Array


class SamplerState(ABC):
    """The state of ``size`` samples on the way from the prior to the data.

    A noise stream is an int64 tensor [seed, first sample, first step] on the device of the work
    (``fastmsgm.rng.stream``); its step is also the row of the plan's table.

    Attributes:
        size: Number of samples.
        model_input: (size, ...) what the network sees next, in its dtype.
        c_noise: For every step of the plan, what tells the network the noise level, (size,).
        condition: What else the family conditions the network on, by name, each (size, ...).
        flags: For every step of the plan, the compile-time switches of its kernel, a NamedTuple.
            Steps with equal flags share compiled code.
        fused: Whether a step is one operation of ``fastmsgm.ops``.
    """

    size: int
    model_input: Tensor
    c_noise: Sequence[Tensor]
    condition: Mapping[str, Tensor]
    flags: Sequence[Any]
    fused: ClassVar[bool] = True

    @abstractmethod
    def sample_prior(self, stream: Tensor, label: Tensor | None) -> None:
        """Fill the state and the network's input from the prior.

        Args:
            stream: The noise stream, at the first sample of the chunk.
            label: (size,) int64 classes of the samples, or None for a model without classes.
        """

    @abstractmethod
    def step(
        self, flags: Any, model_output: Tensor, stream: Tensor, first_nonfinite_step: Tensor
    ) -> None:
        """Take one step; the step in ``stream`` is the row of the table.

        Args:
            flags: Those of this step.
            model_output: (size, ...) the network's raw output.
            stream: The noise stream, at this step.
            first_nonfinite_step: (size,) int32, -1 before; the first step at which a sample became
                non-finite.
        """

    @abstractmethod
    def x(self, samples: slice) -> Tensor:
        """Some samples of the state, as ``ScoreModel.to_data`` takes them."""

    @abstractmethod
    def denoised(self) -> Tensor | None:
        """The denoised estimate from the previous state, as ``x``; None where it is not kept."""


def c_noise_by_step(c_noise: Array, size: int, device: torch.device) -> tuple[Tensor, ...]:
    """Return what tells the network the noise level, step by step.

    Args:
        c_noise: (R,) of the plan.
        size: Number of samples.
        device: Of the samples.

    Returns:
        R tensors (size,) float32. Each starts at a multiple of 16 bytes, which compiled code
        expects.
    """
    rows = torch.zeros(len(c_noise), 4, dtype=torch.float32, device=device)[:, :1]
    rows.copy_(torch.from_numpy(c_noise)[:, None])
    return rows.expand(-1, size).unbind(0)
