"""Triton device functions: detection and recording of non-finite samples."""

from __future__ import annotations

import triton
import triton.language as tl

from .maths import NORMAL, magnitude


@triton.jit
def is_normal(x):
    """Whether x is a normal number: not NaN, infinite, zero or denormal."""
    return magnitude(x) >= NORMAL


@triton.jit
def mark(first_nonfinite_step_ptrs, nonfinite, step):
    """Record the first step at which a sample is non-finite.

    Both memory accesses are masked off for finite samples.
    """
    tl.store(
        first_nonfinite_step_ptrs,
        step.to(tl.int32),
        mask=nonfinite & (tl.load(first_nonfinite_step_ptrs, mask=nonfinite, other=0) < 0),
    )
