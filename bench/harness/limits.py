"""The copy limit: the time of moving the bytes of a step without computing anything."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from bench.harness.interleaved import Provider

ADD, ADD_AND_COPY = "torch.add", "torch.add and a copy"


@dataclass
class CopyLimit:
    """Reads a state and a network output and writes a result: 12 bytes per element.

    Args:
        state: The state of a step.
        model_output: Like the state.
        prev_denoised: Like the state, or None. With it 20 bytes per element: it is read and written
            as well.
        items: As of ``Provider``.
    """

    state: Tensor
    model_output: Tensor
    prev_denoised: Tensor | None = None
    items: int = 1
    result: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.result = torch.empty_like(self.state)
        self.copied = None if self.prev_denoised is None else torch.empty_like(self.prev_denoised)

    def providers(self) -> list[Provider]:
        """Return ``ADD`` and, with ``prev_denoised``, ``ADD_AND_COPY``."""
        limits = [Provider(ADD, self._add, self._check, items=self.items)]
        if self.copied is not None:
            limits.append(Provider(ADD_AND_COPY, self._add_and_copy, self._check, items=self.items))
        return limits

    def _add(self) -> Tensor:
        return torch.add(self.state, self.model_output, out=self.result)

    def _add_and_copy(self) -> Tensor:
        assert self.prev_denoised is not None
        assert self.copied is not None
        self.copied.copy_(self.prev_denoised)
        return self._add()

    def _check(self, result: Tensor) -> None:
        assert torch.equal(result, self.state + self.model_output)
