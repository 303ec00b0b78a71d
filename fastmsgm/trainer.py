"""fit: the training loop, read from top to bottom.

Batch k of every run is determined by (seed, k) alone: the order of the data, the noise levels and the noise come from
the counter-based stream, so a run that is stopped and resumed follows the one never stopped exactly.
"""

from __future__ import annotations

import csv
import json
import logging
import math
import os
import signal
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm

from fastmsgm import losses, rng
from fastmsgm.checks import check_tensor, is_number
from fastmsgm.gbm_model import GBMModel
from fastmsgm.model import DAMAGED, NETS, ScoreModel, write_atomically
from fastmsgm.priors import check_labels

Model = TypeVar("Model", bound=ScoreModel)
_log = logging.getLogger("fastmsgm")
CHECKPOINT_SECONDS = 180.0
FLUSH_EVERY = 50  # steps between two looks at the loss, each of which waits for the device


def fit(
    model: Model, data: Tensor, labels: Tensor | None = None, *, steps: int, batch_size: int = 128, lr: float = 1e-3,
    ema: float = 0.999, precision: str | None = None, out: str | os.PathLike[str] | None = None, seed: int = 0,
    warmup: int = 500, clip: float = 1.0, levels: tuple[float, float] | None = None, tensorboard: bool = False,
    progress: bool = True,
) -> Model:  # fmt: skip
    """Train ``model`` on ``data`` and return it, in place, with the exponential moving average of its weights.

    Adam with linear warm-up and cosine decay to zero, gradients clipped. With ``out`` a checkpoint is written every
    three minutes, at the end and on Ctrl-C; calling ``fit`` again with the same arguments resumes the run,
    exactly unless the network itself draws random numbers (dropout).

    Args:
        model: from ``GBMModel.for_data``, trained on its own device.
        data: (N, ...) float32 in the data's own range.
        labels: (N,) integers, the classes of the data, from 0; for a model with classes, and no other.
        steps: optimizer steps in all.    batch_size: samples per step.    lr: peak learning rate.
        ema: decay of the weight average per step, in [0, 1).
        precision: "fp32" or "bf16" for the network; None keeps the model's. (fp16 gradients would underflow.)
        out: folder for ``config.json``, ``model.safetensors`` (the average), ``training.safetensors`` and ``loss.csv``.
        seed: of data order, noise levels and noise.
        warmup: steps of linear warm-up.    clip: largest gradient norm.
        levels: mean and standard deviation of log s, the noise level that a denoiser is trained at (EDM's P_mean and
            P_std); None is EDM's choice, (log log_std - 0.507, 1.2). Low levels teach detail, high ones large shapes.
            Other models take none.
        tensorboard: also write the loss there, into ``out``.

    Raises:
        TypeError, ValueError: an argument out of range, data of another shape or dtype than the model's, or a
            checkpoint in ``out`` that belongs to other arguments.
        FloatingPointError: the loss or its gradient became NaN or infinite; the last checkpoint is kept.
        KeyboardInterrupt: on Ctrl-C or SIGTERM, after the step under way is done and saved.
    """
    if not isinstance(model, ScoreModel):
        raise TypeError(
            f"model must be a ScoreModel, got {type(model).__name__}: build one with GBMModel.for_data, or load one"
        )
    precision = precision or model.precision
    _check("precision", precision, precision in ("fp32", "bf16"), "fp32 or bf16, since fp16 gradients underflow")
    for name, value, least in (("steps", steps, 1), ("batch_size", batch_size, 1), ("warmup", warmup, 0)):
        _check(name, value, isinstance(value, int) and value >= least, f"an int, at least {least}")
    _check("clip", clip, isinstance(clip, (int, float)) and clip > 0, "positive")
    _check("lr", lr, is_number(lr) and lr > 0, "positive and finite")
    _check("ema", ema, is_number(ema) and 0 <= ema < 1, "in [0, 1)")
    if levels is not None:
        good = isinstance(levels, (tuple, list)) and len(levels) == 2 and all(map(is_number, levels)) and levels[1] > 0
        _check("levels", levels, good, "a finite mean and a positive standard deviation")
        denoiser = isinstance(model, GBMModel) and model.prediction == "denoiser"
        _check("levels", levels, denoiser, "None but for a GBM denoiser: other models have their own law of levels")
    _check("tensorboard", tensorboard, not tensorboard or out is not None, "given together with out")
    check_tensor("data", data)
    if data.dtype != torch.float32 or tuple(data.shape[1:]) != model.shape:
        expected = ", ".join(map(str, ("N", *model.shape)))
        raise ValueError(
            f"data must be float32 of shape ({expected}), got {data.dtype} {tuple(data.shape)}: convert with .float()"
        )
    labels = _check_labels(model, labels, len(data))
    states = model.to_state(data.to(model.device))
    model.check_states(states)
    noise, net = rng.stream(seed), model.net_config()
    settings = {
        "steps": steps,
        "batch_size": batch_size,
        "lr": lr,
        "ema": ema,
        "seed": seed,
        "warmup": warmup,
        "clip": clip,
        "precision": precision,
        "rows": len(states),
        "levels": levels,
        "labels": None if labels is None else zlib.crc32(labels.cpu().long().numpy().tobytes()),
        "net": net if net["name"] in NETS else None,  # another's arguments are its user's business
        **model.config(),
    }
    settings = json.loads(json.dumps(settings, default=float))  # as a checkpoint gives them back
    run = _Run(model, settings, Path(out) if out is not None else None)
    model.precision = precision
    order = _DataOrder(len(states), seed)
    bar = tqdm(total=steps, initial=run.step, disable=not progress, desc="training", unit="step")
    recent: list[tuple[Tensor, Tensor]] = []  # loss and norm of the gradient of each step
    saved = time.monotonic()
    model.train()
    parameters = list(model.net.parameters())
    with _stop_requests() as stop, bar, _tensorboard(run) if tensorboard else nullcontext() as writer:
        while run.step < steps:
            run.optimizer.param_groups[0]["lr"] = lr * _schedule(run.step, steps, warmup)
            rows = order.batch(run.step, batch_size).to(model.device)
            classes = None if labels is None else labels[rows]
            loss = losses.loss(model, states[rows], noise, run.step, levels, classes)
            run.optimizer.zero_grad()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(parameters, clip)
            run.optimizer.step()
            run.average.update_parameters(model.net)
            run.step += 1
            recent.append((loss.detach(), norm))
            bar.update()
            if len(recent) == FLUSH_EVERY or run.step == steps or stop.is_set():
                values, norms = (torch.stack(part).tolist() for part in zip(*recent, strict=True))
                run.losses += values
                recent.clear()
                mean = sum(values) / len(values)
                for what, number in (("loss", mean), ("gradient's norm", sum(norms))):
                    if not math.isfinite(number):
                        raise FloatingPointError(
                            f"the {what} is {number} at step {run.step}: lower lr (now {lr}) or use fp32"
                        )
                bar.set_postfix(loss=f"{mean:.4f}")
                if writer is not None:
                    writer.add_scalar("loss", mean, run.step)
                if run.step == steps or stop.is_set() or time.monotonic() - saved > CHECKPOINT_SECONDS:
                    run.save()
                    saved = time.monotonic()
            if stop.is_set():
                raise KeyboardInterrupt(f"stopped after step {run.step}")
    model.net.load_state_dict(run.average.module.state_dict())
    return model.eval()


