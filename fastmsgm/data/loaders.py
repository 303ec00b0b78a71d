"""Loaders over any data, and the same loaders with other batches and repeatable items."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    default_collate,
)

from fastmsgm import rng
from fastmsgm.data.items import as_float, transformed, x_of
from fastmsgm.data.order import DataOrder, OversampledOrder

Data: TypeAlias = Tensor | Dataset[Any] | DataLoader[Any]
T = TypeVar("T")


def loader_of(data: Any, batch_size: int, name: str = "data") -> DataLoader[Any]:
    """Return data as a loader.

    Args:
        data: A tensor, a data set or a loader, which is returned.
        batch_size: Of a new loader.
        name: Of the data, in messages.

    Raises:
        TypeError: Data of another type.
    """
    if isinstance(data, DataLoader):
        return data
    dataset: Any = _Rows(data) if isinstance(data, Tensor) else data
    if not _is_map_style(dataset) and not isinstance(dataset, IterableDataset):
        remedy = "convert arrays with torch.from_numpy"
        if isinstance(data, list | tuple):
            remedy = "stack samples of one shape with torch.stack"
        raise TypeError(
            f"{name} must be a tensor, got {type(data).__name__}: {remedy}, or give a Dataset with "
            "__len__, an IterableDataset or a DataLoader"
        )
    collate = functools.partial(_collate, name=name)
    return DataLoader(dataset, batch_size, collate_fn=collate, generator=torch.Generator())


def on_cpu(loader: Iterable[T]) -> Iterator[T]:
    """Yield the batches of a loader, which are on the CPU whatever PyTorch's default device is.

    PyTorch's own loaders fail on another default device, with their generators on the CPU.
    """
    done: Any = object()
    with _default_cpu():
        batches = iter(loader)
    while True:
        with _default_cpu():
            batch = next(batches, done)
        if batch is done:
            return
        yield batch


def _default_cpu() -> AbstractContextManager[Any]:
    """Make the CPU the default device; costs nothing where it is."""
    is_default = torch.get_default_device().type == "cpu"
    return nullcontext() if is_default else torch.device("cpu")


def length(loader: DataLoader[Any]) -> int | None:
    """Return the number of samples of a map-style data set."""
    dataset: Any = loader.dataset
    return None if isinstance(dataset, IterableDataset) else len(dataset)


def batch_size_of(loader: DataLoader[Any]) -> int | None:
    """Return the samples of a batch; None where the loader does not say."""
    batches = loader.batch_sampler
    known = isinstance(batches, DataOrder | OversampledOrder)
    return batches.batch_size if known else loader.batch_size


def is_default_order(loader: DataLoader[Any]) -> bool:
    """Whether the loader leaves the order to PyTorch, ``DataOrder`` or ``OversampledOrder``."""
    if type(loader).__iter__ is not DataLoader.__iter__:  # it does something else, too
        return False
    if isinstance(loader.dataset, IterableDataset):
        return False
    sampler, batches = loader.sampler, loader.batch_sampler
    if isinstance(batches, DataOrder | OversampledOrder):
        return batches.n == length(loader)
    every_item_once = type(sampler) is SequentialSampler or (
        type(sampler) is RandomSampler
        and not sampler.replacement
        and sampler.num_samples == length(loader)
    )
    return type(batches) is BatchSampler and every_item_once


class Keyed(Sampler[list[tuple[int, int]]]):
    """Batches of indices, each with the key of its position in the run.

    Args:
        batches: Indices of the samples of each batch.
        seed: Seed of the noise stream.
        position: Of the first sample.
        stride: From the first sample of a batch to that of the next; None is the batch's length.
    """

    def __init__(
        self,
        batches: Iterable[Sequence[int]],
        seed: int,
        position: int,
        stride: int | None = None,
    ) -> None:
        self.batches, self.seed, self.position, self.stride = batches, seed, position, stride

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        position = self.position
        for indices in self.batches:
            keys = keys_of(len(indices), self.seed, position)
            yield list(zip(indices, keys, strict=True))
            position += self.stride or len(indices)


def rebuilt(
    loader: DataLoader[Any],
    batches: Keyed,
    transform: Callable[[Any], Any] | None = None,
    workers: int | None = None,
    name: str = "data",
) -> DataLoader[Any]:
    """Return the loader with other batches.

    Args:
        loader: Gives everything else.
        batches: What is loaded. A loader seeds the generators of its workers, here from the first
            position; PyTorch's global generator is not used.
        transform: Of x in every item.
        workers: The most workers; None is as many as there are.
        name: Of the data, in messages.
    """
    collate = loader.collate_fn
    if collate is default_collate:
        collate = functools.partial(_collate, name=name)
    generator = torch.Generator().manual_seed(keys_of(1, batches.seed, batches.position)[0])
    return DataLoader(
        _Items(loader.dataset, transform),
        batch_sampler=batches,
        num_workers=loader.num_workers if workers is None else min(workers, loader.num_workers),
        collate_fn=collate,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=generator,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
    )


def keys_of(n: int, seed: int, position: int) -> list[int]:
    """Return a seed for each of n samples, from the word of the noise stream at its position."""
    words = rng.words(n, 1, rng.stream(seed, position), rng.Purpose.AUGMENTATION, 0)
    return words[:, 0, 0].tolist()


def seeded(function: Callable[[T], Any], keyed: Iterable[tuple[T, int]]) -> list[Any]:
    """Return a function of each argument, with PyTorch's default CPU generator set to its key.

    The state of the generator is restored afterwards.
    """
    generator = torch.default_generator
    state = generator.get_state()
    results = []
    try:
        for argument, key in keyed:
            generator.manual_seed(key)
            results.append(function(argument))
    finally:
        generator.set_state(state)
    return results


class _Rows(Dataset[Tensor]):
    """The samples of a tensor, in float32."""

    def __init__(self, data: Tensor) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Tensor:
        return as_float(self.data[index].clone())  # a transform may change it


class _Items(Dataset[Any]):
    """The items of a map-style data set, each read with PyTorch's generator set to its key."""

    def __init__(self, dataset: Any, transform: Callable[[Any], Any] | None) -> None:
        self.dataset, self.transform = dataset, transform

    def __getitems__(self, indices_and_keys: list[tuple[int, int]]) -> list[Any]:
        """Return a batch of items, as a loader asks for it."""
        return seeded(self._item, indices_and_keys)

    def _item(self, index: int) -> Any:
        return transformed(self.dataset[index], self.transform)


def _is_map_style(dataset: object) -> bool:
    """Whether an object has items and a length, as a Dataset has, but is no array or container."""
    array = isinstance(dataset, Sequence | Mapping) or hasattr(dataset, "__array__")
    return hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__") and not array


def _collate(items: list[Any], name: str) -> Any:
    """Collate as PyTorch does, with a message for images of PIL."""
    if type(x_of(items[0], name)).__module__.split(".")[0] == "PIL":
        raise TypeError(
            f"{name} must give tensors, got an image of PIL: give the data set itself the "
            "transform, as torchvision.datasets.CIFAR10(..., "
            "transform=torchvision.transforms.ToTensor())"
        )
    return default_collate(items)
