"""The probability flow of a rotation model, for any noise: on the unit sphere, at a kept norm.

The state is the direction u = x / r, and p(x) = p(r) r^{1-d} p(u | r). The velocity is tangent to
every sphere, so its divergence on the sphere is that of R^d at |u| = 1. It starts at the smallest
integrated beta B of training, where the density of directions is smoothed over angles of about
sqrt(B), sqrt(B / (d - 1)) along each tangent direction, and ends at uniform directions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from fastmsgm.flow import FlowStart
from fastmsgm.rotation.directions import check_directions
from fastmsgm.rotation.prior import RadialPrior
from fastmsgm.sde.flow import SDEFlow
from fastmsgm.sde.model import SDEModel


class RotationFlow(SDEFlow):
    """The probability flow of a ``RotationModel``.

    Args:
        model: The network with its process.
        prior: The distribution of the norms.
    """

    def __init__(self, model: SDEModel, prior: RadialPrior) -> None:
        preconditioning = model.preconditioning
        process, first = preconditioning.process, preconditioning.B_min
        if model.objective == "ssm":  # which trains from a time on
            first = float(process.integrated_beta(preconditioning.time_min))
        super().__init__(model, (first, process.B_max))
        self.prior = prior

    def start(self, data: Tensor, condition: Mapping[str, Tensor]) -> FlowStart:
        x = (data.double() + self.model.offset).flatten(1)
        check_directions("x", x)
        norms = x.norm(dim=1)
        log_factor = self.prior.log_density(norms) - (x.shape[1] - 1) * torch.log(norms)
        own = self.model.condition_of(norms.float())
        return FlowStart(x / norms[:, None], log_factor, {**condition, **own})

    def log_prior(self, state: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        return self.expected_log_prior(state)

    def expected_log_prior(self, state: Tensor) -> Tensor:
        """Return -log A, A = 2 pi^{d/2} / Gamma(d/2) the area of the sphere."""
        n, d = state.shape
        log_area = math.log(2) + d / 2 * math.log(math.pi) - math.lgamma(d / 2)
        return state.new_full((n,), -log_area)
