"""What an argument may be, one function for each kind; every error names the argument."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from typing import Any, TypeGuard

import torch
from torch import Tensor


def is_number(x: object) -> TypeGuard[float]:
    """Whether x is a finite real number, Python's or NumPy's, and not a bool."""
    return isinstance(x, numbers.Real) and not isinstance(x, bool) and math.isfinite(x)


def check_int(name: str, value: object, least: int, most: int | None = None) -> int:
    """Return an integer, Python's or NumPy's, as an int; without ``most`` it is below 2^63.

    Raises:
        TypeError: The value is not an integer, or is a bool.
        ValueError: It is below ``least`` or above ``most``.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an int, got {value!r} ({type(value).__name__})")
    number = int(value)
    if most is None and number >= 2**63:
        raise ValueError(f"{name} must be below 2^63, got {number}")
    if number < least or (most is not None and number > most):
        allowed = f"at least {least}" if most is None else f"in {least} .. {_power_of_two(most)}"
        raise ValueError(f"{name} must be {allowed}, got {number}")
    return number


def positive(name: str, value: object) -> float:
    """Return a positive finite number as a float; ValueError for anything else."""
    if is_number(value) and value > 0:
        return float(value)
    raise ValueError(f"{name} must be a positive number, got {value!r}")


def check_eta(eta: object, most: float = 1.0) -> float:
    """Return eta, the share of noise of a solver, as a float; ValueError outside [0, most]."""
    if not is_number(eta) or not 0 <= eta <= most:
        allowed = "finite and at least 0" if math.isinf(most) else f"in [0, {most:g}]"
        raise ValueError(f"eta must be {allowed} (0 the ODE, 1 the SDE), got {eta!r}")
    return float(eta)


def check_times(t: object, n: int, end: float) -> Tensor:
    """Return t where it is a tensor of n times in [0, end].

    Raises:
        TypeError: t is not a tensor.
        ValueError: It has another shape or range.
    """
    if not isinstance(t, Tensor):
        raise TypeError(f"t must be a tensor of shape ({n},), got {type(t).__name__}")
    if t.dtype == torch.bool:
        raise TypeError("t must be a tensor of numbers, got torch.bool")
    outside = ~((t >= 0) & (t <= end))
    if t.shape != (n,) or bool(outside.any()):
        got = tuple(t.shape) if t.shape != (n,) else float(t.detach()[outside][0])
        raise ValueError(f"t must have shape ({n},) and values in [0, {end:g}], got {got}")
    return t


def check_tensor(name: str, x: object) -> None:
    """Raise TypeError where x is not a tensor."""
    if not isinstance(x, Tensor):
        raise TypeError(
            f"{name} must be a tensor, got {type(x).__name__}: convert arrays with torch.from_numpy"
        )


def check_floating_point(name: str, x: object) -> None:
    """Raise TypeError where x is not a tensor of floating point."""
    check_tensor(name, x)
    if isinstance(x, Tensor) and not x.is_floating_point():
        raise TypeError(
            f"{name} must be floating point, got {x.dtype}: convert with .float(), images with "
            ".float() / 255"
        )


def check_labels(
    labels: object,
    n: int,
    classes: int | None = None,
    values: bool = True,
    name: str = "labels",
) -> Tensor:
    """Return class labels where they are n integers, below ``classes`` if that is known.

    Args:
        labels: (n,) a tensor.
        n: Number of samples.
        classes: Number of classes, if known.
        values: Look at the values, too, for which the host waits for the device.
        name: Of the argument, in messages.

    Raises:
        TypeError: They are not an integer tensor.
        ValueError: They have another shape or range.
    """
    if not isinstance(labels, Tensor):
        raise TypeError(
            f"{name} must be a tensor, got {type(labels).__name__}: convert with torch.as_tensor"
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"{name} must be integers, got {labels.dtype}: convert them with .long()")
    if labels.shape != (n,):
        raise ValueError(
            f"{name} must have shape ({n},), one for each sample, got {tuple(labels.shape)}"
        )
    if not values:
        return labels
    low, high = int(labels.min()), int(labels.max())
    if classes is not None and not 0 <= low <= high < classes:
        raise ValueError(
            f"{name} must be from 0 to {classes - 1}, got {low} to {high}: number the classes "
            "from 0"
        )
    return labels


