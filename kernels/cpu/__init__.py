"""Numba kernels for the CPU, with the signatures of ``fastmsgm.reference``.

Their loops are SIMD code, and each thread works on a range of samples at a time.
"""

from .gbm import fill_normal, gbm_perturb, gbm_step
from .optim import egd_step
from .ring import ring_step
from .rotation import rotation_perturb, rotation_step

__all__ = [
    "egd_step",
    "fill_normal",
    "gbm_perturb",
    "gbm_step",
    "ring_step",
    "rotation_perturb",
    "rotation_step",
]
