"""Checkpoints: load a model; write and resume a training run. JSON and safetensors, no pickles."""

from __future__ import annotations

import csv
import json
import logging
import math
import os
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fastmsgm.families import FAMILIES
from fastmsgm.files import write_atomically
from fastmsgm.model import DAMAGED, FORMAT_VERSION, ScoreModel
from fastmsgm.nets import NETS
from fastmsgm.wrappers import plain_state_dict, unwrap

_log = logging.getLogger("fastmsgm")


def load(
    name_or_path: str | os.PathLike[str],
    device: torch.device | str = "cpu",
    net: nn.Module | None = None,
) -> ScoreModel:
    """Load a model.

    Args:
        name_or_path: A shipped model ("fashion-gbm", "cauchy-rotation", "cauchy-vp") or a folder
            with ``config.json`` and ``model.safetensors``, which ``ScoreModel.save`` writes.
        device: Where to put it.
        net: The network, where it is not one of ``fastmsgm.nets``; its weights are loaded into it.

    Returns:
        The model in evaluation mode.

    Raises:
        TypeError: Neither a name nor a path.
        ValueError: Neither a shipped model nor a folder with a checkpoint; or a checkpoint that is
            damaged, of another network, or of a format version that this package does not know.

    Example:
        >>> model = fastmsgm.load("fashion-gbm")
        >>> model.shape, model.classes
        ((1, 28, 28), 10)
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
            f"model must be one of {', '.join(names) or '(none shipped)'} or a folder with "
            f"config.json, got {str(name_or_path)!r}"
        )
    try:
        config: dict[str, Any] = json.loads((path / "config.json").read_text())
        _check_version(path, config.get("format_version"))
        weights = load_file(path / "model.safetensors")
        model = _build(config, weights, net)
    except DAMAGED as error:
        raise ValueError(
            f"model: the checkpoint in {path} is damaged or another network's ({error!r}): save it "
            "again, or give the network that it is of as net=..."
        ) from error
    return model.to(device).eval()


def _check_version(path: Path, version: object) -> None:
    if type(version) is not int or version != FORMAT_VERSION:
        raise ValueError(
            f"model: the checkpoint in {path} has format_version {version!r}, this package reads "
            f"{FORMAT_VERSION}: load it with the version of fastmsgm that wrote it"
        )


def _build(config: dict[str, Any], weights: dict[str, Tensor], net: nn.Module | None) -> ScoreModel:
    if net is None:
        name = config["net"].pop("name")
        if name not in NETS:
            raise ValueError(
                f"net {name!r} is not one of {', '.join(NETS)}: build it yourself and give it as "
                "net=..."
            )
        net = NETS[name](**config["net"])
    family = config["process"]["name"]
    if family not in FAMILIES:
        raise ValueError(
            f"process {family!r} is not one of {', '.join(FAMILIES)}: add its model to "
            "fastmsgm.families.FAMILIES before loading"
        )
    model = FAMILIES[family].from_config(net, config, weights)
    model.load_weights(weights)
    return model


class TrainingRun:
    """The state of a training run, and its checkpoint in a folder.

    Args:
        model: Trained in place.
        optimizer: Of the network's parameters.
        settings: All that decides the result, as JSON can hold it; a checkpoint of other settings
            is refused, but for more "steps". Holds "ema" and "steps".
        out: The folder, or None for a run without checkpoints. An existing run there is resumed.

    Attributes:
        average: The exponential moving average of the network.
        step: Optimizer steps done.
        extended_from: The number of steps that a resumed run was planned for, if that was less.
        losses: The loss of every step.

    Raises:
        ValueError: The folder holds a run with other settings, or a damaged one.
    """

    def __init__(
        self,
        model: ScoreModel,
        optimizer: torch.optim.Optimizer,
        settings: dict[str, Any],
        out: Path | None,
    ) -> None:
        self.model, self.optimizer, self.settings, self.out = model, optimizer, settings, out
        averaging = get_ema_multi_avg_fn(settings["ema"])
        net = unwrap(model.net)
        self.average = AveragedModel(net, multi_avg_fn=averaging, use_buffers=True)
        self.step, self.extended_from = 0, 0
        self.losses: list[float] = []
        if out is not None and (out / "training.json").is_file():
            try:
                self._resume(out)
            except DAMAGED as error:
                raise ValueError(
                    f"out={str(out)!r} holds a damaged checkpoint ({error!r}): use a new folder"
                ) from error

    def save(self) -> None:
        """Write the checkpoint; the model's own files hold the average."""
        if self.out is None:
            return
        self.out.mkdir(parents=True, exist_ok=True)
        tensors = {f"net.{k}": v for k, v in plain_state_dict(self.model.net).items()}
        tensors |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        for i, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {
                f"optimizer.{i}.{k}": torch.as_tensor(v)
                for k, v in moments.items()
                if v is not None
            }
        tensors = {k: v.detach().to("cpu", copy=True).contiguous() for k, v in tensors.items()}
        # The step is in the same file as its tensors, and the losses are there before it, so that
        # an interrupted save leaves a whole state.
        groups = [_numbers(group) for group in self.optimizer.param_groups]
        metadata = {"step": str(self.step), "groups": json.dumps(groups)}
        text = json.dumps(self.settings, indent=2) + "\n"
        write_atomically(self.out / "loss.csv", self._write_losses)
        write_atomically(
            self.out / "training.safetensors", lambda p: save_file(tensors, p, metadata)
        )
        write_atomically(self.out / "training.json", lambda p: p.write_text(text))
        self.model.with_net(self.average.module).save(self.out)

    def _write_losses(self, path: Path) -> None:
        with open(path, "w", newline="") as file:
            csv.writer(file).writerows([("step", "loss"), *enumerate(self.losses, 1)])

    def _resume(self, out: Path) -> None:
        stored = json.loads((out / "training.json").read_text())
        extends = isinstance(stored.get("steps"), int) and stored["steps"] < self.settings["steps"]
        changed = {
            k: (stored.get(k), v)
            for k, v in self.settings.items()
            if not (_same(stored.get(k), v) or (k == "steps" and extends))
        }
        if changed:
            raise ValueError(
                f"out={str(out)!r} holds a run with other settings (there, here): {changed}; use a "
                "new folder"
            )
        with safe_open(out / "training.safetensors", framework="pt") as file:
            self.step = int(file.metadata()["step"])
            groups = json.loads(file.metadata()["groups"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        part = {
            p: {k[len(p) + 1 :]: v for k, v in tensors.items() if k.startswith(p + ".")}
            for p in ("net", "average", "optimizer")
        }
        unwrap(self.model.net).load_state_dict(part["net"])
        self.average.load_state_dict(part["average"])
        state = self.optimizer.state_dict()
        for key, value in part["optimizer"].items():
            index, name = key.split(".")
            state["state"].setdefault(int(index), {})[name] = value
        self.optimizer.load_state_dict(state)
        for group, numbers in zip(self.optimizer.param_groups, groups, strict=True):
            group.update(numbers)
        with open(out / "loss.csv", newline="") as file:
            try:
                losses = [float(row["loss"]) for row in csv.DictReader(file)]
            except ValueError as error:
                raise RuntimeError(f"loss.csv: {error}") from error
        self.losses = losses[: self.step]
        self.extended_from = stored["steps"] if extends else 0
        _log.info("resumed %s at step %d", out, self.step)


def _numbers(group: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers of a group of parameters, some of which optimizers change."""
    return {k: v for k, v in group.items() if isinstance(v, (bool, int, float))}


def _same(a: Any, b: Any) -> bool:
    """Whether two settings are equal, numbers to 1e-6: fits vary with the number of threads."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-6)
    return a == b
