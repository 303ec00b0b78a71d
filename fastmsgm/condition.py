"""Conditions: class labels and what else a network is conditioned on, checked, dropped, sliced."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastmsgm import rng
from fastmsgm.checks import (
    check_condition,
    check_conditions,
    check_int,
    check_labels,
    check_mapping,
)
from fastmsgm.model import ScoreModel
from fastmsgm.tensors import raw_bytes


def checked_condition(
    model: ScoreModel,
    n: int,
    labels: Tensor | None,
    condition: Mapping[str, Any],
    values: bool = True,
) -> dict[str, Tensor]:
    """Return labels and conditions of n samples as the network takes them, on the model's device.

    Args:
        model: Says how many classes there are.
        n: Number of samples.
        labels: (n,) integers, or None.
        condition: Tensors (n, ...) by name.
        values: Look at the values, too, for which the host waits for the device.

    Raises:
        TypeError: Labels or a condition of the wrong type.
        ValueError: Labels for a model without classes, or none for one with; another shape.
    """
    if (labels is None) != (model.classes == 0):
        raise ValueError(
            "labels must be given for a class-conditional model and for no other: the model has "
            f"{model.classes} classes, got labels={'None' if labels is None else 'a tensor'}"
        )
    checked = check_conditions(labels, condition, n, model.classes, values)
    return {name: value.to(model.device) for name, value in checked.items()}


def dropped(condition: Mapping[str, Tensor], classes: int) -> dict[str, Tensor]:
    """Return the condition of samples without one: the null class, and NaN.

    Raises:
        TypeError: A condition that is not of floating point.
    """
    for name, value in condition.items():
        if name != "label" and not value.is_floating_point():
            raise TypeError(
                f"condition {name!r} must be floating point to be dropped, got {value.dtype}: "
                "embed it first, or leave out drop and guidance"
            )
    return {
        name: torch.full_like(value, classes if name == "label" else torch.nan)
        for name, value in condition.items()
    }


def drop_some(
    condition: Mapping[str, Tensor], classes: int, share: float, stream: Tensor, step: int
) -> dict[str, Tensor]:
    """Drop the conditions of a share of the samples.

    Args:
        condition: Tensors (n, ...) by name.
        classes: Number of classes.
        share: Probability with which a sample loses all of its conditions.
        stream: The noise stream, on the CPU.
        step: The step of training.
    """
    null = dropped(condition, classes)
    result = {}
    for name, value in condition.items():
        uniform = rng.uniforms(len(value), 1, stream, rng.Purpose.CONDITION_DROP, step)[:, 0]
        mask = (uniform < share).to(value.device).view(-1, *[1] * (value.ndim - 1))
        result[name] = torch.where(mask, null[name], value)
    return result


class Conditions:
    """The conditions of the samples that ``sample`` was asked for, by absolute index.

    Args:
        model: To be sampled.
        start: Index of the first sample.
        n: Number of samples.
        label: One class for all samples, or n classes; None takes the classes in turn, sample i
            of class i mod classes.
        condition: Tensors or arrays (n, ...) by name.

    Raises:
        TypeError: A label or condition of the wrong type.
        ValueError: A label out of range, or a condition of another number of samples.
    """

    def __init__(
        self,
        model: ScoreModel,
        start: int,
        n: int,
        label: int | Sequence[int] | Tensor | None,
        condition: Mapping[str, Any] | None,
    ) -> None:
        self.start, self.n, self.classes, self.device = start, n, model.classes, model.device
        self.given = {
            name: check_condition(name, _as_tensor(f"condition {name!r}", value), n).detach()
            for name, value in check_mapping(condition).items()
        }
        self.label = None if label is None else _labels(model, label, n)

    def chunk(self, first: int, size: int) -> dict[str, Tensor]:
        """Return the conditions of samples ``first`` .. ``first + size - 1``.

        Samples of the chunk that were not asked for have the conditions of those nearest to them.
        """
        index = torch.arange(first, first + size, dtype=torch.int64, device="cpu")
        asked = (index - self.start).clamp(0, self.n - 1)
        rows = {name: value[asked.to(value.device)] for name, value in self.given.items()}
        if self.label is not None:
            rows["label"] = self.label[asked.to(self.label.device)]
        elif self.classes:
            rows["label"] = index % self.classes
        return {name: value.to(self.device) for name, value in rows.items()}

    def manifest(self) -> dict[str, object]:
        """Return what the conditions were, as JSON can hold it: a label, or checksums."""
        one = self.label is not None and bool((self.label == self.label[0]).all())
        label = None if self.label is None else checksum(self.label)
        return {
            "label": int(self.label[0]) if self.label is not None and one else label,
            "condition": {name: checksum(value) for name, value in self.given.items()},
        }


def checksum(values: Tensor) -> str:
    """Return the CRC-32 of a tensor's bytes, to tell two tensors apart."""
    return f"crc32 {zlib.crc32(raw_bytes(values)):08x}"


def _labels(model: ScoreModel, label: Any, n: int) -> Tensor:
    """Return the classes of n samples, (n,) int64."""
    if not model.classes:
        raise ValueError(f"label must be None for a model without classes, got {label!r}")
    many = isinstance(label, (Tensor, Sequence)) or hasattr(label, "__array__")
    if many and not isinstance(label, str):
        labels = _as_tensor("label", label)
        if labels.ndim == 0:
            label = labels.item()
        else:
            return check_labels(labels, n, model.classes, name="label").long()
    label = check_int("label", label, 0, model.classes - 1)
    return torch.full((n,), label, dtype=torch.int64, device="cpu")


def _as_tensor(name: str, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    try:
        return torch.as_tensor(value, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{name} must be a tensor, got {type(value).__name__} ({error}): convert with "
            "torch.as_tensor"
        ) from error
