"""Side by side at equal budget: the paper's training and samplers, and ours, on Fashion-MNIST.

One U-Net of 0.36 M parameters, batch 128, Adam 1e-3, EMA 0.999, bfloat16, 45 minutes of one core each; 1,000 samples;
the Frechet distance of fashion_frechet.py. Arms:

    (a) the paper's training (M-DSM, Stein score, sigma = 0.8, its fitted log-normal start) with the paper's samplers
    (b) our training (preconditioned denoiser, sigma = 10) with the paper's samplers from s = 0.8
    (c) our training with our solvers

    python bench/fashion_arms.py [--threads 1]      resumes: finished trainings and finished rows are skipped

A finished training is kept in trained_arms/, its weights rounded to float16; without that folder and cache/ it is done
again. The recorded rows are of the weights before they were rounded; rounded, 16.69 at 18 calls becomes 16.76.

The budget is counted in CPU time of a single thread, so what else the machine does takes nothing from it: the steps of
an arm are the budget over the CPU time of a step, measured once, before its training.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import time
from pathlib import Path
from typing import cast

import fashion_frechet
import numpy as np
import results
import torch
from fashion_classifier import features, load_classifier
from torch import Tensor

import fastmsgm
from fastmsgm import data, losses, rng, solvers
from fastmsgm.metrics import frechet_distance
from fastmsgm.nets import UNet

BENCHMARK = "fashion_arms"
RUNS, TRAINED = Path(__file__).parent / "cache" / "fashion_arms", Path(__file__).parent / "trained_arms"
MINUTES, BATCH, SAMPLES, CHUNK = 45.0, 128, 1_000, 250
# The published start of log x for Fashion-MNIST: mean and standard deviation at the first level.
START_MEAN, START_STD = 0.277126, 0.842829


def build(arm: str, images: Tensor) -> fastmsgm.GBMModel:
    """The untrained model of the paper ("paper") or of this project ("ours"); the same network and initial weights."""
    torch.manual_seed(0)
    net = UNet(channels=1, width=32, deep=64, blocks=1, deep_blocks=2)
    process, prediction = (fastmsgm.GBM(0.8), "score") if arm == "paper" else (fastmsgm.GBM(10.0), "denoiser")
    model = fastmsgm.GBMModel.for_data(
        net, process, images, prediction=prediction, offset=1.0, bounds=(0.0, 1.0), precision="bf16"
    )
    if arm == "paper":
        model.centres.fill_(math.exp(START_MEAN))
        model.variance = START_STD**2 - 0.8**2 * 999 / 1000
    return model


def train(arm: str, images: Tensor) -> fastmsgm.GBMModel:
    """Train an arm for its budget, resuming what is there, or load what was trained."""
    if (TRAINED / arm / "config.json").is_file():
        return cast(fastmsgm.GBMModel, fastmsgm.load(TRAINED / arm))
    out = RUNS / arm
    model = build(arm, images)
    note = out / "budget.json"
    if not note.is_file():
        seconds = cpu_seconds_per_step(arm, images)
        out.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps({"cpu_seconds_per_step": seconds, "steps": int(MINUTES * 60 / seconds)}) + "\n")
    steps = json.loads(note.read_text())["steps"]
    fastmsgm.fit(model, images, steps=steps, batch_size=BATCH, lr=1e-3, ema=0.999, out=out)
    model.save(TRAINED / arm, dtype=torch.float16)
    return cast(fastmsgm.GBMModel, fastmsgm.load(TRAINED / arm))


def cpu_seconds_per_step(arm: str, images: Tensor, steps: int = 40) -> float:
    """CPU time of one training step on one thread: the median after a warm-up, on a model that is thrown away."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = build(arm, images)
    states = model.to_state(images[:BATCH])
    optimizer = torch.optim.Adam(model.net.parameters())
    average = torch.optim.swa_utils.AveragedModel(model.net)
    times = []
    for k in range(steps):
        began = time.process_time()
        loss = losses.loss(model, states, rng.stream(0), k)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.net.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(model.net)
        times.append(time.process_time() - began)
    torch.set_num_threads(threads)
    return float(torch.tensor(times[10:]).median())


