"""fit: the training loop, read from top to bottom.

Batch k of every run is determined by (seed, k) alone: the order of the data, the noise levels and
the noise come from the counter-based stream, so a run that is stopped and resumed follows the
uninterrupted one exactly.
"""

from __future__ import annotations

import functools
import inspect
import json
import math
import os
import signal
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from fastmsgm import rng
from fastmsgm.checkpoint import TrainingRun
from fastmsgm.checks import check_int, check_labels, check_tensor, is_number, positive
from fastmsgm.model import FORMAT_VERSION, ScoreModel
from fastmsgm.nets import NETS

Model = TypeVar("Model", bound=ScoreModel)
CHECKPOINT_SECONDS = 180.0
FLUSH_EVERY = 50  # steps between two reads of the loss, each of which waits for the device


def fit(
    model: Model,
    data: Tensor,
    labels: Tensor | None = None,
    *,
    steps: int,
    batch_size: int = 128,
    lr: float = 1e-3,
    ema: float = 0.999,
    precision: str | None = None,
    out: str | os.PathLike[str] | None = None,
    seed: int = 0,
    warmup: int = 500,
    clip: float = 1.0,
    loss: Callable[..., Tensor] | None = None,
    tensorboard: bool = False,
    progress: bool = True,
) -> Model:
    """Train a model in place; it ends with the exponential moving average of its weights.

    Adam with linear warm-up and cosine decay to zero, gradients clipped. With ``out`` a checkpoint
    is written every three minutes, at the end and on Ctrl-C; calling ``fit`` again with the same
    arguments resumes the run, exactly unless the network itself uses random numbers (dropout).

    Args:
        model: From ``GBMModel.for_data`` or the like, trained on its own device.
        data: (N, ...) float32 in the data's own range.
        labels: (N,) integers from 0, the classes of the data, for a class-conditional model.
        steps: Optimizer steps in all.
        batch_size: Samples per step.
        lr: Peak learning rate.
        ema: Decay of the weight average per step, in [0, 1).
        precision: "fp32" or "bf16" for the network; None keeps the model's. fp16 gradients would
            underflow.
        out: Folder for ``config.json``, ``model.safetensors`` (the average),
            ``training.safetensors`` and ``loss.csv``.
        seed: Seed of data order, noise levels and noise.
        warmup: Steps of linear warm-up.
        clip: Largest gradient norm.
        loss: None is ``model.loss``; else a callable (model, x0, stream, step, labels) -> scalar,
            such as ``fastmsgm.gbm.DenoisingLoss(p_mean=-0.5, p_std=1.4)``. A checkpoint identifies
            it by its ``repr``, or by its qualified name.
        tensorboard: Also write the loss there, into ``out``.
        progress: Show a progress bar.

    Returns:
        The model, in evaluation mode.

    Raises:
        TypeError: An argument of the wrong type; the message names it.
        ValueError: An argument out of range, data of another shape or dtype than the model's, or a
            checkpoint in ``out`` of other arguments.
        FloatingPointError: The loss or its gradient became NaN or infinite; the last checkpoint is
            kept.
        KeyboardInterrupt: On Ctrl-C or SIGTERM, after the current step is finished and saved.

    Example:
        >>> data = torch.exp(torch.randn(200, 3))
        >>> model = fastmsgm.GBMModel.for_data(nets.MLP(3), fastmsgm.GBM(8.0), data)
        >>> model = fastmsgm.fit(model, data, steps=5, batch_size=32, progress=False)
        >>> fastmsgm.sample(model, n=10, progress=False).shape
        torch.Size([10, 3])
    """
    if not isinstance(model, ScoreModel):
        raise TypeError(
            f"model must be a ScoreModel, got {type(model).__name__}: build one with "
            "GBMModel.for_data, or load one"
        )
    precision = model.precision if precision is None else precision
    _check(
        "precision",
        precision,
        precision in ("fp32", "bf16"),
        "fp32 or bf16, since fp16 gradients underflow",
    )
    steps, batch_size = check_int("steps", steps, 1), check_int("batch_size", batch_size, 1)
    warmup, seed = check_int("warmup", warmup, 0), check_int("seed", seed, 0, 2**64 - 1)
    clip, lr = positive("clip", clip), positive("lr", lr)
    _check("ema", ema, is_number(ema) and 0 <= ema < 1, "in [0, 1)")
    if loss is not None and (not callable(loss) or inspect.isclass(loss)):
        raise TypeError(
            "loss must be a function (model, x0, stream, step, labels) or None, got "
            f"{loss if inspect.isclass(loss) else type(loss).__name__}: give an instance"
        )
    _check(
        "tensorboard", tensorboard, not tensorboard or out is not None, "given together with out"
    )
    check_tensor("data", data)
    if data.dtype != torch.float32 or tuple(data.shape[1:]) != model.shape:
        expected = ", ".join(map(str, ("N", *model.shape)))
        raise ValueError(
            f"data must be float32 of shape ({expected}), got {data.dtype} {tuple(data.shape)}: "
            "convert with .float()"
        )
    labels = _labels_for(model, labels, len(data))
    states = model.to_state(data.to(model.device))
    model.check_states(states)
    noise, net = rng.stream(seed), model.net_config()
    settings = {
        "format_version": FORMAT_VERSION,
        "steps": steps,
        "batch_size": batch_size,
        "lr": lr,
        "ema": ema,
        "seed": seed,
        "warmup": warmup,
        "clip": clip,
        "precision": precision,
        "samples": len(states),
        "loss": None if loss is None else _name_of(loss),
        "labels": None if labels is None else zlib.crc32(labels.cpu().long().numpy().tobytes()),
        "net": net if net["name"] in NETS else None,  # another's arguments are its user's
        **model.config(),
    }
    settings = json.loads(json.dumps(settings, default=float))  # as a checkpoint gives them back
    run = TrainingRun(model, settings, Path(out) if out is not None else None)
    model.precision = precision
    loss_of = model.loss if loss is None else functools.partial(loss, model)
    order = DataOrder(len(states), seed)
    bar = tqdm(total=steps, initial=run.step, disable=not progress, desc="training", unit="step")
    recent: list[tuple[Tensor, Tensor]] = []  # loss and gradient norm of each step
    saved = time.monotonic()
    model.train()
    parameters = list(model.net.parameters())
    writer_context = _tensorboard(run) if tensorboard else nullcontext()
    with _stop_requests() as stop, bar, writer_context as writer:
        while run.step < steps:
            run.optimizer.param_groups[0]["lr"] = lr * _schedule(run.step, steps, warmup)
            batch = order.batch(run.step, batch_size).to(model.device)
            batch_labels = None if labels is None else labels[batch]
            value = loss_of(states[batch], noise, run.step, batch_labels)
            run.optimizer.zero_grad()
            value.backward()
            norm = nn.utils.clip_grad_norm_(parameters, clip)
            run.optimizer.step()
            run.average.update_parameters(model.net)
            run.step += 1
            recent.append((value.detach(), norm))
            bar.update()
            if len(recent) == FLUSH_EVERY or run.step == steps or stop.is_set():
                values, norms = (torch.stack(part).tolist() for part in zip(*recent, strict=True))
                run.losses += values
                recent.clear()
                mean = sum(values) / len(values)
                for what, number in (("loss", mean), ("gradient norm", sum(norms))):
                    if not math.isfinite(number):
                        raise FloatingPointError(
                            f"the {what} is {number} at step {run.step}: lower lr (now {lr}) or "
                            "use fp32"
                        )
                bar.set_postfix(loss=f"{mean:.4f}")
                if writer is not None:
                    writer.add_scalar("loss", mean, run.step)
                due = time.monotonic() - saved > CHECKPOINT_SECONDS
                if due or run.step == steps or stop.is_set():
                    run.save()
                    saved = time.monotonic()
            if stop.is_set():
                raise KeyboardInterrupt(f"stopped after step {run.step}")
    model.net.load_state_dict(run.average.module.state_dict())
    return model.eval()


