"""Exponentiated gradient on the CPU: ``egd_step`` as in ``fastmsgm.reference``.

Each thread runs a SIMD loop over its weights.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from fastmsgm.constants import HUGE, LARGEST_EXPONENT, LN2, TINY

from .arrays import flat
from .compile import routine
from .scalar import SIGN, exp2, from_bits, is_normal, to_bits
from .threads import over_rows

_TINY, _HUGE = np.float32(TINY), np.float32(HUGE)
_LARGEST = np.float32(LARGEST_EXPONENT / LN2)  # as an exponent of 2


def egd_step(w: Tensor, g: Tensor, lr: Tensor) -> None:
    """Take one step of the exponentiated gradient, in place, as ``reference.egd_step``."""
    rate = np.float32(lr.item() / LN2)
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
        # The sign is set last. LLVM would lower a select between a new value and w[i] itself to a
        # masked store, which is slow.
        w[i] = from_bits(np.uint32(to_bits(new if is_normal(old) else old) | sign))


@routine
def _clamp(x, low, high):
    """x clamped to low .. high; NaN stays NaN."""
    x = low if x < low else x
    return high if x > high else x
