"""fit: the training loop, read from top to bottom.

Batch k of every run is determined by (seed, k) alone: the order of the data, augmentation, dropped
conditions, the noise levels and the noise come from the counter-based stream, so a run that is
stopped and resumed follows the uninterrupted one exactly. Several processes share every batch.
"""

from __future__ import annotations

import functools
import itertools
import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from fastmsgm.checks import check_int
from fastmsgm.condition import checked_condition, checksum
from fastmsgm.data.batches import Batches
from fastmsgm.data.loaders import Data
from fastmsgm.loss import Loss
from fastmsgm.model import Model
from fastmsgm.names import name_of
from fastmsgm.processes import joined
from fastmsgm.sampling import sample
from fastmsgm.training.checks import (
    check_data,
    check_finite,
    check_model,
    check_options,
    check_order,
    check_weights,
)
from fastmsgm.training.optimizer_steps import OptimizerSteps
from fastmsgm.training.oversampling import oversample
from fastmsgm.training.report import Report, TrainStep, reporting, tell_of_resume
from fastmsgm.training.settings import lr_schedule, make_optimizer, optimizer_settings, run_settings
from fastmsgm.training.stop import stop_requests
from fastmsgm.training.training_run import TrainingRun, locked
from fastmsgm.training.validation import validation_loss
from fastmsgm.wrappers import unwrap

