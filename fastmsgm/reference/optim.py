"""Exponentiated gradient: ``egd_step``, the optimizer's twin of a step of geometric Brownian motion.

    w' = w exp(-lr sign(w) g)

A weight keeps its sign (Dale's law), and one that is zero stays zero. Nothing else may happen to it in float32 either:
the exponent is held within -80 .. 80, so that the factor is a normal number, and where |w'| would leave the normal
numbers it becomes the nearest of them. So at a positive, finite lr no gradient but NaN makes a NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .gbm import HUGE, TINY, is_normal

_LARGEST = 80.0  # exponent; in powers of 2, as the kernels have it, a float32 but for 3e-7


def egd_step(w: Tensor, g: Tensor, lr: Tensor) -> None:
    """One step of the exponentiated gradient, in place.

    Args:
        w: (n,) the weights. One that is no normal float32 number (zero, subnormal, infinite, NaN) stays as it is.
        g: (n,) the loss's gradient.
        lr: float32 of one element, the learning rate, finite.
    """
    exponent = (-lr.to(w.dtype) * torch.sign(w) * g).clamp(-_LARGEST, _LARGEST)
    size = (w.abs() * torch.exp(exponent)).clamp(TINY, HUGE)
    w.copy_(torch.where(is_normal(w), torch.copysign(size, w), w))
