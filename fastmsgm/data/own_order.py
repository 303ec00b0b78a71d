"""OwnOrder: the batches of a loader in an order of its own, as they come."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from fastmsgm.data.items import split
from fastmsgm.data.loaders import keys_of, on_cpu, seeded


class OwnOrder:
    """The batches of a loader in an order of its own, as they come.

    Args:
        loader: Of an ``IterableDataset``, or with a sampler of the user's own.
        transform: A callable on one sample in float32, or None.
        seed: Seed of the transform's random numbers, which depend on the sample's position.
        name: Of the data, in messages.
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        transform: Callable[[Any], Any] | None,
        seed: int,
        name: str,
    ) -> None:
        self._loader, self._transform, self._seed, self._name = loader, transform, seed, name
        self._pending: Iterator[Any] | None = None

    def first(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the first batch, which the next epoch yields again.

        Raises:
            ValueError: There is none.
        """
        batches = on_cpu(self._loader)
        for batch in batches:
            self._pending = itertools.chain([batch], batches)
            x, condition = split(batch, self._name)
            return self._transformed(x, 0), condition
        raise ValueError(f"{self._name} must give at least one batch, got none")

    def epochs(self, position: int) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """Yield batches without end, the first sample of which is at a position of the run."""
        while True:
            for x, condition in self.epoch(position):
                yield x, condition
                position += len(x)

    def epoch(self, position: int = 0) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """Yield the batches of one epoch, of samples from a position of the run on.

        Raises:
            ValueError: There are none.
        """
        batches = on_cpu(self._loader) if self._pending is None else self._pending
        self._pending, before = None, position
        for batch in batches:
            x, condition = split(batch, self._name)
            yield self._transformed(x, position), condition
            position += len(x)
        if position == before:
            raise ValueError(
                f"{self._name} must give at least one batch in every epoch, got none: an iterable "
                "data set must begin anew whenever it is iterated"
            )

    def _transformed(self, x: Tensor, position: int) -> Tensor:
        """Transform every sample of a batch, the first of which is at a position of the run."""
        if self._transform is None:
            return x
        keys = keys_of(len(x), self._seed, position)
        return torch.stack(seeded(self._transform, zip(x, keys, strict=True)))
