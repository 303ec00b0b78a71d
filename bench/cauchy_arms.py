"""The directions of extremes of correlated Cauchy vectors in 4 dimensions, at equal budget.

Far out one Cauchy variable dominates, so that the largest vectors lie along the columns of the
mixing matrix: eight arms. Trainings have one size of network (3 x 128), batch 256, 40,000 steps of
Adam with a learning rate of 1e-3 and cosine decay, EMA 0.999, and 1,000,000 training vectors.

    rotation    train/cauchy_rotation.py: RotationModel, half of each batch from the largest 1 %
    baselines   VP with sliced score matching, which is shipped and had 100,000 vectors, and those
                of cauchy_baselines.py, with several samplers

    python -m bench.cauchy_arms        skips finished rows; a stopped training of ours resumes

For the largest 1 % and 0.1 % of 200,000 samples: the angle to the nearest arm (median, 90 %
quantile, share beyond 10 degrees) and the mean error of the eight arms' shares; and the sliced
Wasserstein distance of all directions. The truth is of 4,000,000 vectors, the floors are of test
sets of 200,000. Baselines have 50,000 samples. One thread.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import torch
from torch import Tensor

import fastmsgm
from bench import cauchy_baselines
from bench.harness import results
from fastmsgm.data import synthetic
from fastmsgm.evaluation import metrics
from fastmsgm.sampling import plan_for
from train import cauchy_rotation as recipe

BENCHMARK = "cauchy_arms"
CACHE = Path(__file__).parent / "cache" / BENCHMARK
SEEDS, SAMPLES, PROJECTIONS = (0, 1, 2), 200_000, 128
OF_BASELINES = 50_000  # samples, which take 2 to 25 times as many network calls
TOPS = {"top 1 %": 0.01, "top 0.1 %": 0.001}
STRAY = 10.0  # degrees
FLOORS, TRUTH = 8, 4_000_000


def statistics_of(x: Tensor, test: Tensor | None) -> dict[str, float]:
    """Return the metrics of samples (n, 4); those that compare, only where a test set is given."""
    axes, norms = arms(), x.norm(dim=1)
    values: dict[str, float] = {}
    for top, share in TOPS.items():
        largest = x[norms.topk(round(share * len(x))).indices]
        angles = metrics.angle_to_nearest_axis(largest, axes)
        values[f"{top}: median angle"] = float(angles.median())
        values[f"{top}: 90 % angle"] = float(angles.quantile(0.9))
        values[f"{top}: beyond 10 degrees"] = float((angles > STRAY).double().mean())
        values[f"{top}: error of the arms' shares"] = error_of_shares(largest)
    if test is not None:
        found = metrics.conditional_directions(x, test, quantile=0.99)
        values["top 1 %: precision of directions"] = found.precision
        values["top 1 %: recall of directions"] = found.recall
        values["sliced W2 of directions"] = metrics.sliced_wasserstein(
            metrics.directions(x), metrics.directions(test), PROJECTIONS
        )
    return values


def arms() -> Tensor:
    """Return (4, 4): the directions of the arms, up to sign, as rows."""
    return synthetic.mixing(4).mT


def error_of_shares(largest: Tensor) -> float:
    """Return the mean over the eight arms of |share of the samples - its probability|."""
    axes = arms()
    lengths = axes.norm(dim=1)
    cosines = metrics.directions(largest) @ (axes / lengths[:, None]).mT
    nearest = cosines.abs().argmax(1)
    positive = cosines.gather(1, nearest[:, None])[:, 0] > 0
    found = torch.bincount(nearest + 4 * positive, minlength=8) / len(largest)
    expected = (lengths / lengths.sum() / 2).repeat(2)
    return float((found - expected).abs().mean())


def held_out(n: int, index: int = 0) -> Tensor:
    """Return n vectors that no training saw."""
    return synthetic.correlated_cauchy(n, 4, seed=10_000 + index)


def is_done(name: str) -> bool:
    """Whether all metrics of a set are in the results."""
    return f"{name}: sliced W2 of directions" in results.finished(BENCHMARK)


def floors() -> None:
    """Record the truth, and the mean over test sets of what their size alone gives."""
    truth = statistics_of(held_out(TRUTH, 99), None)
    results.append_all(BENCHMARK, "truth", truth, f"{TRUTH} vectors")
    for name, n in (("floor", SAMPLES), (f"floor of {OF_BASELINES} samples", OF_BASELINES)):
        sets = [held_out(n, 1 + k) for k in range(FLOORS)]
        found = [statistics_of(x, held_out(SAMPLES)) for x in sets]
        means = {metric: statistics.mean(v[metric] for v in found) for metric in found[0]}
        results.append_all(BENCHMARK, name, means, f"mean of {FLOORS} test sets of {n}")


def rotation(seed: int) -> None:
    """Train a rotation, unless it is finished, and record what it samples by default."""
    model = recipe.train("cauchy-rotation", CACHE / f"rotation, seed {seed}", seed=seed)
    x = fastmsgm.sample(model, SAMPLES, seed=seed, progress=False)
    nfe = plan_for(model).nfe
    note = f"{recipe.STEPS} steps, {model.default_solver!r}, NFE {nfe}"
    results.append_all(
        BENCHMARK, f"rotation, seed {seed}", statistics_of(x, held_out(SAMPLES)), note
    )


def summary() -> None:
    """Record mean and range over the seeds of the rotation."""
    rows = results.values(BENCHMARK)
    metrics_of = [k.removeprefix("rotation, seed 0: ") for k in rows if "rotation, seed 0: " in k]
    for metric in metrics_of:
        found = [rows[f"rotation, seed {seed}: {metric}"] for seed in SEEDS]
        note = f"{len(SEEDS)} seeds, from {min(found):.4g} to {max(found):.4g}"
        results.append_all(BENCHMARK, "rotation, mean", {metric: statistics.mean(found)}, note)


def gaussian() -> None:
    """Record what the shipped baseline samples, with its default solver."""
    model = fastmsgm.load("cauchy-vp")
    x = fastmsgm.sample(model, OF_BASELINES, seed=0, progress=False)
    nfe = plan_for(model).nfe
    note = f"{len(x)} samples, {model.default_solver!r}, NFE {nfe}"
    results.append_all(
        BENCHMARK, "VP, sliced score matching", statistics_of(x, held_out(SAMPLES)), note
    )


def baseline(name: str) -> None:
    """Train a baseline and record what each sampler gives."""
    model = cauchy_baselines.train(name)
    for sampler, (solver, steps) in cauchy_baselines.samplers_of(name).items():
        x = fastmsgm.sample(model, OF_BASELINES, solver=solver, steps=steps, progress=False)
        note = f"{recipe.STEPS} steps, {len(x)} samples, {solver!r}"
        results.append_all(
            BENCHMARK, f"{name}, {sampler}", statistics_of(x, held_out(SAMPLES)), note
        )


def main() -> None:
    """Measure what the results do not hold yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", choices=("rotation", "baselines"), help="one half of the runs")
    only = parser.parse_args().only
    torch.set_num_threads(1)
    if only != "baselines":
        if not is_done("floor"):
            floors()
        for seed in SEEDS:
            if not is_done(f"rotation, seed {seed}"):
                rotation(seed)
        if not is_done("rotation, mean"):
            summary()
    if only != "rotation":
        for name in cauchy_baselines.MODELS:
            if not is_done(f"{name}, {next(iter(cauchy_baselines.SAMPLERS))}"):
                baseline(name)
        if not is_done("VP, sliced score matching"):
            gaussian()


if __name__ == "__main__":
    main()
