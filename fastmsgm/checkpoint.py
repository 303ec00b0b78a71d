"""load: a model from its checkpoint. Nothing of it is unpickled or mapped."""

from __future__ import annotations

import json
import logging
import math
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from fastmsgm.families import FAMILIES
from fastmsgm.model import FORMAT_VERSION, ScoreModel
from fastmsgm.nets import NETS
from fastmsgm.tensors import load_tensors

WEIGHTS = "model.safetensors"
LARGEST = 2**31  # numbers of a sample
# What a configuration that this package did not write makes networks and models raise.
UNSUITABLE = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)
_log = logging.getLogger("fastmsgm")


def load(
    name_or_path: str | os.PathLike[str],
    device: torch.device | str = "cpu",
    net: nn.Module | None = None,
) -> ScoreModel:
    """Load a model.

    Args:
        name_or_path: A shipped model ("fashion-gbm", "cauchy-rotation", "cauchy-vp") or a folder
            with a ``model.safetensors`` that ``ScoreModel.save`` or ``fit`` wrote. A folder comes
            first.
        device: Where to put it.
        net: The network, where it is not one of ``fastmsgm.nets``; its weights are loaded into it.

    Returns:
        The model in evaluation mode.

    Raises:
        TypeError: Neither a name nor a path.
        ValueError: Neither a shipped model nor a folder with a checkpoint; or a checkpoint that is
            damaged, of another network, or of a format version that this package does not know.
        OSError: The checkpoint cannot be read.

    Example:
        >>> model = fastmsgm.load("fashion-gbm")
        >>> model.shape, model.classes
        ((1, 28, 28), 10)
    """
    if not isinstance(name_or_path, (str, os.PathLike)):
        raise TypeError(f"model must be a name or a folder, got {type(name_or_path).__name__}")
    path = _folder(name_or_path)
    try:
        weights, metadata = load_tensors(path / WEIGHTS)
        config: dict[str, Any] = json.loads(metadata["config"])
        _tell_of_edits(path, config)
        _check_version(config.get("format_version"))
        with torch.inference_mode(False):
            model = _build(config, weights, net)
    except UNSUITABLE as error:
        raise ValueError(
            f"model: the checkpoint in {path} is damaged or another network's ({_text(error)}): "
            "save it again, or give the network that it is of as net=..."
        ) from error
    return model.to(device).eval()


def _folder(name_or_path: str | os.PathLike[str]) -> Path:
    """Return the folder of a model; a folder of the user's comes before a shipped model."""
    path, shipped = Path(name_or_path), Path(str(resources.files("fastmsgm.models")))
    own = (path / WEIGHTS).is_file()
    names = sorted(p.parent.name for p in shipped.glob(f"*/{WEIGHTS}"))
    if own and str(name_or_path) in names:
        _log.warning(
            "the folder %s is loaded, not the shipped model of that name: give an absolute path, "
            "or rename the folder",
            path.absolute(),
        )
    if not own and str(name_or_path) not in names:
        raise ValueError(
            f"model must be one of {', '.join(names) or '(none shipped)'} or a folder with "
            f"{WEIGHTS}, got {str(name_or_path)!r}"
        )
    return path if own else shipped / str(name_or_path)


def _tell_of_edits(path: Path, config: dict[str, Any]) -> None:
    """Warn where config.json is not the configuration that the weights were saved with."""
    copy = path / "config.json"
    try:
        same = not copy.exists() or json.loads(copy.read_text("utf-8")) == config
    except (OSError, ValueError, RecursionError):
        same = False
    if not same:
        _log.warning("%s differs from the configuration in %s, which is used", copy, WEIGHTS)


def _check_version(version: object) -> None:
    if type(version) is not int or version != FORMAT_VERSION:
        raise ValueError(
            f"its format_version is {version!r}, this package reads {FORMAT_VERSION}: load it with "
            "the version of fastmsgm that wrote it"
        )


def _build(config: dict[str, Any], weights: dict[str, Tensor], net: nn.Module | None) -> ScoreModel:
    if net is None:
        name = config["net"].pop("name")
        if name not in NETS:
            raise ValueError(
                f"net {name!r} is not one of {', '.join(NETS)}: build it yourself and give it as "
                "net=..."
            )
        net = _network(name, config["net"], weights)
    family = config["process"]["name"]
    if family not in FAMILIES:
        raise ValueError(
            f"process {family!r} is not one of {', '.join(FAMILIES)}: add its model to "
            "fastmsgm.families.FAMILIES before loading"
        )
    model = FAMILIES[family].from_config(net, config, weights)
    _check_shape(model, config["net"])
    model.load_weights(weights)
    return model


def _check_shape(model: ScoreModel, arguments: Mapping[str, Any]) -> None:
    """Raise ValueError where one of this package's networks cannot take the model's samples."""
    shape = model.shape
    for name, size in (("dim", math.prod(shape)), ("channels", shape[0])):
        if arguments.get(name, size) != size:
            raise ValueError(
                f"its samples have shape {shape}, its network has {name}={arguments[name]}"
            )
    if math.prod(shape) >= LARGEST:
        raise ValueError(f"its samples have shape {shape}, which is too large")


def _network(name: str, arguments: dict[str, Any], weights: Mapping[str, Tensor]) -> nn.Module:
    """Build a network once its shapes, found without memory, are those of the weights."""
    shapes = {k[4:]: v.shape for k, v in weights.items() if k.startswith("net.")}
    with torch.device("meta"), _at_most(len(shapes)):
        meant = {k: v.shape for k, v in NETS[name](**arguments).state_dict().items()}
    if meant != shapes:
        wrong = sorted(k for k in meant.keys() | shapes.keys() if meant.get(k) != shapes.get(k))
        raise ValueError(
            f"its configuration and its weights differ in {len(wrong)} tensors, {wrong[0]} first: "
            f"{_shape(meant.get(wrong[0]))} and {_shape(shapes.get(wrong[0]))}"
        )
    with torch.device("cpu"):
        return NETS[name](**arguments)


@contextmanager
def _at_most(count: int) -> Iterator[None]:
    """Raise ValueError as soon as this thread registers more parameters than there are weights."""
    thread, left = threading.get_ident(), count

    def registered(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        nonlocal left
        if threading.get_ident() == thread and parameter is not None:
            left -= 1
            if left < 0:
                raise ValueError(f"its configuration needs more than its {count} weights")

    hook = register_module_parameter_registration_hook(registered)
    try:
        yield
    finally:
        hook.remove()


def _shape(shape: torch.Size | None) -> str:
    return "none" if shape is None else str(tuple(shape))


def _text(error: Exception) -> str:
    """Return the message of an error, or its type where it has none of its own."""
    return str(error) if isinstance(error, ValueError) else repr(error)
