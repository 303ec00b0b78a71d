"""All data once, in blocks: what is fitted to data, as a prior is, reads them like this."""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fastmsgm.checks import check_floating_point, check_labels
from fastmsgm.data.items import as_float, split
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

LOADED = 32  # samples that are loaded at a time
BLOCK = 2**17  # entries of a block: 1 MiB in float64
PATIENCE = 60.0  # seconds after which a pass of unknown length says that it goes on
_log = logging.getLogger("fastmsgm")


def one_pass(
    data: Data, labels: Tensor | bool | None = None, name: str = "data"
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield all data once, in small blocks.

    A map-style data set and a loader over one in its default order are read from the first to the
    last item, others as they come: an endless one is read without end, with a warning in the log
    after a minute. Random numbers in items are repeatable, as in ``Batches``.

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
    parts, n = _parts(data, name)
    separate = None
    if labels is not None and labels is not True:
        if n is None:
            raise ValueError(
                f"labels must come with the items of {name} that are iterated in an order of "
                "their own: give items (x, label), and labels=True"
            )
        separate = check_labels(labels, n)
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
        of_items = condition["label"] if labels is True else None
        of_part = of_items if separate is None else separate[first : first + len(x)]
        size = max(1, BLOCK // max(1, math.prod(shape)))
        for at in range(0, len(x), size):
            block, rows = x[at : at + size], slice(at, at + size)
            yield (
                block if block.dtype == torch.float64 else as_float(block),
                None if of_part is None else of_part[rows],
            )
        first += len(x)
    if not first:
        raise ValueError(f"{name} must have at least one sample, got none")


def _parts(data: Data, name: str) -> tuple[Iterator[tuple[Tensor, dict[str, Tensor]]], int | None]:
    """Return data with their conditions, and the number of samples where their order is known."""
    if not isinstance(data, Tensor):
        loader = loader_of(data, LOADED, name)
        n = length(loader)
        if n is None or not is_default_order(loader):
            return map(functools.partial(split, name=name), _watched(on_cpu(loader), name)), None
        size = batch_size_of(loader) or LOADED
        batches = [range(first, min(first + size, n)) for first in range(0, n, size)]
        keyed = Keyed(batches, 0, 0)
        loaded = on_cpu(rebuilt(loader, keyed, name=name))
        return map(functools.partial(split, name=name), loaded), n
    if data.dtype != torch.uint8:
        check_floating_point(name, data)
    if data.ndim < 2 or data.numel() == 0:
        raise ValueError(
            f"{name} must have shape (n, ...) with n >= 1 and features, got {tuple(data.shape)}"
        )
    return iter([(data, {})]), len(data)


def _watched(batches: Iterable[Any], name: str) -> Iterator[Any]:
    """Yield batches; one warning says that there are many, perhaps without end."""
    began, warned = time.monotonic(), False
    for count, batch in enumerate(batches, 1):
        yield batch
        if not warned and time.monotonic() - began >= PATIENCE:
            warned = True
            _log.warning(
                "the pass over %s goes on after %d batches: it must come to an end; of an endless "
                "data set give a part",
                name,
                count,
            )


@contextmanager
def located(first: int, n: int) -> Iterator[None]:
    """Add to a ValueError which samples it is about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{error} (in samples {first} to {first + n - 1})") from error
