"""Quality against network calls, for every solver and every shipped model: docs/solvers.md.

    python -m bench.solver_curves --model fashion-gbm    skips finished cells and finished chunks
    python -m bench.solver_curves --write                docs/solvers.md, from the results alone

Of fashion-gbm the Frechet distance of fashion_frechet.py, of 10,000 samples for the solvers that
compete for the best result, else of 2,000, which is larger by about 0.5: compare within a number of
samples. The standard error is that of the mean over disjoint subsets of 1,000. Of the Cauchy models
what cauchy_arms.py says of the directions of 100,000 samples, or 20,000 for more than 100 calls.
One thread.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

import fastmsgm
from bench import curves_page
from bench.cauchy_arms import held_out, statistics_of
from bench.classifier import Classifier, features, load_classifier
from bench.fashion_frechet import as_images
from bench.harness import results
from fastmsgm import data, solvers
from fastmsgm.evaluation.metrics import frechet_distance
from fastmsgm.fingerprint import fingerprint
from fastmsgm.solvers import Solver

BENCHMARK = "solver_curves"
CACHE = Path(__file__).parent / "cache" / BENCHMARK
NFES = (3, 4, 5, 6, 8, 10, 12, 18, 35)
CHUNK, SEED = 1_000, 1
FEW, MANY = 2_000, 10_000
VECTORS, FEWER_VECTORS, FEWER_FROM = 100_000, 20_000, 100  # of more than 100 calls


def cells_of_images(model: fastmsgm.GBMModel) -> Iterator[tuple[str, Solver, int, int]]:
    """Yield solver name, solver, steps and samples of each cell, the most wanted first."""
    ode = solvers.DPMSolverPP2M()
    for steps, fitted in sorted(model.fitted.items()):
        yield "fitted", fitted, steps, MANY
    for samples, all_steps in ((MANY, (8, 10, 12)), (FEW, (18, 6, 5, 4, 3, 35, 8, 10, 12))):
        for steps in all_steps:
            yield "dpm++2m", ode, steps, samples
    for name in ("sde-dpm++2m", "er-sde-2", "heun", "euler"):
        for nfe in reversed(NFES):
            if name != "heun" or nfe % 2:
                yield name, model.solvers[name](), (nfe + 1) // 2 if name == "heun" else nfe, FEW
    for eta in (0.25, 0.5):
        for steps in (8, 12, 18):
            yield f"dpm++2m, eta = {eta}", solvers.DPMSolverPP2M(eta=eta), steps, FEW
    for name in ("dale-langevin", "sign-agnostic"):
        yield name, model.solvers[name](), 1_001, CHUNK // 2


def images() -> None:
    """Measure the cells of fashion-gbm that the results do not hold yet."""
    model = cast(fastmsgm.GBMModel, fastmsgm.load("fashion-gbm"))
    network = load_classifier()
    reference = features(data.fashion_mnist("test"), network)
    for name, solver, steps, samples in cells_of_images(model):
        nfe = solver.plan(model.preconditioning, steps).nfe
        quantity = f"fashion-gbm, {name}, NFE {nfe}, {samples} samples"
        plan = f"plan {solver.plan(model.preconditioning, steps).checksum()[:12]}"
        if plan in results.latest(BENCHMARK).get(quantity, (0.0, ""))[1]:
            continue
        folder = CACHE / f"fashion-gbm, {name}, NFE {nfe}, {plan}"
        size = min(CHUNK, samples)
        parts = [
            features_of(model, network, solver, steps, start, size, folder)
            for start in range(0, samples, size)
        ]
        value = frechet_distance(torch.cat(parts), reference)
        distances = torch.tensor([frechet_distance(part, reference) for part in parts])
        error = float(distances.std()) / math.sqrt(len(parts)) if len(parts) > 1 else math.nan
        note = f"standard error {error:.2g}, seed {SEED}, {solver!r}, {plan}"
        record(quantity, value, "feature^2", note)


def features_of(
    model: fastmsgm.ScoreModel,
    network: Classifier,
    solver: Solver,
    steps: int,
    start: int,
    n: int,
    folder: Path,
) -> Tensor:
    """Return the classifier's features of samples ``start`` .. ``start + n - 1``, (n, 128).

    Args:
        model: To be sampled.
        network: The classifier.
        solver: As of ``fastmsgm.sample``.
        steps: As of ``fastmsgm.sample``.
        start: Index of the first sample.
        n: Number of samples.
        folder: Where finished chunks are stored.
    """
    path = folder / f"{start}.npy"
    if not path.is_file():
        samples = fastmsgm.sample(
            model, n, steps=steps, solver=solver, seed=SEED, start=start, progress=False
        )
        found = features(as_images(samples), network)
        folder.mkdir(parents=True, exist_ok=True)
        np.save(path.with_suffix(".tmp.npy"), found.numpy())
        path.with_suffix(".tmp.npy").rename(path)
    return torch.from_numpy(np.load(path))


def vectors(name: str) -> None:
    """Measure the cells of a Cauchy model that the results do not hold yet."""
    model = fastmsgm.load(name)
    test, network = held_out(VECTORS), f"model {fingerprint(model)[:12]}"
    floor = f"floor of {VECTORS} vectors"
    if f"{floor}: {curves_page.VECTOR_METRICS[-1]}" not in results.finished(BENCHMARK):
        for metric, value in statistics_of(held_out(VECTORS, 1), test).items():
            record(f"{floor}: {metric}", value, metric, "one test set against another")
    for solver_name, solver, steps in cells_of_vectors(model):
        nfe = solver.plan(model.preconditioning, steps).nfe
        quantity = f"{name}, {solver_name}, NFE {nfe}"
        done = results.latest(BENCHMARK)
        if network in done.get(f"{quantity}: {curves_page.VECTOR_METRICS[-1]}", (0.0, ""))[1]:
            continue
        n = FEWER_VECTORS if nfe > FEWER_FROM else VECTORS
        x = fastmsgm.sample(model, n, steps=steps, solver=solver, seed=SEED, progress=False)
        for metric, value in statistics_of(x, test).items():
            note = f"{n} samples, seed {SEED}, {solver!r}, {network}"
            record(f"{quantity}: {metric}", value, metric, note)


def cells_of_vectors(model: fastmsgm.ScoreModel) -> Iterator[tuple[str, Solver, int]]:
    """Yield solver name, solver and steps of each cell."""
    if model.family == "VP":
        for name, calls in (("stratonovich-rk4", 4), ("stratonovich-heun", 2)):
            for nfe in (64, 128, 256, 512):
                yield name, model.solvers[name](), nfe // calls
        for nfe in (128, 512, 1024):
            yield "euler-maruyama", model.solvers["euler-maruyama"](), nfe
        return
    for eta in (0.6, 0.0, 0.3, 1.0):
        for steps in (*NFES, 20):
            yield f"dpm++2m, eta = {eta:g}", solvers.SphericalMultistep(eta=eta), steps
    for steps in (5, 12, 20, 35):
        yield "euler", solvers.SphericalMultistep(order=1), steps
        yield "geodesic-euler", solvers.GeodesicEuler(), steps
        yield "geodesic-heun", solvers.GeodesicHeun(), (steps + 1) // 2
    for name, calls in (("euler-maruyama", 1), ("stratonovich-heun", 2), ("stratonovich-rk4", 4)):
        yield name, model.solvers[name](), 1024 // calls


def record(quantity: str, value: float, unit: str, note: str) -> None:
    """Print a figure and append it to the results."""
    print(f"{quantity}: {value:.4g} ({note})", flush=True)
    results.append(benchmark=BENCHMARK, quantity=quantity, value=value, unit=unit, note=note)


def main() -> None:
    """Measure what is not there yet, or write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", choices=("fashion-gbm", "cauchy-rotation", "cauchy-vp"))
    what.add_argument("--write", action="store_true", help="write docs/solvers.md")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.write:
        curves_page.write()
    elif args.model == "fashion-gbm":
        images()
    else:
        vectors(args.model)


if __name__ == "__main__":
    main()
