"""What a training run must fulfil: its data before it, its numbers during it."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

from torch import Tensor

from fastmsgm.data.batches import Batches
from fastmsgm.data.items import as_float
from fastmsgm.data.loaders import Data
from fastmsgm.loss import check_range
from fastmsgm.model import ScoreModel
from fastmsgm.training.training_run import TrainingRun
from fastmsgm.wrappers import unwrap

CHECKED_AT_ONCE = 2**21  # numbers of the data that are checked together
_log = logging.getLogger("fastmsgm")


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
