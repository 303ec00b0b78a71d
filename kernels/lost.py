"""Triton device functions: what a lost state is, and how its sample is marked."""

from __future__ import annotations

import triton
import triton.language as tl

from .maths import NORMAL, magnitude


@triton.jit
def is_normal(x):
    """Not NaN, infinite, zero or denormal."""
    return magnitude(x) >= NORMAL


@triton.jit
def mark(bad_ptrs, lost, step):
    """Write the step where it is the first in which a sample is lost; unless one is, both accesses are off."""
    tl.store(bad_ptrs, step.to(tl.int32), mask=lost & (tl.load(bad_ptrs, mask=lost, other=0) < 0))