# Names that are not the user's: the package's own arguments of networks and losses.
RESERVED = (
    "self", "model", "x", "x0", "data", "c_noise", "stream", "step", "first", "reduction",
    "label", "labels", "log_norm",
)  # fmt: skip


def check_condition(name: str, value: object, n: int, values: bool = True) -> Tensor:
    """Return a condition of n samples, in float32 where it is of floating point.

    Args:
        name: Its name.
        value: (n, ...) a tensor.
        n: Number of samples.
        values: Look at the values, too, for which the host waits for the device.

    Raises:
        TypeError: It is not a tensor.
        ValueError: It has another number of samples, values that are not finite, or a name that
            the package uses.
    """
    if name in RESERVED or not isinstance(name, str):
        raise ValueError(
            f"condition must not be named {name!r}, which the package uses: rename it (class "
            "labels are given as labels=... in training, label=... in sampling)"
        )
    if not isinstance(value, Tensor):
        raise TypeError(
            f"condition {name!r} must be a tensor, got {type(value).__name__}: convert with "
            "torch.as_tensor"
        )
    if value.ndim < 1 or len(value) != n:
        raise ValueError(
            f"condition {name!r} must have shape ({n}, ...), one row for each sample, got "
            f"{tuple(value.shape)}"
        )
    if not value.is_floating_point():
        return value
    if values and not bool(torch.isfinite(value).all()):
        raise ValueError(
            f"condition {name!r} must be finite, got NaN or infinity: NaN would mean a dropped "
            "condition (train with drop=..., sample with guidance=0)"
        )
    return value.float()


def check_mapping(condition: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Return conditions by name, none for None; TypeError where they have no names."""
    if condition is not None and not isinstance(condition, Mapping):
        raise TypeError(
            f"condition must map names to tensors, got {type(condition).__name__}: give "
            'condition={"name": tensor}'
        )
    return condition or {}


def check_conditions(
    labels: object,
    condition: Mapping[str, Any],
    n: int,
    classes: int | None = None,
    values: bool = True,
) -> dict[str, Tensor]:
    """Return the labels of n samples, as "label" in int64, and their conditions by name.

    Args:
        labels: (n,) integers, or None.
        condition: Tensors (n, ...) by name.
        n: Number of samples.
        classes: Number of classes, if known.
        values: Look at the values, too, for which the host waits for the device.

    Raises:
        TypeError: Labels or a condition of the wrong type.
        ValueError: Labels or a condition of another shape or range.
    """
    checked = {name: check_condition(name, value, n, values) for name, value in condition.items()}
    if labels is not None:
        checked["label"] = check_labels(labels, n, classes, values).long()
    return checked


def check_offset(offset: object) -> None:
    """Raise ValueError where ``offset`` cannot be added to data."""
    if not is_number(offset):
        raise ValueError(f"offset must be a finite number, got {offset!r}")


def interval(bounds: object) -> tuple[float, float]:
    """Return two numbers in order, of which either may be infinite; ValueError for others."""
    if (
        isinstance(bounds, (tuple, list))
        and len(bounds) == 2
        and all(isinstance(x, numbers.Real) and not isinstance(x, bool) for x in bounds)
    ):
        low, high = map(float, bounds)
        if low < high:
            return low, high
    raise ValueError(f"bounds must be two numbers, the lower one first, or None, got {bounds!r}")


def _power_of_two(most: int) -> str:
    """Write 2^k - 1 as such: 18446744073709551615 says little."""
    exponent = most.bit_length()
    return f"2^{exponent} - 1" if exponent >= 32 and most == 2**exponent - 1 else str(most)
