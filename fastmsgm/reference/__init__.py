"""The operations in plain PyTorch: the truth that the kernels are checked against, and the fallback where none runs.

Every function computes in the dtype of its state: float32 as the kernels do, float64 as the oracle. The signatures are
the seam: ``kernels/*.py`` and ``kernels/cpu/*.py`` have the same ones. Arrays are contiguous and of shape (n, d).
"""

from .gbm import COLUMNS, fill_normal, gbm_perturb, gbm_step

__all__ = ["COLUMNS", "fill_normal", "gbm_perturb", "gbm_step"]
