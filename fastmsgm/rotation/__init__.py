"""Rotation: norm-preserving diffusion (MSGM, "Multiplicative Diffusion Models", ICLR 2026)."""

from .loss import SphericalDenoisingLoss
from .model import RotationModel
from .preconditioning import RotationPreconditioning
from .prior import RadialPrior
from .process import Rotation

__all__ = [
    "RadialPrior",
    "Rotation",
    "RotationModel",
    "RotationPreconditioning",
    "SphericalDenoisingLoss",
]
