"""What an item of a data set, and a batch of a loader, may be.

Each is one of

    x    (x,)    (x, label)    (x, {name: value})    {"x" or "image" or "data": x, name: value}

with integer class labels, also under the name "label", and anything else that the network is
conditioned on under its name.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from fastmsgm.checks import check_conditions, check_mapping

X_NAMES = ("x", "image", "data")  # of the sample in an item that is a mapping


def as_float(x: Tensor, name: str = "data") -> Tensor:
    """Return data as float32; uint8 images are divided by 255.

    Args:
        x: The data.
        name: Of the data, in messages.

    Raises:
        TypeError: Another integer dtype.
    """
    if x.dtype == torch.uint8:
        return x.float().div_(255)
    if not x.is_floating_point():
        raise TypeError(
            f"{name} must be floating point or uint8, got {x.dtype}: convert with .float()"
        )
    return x.float()


def x_of(item: Any, name: str = "data") -> Any:
    """Return the sample of an item, or the samples of a batch, of the data of that name."""
    if isinstance(item, Mapping):
        return item[_x_name(item, name)]
    return item[0] if isinstance(item, tuple | list) else item


def transformed(item: Any, transform: Callable[[Any], Any] | None) -> Any:
    """Return an item with its sample transformed."""
    if transform is None:
        return item
    if isinstance(item, Mapping):
        return {**item, _x_name(item, "data"): transform(x_of(item))}
    if isinstance(item, tuple | list):
        return (transform(item[0]), *item[1:])
    return transform(item)


def split(batch: Any, name: str = "data") -> tuple[Tensor, dict[str, Tensor]]:
    """Return what a loader gives as a batch in float32 and its conditions by name.

    Args:
        batch: Of a loader.
        name: Of the data, in messages.

    Raises:
        TypeError: Samples, labels or conditions of the wrong type.
        ValueError: More parts than two, a mapping without samples, or conditions that do not fit.
    """
    if isinstance(batch, Mapping):
        conditions = {key: v for key, v in batch.items() if key != _x_name(batch, name)}
    elif not isinstance(batch, tuple | list) or len(batch) == 1:
        conditions = {}
    elif len(batch) == 2:
        conditions = dict(batch[1]) if isinstance(batch[1], Mapping) else {"label": batch[1]}
    else:
        raise ValueError(
            f"{name} must give x, (x, label) or (x, {{name: value}}), got {len(batch)} parts: "
            "leave some out, or give them by name"
        )
    x = x_of(batch, name)
    if not isinstance(x, Tensor) or x.ndim < 2:
        got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(
            f"{name} must give batches that are tensors (b, ...) with features, got {got}: see "
            "collate_fn of torch.utils.data.DataLoader"
        )
    for key, values in conditions.items():
        _check_kind(key, values, name)
    labels = conditions.pop("label", None)
    try:
        given = check_conditions(labels, conditions, len(x), values=False)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: in the items, {error}") from error
    return as_float(x, name), given


def conditions_beside(
    labels: Tensor | None,
    condition: Mapping[str, Tensor] | None,
    of_items: Collection[str],
    n: int | None,
    name: str = "data",
) -> dict[str, Tensor]:
    """Return the labels and conditions that are given beside the data, by name.

    Args:
        labels: (n,) integers, or None.
        condition: Tensors (n, ...) by name, or None.
        of_items: Names of those in the items.
        n: Number of samples; None where they have an order of their own.
        name: Of the data, in messages.

    Raises:
        TypeError: Labels or conditions of the wrong type.
        ValueError: Of another shape, of data in an order of their own, or also in the items.
    """
    condition = check_mapping(condition)
    names = [*(["labels"] if labels is not None else []), *condition]
    if names and n is None:
        raise ValueError(
            f"{', '.join(names)} must come with the items of {name} that are iterated in an order "
            "of their own, which is unknown: give items (x, label) or (x, {name: value})"
        )
    given = check_conditions(labels, condition, n or 0)
    twice = [key for key in given if key in of_items]
    if twice:
        raise ValueError(
            f"{', '.join(twice)} must be given once, got it as an argument and in the items of "
            f"{name}: leave out one"
        )
    return given


def _check_kind(key: str, values: Any, name: str) -> None:
    """Raise TypeError where values of a condition cannot be used, and say what can."""
    if isinstance(values, list | tuple) and any(isinstance(value, str) for value in values):
        what = "labels must be integers" if key == "label" else f"condition {key!r} must be numbers"
        raise TypeError(
            f"{name}: in the items, {what}, got strings: number classes from 0, and embed text"
        )
    if key == "label" and isinstance(values, Tensor) and values.is_floating_point():
        raise TypeError(
            f"{name}: in the items, labels must be integers, got {values.dtype}: give numbers that "
            "are no classes by name, as (x, {name: value})"
        )


def _x_name(item: Mapping[Any, Any], name: str) -> str:
    for key in X_NAMES:
        if key in item:
            return key
    raise ValueError(
        f"{name} must hold the sample under one of the names {', '.join(X_NAMES)}, got "
        f"{', '.join(map(str, item))}: rename it, or give items (x, {{name: value}})"
    )
