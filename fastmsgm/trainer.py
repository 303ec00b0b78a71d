"""fit: the training loop, read from top to bottom.

Batch k of every run is determined by (seed, k) alone: the order of the data, augmentation, dropped
conditions, the noise levels and the noise come from the counter-based stream, so a run that is
stopped and resumed follows the uninterrupted one exactly.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from fastmsgm.checkpoint import TrainingRun
from fastmsgm.checks import check_int, is_number
from fastmsgm.condition import checked_condition, checksum
from fastmsgm.data.batches import Batches
from fastmsgm.data.items import as_float
from fastmsgm.data.loaders import Data
from fastmsgm.loss import Loss, check_range
from fastmsgm.model import Model, ScoreModel, check_bare_model
from fastmsgm.run_settings import (
    lr_schedule,
    make_optimizer,
    name_of,
    optimizer_settings,
    run_settings,
)
from fastmsgm.sampling import sample
from fastmsgm.stop import stop_requests
from fastmsgm.validation import loss_arguments, validation_loss
from fastmsgm.wrappers import unwrap

CHECKPOINT_SECONDS = 180.0
FLUSH_EVERY = 50  # steps between two reads of the loss, each of which waits for the device
GRID = 16  # images that TensorBoard gets
CHECKED_AT_ONCE = 2**21  # numbers of the data that are checked together
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


def fit(
    model: Model,
    data: Data,
    labels: Tensor | None = None,
    *,
    steps: int,
    batch_size: int | None = None,
    accumulate: int = 1,
    lr: float | Callable[[int], float] = 1e-3,
    warmup: int = 500,
    clip: float = 1.0,
    optimizer: torch.optim.Optimizer | Callable[..., torch.optim.Optimizer] | None = None,
    ema: float = 0.999,
    precision: str | None = None,
    condition: Mapping[str, Tensor] | None = None,
    drop: float = 0.0,
    transform: Callable[[Any], Any] | None = None,
    loss: Callable[..., Tensor] | None = None,
    validation: Data | None = None,
    callback: Callable[[TrainStep], object] | None = None,
    every: int = 500,
    out: str | os.PathLike[str] | None = None,
    seed: int = 0,
    tensorboard: bool = False,
    progress: bool = True,
) -> Model:
    """Train a model in place; it ends with the exponential moving average of its weights.

    By default Adam with linear warm-up and cosine decay to zero, gradients clipped. With ``out`` a
    checkpoint is written every three minutes, at the end and on Ctrl-C. Calling ``fit`` again with
    the same arguments resumes the run, exactly unless the network itself uses random numbers
    (dropout) or the data have no fixed order; with more ``steps`` it extends the run.

    Args:
        model: From ``GBMModel.for_data`` or the like, trained on its own device.
        data: In the data's own range: a tensor (N, ...), float32 or uint8; or a Dataset or
            DataLoader, whose items are x, (x, label) or (x, {name: condition}). uint8 images stay
            so in memory, and every batch is divided by 255. The order is ``fit``'s own, also for a
            DataLoader without a sampler of its user's.
        labels: (N,) integers from 0, the classes of a tensor, for a class-conditional model.
        steps: Optimizer steps in all.
        batch_size: Samples per network call; None is the DataLoader's, or 128.
        accumulate: Batches per optimizer step, whose gradients are averaged.
        lr: Peak learning rate, or a function of the step, which then replaces warm-up and decay.
            It is that of all parameter groups.
        warmup: Steps of linear warm-up.
        clip: Largest gradient norm; ``math.inf`` does not clip.
        optimizer: None is Adam; else an optimizer of the network's parameters, or a function of
            the parameters that returns one, such as ``functools.partial(torch.optim.AdamW,
            weight_decay=0.01)``. Its own learning rates are replaced by ``lr``.
        ema: Decay of the weight average per step, in [0, 1).
        precision: "fp32" or "bf16" for the network; None keeps the model's. fp16 gradients would
            underflow.
        condition: What else the network is conditioned on, for data that are a tensor: tensors
            (N, ...) by name. They are passed to the network as keywords; standardise them.
        drop: Share of the samples whose label and conditions are dropped, in [0, 1), so that the
            model can be sampled with guidance; 0.1 is a usual choice.
        transform: Augmentation of one sample, as torchvision has them. torch's generator is set
            from the noise stream for every sample, so it resumes exactly; those of NumPy and
            Python are not.
        loss: None is ``model.default_loss``; else a callable as described there, such as
            ``fastmsgm.gbm.DenoisingLoss(p_mean=-0.5, p_std=1.4)``. A checkpoint identifies it, and
            ``transform``, ``optimizer`` and ``lr``, by ``repr`` or by qualified name.
        validation: Held-out data, of the same kinds as data; TensorDataset(x, labels) has labels.
        callback: Called with a ``TrainStep`` every ``every`` steps and at the end. When it raises,
            the run is saved, and the model keeps the weights of the last step.
        every: Steps between two calls of the callback, two validations, two images of
            TensorBoard.
        out: Folder for ``config.json``, ``model.safetensors`` (the average),
            ``training.safetensors`` and ``loss.csv``.
        seed: Seed of data order, augmentation, noise levels and noise.
        tensorboard: Also write losses, learning rate, gradient norm and, for images, samples
            there, into ``out``.
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
    check_bare_model(model, "give the model inside, model.module")
    precision = model.precision if precision is None else precision
    _check(
        "precision",
        precision,
        precision in ("fp32", "bf16"),
        "fp32 or bf16, since fp16 gradients underflow",
    )
    steps, accumulate = check_int("steps", steps, 1), check_int("accumulate", accumulate, 1)
    warmup, every = check_int("warmup", warmup, 0), check_int("every", every, 1)
    lr_of = lr_schedule(lr, steps, warmup)
    _check("clip", clip, clip == math.inf or (is_number(clip) and clip > 0), "positive")
    _check("ema", ema, is_number(ema) and 0 <= ema < 1, "in [0, 1)")
    if callback is not None and not callable(callback):
        raise TypeError(
            f"callback must be a function of a TrainStep or None, got {type(callback).__name__}"
        )
    _check(
        "tensorboard", tensorboard, not tensorboard or out is not None, "given together with out"
    )
    batches = Batches(
        data, labels, condition, transform=transform, batch_size=batch_size, seed=seed
    )
    _check_data("data", model, data, batches)
    if labels is not None:
        checked_condition(model, len(labels), labels, {})
    held_out = None if validation is None else Batches(validation, name="validation")
    if validation is not None and held_out is not None:
        _check_data("validation", model, validation, held_out)
        validation_loss(model, itertools.islice(held_out.epoch(), 1), loss, seed)
    optim = make_optimizer(optimizer, list(model.net.parameters()))
    settings = run_settings(
        model,
        batches,
        steps=steps,
        accumulate=accumulate,
        lr=name_of(lr) if callable(lr) else lr,
        optimizer=optimizer_settings(optim),
        ema=ema,
        seed=seed,
        warmup=warmup,
        clip=clip,
        drop=drop,
        precision=precision,
        loss=name_of(loss),
        transform=name_of(transform),
        labels=None if labels is None else checksum(labels),
        condition={name: checksum(value) for name, value in (condition or {}).items()},
    )
    run = TrainingRun(model, optim, settings, Path(out) if out is not None else None)
    _tell_of_resume(run, batches, lr_of, lr, warmup)
    loss_of = Loss(model, loss, seed=seed, drop=drop)
    model.precision = precision
    bar = tqdm(total=steps, initial=run.step, disable=not progress, desc="training", unit="step")
    given: Mapping[str, Tensor] = {}
    recent: list[tuple[Tensor, Tensor]] = []  # loss and gradient norm of each step
    saved, reported = time.monotonic(), run.step
    net = unwrap(model.net)
    parameters = [p for group in optim.param_groups for p in group["params"]]
    averaged = model.with_net(run.average.module)
    writer_context = _tensorboard(run) if tensorboard else nullcontext()
    source = batches.iterate(run.step * accumulate)
    with stop_requests() as stop, bar, writer_context as writer:
        while run.step < steps:
            loss_of.train()
            for group in optim.param_groups:
                group["lr"] = lr_of(run.step)
            model.net.zero_grad()
            total = torch.zeros((), dtype=torch.float32, device=model.device)
            first = 0
            for _ in range(accumulate):
                x, given = next(source)
                value = (
                    loss_of(x, step=run.step, first=first, **loss_arguments(model, given))
                    / accumulate
                )
                value.backward()
                total += value.detach()
                first += len(x)
            norm = nn.utils.clip_grad_norm_(parameters, clip)
            optim.step()
            run.average.update_parameters(net)
            run.step += 1
            recent.append((total, norm))
            bar.update()
            report = run.step % every == 0 or run.step == steps
            if not (report or len(recent) == FLUSH_EVERY or stop.is_set()):
                continue
            values, norms = (torch.stack(part).tolist() for part in zip(*recent, strict=True))
            run.losses += values
            recent.clear()
            for what, number in (("loss", sum(values)), ("gradient norm", sum(norms))):
                if not math.isfinite(number):
                    raise FloatingPointError(
                        f"the {what} is {number} at step {run.step}: lower lr (now "
                        f"{lr_of(run.step - 1):.3g}) or use fp32"
                        + ("" if isinstance(data, Tensor) else ", and look for NaN in the data")
                    )
            bar.set_postfix(loss=f"{sum(values) / len(values):.4f}")
            if writer is not None:
                writer.add_scalar("loss", sum(values) / len(values), run.step)
                writer.add_scalar("lr", lr_of(run.step - 1), run.step)
                writer.add_scalar("gradient norm", norms[-1], run.step)
            due = time.monotonic() - saved > CHECKPOINT_SECONDS
            if due or run.step == steps or stop.is_set():
                run.save()
                saved = time.monotonic()
            if report:
                since, reported = run.losses[reported - run.step :], run.step
                seen = TrainStep(
                    step=run.step,
                    loss=sum(since) / len(since),
                    validation_loss=held_out
                    and validation_loss(averaged, held_out.epoch(), loss, seed),
                    lr=lr_of(run.step - 1),
                    grad_norm=norms[-1],
                    model=averaged.eval(),
                )
                _report(run, seen, callback, writer, given)
            if stop.is_set():
                raise KeyboardInterrupt(f"stopped after step {run.step}")
    net.load_state_dict(run.average.module.state_dict())
    return model.eval()


