"""load: a model from a shipped name or a folder that ``ScoreModel.save`` wrote."""

from __future__ import annotations

import json
import os
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fastmsgm.additive import VPModel
from fastmsgm.gbm_model import GBMModel
from fastmsgm.model import DAMAGED, NETS, ScoreModel
from fastmsgm.rotation_model import RotationModel

_MODELS = {"GBM": GBMModel, "Rotation": RotationModel, "VP": VPModel}


def load(
    name_or_path: str | os.PathLike[str], device: torch.device | str = "cpu", net: nn.Module | None = None
) -> ScoreModel:
    """Load a model from a shipped name ("fashion-gbm", "cauchy-rotation", "cauchy-vp") or a folder with ``config.json``
    and ``model.safetensors``.

    Args:
        net: the network, where it is not one of ``fastmsgm.nets``; its weights are loaded into it.

    Raises:
        TypeError: no name and no path.
        ValueError: neither a shipped model nor a folder with a checkpoint, or a damaged one or one
            of another network.
    """
    if not isinstance(name_or_path, (str, os.PathLike)):
        raise TypeError(f"model must be a name or a folder, got {type(name_or_path).__name__}")
    shipped = Path(str(resources.files("fastmsgm.models")))
    path = Path(name_or_path)
    if not (path / "config.json").is_file():
        path = shipped / str(name_or_path)
    if not (path / "config.json").is_file():
        names = sorted(p.parent.name for p in shipped.glob("*/config.json"))
        raise ValueError(
            f"model must be one of {', '.join(names) or '(none shipped)'} or a folder with config.json, "
            f"got {str(name_or_path)!r}"
        )
    try:
        config: dict[str, Any] = json.loads((path / "config.json").read_text())
        weights = load_file(path / "model.safetensors")
        model = _build(config, weights, net)
    except DAMAGED as error:
        raise ValueError(
            f"model: the checkpoint in {path} is damaged or another network's ({error!r}): save it again, or give the "
            "network that it is of as net=..."
        ) from error
    return model.to(device).eval()


def _build(config: dict[str, Any], weights: dict[str, Tensor], net: nn.Module | None) -> ScoreModel:
    if net is None:
        kind = config["net"].pop("name")
        if kind not in NETS:
            raise ValueError(f"net {kind!r} is not one of {', '.join(NETS)}: build it yourself and give it as net=...")
        net = NETS[kind](**config["net"])
    name = config["process"]["name"]
    if name not in _MODELS:
        raise ValueError(f"process {name!r} is not one of {', '.join(_MODELS)}: this version does not know it")
    model = _MODELS[name].from_config(net, config, weights)
    model.load_state_dict(weights)
    return model
