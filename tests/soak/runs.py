"""Runs that are broken off, and what must be found afterwards."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import fastmsgm
from fastmsgm.nets import MLP
from fastmsgm.output.verification import verify
from tests.gbm.exact import log_normal_data

STEPS, SAMPLES = 2, 6


@dataclass(frozen=True)
class Run:
    """A run in a folder.

    Args:
        name: For messages.
        work: The run; it goes on where it was broken off.
        look: Returns what is wrong with what a broken run left, or None.
        prepare: Makes the folder as it is before.
    """

    name: str
    work: Callable[[Path], object]
    look: Callable[[Path], str | None]
    prepare: Callable[[Path], object] = Path.mkdir

    def result(self, folder: Path) -> dict[str, bytes]:
        """Return the files of a finished run.

        Not the lock and the generation before, nor what a killed ``save`` left, which the next one
        removes when it is a day old.
        """
        files = (path for path in folder.rglob("*") if path.is_file())
        kept = (p for p in files if p.name not in (".lock", "training.previous.safetensors"))
        return {
            str(path.relative_to(folder)): path.read_bytes()
            for path in kept
            if self.name != "save" or path.suffix != ".tmp"
        }


def build(seed: int = 0) -> fastmsgm.GBMModel:
    torch.manual_seed(seed)
    return fastmsgm.GBMModel.for_data(MLP(3, 8, 1), fastmsgm.GBM(5.0), log_normal_data(50))


def fit(folder: Path, steps: int = STEPS) -> None:
    settings = {"steps": steps, "batch_size": 8, "warmup": 2, "ema": 0.5, "progress": False}
    fastmsgm.fit(build(), log_normal_data(50), **settings, out=folder / "run")


@functools.cache
def averages() -> tuple[Tensor, ...]:
    """Return the averaged weights after every step of ``fit``."""
    seen: list[Tensor] = []
    fastmsgm.fit(
        build(),
        log_normal_data(50),
        steps=STEPS,
        batch_size=8,
        warmup=2,
        ema=0.5,
        progress=False,
        every=1,
        callback=lambda step: seen.append(flat(step.model)),
    )
    return tuple(seen)


def flat(model: fastmsgm.ScoreModel) -> Tensor:
    return torch.cat([p.detach().flatten().clone() for p in model.net.parameters()])


def look_at_fit(folder: Path) -> str | None:
    """A model that is there must be that of some step."""
    if not (folder / "run" / "model.safetensors").exists():
        return None
    try:
        weights = flat(fastmsgm.load(folder / "run"))
    except Exception as error:
        return f"the model cannot be loaded: {error}"
    known = any(torch.equal(weights, average) for average in averages())
    return None if known else "the model is not that of any step"


def save(folder: Path) -> None:
    build(1).save(folder / "model")


def save_older(folder: Path) -> None:
    folder.mkdir()
    build(0).save(folder / "model")


def look_at_save(folder: Path) -> str | None:
    """The model is the older one or the newer."""
    try:
        weights = flat(fastmsgm.load(folder / "model"))
    except Exception as error:
        return f"the model cannot be loaded: {error}"
    known = any(torch.equal(weights, flat(build(seed))) for seed in (0, 1))
    return None if known else "the model is neither the older nor the newer"


def noise(x: Tensor, s: Tensor) -> Tensor:
    return torch.zeros_like(x)


def sample(name: str, folder: Path, n: int = SAMPLES) -> None:
    model = fastmsgm.load("fashion-gbm") if name == "folder" else noise
    described = (
        {}
        if name == "folder"
        else {
            "process": fastmsgm.GBM(1.0),
            "shape": (7,),
            "prediction": "epsilon",
            "time": "sigma",
        }
    )
    steps = 1 if name == "folder" else 2
    fastmsgm.sample(
        model, n, **described, steps=steps, batch_size=2, progress=False, out=folder / name
    )


def look_at_samples(name: str, folder: Path) -> str | None:
    """A file that has its name, or a manifest, is complete."""
    manifest = folder / ("folder/samples.json" if name == "folder" else f"{name}.json")
    if name != "folder" and (folder / name).exists():
        stored = np.load(folder / name)
        if not (stored if name == "x.npy" else stored["arr_0"]).all():
            return "a file with its name has rows without samples"
    if not manifest.exists():
        return None
    try:
        verify(folder / name)
    except Exception as error:
        return f"a manifest beside unsound samples: {error}"
    return None


RUNS = (
    Run("fit", fit, look_at_fit),
    Run("save", save, look_at_save, save_older),
    *(
        Run(
            f"sample {name}",
            functools.partial(sample, name),
            functools.partial(look_at_samples, name),
        )
        for name in ("x.npy", "x.npz", "folder")
    ),
)
