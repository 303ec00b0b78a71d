"""Correlated Cauchy in 4 dimensions at equal training time: the paper's recipe, and ours.

The same perceptron (3 x 128), batch 256, Adam with 1e-3 falling to 0 as a cosine, EMA 0.999, five minutes of one core
each, 3 seeds; 20,000 samples.

    ours     isotropic noise, denoising score matching; spherical DPM-Solver++(2M), 20 calls
    paper    dense G, sliced score matching on paths of 16 or 128 forward steps; RK4 and Heun of 128 steps

    python bench/cauchy_arms.py        resumes: finished rows are skipped

Distances to a test set of 20,000 are sliced Wasserstein-2 of u log(1 + r / median), of the directions u alone, and the
squared MMD; the floor is the mean of five other test sets. All arms draw the same norms, so what they differ in are the
directions. Time is CPU time of the one thread, so what else the machine does takes little from it.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time

import msgm_authors
import results
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import fastmsgm
from fastmsgm import losses, metrics, rng, simulated
from fastmsgm.nets import MLP

BENCHMARK = "cauchy_arms"
SECONDS, BATCH, LR, SAMPLES, TRAINING = 300.0, 256, 1e-3, 20_000, 100_000
OURS = "ours"
SAMPLERS = {
    OURS: ("DPM-Solver++(2M), 20 calls",),
    "paper, 16 forward steps": ("RK4, 128 steps", "Heun, 128 steps"),
    "paper, 128 forward steps": ("RK4, 128 steps", "Heun, 128 steps"),
}


class Training:
    """An arm's network in training: ``step`` is one iteration."""

    def __init__(self, arm: str, seed: int, data: Tensor) -> None:
        self.arm, self.seed, self.data, self.steps = arm, seed, data, 0
        torch.manual_seed(seed)
        self.net = MLP(4, conditions=2)
        self.model = fastmsgm.RotationModel.for_data(self.net, fastmsgm.Rotation(), data)
        self.centre = float(self.model.log_norms.mean())
        self.spread = float(self.model.log_norms.std(correction=0))
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=LR, fused=True)
        self.average = AveragedModel(self.net, multi_avg_fn=get_ema_multi_avg_fn(0.999))
        self.g, self.stream = msgm_authors.dense_tensor(4, seed), rng.stream(seed)

    def run(self, seconds: float) -> None:
        """Iterations for so much CPU time, the learning rate falling to 0."""
        began, spent = time.process_time(), 0.0
        while spent < seconds:
            self.optimizer.param_groups[0]["lr"] = LR * (1 + math.cos(math.pi * spent / seconds)) / 2
            self.step()
            spent = time.process_time() - began

    def step(self) -> None:
        loss = self.loss(self.data[torch.randint(len(self.data), (BATCH,))])
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimizer.step()
        self.average.update_parameters(self.net)
        self.steps += 1

    def loss(self, batch: Tensor) -> Tensor:
        if self.arm == OURS:
            return losses.loss(self.model, batch, self.stream, self.steps)
        noising = msgm_authors.noised_by_rows if "row by row" in self.arm else msgm_authors.noised
        forward_steps = int(self.arm.split()[1])
        return msgm_authors.loss(self.net, self.g, batch, forward_steps, self.centre, self.spread, noising)

    def samples(self) -> dict[str, Tensor]:
        """20,000 by each of the arm's samplers, from the averaged network."""
        self.model.net = net = self.average.module.eval()
        if self.arm == OURS:
            samples = fastmsgm.sample(self.model, SAMPLES, steps=20, seed=self.seed, progress=False)
            return dict(zip(SAMPLERS[self.arm], (samples,), strict=True))
        torch.manual_seed(self.seed)
        norms = self.model.prior.draw(SAMPLES, self.stream)
        return {
            name: msgm_authors.sample(net, self.g, norms, 128, name.split(",")[0].lower(), self.centre, self.spread)
            for name in SAMPLERS[self.arm]
        }


