"""The operations on the CPU: numba, SIMD, one range of rows a thread; the signatures of ``fastmsgm.reference``."""

from .gbm import fill_normal, gbm_perturb, gbm_step

__all__ = ["fill_normal", "gbm_perturb", "gbm_step"]
