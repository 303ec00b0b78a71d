"""Two-dimensional turbulence at equal budget: a rotation and EDM, in the statistics of turbulence.

Models, data and training are those of train/turbulence.py: one U-Net of 0.14 M parameters, batch
64, 6,000 steps each, 12,000 fields. Of 4,000 samples of each model, against 4,000 fields of another
simulation:

    spectrum    the largest |E(k) / E_test(k) - 1| over the wavenumbers 1 .. 13, and its median
    flatness    <w^4> / <w^2>^2 and its relative error
    tail        P(|w| > r) relative to the test fields', at the r that 1 % and 0.1 % of them exceed

    python -m bench.turbulence_runs    skips finished rows; a stopped training resumes

The floors are of the 12,000 training fields, in parts of 4,000; the simulation resolves all of
these wavenumbers, so none of them is noise. With the samples of a run in the cache it draws
docs/images/turbulence.png.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastmsgm
from bench.harness import results
from fastmsgm import data
from fastmsgm.edm import EDMHeun
from fastmsgm.evaluation import metrics, plots
from fastmsgm.solvers import SphericalMultistep
from train import turbulence as recipe

BENCHMARK = "turbulence_runs"
CACHE = Path(__file__).parent / "cache" / BENCHMARK
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "turbulence.png"
SAMPLES, LARGEST = 4_000, 13  # the largest wavenumber that the simulation resolves
TAILS = {"1 %": 0.01, "0.1 %": 0.001}
SOLVERS: dict[str, tuple[str, Any, int]] = {  # row -> model, solver, steps
    "rotation, DPM-Solver++(2M), NFE 20": ("rotation", SphericalMultistep(), 20),
    "rotation, SDE-DPM-Solver++(2M), eta 0.6, NFE 20": (
        "rotation",
        SphericalMultistep(eta=0.6),
        20,
    ),
    "rotation, SDE-DPM-Solver++(2M), eta 1, NFE 40": ("rotation", SphericalMultistep(eta=1.0), 40),
    "EDM, Heun, NFE 35": ("edm", EDMHeun(), 18),
    "EDM, stochastic Heun, NFE 79": ("edm", EDMHeun(churn=0.2), 40),
}

DRAWN = ("rotation, SDE-DPM-Solver++(2M), eta 0.6, NFE 20", "EDM, Heun, NFE 35")


def statistics_of(x: Tensor, test: Tensor) -> dict[str, float]:
    """Return the statistics of fields x (n, 1, 32, 32) against test fields."""
    (_, found), (_, truth) = metrics.spectrum(x), metrics.spectrum(test)
    errors = (found[:LARGEST] / truth[:LARGEST] - 1).abs()
    values = {
        "largest error of the spectrum": float(errors.max()),
        "median error of the spectrum": float(errors.median()),
        "flatness": metrics.flatness(x),
        "error of the flatness": abs(metrics.flatness(x) / metrics.flatness(test) - 1),
    }
    ranked = test.abs().flatten().sort(descending=True).values
    for name, share in TAILS.items():
        limit = ranked[round(share * len(ranked))]
        ratio = float((x.abs() > limit).double().mean()) / share
        values[f"tail at {name}, relative"] = ratio
    return values


@functools.cache
def train(name: str) -> fastmsgm.ScoreModel:
    """Train a model, or resume its training, or load it where it is finished."""
    return recipe.RECIPE.train(name, CACHE / name)


def sample_file(name: str) -> Path:
    """Return the path of the samples of a row."""
    return CACHE / f"{name}.npy".replace("/", ":")


def samples_of(name: str) -> Tensor:
    """Return the samples of a row, which are kept in the cache."""
    model, solver, steps = SOLVERS[name]
    path = sample_file(name)
    if path.is_file():
        return data.load(path)
    options = {"solver": solver, "steps": steps, "seed": 1, "batch_size": 500}
    return fastmsgm.sample(train(model), SAMPLES, out=path, **options)


def draw(test: Tensor, sets: dict[str, Tensor]) -> None:
    """Write four fields of each set, and the spectra and tails of all."""
    sets = {"simulation": test, **sets}
    picture = plots.figure(figsize=(11, 7.6), layout="constrained")
    layout = picture.add_gridspec(len(sets), 6)
    spectra, tails = picture.add_subplot(layout[:2, 4:]), picture.add_subplot(layout[2, 4:])
    for row, ((name, x), color) in enumerate(
        zip(sets.items(), ("black", "tab:blue", "tab:orange"), strict=True)
    ):
        for column in range(4):
            panel = picture.add_subplot(layout[row, column])
            panel.imshow(x[column, 0], cmap="RdBu_r", vmin=-3, vmax=3, interpolation="bilinear")
            panel.set(xticks=[], yticks=[])
            if column == 0:
                panel.set_ylabel(name.partition(",")[0])
        k, energy = metrics.spectrum(x)
        spectra.loglog(k[:LARGEST], energy[:LARGEST], color=color, label=name, marker=".")
        ordered = x.abs().flatten().sort(descending=True).values[10 :: max(1, x.numel() // 20_000)]
        share = torch.linspace(10 / x.numel(), 1, len(ordered))
        tails.semilogy(ordered, share, color=color)
    spectra.set(xlabel="wavenumber k", ylabel="energy E(k)")
    spectra.legend(loc="lower left", fontsize=7)
    tails.set(xlabel="|vorticity|", ylabel="share beyond", ylim=(1e-5, 1))
    picture.savefig(PICTURE, dpi=100)


def main() -> None:
    """Train and measure what is not there yet."""
    torch.set_num_threads(1)
    done = {quantity.rpartition(": ")[0] for quantity in results.finished(BENCHMARK)}
    test = recipe.fields(seed=1)
    if "floor" not in done:
        parts = [statistics_of(part, test) for part in recipe.fields().split(SAMPLES)]
        means = {key: sum(part[key] for part in parts) / len(parts) for key in parts[0]}
        results.append_all(
            BENCHMARK, "floor", means, f"mean of {len(parts)} sets of {SAMPLES} simulated fields"
        )
    for name, (_, solver, steps) in SOLVERS.items():
        if name not in done:
            note = f"{SAMPLES} samples, {solver!r}, {steps} steps"
            results.append_all(BENCHMARK, name, statistics_of(samples_of(name), test), note)
    if all(sample_file(name).is_file() for name in DRAWN):
        draw(test, {name: samples_of(name) for name in DRAWN})


if __name__ == "__main__":
    main()