def _tell_of_resume(
    run: TrainingRun,
    batches: Batches,
    lr_of: Callable[[int], float],
    lr: float | Callable[[int], float],
    warmup: int,
) -> None:
    """Say what differs from a run that was not stopped."""
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


def _report(
    run: TrainingRun,
    seen: TrainStep,
    callback: Callable[[TrainStep], object] | None,
    writer: Any,
    given: Mapping[str, Tensor],
) -> None:
    """Tell the callback and TensorBoard; whatever a callback raises, the run is saved first."""
    try:
        if writer is not None:
            _write_report(writer, seen, given)
        if callback is not None:
            callback(seen)
    except BaseException:
        run.save()
        raise


def _write_report(writer: Any, seen: TrainStep, given: Mapping[str, Tensor]) -> None:
    """Write validation loss and, for images, samples with the conditions of the last batch."""
    if seen.validation_loss is not None:
        writer.add_scalar("validation loss", seen.validation_loss, seen.step)
    model = seen.model
    if len(model.shape) != 3 or model.shape[0] not in (1, 3):
        return
    few = {name: value[:GRID] for name, value in loss_arguments(model, given).items()}
    n = min([GRID, *map(len, few.values())])
    label = few.pop("labels", None)
    images = sample(model, n, label=label, condition=few, progress=False)
    low, high = model.bounds or (0.0, 0.0)
    if not 0 < high - low < math.inf:
        low, high = float(images.min()), float(images.max())
    writer.add_images("samples", (images - low) / max(high - low, 1e-9), seen.step)


def _check_data(name: str, model: ScoreModel, data: Data, batches: Batches) -> None:
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


def _tensorboard(run: TrainingRun) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(
            'tensorboard=True needs its package: pip install "fastmsgm[tensorboard]"'
        ) from error
    return SummaryWriter(str(run.out), purge_step=run.step)


def _check(name: str, value: object, good: bool, allowed: str) -> None:
    if not good:
        raise ValueError(f"{name} must be {allowed}, got {value!r}")
