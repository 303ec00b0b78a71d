"""Checks of the sets of samples and of the values that the metrics compare."""

from __future__ import annotations

from torch import Tensor

from fastmsgm.checks import check_floating_point


def check_pair(a: tuple[str, Tensor], b: tuple[str, Tensor], least: int) -> tuple[Tensor, Tensor]:
    """Return both sets as float64 of shape (n, d), checked.

    Args:
        a: Name and set, (n, ...) float.
        b: Name and set, (m, ...) float, with the same features on the same device.
        least: Number of samples that each must have.

    Raises:
        TypeError: A set is not of floating point.
        ValueError: Wrong shapes, too few samples, or values that are not finite.
    """
    (name_a, x), (name_b, y) = a, b
    flat_x, flat_y = check_samples(name_a, x, least), check_samples(name_b, y, least)
    if x.shape[1:] != y.shape[1:] or x.device != y.device:
        raise ValueError(
            f"{name_a} and {name_b} must have the same features and device, "
            f"got {tuple(x.shape)} on {x.device} and {tuple(y.shape)} on {y.device}"
        )
    return flat_x, flat_y


def check_samples(name: str, x: Tensor, least: int) -> Tensor:
    """Return a set (n, ...) as float64 of shape (n, d), checked.

    Args:
        name: Of the argument, in messages.
        x: (n, ...) float.
        least: Number of samples that it must have.

    Raises:
        TypeError: The set is not of floating point.
        ValueError: A wrong shape, too few samples, or values that are not finite.
    """
    _check_finite(name, x)
    if x.ndim < 2 or len(x) < least or x[0].numel() == 0:
        raise ValueError(
            f"{name} must have shape (n, ...) with n >= {least} and features, got {tuple(x.shape)}"
        )
    return x.flatten(1).double()


def check_values(name: str, x: Tensor) -> Tensor:
    """Return values (n,) as float64, checked.

    Args:
        name: Of the argument, in messages.
        x: (n,) float, n >= 1.

    Raises:
        TypeError: They are not of floating point.
        ValueError: A wrong shape, no values, or values that are not finite.
    """
    _check_finite(name, x)
    if x.ndim != 1 or len(x) == 0:
        raise ValueError(f"{name} must have shape (n,) with n >= 1, got {tuple(x.shape)}")
    return x.double()


def _check_finite(name: str, x: Tensor) -> None:
    check_floating_point(name, x)
    if not x.isfinite().all():
        raise ValueError(
            f"{name} must be finite, got {int((~x.isfinite()).sum())} NaN or infinite values"
        )
