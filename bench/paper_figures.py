"""The figures of MSGM's experiments, of rotations and additive baselines at equal steps.

The MMD as MSGM's authors report it, and the sliced Wasserstein distance, of 2,048 samples to as
many test samples:

    (a) against sampling steps                  correlated Cauchy vectors, d = 4
    (b) against optimizer steps and CPU time    correlated Cauchy vectors, d = 4
    (c) against dimension and data set          Cauchy, d = 2, 4, 8; Swiss roll; Lorenz-63, d = 16
    (d) against the number of training samples  correlated Cauchy vectors, d = 4

Every arm has a perceptron of 3 x 128, batch 256, 1,000 steps of Adam (learning rate 1e-3, 100 steps
of warm-up, cosine decay), EMA 0.995 and 3 seeds; no arm oversamples extremes. Rotations of ring and
dense noise simulate the forward process in 16 steps; for ring noise beta_max grows with d, so that
it mixes. On Cauchy data VP has the authors' scale, which normalises the rows of the mixing matrix.

    python -m bench.paper_figures            skips finished trainings, so it can be stopped
    python -m bench.paper_figures --write    docs/experiments/paper_figures.md, from results.csv
    python -m bench.paper_figures --smoke    everything in seconds, into bench/cache

The sliced distance of Cauchy data is that of u log(1 + r / median): a Cauchy variable has no second
moment. One thread.
"""

from __future__ import annotations

import argparse
import functools
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import fastmsgm
from bench import paper_figures_page as page
from bench.harness import results
from bench.paper_figures_rows import (
    ARMS,
    BENCHMARK,
    CAUCHY,
    DIMENSIONS,
    FULL,
    ISOTROPIC,
    MAIN,
    METRICS,
    MMD,
    SIMULATED,
    SLICED,
    SMOKE,
    Plan,
    Setting,
    floor_quantity,
    settings,
    time_quantity,
    trainings,
)
from fastmsgm.data import synthetic
from fastmsgm.evaluation import metrics
from fastmsgm.nets import MLP
from fastmsgm.rotation.objective import FORWARD_STEPS
from fastmsgm.sampling import plan_for
from fastmsgm.step import NonFiniteError
from train.recipe import baselines

CACHE = Path(__file__).parent / "cache" / BENCHMARK
LR, WARMUP, EMA, SIMULATED_STEPS, PROJECTIONS = 1e-3, 100, 0.995, 16, 128
TEST_SEED, FLOORS, TIMED_STEPS = 10_000, 4, 20
ROTATIONS = dict(
    zip((*ISOTROPIC, *SIMULATED), ("isotropic", "isotropic", "ring", "dense"), strict=True)
)
BASELINES = {"VP, SSM": "vp", "EDM": "edm", "t-EDM": "t-edm", "EDM, asinh": "edm-asinh"}


@functools.lru_cache(maxsize=8)
def load(data: str, n: int, seed: int) -> Tensor:
    """Return n samples of a data set, (n, d)."""
    if data in CAUCHY:
        return synthetic.correlated_cauchy(n, CAUCHY[data], seed=seed)
    return {"Swiss roll": synthetic.swiss_roll, "Lorenz-63": synthetic.lorenz63}[data](n, seed=seed)


def build(data: str, arm: str, x: Tensor) -> fastmsgm.ScoreModel:
    """Return an untrained model of training samples x."""
    d = DIMENSIONS[data]
    if arm in ROTATIONS:
        noise = ROTATIONS[arm]
        # Ring noise reaches uniform directions at an integrated beta of d^2 / 4.
        beta_max = max(20.0, d**2 / 2) if noise == "ring" else 20.0
        return fastmsgm.RotationModel.for_data(
            MLP(d, condition={"log_norm": 1}),
            fastmsgm.Rotation(noise=noise, beta_max=beta_max),
            x,
            objective=arm.rpartition(", ")[2].lower(),
            forward_steps=SIMULATED_STEPS if arm in SIMULATED else FORWARD_STEPS,
        )
    if arm == "VP, SSM" and data in CAUCHY:
        scale = synthetic.mixing(d).norm(dim=1)[None].float()
        return fastmsgm.VPModel(MLP(d), fastmsgm.VP(), torch.zeros_like(scale), scale)
    return baselines(lambda: MLP(d), heavy=data in CAUCHY)[BASELINES[arm]](x)


def distances(data: str, x: Tensor, test: Tensor) -> dict[str, float]:
    """Return the metrics of samples x (n, d) of a data set."""
    a, b = (compressed(y, test) for y in (x, test)) if data in CAUCHY else (x, test)
    return {MMD: metrics.msgm_mmd(x, test), SLICED: metrics.sliced_wasserstein(a, b, PROJECTIONS)}


def compressed(x: Tensor, test: Tensor) -> Tensor:
    """Return u log(1 + r / m) of vectors r u, where m is the median norm of test vectors."""
    r = x.double().norm(dim=1, keepdim=True)
    return x / r * torch.log1p(r / test.double().norm(dim=1).median())


