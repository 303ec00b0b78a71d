"""Triton device functions: what a lost state is, and how its sample is marked."""

from __future__ import annotations

import triton
import triton.language as tl

ABNORMAL = tl.constexpr(0xFE000000)


@triton.jit
def abnormality(x):
    """ABNORMAL or more (uint32) where x is NaN, infinite, zero or denormal: exponent bits are all set or all clear."""
    return (x.to(tl.uint32, bitcast=True) << 1) - 0x01000000


@triton.jit
def is_normal(x):
    """Not NaN, infinite, zero or denormal."""
    return abnormality(x) < ABNORMAL


@triton.jit
def mark(bad_ptrs, lost, step):
    """Write the step where it is the first in which a sample is lost; unless one is, both accesses are off."""
    tl.store(bad_ptrs, step.to(tl.int32), mask=lost & (tl.load(bad_ptrs, mask=lost, other=0) < 0))