def comparisons() -> list[tuple[str, str, solvers.Solver, int]]:
    """Row name, trained arm, solver and steps of everything that is measured, cheapest first."""
    dale, agnostic = solvers.PUBLISHED["fashion-mnist"]
    ours = [
        (f"(c) our training, {label}", "ours", solver, (steps + 1) // 2 if label == "Heun" else steps)
        for steps in (10, 18, 35)
        for label, solver in (
            ("DPM-Solver++(2M)", solvers.DPMSolverPP2M()),
            ("SDE-DPM-Solver++(2M)", solvers.DPMSolverPP2M(eta=1.0)),
            ("ER-SDE-2", solvers.ERSDE2()),
            ("Heun", solvers.Heun()),
        )
    ]
    papers = [
        (f"{name}, {label}", arm, solver, 1000)
        for label, make in (
            ("Dale-Langevin, published settings", dale),
            ("Dale-Langevin, delta = 1/N, no annealing", solvers.DaleLangevin()),
            ("sign-agnostic, published settings", agnostic),
        )
        for name, arm, solver in (
            ("(a) paper's training", "paper", make),
            ("(b) our training", "ours", from_level(make, 0.8)),
        )
    ]
    return [*ours, *papers]


def from_level(solver: solvers.PaperSolver, sigma: float) -> solvers.PaperSolver:
    """The same sampler, started at noise level sigma of a process that reaches further."""
    return type(solver)(solver.delta, solver.inner, solver.anneal, solver.tweedie, sigma)


def draw(model: fastmsgm.GBMModel, solver: solvers.Solver, steps: int, folder: Path) -> Tensor:
    """1,000 samples, without those that diverge: the sampler is judged by the rest. Chunks are kept in ``folder``."""
    ends: list[Tensor] = []

    def keep(step: fastmsgm.Step) -> None:
        if step.index == step.calls:
            ends.append((step.x - model.offset).clamp(0, 1))

    folder.mkdir(parents=True, exist_ok=True)
    for start in range(0, SAMPLES, CHUNK):
        path = folder / f"{start}.npy"
        if path.is_file():
            ends.append(torch.from_numpy(np.load(path)))
            continue
        options = {"steps": steps, "solver": solver, "seed": 1, "start": start, "batch_size": CHUNK}
        with contextlib.suppress(fastmsgm.NonFiniteError):
            fastmsgm.sample(model, CHUNK, callback=keep, **options)
        np.save(path, ends[-1].numpy())
    samples = torch.cat(ends)
    return samples[samples.flatten(1).isfinite().all(1)]


def main() -> None:
    """Train what is not trained, measure what is not measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--threads", type=int, default=1, help="for training (default 1, the budget's unit) and sampling"
    )
    parser.add_argument("--arm", choices=("paper", "ours"), help="only this training and its rows")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    images = data.fashion_mnist()
    arms = (args.arm,) if args.arm else ("ours", "paper")
    models = {arm: train(arm, images) for arm in arms}
    network = load_classifier()
    reference = features(data.fashion_mnist("test"), network)
    for name, arm, solver, steps in comparisons():
        calls = solver.plan(models[arm], steps).calls if arm in models else 0
        quantity = f"{name}, {calls} calls"
        if arm not in models or quantity in results.finished(BENCHMARK):
            continue
        samples = draw(models[arm], solver, steps, RUNS / "samples" / quantity.replace("/", ":"))
        distance = frechet_distance(features(fashion_frechet.as_images(samples), network), reference)
        lost = f", {SAMPLES - len(samples)} more diverged" if len(samples) < SAMPLES else ""
        results.append(
            benchmark=BENCHMARK, quantity=quantity, value=distance, unit="feature^2",
            note=f"{len(samples)} samples{lost}, seed 1, {solver!r}, {args.threads} threads",
        )  # fmt: skip
        print(f"{quantity}: {distance:.3f}")


if __name__ == "__main__":
    main()
