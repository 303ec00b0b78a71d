"""Geometric Brownian motion: process, prior, preconditioning, solvers, loss and model.

"Dale meets Langevin" (arXiv 2510.02730), and the same process in log x with EDM's preconditioning.
"""

from .loss import DenoisingLoss, MDSMLoss
from .model import GBMModel
from .preconditioning import GBMPreconditioning
from .prior import LogNormalPrior
from .process import GBM

__all__ = [
    "GBM",
    "DenoisingLoss",
    "GBMModel",
    "GBMPreconditioning",
    "LogNormalPrior",
    "MDSMLoss",
]
