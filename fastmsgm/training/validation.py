"""The loss on held-out data, and what a batch brings for the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor

from fastmsgm.loss import EVALUATION, Loss
from fastmsgm.model import ScoreModel
from fastmsgm.modes import evaluation


def validation_loss(
    model: ScoreModel,
    batches: Iterable[tuple[Tensor, Mapping[str, Tensor]]],
    loss: Callable[..., Tensor] | None,
    seed: int,
) -> float:
    """Return the mean loss over all samples, at the same noise every time."""
    loss_of = Loss(model, loss, seed=seed)
    total, n = 0.0, 0
    with evaluation(loss_of):
        for x, given in batches:
            options = loss_arguments(model, given)
            values = loss_of(x, step=EVALUATION, first=n, reduction="none", **options)
            total, n = total + float(values.sum()), n + len(x)
    return total / n


def loss_arguments(model: ScoreModel, given: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return what a batch brings as the loss takes it; labels count for models with classes."""
    condition: dict[str, Any] = {k: v for k, v in given.items() if k != "label"}
    return condition | ({"labels": given.get("label")} if model.classes else {})
