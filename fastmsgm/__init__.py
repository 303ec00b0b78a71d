"""Multiplicative diffusion models, fast: geometric Brownian motion and rotations.

    import fastmsgm
    images = fastmsgm.sample("fashion-gbm", n=64)

``GBMModel.for_data`` and ``RotationModel.for_data`` build a model for your data, ``fit`` trains
it, ``sample`` samples it, ``load`` reads it. ``fastmsgm.solvers``, ``fastmsgm.data``,
``fastmsgm.nets`` and ``fastmsgm.evaluation`` hold the rest.
"""

from fastmsgm.checkpoint import load
from fastmsgm.edm import EDM, EDMModel
from fastmsgm.gbm import GBM, GBMModel, LogNormalPrior
from fastmsgm.loss import Loss
from fastmsgm.model import ScoreModel
from fastmsgm.rotation import RadialPrior, Rotation, RotationModel
from fastmsgm.sampling import sample, sample_iter
from fastmsgm.sde import VP, VPModel
from fastmsgm.step import NonFiniteError, Step
from fastmsgm.training.report import TrainStep
from fastmsgm.training.solver_fit import fit_solver
from fastmsgm.training.trainer import fit

__version__ = "0.1.0"
__all__ = [
    "EDM",
    "GBM",
    "VP",
    "EDMModel",
    "GBMModel",
    "LogNormalPrior",
    "Loss",
    "NonFiniteError",
    "RadialPrior",
    "Rotation",
    "RotationModel",
    "ScoreModel",
    "Step",
    "TrainStep",
    "VPModel",
    "fit",
    "fit_solver",
    "load",
    "sample",
    "sample_iter",
]
