"""Training data from tensors, data sets and loaders: endless batches, and epochs in order.

What an item may be is in ``items.py``. Collation is the loader's, by default PyTorch's. Loaders
with an order of their own are iterated by ``own_order.py``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DistributedSampler

from fastmsgm.checks import check_int
from fastmsgm.data.items import as_float, conditions_beside, split
from fastmsgm.data.loaders import (
    Data,
    Keyed,
    batch_size_of,
    is_default_order,
    length,
    loader_of,
    on_cpu,
    rebuilt,
)
from fastmsgm.data.order import DataOrder, OversampledOrder, check_batch_size, check_subset
from fastmsgm.data.own_order import OwnOrder
from fastmsgm.processes import Processes

BATCH_SIZE = 128


@dataclass(frozen=True)
class Part:
    """A process's part of a batch.

    Args:
        x: (m, ...) float32 in the data's own range.
        condition: Of its samples by name, each (m, ...).
        first: Position of its first sample in the batch.
        n: Samples of the whole batch.
    """

    x: Tensor
    condition: dict[str, Tensor]
    first: int
    n: int


class Batches:
    """Endless batches for training.

    The batches of a tensor, of a map-style data set and of a loader over one in its default order
    (shuffled or not) are those of ``DataOrder``. A loader whose ``batch_sampler`` is one, or an
    ``OversampledOrder``, keeps it. The loader's ``collate_fn``, workers and memory pinning are
    kept; a ``worker_init_fn`` finds the data set at ``get_worker_info().dataset.dataset``. An
    ``IterableDataset``, and a loader with a sampler of the user's own, are iterated as they are,
    epoch after epoch.

    Augmentation is repeatable: while an item of a map-style data set is read, and in
    ``transform``, PyTorch's default CPU generator is set to a seed that depends on ``seed`` and on
    the sample's position in the run, and restored afterwards. The generators of NumPy and of
    Python are not touched.

    Args:
        data: A tensor (N, ...), float32 in the data's own range or uint8 images; a map-style data
            set; an ``IterableDataset``; or a ``DataLoader``. uint8 is kept in memory, and each
            batch is divided by 255.
        labels: (N,) integer class labels, where items have none.
        condition: What else the network is conditioned on, by name, tensors (N, ...).
        transform: A callable on one sample, such as a transform of torchvision. It gets the sample
            in float32 of a tensor, or x of an item before collation, or, where the loader's batches
            are taken as they are, the sample in float32 of a batch.
        batch_size: None is the loader's, else 128.
        seed: Seed of order and augmentation, 0 .. 2^64 - 1.
        name: Of the data, in messages.

    Attributes:
        samples: Number of samples N; None where it is unknown.
        batch_size: Samples of a batch. The last of an epoch of an iterable can have fewer, and
            where a loader does not say how many, they are those of its first batch.
        sizes: What identifies the batch sizes in a checkpoint: ``batch_size``, or "loader" where
            the loader does not say how many samples its batches have, so that they can vary.
        shape: Shape of one sample.
        distributed: Whether the loader gives each process its own samples.
        exact: Whether batch k is a function of the seed and k, so that a resumed run sees the same
            batches.

    Raises:
        TypeError: Data, labels, conditions or items of the wrong type.
        ValueError: No samples, an argument of another shape or out of range, a batch size that is
            not the loader's, or labels both here and in the items.

    Example:
        >>> batches = Batches(torch.rand(100, 3), torch.arange(100) % 4, batch_size=8)
        >>> x, condition = next(batches.iterate(first_step=10))
        >>> x.shape, condition["label"].shape, batches.exact
        (torch.Size([8, 3]), torch.Size([8]), True)
    """

    def __init__(
        self,
        data: Data,
        labels: Tensor | None = None,
        condition: Mapping[str, Tensor] | None = None,
        *,
        transform: Callable[[Any], Any] | None = None,
        batch_size: int | None = None,
        seed: int = 0,
        name: str = "data",
    ) -> None:
        if transform is not None and not callable(transform):
            raise TypeError(
                "transform must be a callable on one sample, or None, got "
                f"{type(transform).__name__}"
            )
        size = None if batch_size is None else check_batch_size(batch_size)
        self._seed = check_int("seed", seed, 0, 2**64 - 1)
        self._transform, self._name = transform, name
        if isinstance(data, Tensor) and data.dtype not in (torch.float32, torch.uint8):
            raise ValueError(
                f"{name} must be float32 or uint8, got {data.dtype} {tuple(data.shape)}: convert "
                "with .float()"
            )
        self._tensor = data if isinstance(data, Tensor) and transform is None else None
        self._loader = loader_of(data, size or BATCH_SIZE, name)
        loaded = batch_size_of(self._loader)
        if size and loaded and size != loaded:
            raise ValueError(
                f"batch_size must be the loader's, {loaded}, got {size}: leave it out, or build "
                "the loader with it"
            )
        self.exact = is_default_order(self._loader)
        self.distributed = isinstance(self._loader.sampler, DistributedSampler)
        self.samples = length(self._loader)
        if self.samples == 0:
            raise ValueError(f"{name} must have at least one sample, got none")
        self._own_order = OwnOrder(self._loader, transform, self._seed, name)
        own: Any = self._loader.batch_sampler
        is_ours = isinstance(own, DataOrder | OversampledOrder)
        self._order_seed: int = own.seed if is_ours else self._seed
        self._oversampled: tuple[Tensor, int] | None = None
        if self.exact and isinstance(own, OversampledOrder):
            self._oversampled = own.subset, own.count
        x, condition_of_items = self._first_batch()
        self.shape, self.batch_size = tuple(x.shape[1:]), loaded or len(x)
        self.sizes: int | str = loaded or "loader"
        n = self.samples if self.exact else None
        self._given = conditions_beside(labels, condition, condition_of_items, n, name)

    def iterate(self, first_step: int = 0) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """Yield batches without end.

        Args:
            first_step: Step of the first batch. Where batches are not exact, the loader starts
                anew whatever the step.

        Yields:
            (b, ...) float32 in the data's own range, and the conditions of its samples by name,
            each (b, ...); "label" is int64.

        Raises:
            TypeError: Items of the wrong type.
            ValueError: Items of the wrong form, or an iterable without items, as one that can be
                iterated only once in its second epoch.
        """
        for part in self.parts(first_step, Processes()):
            yield part.x, part.condition

    def parts(self, first_step: int, processes: Processes) -> Iterator[Part]:
        """Yield this process's part of every batch, without end.

        Args:
            first_step: As of ``iterate``.
            processes: Those that share the batches, whose size is that of all parts together.

        Raises:
            TypeError: As ``iterate``.
            ValueError: As ``iterate``, or a batch of fewer samples than there are processes.
        """
        if not self.exact:
            for x, condition in self._own_order.epochs(first_step * self.batch_size):
                rows = self._rows(processes, len(x))
                own = {name: value[rows] for name, value in condition.items()}
                yield Part(x[rows], own, rows.start, len(x))
            return
        # Workers read ahead, so their order is at a later epoch than that of the conditions.
        order, read_ahead = self._order(), self._order(first_step)
        rows, size = self._rows(processes, self.batch_size), self.batch_size
        indices = (order.batch(step)[rows] for step in itertools.count(first_step))
        loaded = (batch[rows] for batch in read_ahead)
        keyed = Keyed(loaded, self._seed, first_step * size + rows.start, stride=size)
        for x, condition in self._read(indices, keyed):
            yield Part(x, condition, rows.start, size)

    def _rows(self, processes: Processes, n: int) -> slice:
        if n < processes.size:
            raise ValueError(
                f"batches of {self._name} must have a sample for each of the {processes.size} "
                f"processes, got one of {n}: raise batch_size, or let the loader drop the last "
                "batch"
            )
        return processes.rows(n)

    def epoch(self) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """Yield all samples once, in batches, of which the last can have fewer samples.

        Exact batches are in the order of the data, and every epoch is the same, with augmentation,
        too. Others are one epoch of the loader, as it comes.

        Yields:
            As ``iterate``.

        Raises:
            TypeError: Items of the wrong type.
            ValueError: Items of the wrong form, or an iterable without items.
        """
        if not self.exact:
            yield from self._own_order.epoch()
            return
        n = self.samples or 0
        batches = [
            range(first, min(first + self.batch_size, n)) for first in range(0, n, self.batch_size)
        ]
        indices = (torch.tensor(batch, dtype=torch.int64, device="cpu") for batch in batches)
        yield from self._read(indices, Keyed(batches, self._seed, 0))

    @property
    def oversampled(self) -> bool:
        """Whether batches begin with samples of a subset."""
        return self._oversampled is not None

    def oversample(self, subset: Tensor, count: int) -> None:
        """Let every batch begin with samples of a subset (``OversampledOrder``).

        ``epoch`` stays as it is.

        Args:
            subset: (m,) int64, indices of samples.
            count: How many samples of a batch are of the subset, 1 .. batch_size - 1.

        Raises:
            TypeError: subset is not an int64 tensor, or count not an int.
            ValueError: Batches are not exact, or an argument is out of range.
        """
        self.check_exact()
        subset = check_subset(subset, self.samples or 0)
        self._oversampled = subset, check_int("count", count, 1, self.batch_size - 1)

    def check_exact(self) -> None:
        """Raise ValueError where samples cannot be chosen by their index."""
        if not self.exact:
            raise ValueError(
                f"{self._name} must have a fixed order for samples to be chosen by their index, "
                "got an order of their own: give a tensor, a map-style data set, or a loader "
                "without a sampler of your own"
            )

    def _order(self, first_step: int = 0) -> DataOrder | OversampledOrder:
        n, seed = self.samples or 0, self._order_seed
        if self._oversampled is None:
            return DataOrder(n, self.batch_size, seed, first_step)
        subset, count = self._oversampled
        return OversampledOrder(n, self.batch_size, seed, first_step, subset=subset, count=count)

    def _read(
        self, batches: Iterable[Tensor], keyed: Keyed
    ) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """Yield batches of samples at given indices.

        Args:
            batches: Indices of the samples of each batch.
            keyed: The same indices, for the loader of a map-style data set.
        """
        read = iter(())
        if self._tensor is None:
            read = (split(batch, self._name) for batch in self._rebuilt(keyed))
        for indices in batches:
            if self._tensor is None:
                x, condition = next(read)
            else:
                x, condition = as_float(self._tensor[indices.to(self._tensor.device)]), {}
            given = {name: value[indices.to(value.device)] for name, value in self._given.items()}
            yield x, condition | given

    def _rebuilt(self, keyed: Keyed, workers: int | None = None) -> Iterator[Any]:
        return on_cpu(rebuilt(self._loader, keyed, self._transform, workers, self._name))

    def _first_batch(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Return one batch, to know its shape and conditions before any work; it is not lost."""
        if self.exact:
            # In a worker where there are workers: data sets may not be read before a fork.
            first = Keyed([[0]], self._seed, 0)
            return split(next(self._rebuilt(first, workers=1)), self._name)
        return self._own_order.first()
