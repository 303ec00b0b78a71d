"""What may be an argument, whatever the process: numbers, data, and their offset and bounds, each refused by name."""

from __future__ import annotations

import math
import numbers
from typing import TypeGuard

from torch import Tensor


def is_number(x: object) -> TypeGuard[float]:
    """A finite number, of Python's or of NumPy's."""
    return isinstance(x, numbers.Real) and not isinstance(x, bool) and math.isfinite(x)


def positive(name: str, x: object) -> float:
    """A positive finite number as Python's; ValueError for anything else."""
    if is_number(x) and x > 0:
        return float(x)
    raise ValueError(f"{name} must be a positive number, got {x!r}")


def check_tensor(name: str, x: object) -> None:
    """Raise TypeError where x is not a tensor."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}: convert arrays with torch.from_numpy")


def check_floating_point(name: str, x: object) -> None:
    """Raise TypeError where x is not a tensor of floating point."""
    check_tensor(name, x)
    if isinstance(x, Tensor) and not x.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {x.dtype}: convert with .float(), images .float() / 255")


def check_offset(offset: object) -> None:
    """Raise ValueError where ``offset`` cannot be added to data."""
    if not is_number(offset):
        raise ValueError(f"offset must be a finite number, got {offset!r}")


def interval(bounds: object) -> tuple[float, float]:
    """Two numbers in order, of which either may be infinite; ValueError for anything else."""
    if isinstance(bounds, (tuple, list)) and len(bounds) == 2 and all(isinstance(x, numbers.Real) for x in bounds):
        low, high = map(float, bounds)
        if low < high:
            return low, high
    raise ValueError(f"bounds must be two numbers, the lower one first, or None, got {bounds!r}")
