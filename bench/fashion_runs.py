"""Fashion-MNIST at equal budget: the paper's training and samplers, and ours.

All trainings use one U-Net of 0.36 M parameters, batch 128, Adam with 1e-3, EMA 0.999, bfloat16 and
45 minutes of one core. Measured is the Frechet distance of fashion_frechet.py for 1,000 samples:

    (a) the paper's training (M-DSM, Stein score, sigma = 0.8, its fitted log-normal start) with the
        paper's samplers
    (b) our training (preconditioned denoiser, sigma = 10) with the paper's samplers from s = 0.8
    (c) our training with our solvers

    python -m bench.fashion_runs [--threads 1]    skips finished trainings and finished rows

A finished training is stored in trained_runs/ with its weights rounded to float16. Without that
folder and cache/ it is repeated. The recorded rows are from the weights before rounding; after
rounding, 16.69 at NFE 18 becomes 16.76.

The budget is CPU time of one thread, which other load on the machine does not use up: the steps of
a training are the budget over the CPU time of a step, which is measured once before.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

import fastmsgm
from bench.fashion_classifier import features, load_classifier
from bench.fashion_frechet import as_images
from bench.harness import results
from fastmsgm import data, rng, solvers
from fastmsgm.evaluation.metrics import frechet_distance
from fastmsgm.nets import UNet

BENCHMARK = "fashion_runs"
CACHE = Path(__file__).parent / "cache" / "fashion_runs"
TRAINED = Path(__file__).parent / "trained_runs"
MINUTES, BATCH, SAMPLES, CHUNK = 45.0, 128, 1_000, 250
# The published start of log x for Fashion-MNIST: mean and std at the first noise level.
START_MEAN, START_STD = 0.277126, 0.842829


def build(run: str, images: Tensor) -> fastmsgm.GBMModel:
    """Return the untrained model of the paper ("paper") or of this project ("ours").

    Both have the same network and initial weights.
    """
    torch.manual_seed(0)
    net = UNet(channels=1, width=32, deep=64, blocks=1, deep_blocks=2)
    process, prediction = (
        (fastmsgm.GBM(0.8), "score") if run == "paper" else (fastmsgm.GBM(10.0), "denoiser")
    )
    model = fastmsgm.GBMModel.for_data(
        net, process, images, prediction=prediction, offset=1.0, bounds=(0.0, 1.0), precision="bf16"
    )
    if run == "paper":
        model.means.fill_(math.exp(START_MEAN))
        model.variance = START_STD**2 - 0.8**2 * 999 / 1000
    return model


def train(run: str, images: Tensor) -> fastmsgm.GBMModel:
    """Train a model for its budget, or resume its training, or load it if it is finished."""
    if (TRAINED / run / "config.json").is_file():
        return cast(fastmsgm.GBMModel, fastmsgm.load(TRAINED / run))
    out = CACHE / run
    model = build(run, images)
    budget = out / "budget.json"
    if not budget.is_file():
        seconds = cpu_seconds_per_step(run, images)
        steps = int(MINUTES * 60 / seconds)
        out.mkdir(parents=True, exist_ok=True)
        budget.write_text(json.dumps({"cpu_seconds_per_step": seconds, "steps": steps}) + "\n")
    steps = json.loads(budget.read_text())["steps"]
    fastmsgm.fit(model, images, steps=steps, batch_size=BATCH, lr=1e-3, ema=0.999, out=out)
    model.save(TRAINED / run, dtype=torch.float16)
    return cast(fastmsgm.GBMModel, fastmsgm.load(TRAINED / run))


def cpu_seconds_per_step(run: str, images: Tensor, steps: int = 40) -> float:
    """Return the CPU time of a training step on one thread: the median after a warm-up.

    The model that it trains is thrown away.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = build(run, images)
    states = model.to_state(images[:BATCH])
    optimizer = torch.optim.Adam(model.net.parameters())
    average = torch.optim.swa_utils.AveragedModel(model.net)
    times = []
    for k in range(steps):
        began = time.process_time()
        loss = model.default_loss(model, states, rng.stream(0), k).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.net.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(model.net)
        times.append(time.process_time() - began)
    torch.set_num_threads(threads)
    return float(torch.tensor(times[steps // 4 :]).median())


def comparisons() -> list[tuple[str, str, solvers.Solver, int]]:
    """Return row name, training, solver and steps of everything measured, cheapest first."""
    dale, agnostic = solvers.PUBLISHED["fashion-mnist"]
    ours = [
        (
            f"(c) our training, {label}",
            "ours",
            solver,
            (steps + 1) // 2 if label == "Heun" else steps,
        )
        for steps in (10, 18, 35)
        for label, solver in (
            ("DPM-Solver++(2M)", solvers.DPMSolverPP2M()),
            ("SDE-DPM-Solver++(2M)", solvers.DPMSolverPP2M(eta=1.0)),
            ("ER-SDE-2", solvers.ERSDE2()),
            ("Heun", solvers.Heun()),
        )
    ]
    papers = [
        (f"{name}, {label}", run, sampler, 1000)
        for label, solver in (
            ("Dale-Langevin, published settings", dale),
            ("Dale-Langevin, delta = 1/N, no annealing", solvers.DaleLangevin()),
            ("sign-agnostic, published settings", agnostic),
        )
        for name, run, sampler in (
            ("(a) paper's training", "paper", solver),
            # Our process reaches further: start at the paper's sigma.
            ("(b) our training", "ours", dataclasses.replace(solver, sigma=0.8)),
        )
    ]
    return [*ours, *papers]


def sample(model: fastmsgm.GBMModel, solver: solvers.Solver, steps: int, folder: Path) -> Tensor:
    """Return 1,000 samples without those that diverged: the sampler is judged by the others.

    Args:
        model: To be sampled.
        solver: As of ``fastmsgm.sample``.
        steps: As of ``fastmsgm.sample``.
        folder: Where finished chunks are stored.
    """
    ends: list[Tensor] = []

    def keep(step: fastmsgm.Step) -> None:
        if step.index == step.nfe:
            ends.append((step.x - model.offset).clamp(0, 1))

    folder.mkdir(parents=True, exist_ok=True)
    for start in range(0, SAMPLES, CHUNK):
        path = folder / f"{start}.npy"
        if path.is_file():
            ends.append(torch.from_numpy(np.load(path)))
            continue
        options: dict[str, Any] = {"steps": steps, "solver": solver, "seed": 1, "start": start}
        with contextlib.suppress(fastmsgm.NonFiniteError):
            fastmsgm.sample(model, CHUNK, batch_size=CHUNK, callback=keep, **options)
        np.save(path, ends[-1].numpy())
    samples = torch.cat(ends)
    return samples[samples.flatten(1).isfinite().all(1)]


def main() -> None:
    """Train and measure what is not there yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        help="for training and sampling (default 1, as the budget is counted)",
    )
    parser.add_argument("--run", choices=("paper", "ours"), help="only this training and its rows")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    images = data.fashion_mnist()
    models = {run: train(run, images) for run in ((args.run,) if args.run else ("ours", "paper"))}
    network = load_classifier()
    reference = features(data.fashion_mnist("test"), network)
    for name, run, solver, steps in comparisons():
        if run not in models:
            continue
        quantity = f"{name}, NFE {solver.plan(models[run].preconditioning, steps).nfe}"
        if quantity in results.finished(BENCHMARK):
            continue
        samples = sample(models[run], solver, steps, CACHE / "samples" / quantity.replace("/", ":"))
        distance = frechet_distance(features(as_images(samples), network), reference)
        diverged = f", {SAMPLES - len(samples)} more diverged" if len(samples) < SAMPLES else ""
        results.append(
            benchmark=BENCHMARK,
            quantity=quantity,
            value=distance,
            unit="feature^2",
            note=f"{len(samples)} samples{diverged}, seed 1, {solver!r}, {args.threads} threads",
        )
        print(f"{quantity}: {distance:.3f}")


if __name__ == "__main__":
    main()
