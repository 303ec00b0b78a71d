"""What a training run must fulfil: arguments and data before it, its numbers during it."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable

from torch import Tensor

from fastmsgm.checks import is_number
from fastmsgm.data.batches import Batches
from fastmsgm.data.items import as_float
from fastmsgm.data.loaders import Data
from fastmsgm.loss import check_range
from fastmsgm.model import ScoreModel, check_bare_model
from fastmsgm.training.training_run import TrainingRun
from fastmsgm.wrappers import unwrap

CHECKED_AT_ONCE = 2**21  # numbers of the data that are checked together
_log = logging.getLogger("fastmsgm")


def check_model(model: ScoreModel) -> None:
    """Raise where a model is wrapped or cannot be trained.

    Raises:
        TypeError: Not a ScoreModel without wrappers.
        ValueError: It was built in inference mode.
    """
    check_bare_model(model, "give the model inside, model.module")
    if any(parameter.is_inference() for parameter in model.net.parameters()):
        raise ValueError(
            "model must be built outside torch.inference_mode to be trained, got inference tensors "
            "as parameters: build or load it again outside"
        )


def check_options(
    precision: str,
    clip: float,
    ema: float,
    tail: float | None,
    callback: object,
    tensorboard: bool,
    out: str | os.PathLike[str] | None,
) -> None:
    """Raise where an argument of ``fit`` is out of range, whatever the model and the data are.

    Args:
        precision: As of ``fit``, or the model's.
        clip: As of ``fit``, like all others.
        ema: Decay of the average.
        tail: Share of the largest norms.
        callback: A function of a TrainStep.
        tensorboard: Needs ``out``.
        out: Name of a folder.

    Raises:
        TypeError: callback cannot be called.
        ValueError: Another argument is out of range.
    """
    _check(
        "precision",
        precision,
        precision in ("fp32", "bf16"),
        "fp32 or bf16, since fp16 gradients underflow",
    )
    _check("clip", clip, clip == math.inf or (is_number(clip) and clip > 0), "positive")
    _check("ema", ema, is_number(ema) and 0 <= ema < 1, "in [0, 1)")
    _check(
        "tail",
        tail,
        tail is None or (is_number(tail) and 0 <= tail < 1),
        "in [0, 1) or None",
        "give a share of every batch, such as 0.5, or leave it out",
    )
    if callback is not None and not callable(callback):
        raise TypeError(
            f"callback must be a function of a TrainStep or None, got {type(callback).__name__}"
        )
    _check(
        "tensorboard", tensorboard, not tensorboard or out is not None, "given together with out"
    )
    if out is not None and not os.fspath(out):
        raise ValueError("out must be the name of a folder, got '': give one, or None")


def _check(name: str, value: object, good: bool, allowed: str, remedy: str = "") -> None:
    if not good:
        raise ValueError(f"{name} must be {allowed}, got {value!r}{remedy and ': ' + remedy}")


def check_data(name: str, model: ScoreModel, data: Data, batches: Batches) -> None:
    """Raise where data do not fit the model; of a tensor all samples are looked at."""
    if tuple(batches.shape) != model.shape:
        expected = ", ".join(map(str, ("N", *model.shape)))
        got = ", ".join(map(str, ("N", *batches.shape)))
        raise ValueError(f"{name} must have shape ({expected}), got ({got})")
    if not isinstance(data, Tensor):
        return
    at_once = max(1, CHECKED_AT_ONCE // math.prod(model.shape))
    for part in data.split(at_once):
        x = as_float(part).to(model.device)
        check_range(model, x)
        model.check_states(model.to_state(x))


def check_order(batches: Batches) -> None:
    """Raise ValueError for data that are shared already; warn where order may differ by process."""
    if batches.distributed:
        raise ValueError(
            "data must be the whole data set in every process, got a loader with a "
            "DistributedSampler: leave it out, since fit shares every batch"
        )
    if not batches.exact:
        _log.warning(
            "the data have an order of their own: every process must load the same batches, of "
            "which it takes its part"
        )


def check_finite(
    step: int,
    losses: list[float],
    norms: list[float],
    lr: Callable[[int], float],
    data: Data,
) -> None:
    """Raise FloatingPointError where losses or gradient norms are NaN or infinite."""
    for what, number in (("loss", sum(losses)), ("gradient norm", sum(norms))):
        if not math.isfinite(number):
            raise FloatingPointError(
                f"the {what} is {number} at step {step}: lower lr (now {lr(step - 1):.3g}) or use "
                "fp32" + ("" if isinstance(data, Tensor) else ", and look for NaN in the data")
            )


def check_weights(run: TrainingRun) -> None:
    """Raise FloatingPointError where the last updates made weights NaN or infinite."""
    for name, weight in unwrap(run.model.net).named_parameters():
        if weight.requires_grad and not bool(weight.isfinite().all()):
            raise FloatingPointError(
                f"net.{name} is not finite at step {run.step}, after a finite loss and gradient: "
                "lower lr, or use another optimizer"
            )
