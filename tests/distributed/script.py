"""What the tests run in several processes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

import fastmsgm
from fastmsgm import nets
from fastmsgm.job import Job
from fastmsgm.output import stream
from tests.gbm.exact import log_normal_data

DATA = log_normal_data(50)
SAMPLES: dict[str, Any] = {"n": 3000, "batch_size": 256, "steps": 4, "seed": 3, "progress": False}


def sample(folder: Path, **options: Any) -> None:
    fastmsgm.sample("cauchy-rotation", **SAMPLES, out=folder / "x.npy", **options)


def differ(folder: Path) -> None:
    """Every process is given another seed, and then other data; all are refused in all."""
    rank = int(os.environ["RANK"])
    with pytest.raises(ValueError, match="must be given the same arguments, and differ"):
        fastmsgm.sample("cauchy-vp", 2, seed=rank, out=folder / "differ.npy", distributed=True)
    model = fastmsgm.GBMModel.for_data(nets.MLP(3, 8, 1), fastmsgm.GBM(5.0), (1 + rank) * DATA)
    with pytest.raises(ValueError, match="must be given the same arguments, and differ"):
        fastmsgm.fit(model, DATA, steps=2, batch_size=8, out=folder / "differ")

    def fail(step: object) -> None:
        raise LookupError("of rank 0 alone")

    model = fastmsgm.GBMModel.for_data(nets.MLP(3, 8, 1), fastmsgm.GBM(5.0), DATA)
    with pytest.raises(LookupError, match="of rank 0 alone"):
        fastmsgm.fit(model, DATA, steps=2, batch_size=8, out=folder / "fails", callback=fail)


def dying(folder: Path) -> None:
    """Sample in all processes, of which one dies after two chunks."""
    original, finished = Job._chunk, []

    def chunk(self: Job, *arguments: Any) -> torch.Tensor:
        if len(finished) == 2 and os.environ["RANK"] == "1":
            os._exit(1)
        finished.append(original(self, *arguments))
        return finished[-1]

    setattr(Job, "_chunk", chunk)  # noqa: B010 - of another signature
    stream.JOURNAL_SECONDS = -1.0
    sample(folder, distributed=True)


def fit(folder: Path, name: str, **options: Any) -> fastmsgm.GBMModel:
    """Train on uneven parts, in two batches a step, with dropped labels."""
    torch.manual_seed(0)
    net = nets.MLP(3, 16, 2, classes=2)
    model = fastmsgm.GBMModel.for_data(net, fastmsgm.GBM(5.0), DATA, classes=2)
    labels = torch.arange(len(DATA)) % 2
    settings: dict[str, Any] = {"steps": 20, "batch_size": 13, "accumulate": 2, "warmup": 2}
    settings |= {"lr": name_of_rate, "ema": 0.5, "drop": 0.2, "progress": False}
    return fastmsgm.fit(model, DATA, labels, **settings | options, out=folder / name)


def fit_tail(folder: Path) -> fastmsgm.RotationModel:
    """Train a rotation, whose batches begin with samples of the largest norms, on uneven parts."""
    torch.manual_seed(0)
    net = nets.MLP(3, 8, 1, condition={"log_norm": 1})
    model = fastmsgm.RotationModel.for_data(net, fastmsgm.Rotation(), DATA)
    settings: dict[str, Any] = {"steps": 5, "batch_size": 13, "tail": 0.5, "progress": False}
    return fastmsgm.fit(model, DATA, **settings, lr=name_of_rate, out=folder / "tail")


def name_of_rate(step: int) -> float:
    return 1e-3


def main(folder: Path, tasks: tuple[str, ...]) -> None:
    torch.set_num_threads(1)
    for task in tasks:
        if task == "differ":
            differ(folder)
        elif task == "sample":
            sample(folder, distributed=True)
        elif task == "die":
            dying(folder)
        elif task == "fit":
            fit(folder, "run")
        elif task == "tail":
            fit_tail(folder)
        else:
            fit(folder, "half", steps=10)
