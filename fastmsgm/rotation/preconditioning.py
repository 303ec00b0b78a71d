"""RotationPreconditioning: what a network's raw output f means, at every integrated beta B.

The network sees the direction u = x / |x|, scaled to unit variance: sqrt(d) u. Only the tangent
part of its output counts, n = P_u f / sqrt(d). It gives

    the score of the direction    rho(B) n,           rho = (d - 1) / sqrt(e^B - 1)
    the denoised direction        D = alpha u + sigma n,

with alpha = e^{-B/2} and sigma = sqrt(1 - e^{-B}); D estimates the clean direction and need not
have unit length. For isotropic noise f has unit variance at every B. Ring and dense noise approach
the uniform distribution more slowly, so that there f grows with B.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastmsgm.rotation import heat_kernel
from fastmsgm.rotation.dense import check_dense
from fastmsgm.rotation.process import Rotation
from fastmsgm.sde.beta_schedule import TIME_MIN, alpha, sigma
from fastmsgm.sde.model import SDEPreconditioning
from fastmsgm.types import Array

# The smallest integrated beta of training, from which solvers step to 0, unless time_min is raised.
B_MIN = 1e-4
_log = logging.getLogger("fastmsgm")


@dataclass(frozen=True)
class RotationPreconditioning(SDEPreconditioning):
    """What solvers and losses need to know of a rotation model.

    Args:
        process: The forward process.
        d: Number of features of a sample.
        time_min: See ``SDEPreconditioning``; above its default of 0.001 it bounds ``B_min``,
            too.

    Raises:
        TypeError: process is not a Rotation.
        ValueError: time_min out of range, a process that ends below the smallest integrated beta,
            or dense noise of too many features.
    """

    process: Rotation
    d: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.process, Rotation):
            raise TypeError(
                f"process must be a Rotation, got {type(self.process).__name__}: give Rotation()"
            )
        if self.process.B_max <= B_MIN:
            raise ValueError(
                f"the process's integrated beta must end above {B_MIN}, got "
                f"{self.process.B_max:g}: raise beta_max"
            )
        if self.process.noise == "dense":
            check_dense(self.d)
        if self.process.noise == "ring" and self.process.B_max < self.d**2 / 4:
            _log.warning(
                "ring noise reaches uniform directions at an integrated beta of about d^2 / 4 = "
                "%g, the process ends at %g: the prior differs from the distribution of the noised "
                "data; raise beta_max",
                self.d**2 / 4,
                self.process.B_max,
            )

    @property
    def B_min(self) -> float:
        """The smallest integrated beta at which spherical and ring solvers call the network."""
        if self.time_min <= TIME_MIN:
            return B_MIN
        return max(B_MIN, float(self.process.integrated_beta(self.time_min)))

    @property
    def c_in(self) -> float:
        return math.sqrt(self.d)

    def score(self, model_output: Tensor, B: Array) -> Tensor:
        """Return the score of the direction, not projected: G^T removes its radial part."""
        scale = torch.from_numpy(self.coefficients(B)[:, 2:])
        return model_output * scale.to(model_output.device, torch.float32)

    def coefficients(self, B: Array) -> Array:
        """Return alpha, sigma / sqrt(d), rho / sqrt(d): D and the score from f's tangent part.

        Args:
            B: (R,) integrated betas.

        Returns:
            (R, 3) float64.
        """
        root = math.sqrt(self.d)
        rho = heat_kernel.rho(B, self.d)
        return np.stack((alpha(B), sigma(B) / root, rho / root), axis=1)