class _Run:
    """The state of a run: network, optimizer, average, step and losses, and its checkpoint in ``out``."""

    def __init__(self, model: ScoreModel, settings: dict[str, Any], out: Path | None) -> None:
        self.model, self.settings, self.out = model, settings, out
        self.optimizer = torch.optim.Adam(model.net.parameters(), lr=settings["lr"], fused=True)
        self.average = AveragedModel(model.net, multi_avg_fn=get_ema_multi_avg_fn(settings["ema"]), use_buffers=True)
        self.step = 0
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
        tensors = {f"net.{k}": v for k, v in self.model.net.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        for i, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{i}.{k}": v for k, v in moments.items()}
        tensors = {k: v.detach().to("cpu", copy=True).contiguous() for k, v in tensors.items()}
        # The step is in the same file as its tensors, and the losses are there before it: a cut leaves a whole state.
        write_atomically(self.out / "loss.csv", self._write_losses)
        write_atomically(self.out / "training.safetensors", lambda p: save_file(tensors, p, {"step": str(self.step)}))
        note = json.dumps(self.settings, indent=2)
        write_atomically(self.out / "training.json", lambda p: p.write_text(note + "\n"))
        online = self.model.net
        self.model.net = self.average.module
        try:
            self.model.save(self.out)
        finally:
            self.model.net = online

    def _write_losses(self, path: Path) -> None:
        with open(path, "w", newline="") as file:
            csv.writer(file).writerows([("step", "loss"), *enumerate(self.losses, 1)])

    def _resume(self, out: Path) -> None:
        note = json.loads((out / "training.json").read_text())
        changed = {k: (note.get(k), v) for k, v in self.settings.items() if not _same(note.get(k), v)}
        if changed:
            raise ValueError(
                f"out={str(out)!r} holds a run with other settings (there, here): {changed}; use a new folder"
            )
        with safe_open(out / "training.safetensors", framework="pt") as file:
            self.step = int(file.metadata()["step"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        part = {
            p: {k[len(p) + 1 :]: v for k, v in tensors.items() if k.startswith(p + ".")}
            for p in ("net", "average", "adam")
        }
        self.model.net.load_state_dict(part["net"])
        self.average.load_state_dict(part["average"])
        adam = self.optimizer.state_dict()
        for key, value in part["adam"].items():
            index, name = key.split(".")
            adam["state"].setdefault(int(index), {})[name] = value
        self.optimizer.load_state_dict(adam)
        with open(out / "loss.csv", newline="") as file:
            self.losses = [float(row["loss"]) for row in csv.DictReader(file)][: self.step]
        _log.info("resumed %s at step %d", out, self.step)


class _DataOrder:
    """Which rows make up batch k: every epoch is its own permutation, sorted by the stream's words."""

    def __init__(self, rows: int, seed: int) -> None:
        self.rows, self.seed = rows, seed
        self.epoch, self.permutation = -1, torch.empty(0, dtype=torch.int64)

    def batch(self, step: int, size: int) -> Tensor:
        """Row indices of batch ``step``, (size,) int64 on the CPU."""
        parts, first, end = [], step * size, (step + 1) * size
        while first < end:
            epoch, row = divmod(first, self.rows)
            parts.append(self._permutation(epoch)[row : row + end - first])
            first += len(parts[-1])
        return torch.cat(parts)

    def _permutation(self, epoch: int) -> Tensor:
        if epoch != self.epoch:
            words = rng.words(1, -(-self.rows // 4), rng.stream(self.seed), rng.Kind.DATA_ORDER, epoch).flatten()
            self.epoch, self.permutation = epoch, words[: self.rows].argsort(stable=True)
        return self.permutation


def _same(a: Any, b: Any) -> bool:
    """Whether two settings are equal, numbers to 1e-6: what is fitted to data varies with the number of threads."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-6)
    return a == b


def _schedule(step: int, steps: int, warmup: int) -> float:
    """Linear warm-up times cosine decay: the fraction of the peak learning rate."""
    return min(1.0, (step + 1) / max(warmup, 1)) * (1 + math.cos(math.pi * step / steps)) / 2


@contextmanager
def _stop_requests() -> Iterator[threading.Event]:
    """An event that Ctrl-C or SIGTERM sets, so that a step is never cut in half (the main thread alone has signals)."""
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


def _tensorboard(run: _Run) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError('tensorboard=True needs its package: pip install "fastmsgm[tensorboard]"') from error
    return SummaryWriter(str(run.out), purge_step=run.step)


def _check_labels(model: ScoreModel, labels: Tensor | None, n: int) -> Tensor | None:
    if (labels is None) != (model.classes == 0):
        raise ValueError(
            f"labels must be given for a model with classes and for no other: the model has {model.classes}, got "
            f"labels={'None' if labels is None else 'a tensor'}"
        )
    if labels is None:
        return None
    check_labels(labels, n, model.classes)
    return labels.to(model.device)


def _check(name: str, value: object, good: bool, allowed: str) -> None:
    if not good:
        raise ValueError(f"{name} must be {allowed}, got {value!r}")
