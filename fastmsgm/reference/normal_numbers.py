"""Which float32 numbers are normal: not zero, subnormal, infinite or NaN."""

from __future__ import annotations

from torch import Tensor

from fastmsgm.constants import HUGE, TINY


def is_normal(x: Tensor) -> Tensor:
    """Whether x is a normal float32 number: not NaN, infinite, zero or subnormal."""
    size = x.abs()
    return (size >= TINY) & (size <= HUGE)
