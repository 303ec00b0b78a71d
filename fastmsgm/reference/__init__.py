"""The operations in plain PyTorch: what the kernels are tested against, and the fallback.

Every function computes in the dtype of its state: float32 like the kernels, or float64 as the
oracle of the tests. ``kernels/*.py`` and ``kernels/cpu/*.py`` have functions of the same
signatures, and ``fastmsgm.ops`` dispatches to one of the three. Arrays are contiguous and of shape
(n, d); those of the optimizer are flat. A step, and with it the row of a table, counts from the
stream's first step.
"""

from .gbm import GBM_COLUMNS, fill_normal, gbm_perturb, gbm_step
from .optim import egd_step
from .ring import RING_COLUMNS, ring_step
from .rotation import ROTATION_COLUMNS, rotation_perturb, rotation_step

__all__ = [
    "GBM_COLUMNS",
    "RING_COLUMNS",
    "ROTATION_COLUMNS",
    "egd_step",
    "fill_normal",
    "gbm_perturb",
    "gbm_step",
    "ring_step",
    "rotation_perturb",
    "rotation_step",
]
