"""What ``fit`` tells of a run: to its callback, to TensorBoard and in the log."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fastmsgm.data.batches import Batches
from fastmsgm.model import ScoreModel
from fastmsgm.training.settings import lr_schedule
from fastmsgm.training.training_run import TrainingRun
from fastmsgm.training.validation import loss_arguments

GRID = 16  # images that TensorBoard gets
_log = logging.getLogger("fastmsgm")


@dataclass(frozen=True)
class TrainStep:
    """What a callback of ``fit`` sees.

    Args:
        step: Optimizer steps done.
        loss: Mean training loss of the steps since the last call.
        validation_loss: Loss of the averaged model on the validation data, or None without any.
        lr: Learning rate of the last step.
        grad_norm: Gradient norm of the last step, before clipping.
        model: The averaged model, in evaluation mode; the next steps change its weights.
    """

    step: int
    loss: float
    validation_loss: float | None
    lr: float
    grad_norm: float
    model: ScoreModel


class Report:
    """Where a run reports to.

    Args:
        callback: Gets a ``TrainStep``, or None.
        writer: A SummaryWriter of TensorBoard, or None.
        sample: Makes its images, as ``fastmsgm.sample``.
    """

    def __init__(
        self,
        callback: Callable[[TrainStep], object] | None,
        writer: Any,
        sample: Callable[..., Tensor],
    ) -> None:
        self._callback, self._writer, self._sample = callback, writer, sample

    def numbers(self, step: int, loss: float, lr: float, grad_norm: float) -> None:
        """Write the numbers of a step into TensorBoard."""
        if self._writer is not None:
            for name, value in (("loss", loss), ("lr", lr), ("gradient norm", grad_norm)):
                self._writer.add_scalar(name, value, step)

    def model(self, seen: TrainStep, condition: Mapping[str, Tensor]) -> None:
        """Tell of the model: validation loss, samples of images, the callback.

        Args:
            seen: The step.
            condition: Labels and conditions that the samples get.
        """
        if self._writer is not None:
            self._write(seen, condition)
        if self._callback is not None:
            self._callback(seen)

    def _write(self, seen: TrainStep, condition: Mapping[str, Tensor]) -> None:
        if seen.validation_loss is not None:
            self._writer.add_scalar("validation loss", seen.validation_loss, seen.step)
        model = seen.model
        if len(model.shape) != 3 or model.shape[0] not in (1, 3):
            return
        few = {name: value[:GRID] for name, value in loss_arguments(model, condition).items()}
        n = min([GRID, *map(len, few.values())])
        label = few.pop("labels", None)
        images = self._sample(model, n, label=label, condition=few, progress=False)
        low, high = model.bounds or (0.0, 0.0)
        if not 0 < high - low < math.inf:
            low, high = float(images.min()), float(images.max())
        self._writer.add_images("samples", (images - low) / max(high - low, 1e-9), seen.step)


@contextmanager
def reporting(
    callback: Callable[[TrainStep], object] | None,
    folder: Path | None,
    step: int,
    sample: Callable[..., Tensor],
) -> Iterator[Report]:
    """Open a report.

    Args:
        callback: As of ``Report``.
        folder: For TensorBoard, or None for none.
        step: Where the run begins.
        sample: As of ``Report``.

    Raises:
        ImportError: TensorBoard is not installed.
    """
    if folder is None:
        yield Report(callback, None, sample)
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(
            'tensorboard=True needs its package: pip install "fastmsgm[tensorboard]"'
        ) from error
    with SummaryWriter(str(folder), purge_step=step) as writer:
        yield Report(callback, writer, sample)


def tell_of_resume(
    run: TrainingRun,
    batches: Batches,
    lr_of: Callable[[int], float],
    lr: float | Callable[[int], float],
    warmup: int,
) -> None:
    """Say in the log what differs from a run that was not stopped."""
    if run.step and not batches.exact:
        _log.warning("the data have no fixed order: the resumed run continues with other batches")
    if run.extended_from:
        _log.warning(
            "extended from %d to %d steps: at step %d the learning rate goes from %.2g to %.2g",
            run.extended_from,
            run.settings["steps"],
            run.step,
            lr_schedule(lr, run.extended_from, warmup)(run.step),
            lr_of(run.step),
        )
