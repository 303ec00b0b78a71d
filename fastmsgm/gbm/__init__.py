"""Geometric Brownian motion: process, prior, preconditioning, solvers, loss and model.

"Dale meets Langevin" (arXiv 2510.02730), and the same process in log x with EDM's preconditioning.
"""

from .loss import DenoisingLoss, MDSMLoss
from .model import GBMModel
from .preconditioning import GBMPreconditioning
from .prior import LogNormalPrior
from .process import GBM
from .published_prior import published_class_average, published_prior
from .score_matching import MESMLoss, NonNegativeScoreMatching

__all__ = [
    "GBM",
    "DenoisingLoss",
    "GBMModel",
    "GBMPreconditioning",
    "LogNormalPrior",
    "MDSMLoss",
    "MESMLoss",
    "NonNegativeScoreMatching",
    "published_class_average",
    "published_prior",
]
