"""TrainingRun: the state of a training run, and its checkpoint in a folder.

``training.safetensors`` holds the whole state: weights, their average, the optimizer, the step, the
losses and the settings. It is replaced in one step, and the state before it is kept as
``training.previous.safetensors``, which is read where the newer one is missing or damaged.
``model.safetensors``, ``config.json`` and ``loss.csv`` are made from it.
"""

from __future__ import annotations

import csv
import json
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from fastmsgm.checkpoint import UNSUITABLE, WEIGHTS
from fastmsgm.files import remove_leftovers, write_atomically
from fastmsgm.model import ScoreModel
from fastmsgm.tensors import load_tensors, save_tensors
from fastmsgm.training.ema import EMA
from fastmsgm.wrappers import plain_state_dict, unwrap

STATE, PREVIOUS = "training.safetensors", "training.previous.safetensors"
_log = logging.getLogger("fastmsgm")


@contextmanager
def locked(out: Path | None) -> Iterator[None]:
    """Hold a folder for a training run: made if absent, writable, and of one run at a time.

    Args:
        out: The folder, or None.

    Raises:
        ValueError: It is in use, is no folder or cannot be written, or holds a model alone.
        OSError: The disk is full or fails.
    """
    if out is None:
        yield
        return
    lock = FileLock(out / ".lock")
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ValueError(
            f"out={str(out)!r} is in use by another training run: wait for it, or use a new folder"
        ) from error
    except (FileExistsError, NotADirectoryError, PermissionError, NotImplementedError) as error:
        raise ValueError(
            f"out must be a folder that can be written, got {str(out)!r} ({error}): give another"
        ) from error
    try:
        if (out / WEIGHTS).exists() and not any((out / n).exists() for n in (STATE, PREVIOUS)):
            raise ValueError(
                f"out={str(out)!r} holds a model without the state of its training, which would be "
                "overwritten: use a new folder, or move the model elsewhere"
            )
        remove_leftovers(out)
        yield
    finally:
        lock.release()