CHECKPOINT_SECONDS = 180.0
FLUSH_EVERY = 50  # steps between two reads of the loss, each of which waits for the device
STEPS = 2**31  # at most: the noise counter keeps those from 2^31 on for evaluation
AGREE_EVERY = 10  # steps between two agreements of several processes to save or stop


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
    tail: float | None = None,
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
    (dropout) or the data have no fixed order; with more ``steps`` it extends the run. A disk that
    is full at a periodic checkpoint is logged, and training goes on.

    Under torchrun, or where ``torch.distributed`` is initialised, all processes must call ``fit``
    with the same arguments and the whole data. They share every batch, with
    DistributedDataParallel, and the result is that of one process but for rounding; statistics of
    batch normalisation are of a process's part. All parameters must take part in the loss. Rank 0
    alone writes files and calls the callback.

    Args:
        model: From ``GBMModel.for_data`` or the like, trained on its own device.
        data: In the data's own range: a tensor (N, ...), float32 or uint8; or a Dataset or
            DataLoader, whose items are x, (x, label) or (x, {name: condition}). uint8 images stay
            so in memory, and every batch is divided by 255. The order is ``fit``'s own, also for a
            DataLoader without a sampler of its user's.
        labels: (N,) integers from 0, the classes of a tensor, for a class-conditional model.
        steps: Optimizer steps in all.
        batch_size: Samples of a batch, of all processes together; None is the DataLoader's, or 128.
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
        tail: Share of every batch that is taken from the largest 1 % of the norms, in [0, 1). None
            is 0.5 for a Rotation model where these data are at least 10,000 heavy-tailed samples,
            without ``transform``, else 0. Rotations keep norms, so the score given the norm does
            not depend on how often the norm is trained: oversampling is unbiased. But the largest
            1 % of fewer samples are memorised. Norms are read once: items must not change them.
            The training loss is that of these batches, the validation loss that of the data.
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
        out: Folder for ``model.safetensors`` (the average), ``config.json``,
            ``training.safetensors``, the state before it as ``training.previous.safetensors``,
            and ``loss.csv``. One run at a time can use it; processes of a run must share it.
        seed: Seed of data order, augmentation, noise levels and noise.
        tensorboard: Also write losses, learning rate, gradient norm and, for images, samples
            there, into ``out``.
        progress: Show a progress bar.

    Returns:
        The model, in evaluation mode.

    Raises:
        TypeError: An argument of the wrong type; the message names it.
        ValueError: An argument out of range, data of another shape or dtype than the model's, or
            an ``out`` that cannot be written, is in use, or holds a run of other arguments or a
            model without one.
        OSError: The last checkpoint could not be written; the trained weights are in the model.
        FloatingPointError: The loss, its gradient or a weight became NaN or infinite; the last
            checkpoint is kept.
        KeyboardInterrupt: On Ctrl-C or SIGTERM, after the current step is finished and saved.

    Example:
        >>> data = torch.exp(torch.randn(200, 3))
        >>> model = fastmsgm.GBMModel.for_data(nets.MLP(3), fastmsgm.GBM(8.0), data)
        >>> model = fastmsgm.fit(model, data, steps=5, batch_size=32, progress=False)
        >>> fastmsgm.sample(model, n=10, progress=False).shape
        torch.Size([10, 3])
    """
    check_model(model)
    precision = model.precision if precision is None else precision
    steps, accumulate = check_int("steps", steps, 1, STEPS), check_int("accumulate", accumulate, 1)
    warmup, every = check_int("warmup", warmup, 0), check_int("every", every, 1)
    lr_of = lr_schedule(lr, steps, warmup)
    check_options(precision, clip, ema, tail, callback, tensorboard, out)
    batches = Batches(
        data, labels, condition, transform=transform, batch_size=batch_size, seed=seed
    )
    check_data("data", model, data, batches)
    if labels is not None:
        checked_condition(model, len(labels), labels, {})
    held_out = None if validation is None else Batches(validation, name="validation")
    if validation is not None and held_out is not None:
        check_data("validation", model, validation, held_out)
        validation_loss(model, itertools.islice(held_out.epoch(), 1), loss, seed)
    tail = oversample(model, data, batches, tail, transformed=transform is not None)
    folder = None if out is None else Path(out)
    with (
        joined(model.device) as processes,
        ExitStack() as stack,
        torch.inference_mode(False),
        torch.enable_grad(),
    ):
        processes.lead(lambda: stack.enter_context(locked(folder)))
        if processes.size > 1:
            check_order(batches)
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
            tail=tail,
            precision=precision,
            loss=name_of(loss),
            transform=name_of(transform),
            labels=None if labels is None else checksum(labels),
            condition={name: checksum(value) for name, value in (condition or {}).items()},
        )
        run = TrainingRun(model, optim, settings, folder, writes=processes.rank == 0)
        # Before a new checkpoint is written all have read the same one.
        prior = {k: checksum(v) for k, v in model.state_dict().items() if k[:4] != "net."}
        processes.check_same({**settings, "step": run.step, **prior})
        tell_of_resume(run, batches, lr_of, lr, warmup)
        loss_of = Loss(model, loss, seed=seed, drop=drop)
        model.precision = precision
        model.weights_changed()
        optimizer_steps = OptimizerSteps(
            loss_of, optim, batches, run.step, lr_of, clip, accumulate, processes
        )
        averaged = model.with_net(run.average.module)

        def report_model(report: Report, since: list[float], grad_norm: float) -> None:
            loss_of_others = None
            if held_out is not None:
                loss_of_others = validation_loss(averaged, held_out.epoch(), loss, seed)
            seen = TrainStep(
                step=run.step,
                loss=sum(since) / len(since),
                validation_loss=loss_of_others,
                lr=lr_of(run.step - 1),
                grad_norm=grad_norm,
                model=averaged.eval(),
            )
            try:
                report.model(seen, optimizer_steps.condition)
            except BaseException:  # whatever the callback raises, nothing is lost
                run.save()
                raise

        leads = processes.rank == 0
        bar = tqdm(
            total=steps,
            initial=run.step,
            disable=not (progress and leads),
            desc="training",
            unit="step",
        )
        recent: list[tuple[Tensor, Tensor]] = []  # loss and gradient norm of each step
        saved, reported = time.monotonic(), run.step
        net = unwrap(model.net)
        if run.step == steps:  # a kill during the last checkpoint can have left an older model
            run.save_model()
        board = folder if tensorboard and leads else None
        with stop_requests() as stop, bar, reporting(callback, board, run.step, sample) as report:
            while run.step < steps:
                recent.append(optimizer_steps.step(run.step))
                run.average.update_parameters(net)
                run.step += 1
                bar.update()
                due = time.monotonic() - saved > CHECKPOINT_SECONDS
                stopped = stop.is_set()
                if processes.size == 1 or run.step % AGREE_EVERY == 0:
                    due, stopped = processes.any(due and leads, stopped)
                elif processes.size > 1:
                    due = stopped = False
                reports = run.step % every == 0 or run.step == steps
                if not (reports or due or stopped or len(recent) == FLUSH_EVERY):
                    continue
                values = processes.mean(torch.stack([value for value, _ in recent])).tolist()
                norms = torch.stack([norm for _, norm in recent]).tolist()
                run.losses += values
                recent.clear()
                check_finite(run.step, values, norms, lr_of, data)
                mean = sum(values) / len(values)
                bar.set_postfix(loss=f"{mean:.4f}")
                report.numbers(run.step, mean, lr_of(run.step - 1), norms[-1])
                if run.step == steps or stopped or due:
                    check_weights(run)
                if run.step == steps or stopped:
                    processes.lead(run.save_last)
                elif due:
                    run.save_or_warn()
                if due:
                    saved = time.monotonic()
                if reports:
                    since, norm = run.losses[reported - run.step :], norms[-1]
                    processes.lead(functools.partial(report_model, report, since, norm))
                    reported = run.step
                if stopped:
                    raise KeyboardInterrupt(f"stopped after step {run.step}")
        # The statistics of batch normalisation are of one process's part of the batches.
        processes.copy_from_first(run.average.module.buffers())
        net.load_state_dict(run.average.module.state_dict())
    return model.eval()
