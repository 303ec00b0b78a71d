"""Images at equal budget: the paper's training and samplers, and ours.

All trainings of a data set use one U-Net, batch 128, Adam with 1e-3, EMA 0.999, bfloat16 and the
same CPU time of one thread (image_sets.py). Measured is the Frechet distance in the features of
classifier.py:

    (a) the paper's training (M-DSM, Stein score, sigma = 0.8, its fitted log-normal start) with the
        paper's samplers
    (b) our training (preconditioned denoiser, sigma = 10) with the paper's samplers from s = 0.8
    (c) our training with our solvers

    python -m bench.image_runs --data fashion-mnist    skips finished trainings and finished rows
    python -m bench.image_runs --data mnist

With all rows there it also records the memorisation ratio of the best samples of each training, and
draws docs/images/NAME-equal-budget.png: real images, ours, the paper's.

A finished training is stored in trained_runs/ with its weights rounded to float16. Without that
folder and cache/ it is repeated. The recorded rows of Fashion-MNIST are from the weights before
rounding; after rounding, 16.69 at NFE 18 becomes 16.76.

The budget is CPU time of one thread, which other load on the machine does not use up: the steps of
a training are the budget over the CPU time of a step, which is measured once before.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

import fastmsgm
from bench.classifier import Classifier, features, half_split, load_classifier
from bench.fashion_frechet import as_images
from bench.harness import results
from bench.image_sets import SETS
from fastmsgm import rng, solvers
from fastmsgm.evaluation import plots
from fastmsgm.evaluation.metrics import frechet_distance
from fastmsgm.evaluation.neighbours import memorisation, nearest
from fastmsgm.gbm import published_prior
from fastmsgm.nets import UNet

CACHE = Path(__file__).parent / "cache" / "image_runs"
TRAINED = Path(__file__).parent / "trained_runs"
PICTURES = Path(__file__).parents[1] / "docs" / "images"
BATCH, CHUNK = 128, 250


def build(name: str, run: str, images: Tensor) -> fastmsgm.GBMModel:
    """Return the untrained model of the paper ("paper") or of this project ("ours").

    Both have the same network and initial weights.
    """
    torch.manual_seed(0)
    net = UNet(channels=1, **SETS[name].net)
    process, prediction = (
        (fastmsgm.GBM(0.8), "score") if run == "paper" else (fastmsgm.GBM(10.0), "denoiser")
    )
    return fastmsgm.GBMModel.for_data(
        net,
        process,
        images,
        prior=published_prior(name, (1, 28, 28)) if run == "paper" else None,
        prediction=prediction,
        offset=1.0,
        bounds=(0.0, 1.0),
        precision="bf16",
    )


def train(name: str, run: str, images: Tensor) -> fastmsgm.GBMModel:
    """Train a model for its budget, or resume its training, or load it if it is finished."""
    trained, out = TRAINED / name / run, CACHE / name / run
    if (trained / "config.json").is_file():
        return cast(fastmsgm.GBMModel, fastmsgm.load(trained))
    model = build(name, run, images)
    budget = out / "budget.json"
    if not budget.is_file():
        seconds = cpu_seconds_per_step(build(name, run, images), images)
        steps = int(SETS[name].minutes * 60 / seconds)
        out.mkdir(parents=True, exist_ok=True)
        budget.write_text(json.dumps({"cpu_seconds_per_step": seconds, "steps": steps}) + "\n")
    steps = json.loads(budget.read_text())["steps"]
    fastmsgm.fit(model, images, steps=steps, batch_size=BATCH, lr=1e-3, ema=0.999, out=out)
    model.save(trained, dtype=torch.float16)
    return cast(fastmsgm.GBMModel, fastmsgm.load(trained))


def cpu_seconds_per_step(model: fastmsgm.GBMModel, images: Tensor, steps: int = 40) -> float:
    """Return the CPU time of a training step on one thread: the median after a warm-up.

    The model is trained by it and should be thrown away.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
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


def comparisons(name: str) -> list[tuple[str, str, solvers.Solver, int]]:
    """Return row name, training, solver and steps of all that is measured of a data set."""
    dale, agnostic = solvers.PUBLISHED[name]
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
        (f"{training}, {label}", run, sampler, 1000)
        for label, solver in (
            ("Dale-Langevin, published settings", dale),
            ("Dale-Langevin, delta = 1/N, no annealing", solvers.DaleLangevin()),
            ("sign-agnostic, published settings", agnostic),
        )
        for training, run, sampler in (
            ("(a) paper's training", "paper", solver),
            # Our process reaches further: start at the paper's sigma.
            ("(b) our training", "ours", dataclasses.replace(solver, sigma=0.8)),
        )
    ]
    return [*ours, *papers]


