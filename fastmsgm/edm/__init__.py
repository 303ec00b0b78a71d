"""EDM: additive noise on transformed data, the strong baseline of both papers' experiments.

Karras et al. (2022) for normal noise, Pandey et al. (2025) for Student-t noise.
"""

from .loss import EDMLoss
from .model import EDMModel
from .process import EDM, EDMPreconditioning
from .solver import EDMHeun

__all__ = ["EDM", "EDMHeun", "EDMLoss", "EDMModel", "EDMPreconditioning"]
