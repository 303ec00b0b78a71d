"""``torch.library`` operations: they check their arguments and dispatch to a backend."""

from .checks import OUTPUT_DTYPES
from .dispatch import backend
from .gbm import fill_normal_, gbm_perturb_, gbm_step, gbm_step_
from .optim import egd_step_
from .ring import ring_step, ring_step_
from .rotation import rotation_perturb_, rotation_step, rotation_step_

__all__ = [
    "OUTPUT_DTYPES",
    "backend",
    "egd_step_",
    "fill_normal_",
    "gbm_perturb_",
    "gbm_step",
    "gbm_step_",
    "ring_step",
    "ring_step_",
    "rotation_perturb_",
    "rotation_step",
    "rotation_step_",
]