def sample(
    model: fastmsgm.GBMModel, n: int, solver: solvers.Solver, steps: int, folder: Path
) -> Tensor:
    """Return n samples without those that diverged: the sampler is judged by the others.

    Args:
        model: To be sampled.
        n: Number of samples, a multiple of 250.
        solver: As of ``fastmsgm.sample``.
        steps: As of ``fastmsgm.sample``.
        folder: Where finished chunks are stored.
    """
    ends: list[Tensor] = []

    def keep(step: fastmsgm.Step) -> None:
        if step.index == step.nfe:
            ends.append((step.x - model.offset).clamp(0, 1))

    folder.mkdir(parents=True, exist_ok=True)
    for start in range(0, n, CHUNK):
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


def floor(name: str, network: Classifier, reference: Tensor) -> tuple[float, str]:
    """Return the mean distance of real images, as many as a row has samples, and a note."""
    images, n = SETS[name].read("train")[half_split()[1]], SETS[name].samples
    subsets = [features(part, network) for part in images[:10_000].split(n)]
    distances = torch.tensor([frechet_distance(part, reference) for part in subsets])
    spread = f"standard deviation {distances.std():.4f}"
    return float(distances.mean()), f"mean of {len(subsets)} subsets of {n} real images, {spread}"


def memorised(samples: Tensor, images: Tensor, test: Tensor) -> tuple[float, str]:
    """Return the memorisation ratio of samples, and a note."""
    near = nearest(as_images(samples), images, progress=False).distances
    found = memorisation(near, nearest(test[:2_000], images, progress=False).distances)
    note = f"best sampler, {len(samples)} samples, 2,000 test images; pixels; {found.close:.3f} "
    return found.ratio, note + "closer than 1 % of the test images"


def draw(name: str, test: Tensor, sets: dict[str, Tensor]) -> None:
    """Write real images and the best samples of each training, three rows each."""
    rows = torch.cat([test[:48], *(as_images(sets[run][:48]) for run in ("ours", "paper"))])
    plots.grid(rows, PICTURES / f"{name}-equal-budget.png", columns=16)


def main() -> None:
    """Train and measure what is not there yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", choices=tuple(SETS), required=True)
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        help="for training and sampling (default 1, as the budget is counted)",
    )
    parser.add_argument("--run", choices=("paper", "ours"), help="only this training and its rows")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    name, of = args.data, SETS[args.data]
    images = of.read("train")
    runs = (args.run,) if args.run else ("ours", "paper")
    models = {run: train(name, run, images) for run in runs}
    network = load_classifier(name)
    reference = features(of.read("test"), network)

    def record(quantity: str, value: float, note: str) -> None:
        unit = "" if quantity.startswith("memorisation") else "feature^2"
        results.append(benchmark=of.benchmark, quantity=quantity, value=value, unit=unit, note=note)
        print(f"{quantity}: {value:.3f}", flush=True)

    if "floor" not in results.finished(of.benchmark):
        record("floor", *floor(name, network, reference))
    best: dict[str, tuple[float, Tensor]] = {}  # of each training
    for row, run, solver, steps in comparisons(name):
        if run not in models:
            continue
        quantity = f"{row}, NFE {solver.plan(models[run].preconditioning, steps).nfe}"
        folder = CACHE / name / "samples" / quantity.replace("/", ":")
        if quantity in results.finished(of.benchmark) and not folder.is_dir():
            continue
        samples = sample(models[run], of.samples, solver, steps, folder)
        distance = frechet_distance(features(as_images(samples), network), reference)
        if run not in best or distance < best[run][0]:
            best[run] = distance, samples
        if quantity in results.finished(of.benchmark):
            continue
        diverged = of.samples - len(samples)
        more = f", {diverged} more diverged" if diverged else ""
        note = f"{len(samples)} samples{more}, seed 1, {solver!r}, {args.threads} threads"
        record(quantity, distance, note)
    if not args.run and len(best) == len(models):
        for run, (_, samples) in best.items():
            quantity = f"memorisation ratio, {run}"
            if quantity not in results.finished(of.benchmark):
                record(quantity, *memorised(samples, images, of.read("test")))
        draw(name, of.read("test"), {run: samples for run, (_, samples) in best.items()})


if __name__ == "__main__":
    main()
