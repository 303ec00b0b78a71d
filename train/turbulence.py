"""Two-dimensional turbulence, 32 x 32 vorticity fields: a rotation and additive baselines.

    python -m fastmsgm.recipes.turbulence --out runs/turbulence

MSGM (ICLR 2026) trains on measured velocity fields, which are not public; these are of our own
simulation (``data.turbulence``). Expected figures are in docs/experiments/turbulence.md, which
bench/turbulence_runs.py measures. About 15 minutes on one core for each model, and 10 for the data,
which are kept in the folder of the data sets. Fields are periodic, and so are the convolutions.

Fields are shifted, turned and mirrored at random, which the statistics of the flow allow. The
integrated beta of the rotation ends at 12, where directions of 1024 features are uniform.
"""

from __future__ import annotations

from typing import Any

import torch
from filelock import FileLock
from torch import Tensor

import fastmsgm
from fastmsgm import data
from fastmsgm.files import cache_folder, write_atomically
from fastmsgm.nets import UNet

from .recipe import Recipe, baselines, main, save_array

SIZE = 32
FIELDS = (12_000, 4_000)  # of seed 0, to train on, and of seed 1, held out
WIDTHS: dict[str, Any] = {
    "width": 24,
    "deep": 48,
    "blocks": 1,
    "deep_blocks": 1,
    "periodic": True,
}


def fields(seed: int = 0) -> Tensor:
    """Return the simulated fields, (n, 1, 32, 32), which are kept once they are made."""
    path = cache_folder() / f"turbulence-{SIZE}-{seed}-{FIELDS[seed]}.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):  # of several processes one simulates
        if not path.is_file():
            x = data.turbulence(FIELDS[seed], SIZE, seed, progress=True).numpy()
            write_atomically(path, lambda temporary: save_array(temporary, x))
    return data.load(path)


def training_set(n: int | None) -> Tensor:
    """Return all fields, or n Gaussian ones for a smoke run, since a simulation takes minutes."""
    if n is None:
        return fields()
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 1, SIZE, SIZE, generator=generator)


def held_out(n: int) -> Tensor:
    """Return n fields of another simulation."""
    return fields(seed=1)[:n]


def symmetric(x: Tensor) -> Tensor:
    """Return a field (1, size, size) shifted, turned and mirrored at random.

    A mirrored flow turns the other way, so its vorticity changes sign.
    """
    size = x.shape[-1]
    shift = torch.randint(size, (2,)).tolist()
    turns, mirrored = torch.randint(4, ()).item(), torch.randint(2, ()).item()
    x = x.roll(shift, (1, 2)).rot90(int(turns), (1, 2))
    return -x.flip(2) if mirrored else x


def rotation(x: Tensor) -> fastmsgm.ScoreModel:
    """Return an untrained rotation."""
    net = UNet(channels=1, condition={"log_norm": 1}, **WIDTHS)
    return fastmsgm.RotationModel.for_data(net, fastmsgm.Rotation(beta_max=24.0), x)


RECIPE = Recipe(
    name="turbulence",
    data=training_set,
    held_out=held_out,
    models={"rotation": rotation, **baselines(lambda: UNet(channels=1, **WIDTHS))},
    steps=4_500,
    batch_size=64,
    fit={"transform": symmetric, "warmup": 200},
    samples=1_000,
)

if __name__ == "__main__":
    main(RECIPE, __doc__)
