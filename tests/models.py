"""A small model of every family, for tests of what all families share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastmsgm.data.synthetic import correlated_cauchy
from fastmsgm.function import function_model
from fastmsgm.gbm import GBM, GBMModel
from fastmsgm.model import ScoreModel
from fastmsgm.rotation import RadialPrior, Rotation, RotationModel
from fastmsgm.sde import VP, VPModel

D = 4  # features of a sample


def positive_data(n: int = 64) -> Tensor:
    return torch.exp(0.5 * torch.randn(n, D, generator=torch.Generator().manual_seed(1)))


def function(process: Any, prior: Any = None) -> Callable[..., ScoreModel]:
    def build(net: nn.Module, **options: Any) -> ScoreModel:
        return function_model(net, process, (D,), "epsilon", "t", prior, None, **options)

    return build


def gbm(prediction: str) -> Callable[..., ScoreModel]:
    def build(net: nn.Module, **options: Any) -> ScoreModel:
        return GBMModel.for_data(net, GBM(0.8), positive_data(), prediction=prediction, **options)

    return build


def rotation(noise: str) -> Callable[..., ScoreModel]:
    def build(net: nn.Module, **options: Any) -> ScoreModel:
        return RotationModel.for_data(
            net, Rotation(noise=noise), correlated_cauchy(64, D), **options
        )

    return build


def vp(net: nn.Module, **options: Any) -> ScoreModel:
    return VPModel.for_data(net, VP(), positive_data(), **options)


# build(net, **options) -> the model
FAMILIES: Mapping[str, Callable[..., ScoreModel]] = {
    "gbm denoiser": gbm("denoiser"),
    "gbm hyvarinen": gbm("hyvarinen"),
    "gbm score": gbm("score"),
    "isotropic": rotation("isotropic"),
    "ring": rotation("ring"),
    "dense": rotation("dense"),
    "vp": vp,
    "function of gbm": function(GBM(0.8)),
    "function of rotation": function(
        Rotation(beta_max=10.0), RadialPrior(torch.tensor([0.5, 1.0, 2.0]))
    ),
}
