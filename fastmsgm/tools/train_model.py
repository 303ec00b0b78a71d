"""The model of ``fastmsgm train``: its family, and a network that fits the data."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from fastmsgm import nets
from fastmsgm.data.items import as_float
from fastmsgm.edm import EDM, EDMModel
from fastmsgm.gbm import GBM, GBMModel
from fastmsgm.gbm.preconditioning import PREDICTIONS
from fastmsgm.model import ScoreModel
from fastmsgm.rotation import Rotation, RotationModel
from fastmsgm.rotation.process import NOISES
from fastmsgm.sde import VP, VPModel
from fastmsgm.tools.arguments import add_option
from fastmsgm.tools.train_data import Samples

OPTIONS: dict[str, dict[str, Any]] = {  # of each family, with their defaults
    "gbm": {"sigma": None, "prediction": "denoiser", "offset": None},
    "rotation": {"noise": "isotropic", "pareto": 0.0, "offset": 0.0, "beta_max": 20.0},
    "vp": {"beta_max": 20.0},
    "edm": {},
}


def add_model_options(train: argparse.ArgumentParser) -> None:
    """Add the options of the model, those of every family in a group of their own."""
    add = functools.partial(add_option, train.add_argument_group("model"))
    add(
        "--family",
        "of the process: geometric Brownian motion, norm-preserving rotations, or the additive "
        "baselines vp and edm",
        "gbm",
        choices=tuple(OPTIONS),
    )
    add("--width", "channels of the U-Net's finest level, or width of the perceptron", 64)
    add(
        "--levels",
        "of the U-Net, resolutions below the image's; default: 2 for sides of up to 48 pixels, 3 "
        "of up to 128, else 4",
        type=int,
    )
    add = functools.partial(add_option, train.add_argument_group("--family gbm"))
    add(
        "--sigma",
        "largest log-noise level; default: 10 for a denoiser, else the paper's 0.8",
        type=float,
    )
    add("--prediction", "what the network predicts (default denoiser)", choices=PREDICTIONS)
    add = functools.partial(add_option, train.add_argument_group("--family gbm or rotation"))
    add(
        "--offset",
        "added to the data; default: 1 for GBM on images in [0, 1], else 0",
        type=float,
    )
    add = functools.partial(add_option, train.add_argument_group("--family rotation"))
    add("--noise", "of the rotations (default isotropic)", choices=NOISES)
    add("--pareto", "share of the norms that a Pareto tail replaces (default 0)", type=float)
    add = functools.partial(add_option, train.add_argument_group("--family rotation or vp"))
    add("--beta-max", "speed of the noise at t = 1 (default 20)", type=float)


def family_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options of the chosen family; ValueError where one of another was given."""
    own = OPTIONS[args.family]
    for name in {name for options in OPTIONS.values() for name in options} - set(own):
        if getattr(args, name) is not None:
            families = " or ".join(family for family in OPTIONS if name in OPTIONS[family])
            raise ValueError(
                f"--{name.replace('_', '-')} is for --family {families}, got --family {args.family}"
            )
    given = {name: getattr(args, name) for name in own}
    return own | {name: value for name, value in given.items() if value is not None}


def _gbm_model(
    samples: Samples,
    args: argparse.Namespace,
    sigma: float | None,
    prediction: str,
    offset: float | None,
) -> ScoreModel:
    if sigma is None:  # a network that sees x itself cannot follow it over e^67
        sigma = 10.0 if prediction == "denoiser" else 0.8
    bounds = samples.bounds
    offset = float(bounds is not None) if offset is None else offset
    try:
        return GBMModel.for_data(
            _net(samples, args, {}),
            GBM(sigma),
            samples.x,
            prediction=prediction,
            labels=samples.labels,
            classes=samples.classes,
            offset=offset,
            bounds=bounds,
        )
    except ValueError as error:
        shifted = as_float(samples.x) + offset
        if bool(((shifted > 0).any(0) & (shifted < 0).any(0)).any()):
            raise ValueError(f"{error}; try --family rotation") from error
        raise


def _rotation_model(
    samples: Samples,
    args: argparse.Namespace,
    noise: str,
    pareto: float,
    offset: float,
    beta_max: float,
) -> ScoreModel:
    return RotationModel.for_data(
        _net(samples, args, {"log_norm": 1}, nets.DirectionMLP),
        Rotation(noise=noise, beta_max=beta_max),
        samples.x,
        pareto=pareto,
        classes=samples.classes,
        offset=offset,
        bounds=samples.bounds,
    )


def _vp_model(samples: Samples, args: argparse.Namespace, beta_max: float) -> ScoreModel:
    return VPModel.for_data(
        _net(samples, args, {}), VP(beta_max=beta_max), samples.x, classes=samples.classes
    )


def _edm_model(samples: Samples, args: argparse.Namespace) -> ScoreModel:
    net = _net(samples, args, {})
    return EDMModel.for_data(net, EDM(), samples.x, classes=samples.classes, bounds=samples.bounds)


BUILDERS: dict[str, Callable[..., ScoreModel]] = {  # called with the options of OPTIONS
    "gbm": _gbm_model,
    "rotation": _rotation_model,
    "vp": _vp_model,
    "edm": _edm_model,
}


def _net(
    samples: Samples,
    args: argparse.Namespace,
    own: Mapping[str, int],
    perceptron: type[nets.MLP] = nets.MLP,
) -> nn.Module:
    """Return a U-Net for images, a perceptron for vectors.

    Args:
        samples: The training data.
        args: Of the command.
        own: The conditions of the family, numbers per sample by name.
        perceptron: The class of the perceptron.
    """
    condition = {**own, **{k: v[0].numel() for k, v in samples.condition.items()}}
    shape = samples.x.shape[1:]
    if len(shape) == 3:
        if args.width % 8:
            raise ValueError(f"--width must be a multiple of 8 for images, got {args.width}")
        side = min(shape[1:])
        levels = 2 + (side > 48) + (side > 128) if args.levels is None else args.levels
        return nets.UNet(
            shape[0],
            args.width,
            2 * args.width,
            blocks=1,
            deep_blocks=2,
            levels=levels,
            condition=condition,
            classes=samples.classes,
        )
    if args.levels is not None:
        raise ValueError(f"--levels is for images, got vectors {tuple(samples.x.shape)}")
    return perceptron(shape[0], args.width, condition=condition, classes=samples.classes)