class TrainingRun:
    """The state of a training run, and its checkpoint in a folder.

    Args:
        model: Trained in place.
        optimizer: Of the network's parameters.
        settings: All that decides the result, as JSON can hold it; a checkpoint of other settings
            is refused, but for more "steps". Holds "ema" and "steps".
        out: The folder, or None for a run without checkpoints. An existing run there is resumed.
        writes: Whether this process writes checkpoints; all processes of a run read them.

    Attributes:
        average: The exponential moving average of the network.
        step: Optimizer steps done.
        extended_from: The number of steps that a resumed run was planned for, if that was less.
        losses: The loss of every step.

    Raises:
        TypeError: The network's state dict holds something else than tensors.
        ValueError: The folder holds a run with other settings, or a damaged one.
    """

    def __init__(
        self,
        model: ScoreModel,
        optimizer: torch.optim.Optimizer,
        settings: dict[str, Any],
        out: Path | None,
        writes: bool = True,
    ) -> None:
        self.model, self.optimizer, self.settings = model, optimizer, settings
        self.out = out if writes else None
        plain_state_dict(model.net)  # raises now, not at the first checkpoint
        self.average = EMA(unwrap(model.net), settings["ema"])
        self.step, self.extended_from = 0, 0
        self.losses: list[float] = []
        if out is not None:
            self._resume(out)

    def save(self) -> None:
        """Write the checkpoint; the model's own files hold the average.

        Raises:
            OSError: The folder cannot be written; the last checkpoint stays.
        """
        if self.out is None:
            return
        tensors = {f"net.{k}": v for k, v in plain_state_dict(self.model.net).items()}
        tensors |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        for i, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {
                f"optimizer.{i}.{k}": torch.as_tensor(v, device=getattr(v, "device", "cpu"))
                for k, v in moments.items()
                if v is not None
            }
        tensors["losses"] = torch.tensor(self.losses, dtype=torch.float64, device="cpu")
        groups = [_numbers(group) for group in self.optimizer.param_groups]
        metadata = {
            "step": str(self.step),
            "groups": json.dumps(groups),
            "settings": json.dumps(self.settings),
        }
        save_tensors(self.out / STATE, tensors, metadata, previous=self.out / PREVIOUS)
        self.save_model()

    def save_or_warn(self) -> None:
        """Write a checkpoint; without one the run goes on, and the last one stays."""
        try:
            self.save()
        except OSError as error:
            _log.warning(
                "step %d could not be saved (%s): training goes on, and the checkpoint before it "
                "stays",
                self.step,
                error,
            )

    def save_last(self) -> None:
        """Write the last checkpoint; where that fails, the trained weights are in the model.

        Raises:
            OSError: The folder cannot be written.
        """
        try:
            self.save()
        except OSError as error:
            unwrap(self.model.net).load_state_dict(self.average.module.state_dict())
            self.model.eval()
            raise OSError(
                error.errno,
                f"step {self.step} could not be saved ({error.strerror}): make room and call fit "
                "again, which continues from the last checkpoint, if there is one; or save the "
                "model, which holds the averaged weights of this step, elsewhere with "
                "model.save(folder)",
                error.filename,
            ) from error

    def save_model(self) -> None:
        """Write what is made from the state: the model's own files, and the losses as text."""
        if self.out is not None:
            self.model.with_net(self.average.module).save(self.out)
            write_atomically(self.out / "loss.csv", self._write_losses)

    def _write_losses(self, path: Path) -> None:
        with open(path, "w", newline="") as file:
            csv.writer(file).writerows([("step", "loss"), *enumerate(self.losses, 1)])

    def _resume(self, out: Path) -> None:
        """Continue from the newest state that is whole, if there is any."""
        reasons: list[Exception] = []
        for name in (STATE, PREVIOUS):
            if not (out / name).exists():
                continue
            try:
                tensors, metadata = load_tensors(out / name)
                stored = json.loads(metadata["settings"])
            except (OSError, *UNSUITABLE) as error:
                reasons.append(error)
                continue
            for reason in reasons:
                _log.warning("%s: the state before it is resumed", reason)
            self._check_settings(out, stored)
            try:
                self._load(tensors, metadata)
            except UNSUITABLE as error:
                raise ValueError(
                    f"out={str(out)!r} holds a checkpoint that does not fit the network or the "
                    f"optimizer ({error!r}): use a new folder"
                ) from error
            if stored["steps"] < self.settings["steps"]:
                self.extended_from = stored["steps"]
            _log.info("resumed %s at step %d", out, self.step)
            return
        if reasons:
            raise ValueError(
                f"out={str(out)!r} holds a damaged checkpoint ({reasons[0]}): use a new folder"
            ) from reasons[0]

    def _check_settings(self, out: Path, stored: Any) -> None:
        if not isinstance(stored, dict):
            stored = {}
        extends = type(stored.get("steps")) is int and stored["steps"] < self.settings["steps"]
        changed = {
            k: (stored.get(k), v)
            for k, v in self.settings.items()
            if not (_same(stored.get(k), v) or (k == "steps" and extends))
        }
        if changed:
            raise ValueError(
                f"out={str(out)!r} holds a run with other settings (there, here): {changed}; use a "
                "new folder"
            )

    def _load(self, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        step, groups = int(metadata["step"]), json.loads(metadata["groups"])
        losses = tensors["losses"].tolist()
        if not 0 <= step <= self.settings["steps"] or len(losses) != step:
            raise ValueError(f"step {step} with {len(losses)} losses")
        part = {
            p: {k[len(p) + 1 :]: v for k, v in tensors.items() if k.startswith(p + ".")}
            for p in ("net", "average", "optimizer")
        }
        unwrap(self.model.net).load_state_dict(part["net"])
        self.average.load_state_dict(part["average"])
        state = self.optimizer.state_dict()
        for key, value in part["optimizer"].items():
            index, name = key.split(".")
            state["state"].setdefault(int(index), {})[name] = value
        self.optimizer.load_state_dict(state)
        for group, numbers in zip(self.optimizer.param_groups, groups, strict=True):
            group.update(numbers)
        self.step, self.losses = step, losses


def _numbers(group: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers of a group of parameters, some of which optimizers change."""
    return {k: v for k, v in group.items() if isinstance(v, (bool, int, float))}


def _same(a: Any, b: Any) -> bool:
    """Whether two settings are equal, numbers to 1e-6: fits vary with the number of threads."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-6)
    return a == b
