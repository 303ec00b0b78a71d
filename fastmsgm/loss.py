"""Loss: the training loss as a module, for any training loop.

The noise of a batch depends on the seed, the step and the position of each sample in the global
batch, never on torch's generator. So a run can be repeated, and ranks that share a batch train as
one process would.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, distributed, nn

from fastmsgm import rng
from fastmsgm.checks import check_int, check_tensor, is_number
from fastmsgm.condition import checked_condition, drop_some, dropped
from fastmsgm.data.items import as_float
from fastmsgm.model import ScoreModel, check_bare_model, check_float32
from fastmsgm.modes import evaluation, outside_autocast, trained
from fastmsgm.wrappers import unwrap

EVALUATION = 2**31  # first step of the noise counter for calls in evaluation mode
REDUCTIONS = ("mean", "none")


class Loss(nn.Module):
    """The training loss of a model; its parameters are the network's.

    Wrap it in DistributedDataParallel, Lightning or Accelerate as any module. Only calls of the
    wrapped module average gradients over ranks, so wrap the loss, not the model. To compile,
    compile the network, ``model.net = torch.compile(model.net)``.

    Args:
        model: The model to train; its network may be wrapped or compiled.
        loss: None is ``model.default_loss``; else a callable as described there, such as
            ``fastmsgm.gbm.DenoisingLoss(p_mean=-0.5, p_std=1.4)``.
        seed: Seed of noise levels and noise, 0 .. 2^64 - 1.
        drop: Share of the samples whose labels and conditions are dropped in training mode, in
            [0, 1), so that the model can be sampled with guidance (Ho and Salimans, 2022).

    Raises:
        TypeError: model is not a ScoreModel, or loss not a callable.
        ValueError: seed or drop is out of range.

    Example:
        >>> data = torch.exp(torch.randn(64, 3))
        >>> model = fastmsgm.GBMModel.for_data(nets.MLP(3), fastmsgm.GBM(8.0), data)
        >>> loss = fastmsgm.Loss(model)
        >>> loss(data).shape, loss(data, reduction="none").shape
        (torch.Size([]), torch.Size([64]))
    """

    def __init__(
        self,
        model: ScoreModel,
        loss: Callable[..., Tensor] | None = None,
        *,
        seed: int = 0,
        drop: float = 0.0,
    ) -> None:
        super().__init__()
        check_bare_model(
            model,
            "wrap the loss instead of the model, as DistributedDataParallel(Loss(model)), or give "
            "model.module",
        )
        if loss is not None and (not callable(loss) or inspect.isclass(loss)):
            raise TypeError(
                "loss must be a function (model, x0, stream, step, **condition) or None, got "
                f"{loss if inspect.isclass(loss) else type(loss).__name__}: give an instance"
            )
        if not is_number(drop) or not 0 <= drop < 1:
            raise ValueError(f"drop must be in [0, 1), got {drop!r}")
        self.model, self.loss, self.drop = model, loss or model.default_loss, float(drop)
        self.seed = check_int("seed", seed, 0, 2**64 - 1)
        self.calls, self.evaluations = 0, 0
        self.checked = self.null_checked = False
        if self.drop:
            model.drop = self.drop

    def forward(
        self,
        data: Tensor,
        *,
        step: int | None = None,
        first: int | None = None,
        labels: Tensor | None = None,
        reduction: str = "mean",
        **condition: Tensor,
    ) -> Tensor:
        """Return the loss of a batch.

        Args:
            data: (n, ...) in the data's own range, floating point, or uint8 images, which are
                divided by 255.
            step: Step of the noise counter. Equal steps give equal noise and noise levels. None
                counts the calls, separately in training and in evaluation mode, so micro-batches
                of one optimizer step differ. Give it where the call is repeated, as activation
                checkpointing of the loss itself does.
            first: Position of the first sample in the global batch. None is rank times n where
                ``torch.distributed`` is initialised, else 0; give it where batches of the ranks
                differ in size.
            labels: (n,) integer class labels, for a class-conditional model.
            reduction: "mean", a scalar, or "none", (n,).
            condition: What else the network is conditioned on, by name, each (n, ...).

        Raises:
            TypeError: An argument of the wrong type; the message names it.
            ValueError: An argument out of range, or, on the first call, data that do not fit the
                model.
        """
        if reduction not in REDUCTIONS:
            raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}")
        states = self._states(data)
        n = len(states)
        values = data.device.type == "cpu" or not self.checked
        given = checked_condition(self.model, n, labels, condition, values)
        self.checked = True
        if step is None:
            step = self._count()
        if first is None:
            parallel = distributed.is_available() and distributed.is_initialized()
            first = n * distributed.get_rank() if parallel else 0
        step, stream = check_int("step", step, 0, 2**32 - 1), rng.stream(self.seed, first)
        if self.drop and self.training:
            if not self.null_checked:
                self._check_null(states[:2], given, stream, step)
            given = drop_some(given, self.model.classes, self.drop, stream, step)
        alone = self.training and not torch.compiler.is_compiling()
        if alone and torch.is_grad_enabled():
            self.model.weights_changed()
        with trained(unwrap(self.model.net)) if alone else nullcontext():
            losses = self.loss(self.model, states, stream, step, **given)
        return losses.mean() if reduction == "mean" else losses

    def _states(self, data: Tensor) -> Tensor:
        """Return the states of a batch; the first batch is checked against the model."""
        model = self.model
        check_tensor("data", data)
        if tuple(data.shape[1:]) != model.shape or len(data) == 0:
            expected = ", ".join(map(str, ("n", *model.shape)))
            raise ValueError(f"data must have shape ({expected}), n >= 1, got {tuple(data.shape)}")
        if data.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                "data must not require a gradient, which the loss has in parameters and conditions "
                "alone: give data.detach()"
            )
        data = as_float(data).to(model.device)
        with outside_autocast(data.device):
            states = model.to_state(data)
        if not self.checked:
            check_float32(model)
            check_range(model, data)
            model.check_states(states)
        return states

    def _check_null(
        self, states: Tensor, given: dict[str, Tensor], stream: Tensor, step: int
    ) -> None:
        """Raise ValueError where the network cannot take dropped conditions."""
        if not given:
            raise ValueError(
                f"drop needs labels or a condition to drop, got drop={self.drop} and neither"
            )
        null = dropped({name: v[: len(states)] for name, v in given.items()}, self.model.classes)
        try:
            with evaluation(self.model):
                finite = bool(self.loss(self.model, states, stream, step, **null).isfinite().all())
        except IndexError:  # of a table of embeddings
            finite = False
        if not finite:
            raise ValueError(
                f"drop needs a network that takes dropped conditions, got drop={self.drop} and one "
                "that fails or returns NaN: a dropped label is classes, a dropped condition NaN; "
                "replace them by a learned vector, as the networks of fastmsgm.nets do"
            )
        self.null_checked = True

    def _count(self) -> int:
        if self.training:
            self.calls += 1
            return self.calls - 1
        self.evaluations += 1
        return EVALUATION + self.evaluations - 1

    def get_extra_state(self) -> Tensor:
        """Return the counts of calls in training and in evaluation mode."""
        return torch.tensor([self.calls, self.evaluations], dtype=torch.int64, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Continue from the counts of a state dict."""
        self.calls, self.evaluations = state.tolist()


def check_range(model: ScoreModel, data: Tensor) -> None:
    """Raise ValueError where data lie outside the model's bounds, which shows another scaling."""
    if model.bounds is None:
        return
    (low, high), tolerance = model.bounds, 1e-3
    margin = tolerance * (high - low) if high - low < float("inf") else tolerance
    least, most = float(data.min()), float(data.max())
    if least < low - margin or most > high + margin:
        raise ValueError(
            f"data must be in the model's bounds [{low:g}, {high:g}], got {least:g} to {most:g}: "
            "give data in the range that the model was built for, without its offset or scale"
        )
