"""The operations on the CPU: numba, SIMD, one range of rows a thread; the signatures of ``fastmsgm.reference``."""

from .gbm import fill_normal, gbm_perturb, gbm_step
from .optim import egd_step
from .ring import ring_step
from .rotation import rotation_perturb, rotation_step

__all__ = ["egd_step", "fill_normal", "gbm_perturb", "gbm_step", "ring_step", "rotation_perturb", "rotation_step"]