def distances(samples: Tensor, test: Tensor) -> dict[str, tuple[float, str]]:
    """Value and note of every metric."""
    median = test.norm(dim=1).median()

    def compressed(x: Tensor) -> Tensor:
        r = x.norm(dim=1, keepdim=True)
        return x / r * torch.log1p(r / median)

    flat, reference = compressed(samples), compressed(test)
    squared, error = metrics.mmd(flat, reference)
    at = torch.tensor([0.1, 1.0, 10.0, 100.0])
    model_tail, data_tail = (metrics.survival(x.norm(dim=1), at).tolist() for x in (samples, test))
    tails = zip(model_tail, data_tail, strict=True)
    survival = ", ".join(f"{m:.2g} ({d:.2g})" for m, d in tails)
    return {
        "sliced W2": (metrics.sliced_wasserstein(flat, reference), f"P(r > .1, 1, 10, 100): {survival}"),
        "sliced W2 of directions": (
            metrics.sliced_wasserstein(metrics.directions(samples), metrics.directions(test)), "",
        ),
        "MMD^2": (squared, f"standard error {error:.2g}"),
    }  # fmt: skip


def record(label: str, values: dict[str, tuple[float, str]], note: str) -> None:
    for metric, (value, more) in values.items():
        print(f"{label}: {metric} {value:.4g} {more}", flush=True)
        results.append(
            benchmark=BENCHMARK, quantity=f"{label}: {metric}", value=value, unit=metric,
            note="; ".join(filter(None, (note, more))),
        )  # fmt: skip


def floor(seed: int, test: Tensor, others: int = 5) -> None:
    """What real data would get: the mean over other test sets."""
    sets = [simulated.correlated_cauchy(SAMPLES, 4, seed=1000 + others * seed + k) for k in range(others)]
    values = [distances(x, test) for x in sets]
    means = {
        metric: (statistics.mean(v[metric][0] for v in values), f"from {min(v[metric][0] for v in values):.3g}")
        for metric in values[0]
    }
    record(f"two test sets, seed {seed}", means, f"the floor, mean of {others}")


def rates(data: Tensor, rounds: int = 100) -> None:
    """CPU milliseconds of an iteration of each arm, and of the paper's as its code loops over rows, taken in turns."""
    arms = (*SAMPLERS, "paper, 16 forward steps, row by row")
    runs = {arm: Training(arm, 0, data) for arm in arms}
    times: dict[str, list[float]] = {arm: [] for arm in arms}
    for _ in range(rounds):
        for arm, run in runs.items():
            began = time.process_time()
            run.step()
            times[arm].append(1e3 * (time.process_time() - began))
    median = {arm: statistics.median(values[rounds // 10 :]) for arm, values in times.items()}
    for arm in arms:
        note = f"batch {BATCH}, 1 thread, median of {rounds} in turns; {median[arm] / median[OURS]:.1f} times ours"
        results.append(benchmark=BENCHMARK, quantity=f"iteration, {arm}", value=median[arm], unit="ms", note=note)
        print(f"iteration, {arm}: {median[arm]:.2f} ms, {note}")


def main() -> None:
    """Train and measure what is not measured yet, one arm and seed at a time."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    torch.set_num_threads(1)
    for seed in args.seeds:
        data = simulated.correlated_cauchy(TRAINING, 4, seed=100 + seed)
        test = simulated.correlated_cauchy(SAMPLES, 4, seed=200 + seed)
        done = results.finished(BENCHMARK)
        if f"iteration, {OURS}" not in done:
            rates(data)
        if f"two test sets, seed {seed}: MMD^2" not in done:
            floor(seed, test)
        for arm, names in SAMPLERS.items():
            if all(f"{arm}, {name}, seed {seed}: MMD^2" in done for name in names):
                continue
            training = Training(arm, seed, data)
            training.run(SECONDS)
            for name, samples in training.samples().items():
                if f"{arm}, {name}, seed {seed}: MMD^2" not in done:
                    note = f"{training.steps} iterations in {SECONDS:.0f} s of one core"
                    record(f"{arm}, {name}, seed {seed}", distances(samples, test), note)


if __name__ == "__main__":
    main()