class DataOrder:
    """Which samples make up batch k: every epoch is a permutation, sorted by the stream's words.

    Args:
        n: Number of samples in the data set.
        seed: Seed of the noise stream.
    """

    def __init__(self, n: int, seed: int) -> None:
        self.n, self.seed = n, seed
        self.epoch, self.permutation = -1, torch.empty(0, dtype=torch.int64)

    def batch(self, step: int, size: int) -> Tensor:
        """Return the sample indices of batch ``step``, (size,) int64 on the CPU."""
        parts, first, end = [], step * size, (step + 1) * size
        while first < end:
            epoch, position = divmod(first, self.n)
            parts.append(self._permutation(epoch)[position : position + end - first])
            first += len(parts[-1])
        return torch.cat(parts)

    def _permutation(self, epoch: int) -> Tensor:
        if epoch != self.epoch:
            stream, quads = rng.stream(self.seed), -(-self.n // 4)
            words = rng.words(1, quads, stream, rng.Purpose.DATA_ORDER, epoch).flatten()
            self.epoch, self.permutation = epoch, words[: self.n].argsort(stable=True)
        return self.permutation


def _name_of(loss: Any) -> str:
    """Return what identifies a loss in a checkpoint: its ``repr``, or a name without addresses."""
    if isinstance(loss, functools.partial):
        return f"partial({_name_of(loss.func)}, {loss.args}, {loss.keywords})"
    if inspect.ismethod(loss):
        return f"{_name_of(loss.__self__)}.{loss.__name__}"
    named = loss if hasattr(loss, "__qualname__") else type(loss)
    name = f"{named.__module__}.{named.__qualname__}"
    return name if named is loss or " at 0x" in repr(loss) else repr(loss)


def _schedule(step: int, steps: int, warmup: int) -> float:
    """Return linear warm-up times cosine decay, the fraction of the peak learning rate."""
    decay = (1 + math.cos(math.pi * step / steps)) / 2
    return min(1.0, (step + 1) / max(warmup, 1)) * decay


@contextmanager
def _stop_requests() -> Iterator[threading.Event]:
    """Yield an event that Ctrl-C or SIGTERM sets, so that a step is always finished.

    Signals reach the main thread alone; elsewhere the event is never set.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {s: signal.signal(s, lambda *_: stop.set()) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _tensorboard(run: TrainingRun) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(
            'tensorboard=True needs its package: pip install "fastmsgm[tensorboard]"'
        ) from error
    return SummaryWriter(str(run.out), purge_step=run.step)


def _labels_for(model: ScoreModel, labels: Tensor | None, n: int) -> Tensor | None:
    if (labels is None) != (model.classes == 0):
        raise ValueError(
            "labels must be given for a class-conditional model and for no other: the model has "
            f"{model.classes} classes, got labels={'None' if labels is None else 'a tensor'}"
        )
    if labels is None:
        return None
    return check_labels(labels, n, model.classes).to(model.device)


def _check(name: str, value: object, good: bool, allowed: str) -> None:
    if not good:
        raise ValueError(f"{name} must be {allowed}, got {value!r}")
