"""The copy limit: what moves the bytes of a step and computes nothing."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from interleaved import Contender
from torch import Tensor

ADD, ADD_AND_COPY = "torch.add", "torch.add and a copy"


@dataclass
class CopyLimit:
    """Of a state and a network's output, which are read, and a result: 12 bytes an element. With a history, which is
    read and written: 20."""

    state: Tensor
    output: Tensor
    history: Tensor | None = None
    items: int = 1
    result: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.result = torch.empty_like(self.state)
        self.copied = None if self.history is None else torch.empty_like(self.history)

    def contenders(self) -> list[Contender]:
        """``ADD`` and, with a history, ``ADD_AND_COPY``."""
        limits = [Contender(ADD, self._add, self._check, items=self.items)]
        return limits if self.copied is None else [*limits, Contender(ADD_AND_COPY, self._add_and_copy, self._check)]

    def _add(self) -> Tensor:
        return torch.add(self.state, self.output, out=self.result)

    def _add_and_copy(self) -> Tensor:
        assert self.history is not None
        assert self.copied is not None
        self.copied.copy_(self.history)
        return self._add()

    def _check(self, result: Tensor) -> None:
        assert torch.equal(result, self.state + self.output)
