"""Exponentiated gradient: ``egd_step``, the counterpart of a step of geometric Brownian motion.

    w' = w exp(-lr sign(w) g)

A weight keeps its sign (Dale's law), and a zero weight stays zero. To ensure this in float32, the
exponent is clamped to -80 .. 80, so that the factor is a normal number, and |w'| is clamped to the
normal numbers. So with a positive, finite lr only a NaN gradient results in NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastmsgm.constants import HUGE, LARGEST_EXPONENT, TINY

from .normal_numbers import is_normal


def egd_step(w: Tensor, g: Tensor, lr: Tensor) -> None:
    """Take one step of the exponentiated gradient, in place.

    Args:
        w: (n,) the weights. A weight that is not a normal float32 number (zero, subnormal,
            infinite, NaN) does not change.
        g: (n,) the gradient of the loss.
        lr: The learning rate, float32 of one element, finite.
    """
    exponent = (-lr.to(w.dtype) * torch.sign(w) * g).clamp(-LARGEST_EXPONENT, LARGEST_EXPONENT)
    size = (w.abs() * torch.exp(exponent)).clamp(TINY, HUGE)
    w.copy_(torch.where(is_normal(w), torch.copysign(size, w), w))