def record(quantity: str, value: float, unit: str, note: str) -> None:
    """Print a figure and append it to the results."""
    print(f"{quantity}: {value:.4g} ({note})", flush=True)
    results.append(benchmark=BENCHMARK, quantity=quantity, value=value, unit=unit, note=note)


def run(data: str, arm: str, training: int, seed: int, plan: Plan) -> None:
    """Train a model and record its distances at the steps of the plan."""
    x, test = load(data, plan.training[-1], seed)[:training], load(data, plan.samples, TEST_SEED)
    wanted = settings(plan, data, arm, training)

    def measure(at: fastmsgm.TrainStep) -> None:
        for setting in wanted:
            if setting.trained == at.step:
                record_distances(setting, at.model, test, seed)

    torch.manual_seed(seed)
    fit(build(data, arm, x), x, plan.trained[-1], plan, seed, every=plan.trained[0], to=measure)


def fit(
    model: fastmsgm.ScoreModel,
    x: Tensor,
    steps: int,
    plan: Plan,
    seed: int = 0,
    every: int = 500,
    to: Callable[[fastmsgm.TrainStep], object] | None = None,
) -> None:
    """Train a model as every arm is trained; arguments as of ``fastmsgm.fit``."""
    fastmsgm.fit(
        model,
        x,
        steps=steps,
        batch_size=plan.batch_size,
        lr=LR,
        warmup=WARMUP,
        ema=EMA,
        tail=0.0 if model.keeps_norms else None,
        callback=to,
        every=every,
        seed=seed,
        progress=False,
    )


def record_distances(setting: Setting, model: fastmsgm.ScoreModel, test: Tensor, seed: int) -> None:
    """Sample a model and record its distances; infinity where a sample is not finite."""
    note = f"{len(test)} samples, {model.default_solver!r}"
    note += f", NFE {plan_for(model, steps=setting.sampled).nfe}"
    try:
        x = fastmsgm.sample(model, len(test), steps=setting.sampled, seed=seed, progress=False)
        found = distances(setting.data, x, test)
    except NonFiniteError as error:
        found = dict.fromkeys(METRICS, math.inf)
        note += f", {len(error.indices)} samples are not finite"
    for metric, value in found.items():
        record(setting.quantity(seed, metric), value, metric, note)


def floor(data: str, plan: Plan) -> None:
    """Record the mean distances of other test sets."""
    test = load(data, plan.samples, TEST_SEED)
    others = [load(data, plan.samples, TEST_SEED + k) for k in range(1, 1 + FLOORS)]
    found = [distances(data, x, test) for x in others]
    for metric in METRICS:
        value = statistics.mean(f[metric] for f in found)
        note = f"mean of {FLOORS} pairs of test sets of {plan.samples}"
        record(floor_quantity(data, metric), value, metric, note)


def times(plan: Plan) -> None:
    """Record the CPU milliseconds of an optimizer step of every arm, in interleaved rounds."""
    x = load(MAIN, plan.training[-1], 0)
    models = {arm: build(MAIN, arm, x) for arm in ARMS}
    found: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for _ in range(plan.rounds + 1):
        for arm, model in models.items():
            began = time.process_time()
            fit(model, x, TIMED_STEPS, plan)
            found[arm].append(1e3 * (time.process_time() - began) / TIMED_STEPS)
    for arm, values in found.items():
        note = f"batch {plan.batch_size}, one thread, median of {plan.rounds} interleaved rounds"
        record(time_quantity(arm), statistics.median(values[1:]), "ms", note)


def measure(plan: Plan) -> None:
    """Measure what the results do not hold yet."""
    for data in DIMENSIONS:
        if floor_quantity(data, METRICS[-1]) not in results.finished(BENCHMARK):
            floor(data, plan)
    if time_quantity(ARMS[-1]) not in results.finished(BENCHMARK):
        times(plan)
    for data, arm, training, seed in trainings(plan):
        done = results.finished(BENCHMARK)
        wanted = settings(plan, data, arm, training)
        if not all(s.quantity(seed, metric) in done for s in wanted for metric in METRICS):
            run(data, arm, training, seed, plan)


def main() -> None:
    """Measure what is not there yet, or write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--write", action="store_true", help="write the page from results.csv")
    what.add_argument("--smoke", action="store_true", help="seconds, to see that it runs")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.smoke:
        smoke(CACHE / "smoke")
    elif args.write:
        page.write(FULL)
    else:
        measure(FULL)


def smoke(folder: Path) -> None:
    """Measure the small plan and write its page, into a folder of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    results.RESULTS, page.PAGE, page.IMAGES = folder / "results.csv", folder / "page.md", folder
    results.RESULTS.unlink(missing_ok=True)
    measure(SMOKE)
    page.write(SMOKE)


if __name__ == "__main__":
    main()
