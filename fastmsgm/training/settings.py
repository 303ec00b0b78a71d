"""What a training run is made of, and what identifies it in its checkpoint."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from fastmsgm.checks import positive
from fastmsgm.data.batches import Batches
from fastmsgm.model import FORMAT_VERSION, ScoreModel
from fastmsgm.nets import NETS


def run_settings(model: ScoreModel, batches: Batches, **arguments: Any) -> dict[str, Any]:
    """Return all that decides the result of a run, as a checkpoint gives it back."""
    net = model.net_config()
    settings = {
        "format_version": FORMAT_VERSION,
        **arguments,
        "batch_size": batches.sizes,
        "samples": batches.samples,
        "net": net if net["name"] in NETS else None,  # another's arguments are its user's
        **model.config(),
    }
    return json.loads(json.dumps(settings, default=float))


def make_optimizer(optimizer: Any, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """Return Adam for None, an optimizer itself, or what a function of the parameters returns.

    Raises:
        TypeError: Not an optimizer, or one that needs a closure.
        ValueError: An optimizer of other parameters.
    """
    if optimizer is None:
        return torch.optim.Adam(parameters, fused=True)
    made = optimizer if isinstance(optimizer, torch.optim.Optimizer) else optimizer(parameters)
    if not isinstance(made, torch.optim.Optimizer):
        raise TypeError(
            "optimizer must be a torch.optim.Optimizer, or a function of the parameters that "
            f"returns one, got {type(made).__name__}"
        )
    closure = inspect.signature(made.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise TypeError(
            f"optimizer must take steps without a closure, got {type(made).__name__}: use a "
            "first-order one"
        )
    ours = {id(p) for p in parameters}
    if any(id(p) not in ours for group in made.param_groups for p in group["params"]):
        raise ValueError(
            "optimizer must hold parameters of the model's network: build it from "
            "model.net.parameters(), after the model is on its device"
        )
    return made


def optimizer_settings(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the class and the arguments of an optimizer, but for the learning rate."""
    arguments = {name: value for name, value in optimizer.defaults.items() if name != "lr"}
    kind = type(optimizer)
    return {"name": f"{kind.__module__}.{kind.__qualname__}", **arguments}


def lr_schedule(
    lr: float | Callable[[int], float], steps: int, warmup: int
) -> Callable[[int], float]:
    """Return the learning rate as a function of the step: warm-up and cosine decay of a number."""
    if callable(lr):
        return lambda step: float(lr(step))
    peak = positive("lr", lr)

    def schedule(step: int) -> float:
        decay = (1 + math.cos(math.pi * step / steps)) / 2
        return peak * min(1.0, (step + 1) / max(warmup, 1)) * decay

    return schedule
