"""The operations in plain PyTorch: the truth that the kernels are checked against, and the fallback where none runs.

Every function computes in the dtype of its state: float32 as the kernels do, float64 as the oracle. The signatures are
the seam: ``kernels/*.py`` and ``kernels/cpu/*.py`` have the same ones. Arrays are contiguous and of shape (n, d),
an optimizer's flat. A step, and so a row of a table, counts from the stream's first.
"""

from .gbm import COLUMNS, fill_normal, gbm_perturb, gbm_step
from .optim import egd_step
from .ring import RING_COLUMNS, ring_step
from .rotation import ROTATION_COLUMNS, rotation_perturb, rotation_step

__all__ = [
    "COLUMNS", "RING_COLUMNS", "ROTATION_COLUMNS", "egd_step", "fill_normal", "gbm_perturb", "gbm_step", "ring_step",
    "rotation_perturb", "rotation_step",
]  # fmt: skip
