"""Exponentiated gradient on the CPU: ``egd_step`` as in ``fastmsgm.reference``, a SIMD loop over a thread's weights."""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from .arrays import flat
from .compile import routine
from .scalar import SIGN, exp2, from_bits, is_normal, to_bits
from .threads import over_rows

_TINY, _HUGE = np.finfo(np.float32).tiny, np.finfo(np.float32).max
_LARGEST = np.float32(80 / math.log(2.0))  # exponent of 2, as ``reference.egd_step`` has it


def egd_step(w: Tensor, g: Tensor, lr: Tensor) -> None:
    """One step of the exponentiated gradient, in place; the arguments are those of ``reference.egd_step``."""
    rate = np.float32(lr.item() / math.log(2.0))
    over_rows(_egd_range, w.numel(), 1, flat(w), flat(g), rate)


@routine
def _egd_range(first, last, w, g, rate):
    _update(last - first, w[first:last], g[first:last], rate)


@routine
def _update(size, w, g, rate):
    for i in range(size):
        sign = np.uint32(to_bits(w[i]) & SIGN)
        old = from_bits(np.uint32(to_bits(w[i]) ^ sign))
        exponent = from_bits(np.uint32(to_bits(-rate * g[i]) ^ sign))
        new = _clamp(old * exp2(_clamp(exponent, -_LARGEST, _LARGEST)), _TINY, _HUGE)
        # The sign comes last: a choice between a number and what is there would become a store by mask, which is slow.
        w[i] = from_bits(np.uint32(to_bits(new if is_normal(old) else old) | sign))


@routine
def _clamp(x, low, high):
    """x within low .. high; NaN stays NaN."""
    x = low if x < low else x
    return high if x > high else x
