"""Training data from tensors, data sets and loaders: endless batches, and one pass in order.

An item of a data set, and a batch of a loader, is one of

    x    (x,)    (x, label)    (x, {name: value})    {"x" or "image" or "data": x, name: value}

with integer class labels, also under the name "label", and anything else that the network is
conditioned on under its name. Collation is the loader's, by default PyTorch's.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

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
from fastmsgm.checks import check_condition, check_floating_point, check_int, check_labels
from fastmsgm.data.order import DataOrder

Data: TypeAlias = Tensor | Dataset[Any] | DataLoader[Any]
BATCH_SIZE = 128
PASS_BATCH = 32  # samples that ``one_pass`` loads at a time
BLOCK = 2**17  # entries that ``one_pass`` gives at a time: 1 MiB in float64
X_NAMES = ("x", "image", "data")  # of the sample in an item that is a mapping


class Batches:
    """Endless batches for training.

    The batches of a tensor, of a map-style data set and of a loader over one in its default order
    (shuffled or not) are those of ``DataOrder``. The loader's ``collate_fn``, workers and memory
    pinning are kept; a ``worker_init_fn`` finds the data set at
    ``get_worker_info().dataset.dataset``. An ``IterableDataset``, and a loader with a sampler of
    the user's own, are iterated as they are, epoch after epoch.

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

    Attributes:
        samples: Number of samples N; None where it is unknown.
        batch_size: Samples of a batch. The last of an epoch of an iterable can have fewer.
        shape: Shape of one sample.
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
    ) -> None:
        if transform is not None and not callable(transform):
            raise TypeError(
                "transform must be a callable on one sample, or None, got "
                f"{type(transform).__name__}"
            )
        size = None if batch_size is None else check_int("batch_size", batch_size, 1)
        self._seed = check_int("seed", seed, 0, 2**64 - 1)
        self._transform = transform
        if isinstance(data, Tensor) and data.dtype not in (torch.float32, torch.uint8):
            raise ValueError(
                f"data must be float32 or uint8, got {data.dtype} {tuple(data.shape)}: convert "
                "with .float()"
            )
        self._tensor = data if isinstance(data, Tensor) and transform is None else None
        self._loader = _loader_of(data, size or BATCH_SIZE)
        loaded = _batch_size(self._loader)
        if size and loaded and size != loaded:
            raise ValueError(
                f"batch_size must be the loader's, {loaded}, got {size}: leave it out, or build "
                "the loader with it"
            )
        self.exact = _is_default_order(self._loader)
        self.samples = _length(self._loader)
        if self.samples == 0:
            raise ValueError("data must have at least one sample, got none")
        self._pending: Iterator[Any] | None = None
        x, condition_of_items = self._first_batch()
        self.shape, self.batch_size = tuple(x.shape[1:]), loaded or len(x)
        self._given = self._checked(labels, condition, condition_of_items)

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
        if not self.exact:
            yield from self._epochs(first_step * self.batch_size)
            return
        order = self._order()
        loaded = self._loaded(first_step)
        for step in itertools.count(first_step):
            indices = order.batch(step)
            if self._tensor is None:
                x, condition = next(loaded)
            else:
                x, condition = as_float(self._tensor[indices.to(self._tensor.device)]), {}
            yield (
                x,
                condition | {name: v[indices.to(v.device)] for name, v in self._given.items()},
            )

    def _order(self, first_step: int = 0) -> DataOrder:
        own = self._loader.batch_sampler
        seed = own.seed if isinstance(own, DataOrder) else self._seed
        return DataOrder(_length(self._loader) or 0, self.batch_size, seed, first_step)

    def _loaded(self, first_step: int) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """Yield the batches of a map-style data set, with the conditions of its items."""
        # Workers read ahead, so this order is at a later epoch than that of the conditions.
        keyed = _Keyed(self._order(first_step), self._seed, first_step * self.batch_size)
        yield from map(_split, _rebuilt(self._loader, keyed, self._transform))

    def _epochs(self, position: int) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """Yield the loader's own batches, the first sample of which is at a position of the run."""
        while True:
            batches = iter(self._loader) if self._pending is None else self._pending
            self._pending, before = None, position
            for batch in batches:
                x, condition = _split(batch)
                yield self._transformed(x, position), condition
                position += len(x)
            if position == before:
                raise ValueError(
                    "data must give at least one batch in every epoch, got none: an iterable data "
                    "set must begin anew whenever it is iterated"
                )

    def _transformed(self, x: Tensor, position: int) -> Tensor:
        """Transform every sample of a batch, the first of which is at a position of the run."""
        if self._transform is None:
            return x
        samples = []
        with _preserved_generator() as generator:
            for sample, key in zip(x, _keys(len(x), self._seed, position), strict=True):
                generator.manual_seed(key)
                samples.append(self._transform(sample))
        return torch.stack(samples)

    def _first_batch(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Return one batch, to know its shape and conditions before any work; it is not lost."""
        if self.exact:
            # In a worker where there are workers: data sets may not be read before a fork.
            first = _Keyed([[0]], self._seed, 0)
            return _split(next(iter(_rebuilt(self._loader, first, self._transform, workers=1))))
        batches = iter(self._loader)
        for batch in batches:
            self._pending = itertools.chain([batch], batches)
            x, condition = _split(batch)
            return self._transformed(x, 0), condition
        raise ValueError("data must give at least one batch, got none")

    def _checked(
        self,
        labels: Tensor | None,
        condition: Mapping[str, Tensor] | None,
        condition_of_items: Mapping[str, Tensor],
    ) -> dict[str, Tensor]:
        """Return the labels and conditions that were given beside the data, by name."""
        if condition is not None and not isinstance(condition, Mapping):
            raise TypeError(
                f"condition must map names to tensors, got {type(condition).__name__}: give "
                'condition={"name": tensor}'
            )
        names = [*(["labels"] if labels is not None else []), *(condition or {})]
        if names and not self.exact:
            raise ValueError(
                f"{', '.join(names)} must come with the items of data that are iterated in an "
                "order of their own, which is unknown: give items (x, label) or (x, {name: value})"
            )
        n, given = self.samples or 0, {}
        if labels is not None:
            given["label"] = check_labels(labels, n).long()
        given |= {name: check_condition(name, v, n) for name, v in (condition or {}).items()}
        twice = [name for name in given if name in condition_of_items]
        if twice:
            raise ValueError(
                f"{', '.join(twice)} must be given once, got it as an argument and in the items "
                "of data: leave out one"
            )
        return given


def one_pass(
    data: Data, labels: Tensor | bool | None = None, name: str = "data"
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield all data once, in small blocks.

    A map-style data set and a loader over one in its default order are read from the first to the
    last item, others as they come. Random numbers in items are repeatable, as in ``Batches``.

    Args:
        data: A tensor (N, ...) of floating point or of uint8 images, which are divided by 255; a
            data set; or a loader.
        labels: (N,) integer class labels; True takes those of the items; None is none.
        name: Of the data, in messages.

    Yields:
        (n, ...) float32, or float64 where the tensor is, and its labels (n,) or None. Blocks of a
        tensor of floating point share its memory.

    Raises:
        TypeError: Data, labels or items of the wrong type.
        ValueError: No samples, samples of more than one shape, or labels that do not fit.
    """
    if isinstance(data, Tensor):
        if data.dtype != torch.uint8:
            check_floating_point(name, data)
        if data.ndim < 2 or data.numel() == 0:
            raise ValueError(
                f"{name} must have shape (n, ...) with n >= 1 and features, got {tuple(data.shape)}"
            )
        in_order, n, parts = True, len(data), iter([(data, {})])
    else:
        loader = _loader_of(data, PASS_BATCH, name)
        in_order, n = _is_default_order(loader), _length(loader)
        parts = map(_split, _sequence(loader) if in_order else loader)
    separate = None
    if labels is not None and labels is not True:
        if not in_order:
            raise ValueError(
                f"labels must come with the items of {name} that are iterated in an order of "
                "their own: give items (x, label), and labels=True"
            )
        separate = check_labels(labels, n or 0)
    shape, first = None, 0
    for x, condition in parts:
        shape = shape or x.shape[1:]
        if x.shape[1:] != shape:
            raise ValueError(
                f"{name} must have samples of one shape, got {tuple(shape)} and "
                f"{tuple(x.shape[1:])}: resize them"
            )
        if labels is True and "label" not in condition:
            raise ValueError(
                f"labels=True needs {name} whose items are (x, label), got none: give labels=tensor"
            )
        size = max(1, BLOCK // max(1, math.prod(shape)))
        for at in range(0, len(x), size):
            block = x[at : at + size]
            if labels is True:
                of_block = condition["label"][at : at + size]
            else:
                of_block = None if separate is None else separate[first : first + len(block)]
            yield block if block.dtype == torch.float64 else as_float(block), of_block
            first += len(block)
    if not first:
        raise ValueError(f"{name} must have at least one sample, got none")


def as_float(x: Tensor) -> Tensor:
    """Return data as float32; uint8 images are divided by 255.

    Raises:
        TypeError: Another integer dtype.
    """
    if x.dtype == torch.uint8:
        return x.float().div_(255)
    if not x.is_floating_point():
        raise TypeError(
            f"data must be floating point or uint8, got {x.dtype}: convert with .float()"
        )
    return x.float()


@contextmanager
def located(first: int, n: int) -> Iterator[None]:
    """Add to a ValueError which samples it is about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{error} (in samples {first} to {first + n - 1})") from error


# ---- loaders ----


def _loader_of(data: Any, batch_size: int, name: str = "data") -> DataLoader[Any]:
    """Return data as a loader."""
    if isinstance(data, DataLoader):
        return data
    dataset: Any = _Rows(data) if isinstance(data, Tensor) else data
    if not _is_map_style(dataset) and not isinstance(dataset, IterableDataset):
        raise TypeError(
            f"{name} must be a tensor, got {type(data).__name__}: convert arrays with "
            "torch.from_numpy, or give a Dataset with __len__, an IterableDataset or a DataLoader"
        )
    return DataLoader(dataset, batch_size, collate_fn=_collate, generator=torch.Generator())


def _is_map_style(dataset: object) -> bool:
    """Whether an object has items and a length, as a Dataset has, but is no array or container."""
    array = isinstance(dataset, Sequence | Mapping) or hasattr(dataset, "__array__")
    return hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__") and not array


def _length(loader: DataLoader[Any]) -> int | None:
    """Return the number of samples of a map-style data set."""
    dataset: Any = loader.dataset
    return None if isinstance(dataset, IterableDataset) else len(dataset)


def _batch_size(loader: DataLoader[Any]) -> int | None:
    batches = loader.batch_sampler
    return batches.batch_size if isinstance(batches, DataOrder) else loader.batch_size


def _is_default_order(loader: DataLoader[Any]) -> bool:
    """Whether the loader leaves the order to PyTorch, or to ``DataOrder``."""
    if type(loader).__iter__ is not DataLoader.__iter__:  # it does something else, too
        return False
    if isinstance(loader.dataset, IterableDataset):
        return False
    sampler, batches = loader.sampler, loader.batch_sampler
    if isinstance(batches, DataOrder):
        return batches.n == _length(loader)
    every_item_once = type(sampler) is SequentialSampler or (
        type(sampler) is RandomSampler
        and not sampler.replacement
        and sampler.num_samples == _length(loader)
    )
    return type(batches) is BatchSampler and every_item_once


def _sequence(loader: DataLoader[Any]) -> DataLoader[Any]:
    """Return a loader of all items, from the first to the last."""
    n, size = _length(loader) or 0, _batch_size(loader) or PASS_BATCH
    return _rebuilt(loader, _Keyed([range(k, min(k + size, n)) for k in range(0, n, size)], 0, 0))


def _rebuilt(
    loader: DataLoader[Any],
    batches: _Keyed,
    transform: Callable[[Any], Any] | None = None,
    workers: int | None = None,
) -> DataLoader[Any]:
    """Return the loader with other batches.

    Args:
        loader: Gives everything else.
        batches: What is loaded. A loader seeds the generators of its workers, here from the first
            position; PyTorch's global generator is not used.
        transform: Of x in every item.
        workers: The most workers; None is as many as there are.
    """
    generator = torch.Generator().manual_seed(_keys(1, batches.seed, batches.position)[0])
    return DataLoader(
        _Items(loader.dataset, transform),
        batch_sampler=batches,
        num_workers=loader.num_workers if workers is None else min(workers, loader.num_workers),
        collate_fn=_collate if loader.collate_fn is default_collate else loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=generator,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
    )


def _collate(items: list[Any]) -> Any:
    """Collate as PyTorch does, with a message for images of PIL."""
    if type(_x_of(items[0])).__module__.split(".")[0] == "PIL":
        raise TypeError(
            "data must give tensors, got an image of PIL: give the data set "
            "transform=torchvision.transforms.ToTensor()"
        )
    return default_collate(items)


# ---- items and batches ----


class _Rows(Dataset[Tensor]):
    """The samples of a tensor, in float32."""

    def __init__(self, data: Tensor) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Tensor:
        return as_float(self.data[index])


class _Items(Dataset[Any]):
    """The items of a map-style data set, each read with PyTorch's generator set to its key."""

    def __init__(self, dataset: Any, transform: Callable[[Any], Any] | None) -> None:
        self.dataset, self.transform = dataset, transform

    def __getitems__(self, indices_and_keys: list[tuple[int, int]]) -> list[Any]:
        """Return a batch of items, as a loader asks for it."""
        items = []
        with _preserved_generator() as generator:
            for index, key in indices_and_keys:
                generator.manual_seed(key)
                items.append(self._item(index))
        return items

    def _item(self, index: int) -> Any:
        item = self.dataset[index]
        if self.transform is None:
            return item
        if isinstance(item, Mapping):
            return {**item, _x_name(item): self.transform(_x_of(item))}
        if isinstance(item, tuple | list):
            return (self.transform(item[0]), *item[1:])
        return self.transform(item)


class _Keyed(Sampler[list[tuple[int, int]]]):
    """Batches of indices, each with the key of its position in the run.

    Args:
        batches: Indices of the samples of each batch.
        seed: Seed of the noise stream.
        position: Of the first sample.
    """

    def __init__(self, batches: Iterable[Sequence[int]], seed: int, position: int) -> None:
        self.batches, self.seed, self.position = batches, seed, position

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        position = self.position
        for indices in self.batches:
            keys = _keys(len(indices), self.seed, position)
            yield list(zip(indices, keys, strict=True))
            position += len(indices)


def _keys(n: int, seed: int, position: int) -> list[int]:
    """Return a seed for each of n samples, from the word of the noise stream at its position."""
    words = rng.words(n, 1, rng.stream(seed, position), rng.Purpose.AUGMENTATION, 0)
    return words[:, 0, 0].tolist()


@contextmanager
def _preserved_generator() -> Iterator[torch.Generator]:
    """Give PyTorch's default CPU generator, and restore its state afterwards."""
    generator = torch.default_generator
    state = generator.get_state()
    try:
        yield generator
    finally:
        generator.set_state(state)


def _split(batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Return what a loader gives as a batch in float32 and its conditions by name."""
    if isinstance(batch, Mapping):
        conditions = {name: v for name, v in batch.items() if name != _x_name(batch)}
    elif not isinstance(batch, tuple | list) or len(batch) == 1:
        conditions = {}
    elif len(batch) == 2:
        conditions = dict(batch[1]) if isinstance(batch[1], Mapping) else {"label": batch[1]}
    else:
        raise ValueError(
            f"data must give x, (x, label) or (x, {{name: value}}), got {len(batch)} parts: leave "
            "some out, or give them by name"
        )
    x = _x_of(batch)
    if not isinstance(x, Tensor) or x.ndim < 2:
        got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(
            f"data must give batches that are tensors (b, ...) with features, got {got}: see "
            "collate_fn of torch.utils.data.DataLoader"
        )
    label = conditions.pop("label", None)
    checked = {name: check_condition(name, v, len(x), False) for name, v in conditions.items()}
    if label is not None:
        checked["label"] = check_labels(label, len(x), values=False).long()
    return as_float(x), checked


def _x_of(item: Any) -> Any:
    """Return the sample of an item, or the samples of a batch."""
    if isinstance(item, Mapping):
        return item[_x_name(item)]
    return item[0] if isinstance(item, tuple | list) else item


def _x_name(item: Mapping[Any, Any]) -> str:
    for name in X_NAMES:
        if name in item:
            return name
    raise ValueError(
        f"data must hold the sample under one of the names {', '.join(X_NAMES)}, got "
        f"{', '.join(map(str, item))}: rename it, or give items (x, {{name: value}})"
    )
