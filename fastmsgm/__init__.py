"""Multiplicative diffusion models, fast: geometric Brownian motion and rotations, one fused pass per reverse step.

    import fastmsgm
    images = fastmsgm.sample("fashion-gbm", n=64)

``GBMModel.for_data`` builds a model for your data, ``fit`` trains it, ``sample`` draws from it, ``load`` reads it.
"""

from fastmsgm.additive import VP, VPModel
from fastmsgm.checkpoint import load
from fastmsgm.gbm import GBM
from fastmsgm.gbm_model import GBMModel
from fastmsgm.model import ScoreModel
from fastmsgm.priors import LogNormalPrior, RadialPrior
from fastmsgm.rotation import Rotation
from fastmsgm.rotation_model import RotationModel
from fastmsgm.sampling import NonFiniteError, Step, sample, sample_iter
from fastmsgm.trainer import fit

__version__ = "0.1.0"
__all__ = [
    "GBM", "VP", "GBMModel", "LogNormalPrior", "NonFiniteError", "RadialPrior", "Rotation", "RotationModel",
    "ScoreModel", "Step", "VPModel", "fit", "load", "sample", "sample_iter",
]  # fmt: skip
