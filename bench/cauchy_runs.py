"""Correlated Cauchy in 4 dimensions at equal training time: the paper's recipe and ours.

All runs use the same perceptron (3 x 128), batch 256, Adam with a learning rate of 1e-3 and cosine
decay to 0, EMA 0.999, five minutes of one core and 3 seeds; 20,000 samples.

    ours     isotropic noise, denoising score matching; spherical DPM-Solver++(2M), NFE 20
    paper    dense G, sliced score matching on paths of 16 or 128 forward steps; RK4 and Heun with
             128 steps

    python -m bench.cauchy_runs        skips finished rows, so it can be stopped and resumed

Distances to a test set of 20,000 are sliced Wasserstein-2 of u log(1 + r / median) and of the
directions u alone, and the squared MMD. The floor is the mean over five other test sets. All runs
sample the same norms, so they differ in the directions. Time is CPU time of the one thread, which
other load on the machine hardly changes.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import fastmsgm
from bench.harness import msgm_authors, results
from fastmsgm import rng
from fastmsgm.data import synthetic
from fastmsgm.evaluation import metrics
from fastmsgm.nets import MLP

BENCHMARK = "cauchy_runs"
SECONDS, BATCH, LR, SAMPLES, TRAINING = 300.0, 256, 1e-3, 20_000, 100_000
OURS = "ours"
SAMPLERS = {
    OURS: ("DPM-Solver++(2M), NFE 20",),
    "paper, 16 forward steps": ("RK4, 128 steps", "Heun, 128 steps"),
    "paper, 128 forward steps": ("RK4, 128 steps", "Heun, 128 steps"),
}
ROW_BY_ROW = "paper, 16 forward steps, row by row"  # only timed


class Run:
    """The training of one network, and its samples.

    Args:
        name: A key of ``SAMPLERS``, or ``ROW_BY_ROW``.
        seed: Of the weights, the noise and the samples.
        data: (n, 4) the training set.
    """

    def __init__(self, name: str, seed: int, data: Tensor) -> None:
        self.name, self.seed, self.data, self.steps = name, seed, data, 0
        torch.manual_seed(seed)
        self.net = MLP(4, condition={"log_norm": 1})
        self.model = fastmsgm.RotationModel.for_data(self.net, fastmsgm.Rotation(), data)
        self.mean = float(self.model.log_norms.mean())
        self.std = float(self.model.log_norms.std(correction=0))
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=LR, fused=True)
        self.average = AveragedModel(self.net, multi_avg_fn=get_ema_multi_avg_fn(0.999))
        self.g, self.stream = msgm_authors.dense_tensor(4, seed), rng.stream(seed)

    def train(self, seconds: float) -> None:
        """Train for ``seconds`` of CPU time; the learning rate decays to 0."""
        began, spent = time.process_time(), 0.0
        while spent < seconds:
            self.optimizer.param_groups[0]["lr"] = (
                LR * (1 + math.cos(math.pi * spent / seconds)) / 2
            )
            self.step()
            spent = time.process_time() - began

    def step(self) -> None:
        """Take one optimizer step."""
        loss = self.loss(self.data[torch.randint(len(self.data), (BATCH,))])
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimizer.step()
        self.average.update_parameters(self.net)
        self.steps += 1

    def loss(self, batch: Tensor) -> Tensor:
        """Return the loss of a batch (n, 4)."""
        if self.name == OURS:
            losses = self.model.default_loss(self.model, batch, self.stream, self.steps)
            return losses.mean()
        row_by_row = self.name == ROW_BY_ROW
        perturb = msgm_authors.perturb_row_by_row if row_by_row else msgm_authors.perturb
        forward_steps = int(self.name.split()[1])
        return msgm_authors.loss(
            self.net, self.g, batch, forward_steps, self.mean, self.std, perturb
        )

    def samples(self) -> dict[str, Tensor]:
        """Return 20,000 samples by each of the run's samplers, with the averaged weights."""
        self.model.net = net = self.average.module.eval()
        if self.name == OURS:
            samples = fastmsgm.sample(self.model, SAMPLES, steps=20, seed=self.seed, progress=False)
            return dict(zip(SAMPLERS[self.name], (samples,), strict=True))
        torch.manual_seed(self.seed)
        norms = self.model.prior.sample(SAMPLES, self.stream)
        return {
            sampler: msgm_authors.sample(
                net, self.g, norms, 128, sampler.split(",")[0].lower(), self.mean, self.std
            )
            for sampler in SAMPLERS[self.name]
        }


def distances(samples: Tensor, test: Tensor) -> dict[str, tuple[float, str]]:
    """Return value and note of every metric."""
    median = test.norm(dim=1).median()

    def compressed(x: Tensor) -> Tensor:
        r = x.norm(dim=1, keepdim=True)
        return x / r * torch.log1p(r / median)

    a, b = compressed(samples), compressed(test)
    squared, error = metrics.mmd(a, b)
    at = torch.tensor([0.1, 1.0, 10.0, 100.0])
    model_tail, data_tail = (metrics.survival(x.norm(dim=1), at).tolist() for x in (samples, test))
    tails = zip(model_tail, data_tail, strict=True)
    survival = ", ".join(f"{m:.2g} ({d:.2g})" for m, d in tails)
    return {
        "sliced W2": (
            metrics.sliced_wasserstein(a, b),
            f"P(r > .1, 1, 10, 100): {survival}",
        ),
        "sliced W2 of directions": (
            metrics.sliced_wasserstein(metrics.directions(samples), metrics.directions(test)),
            "",
        ),
        "MMD^2": (squared, f"standard error {error:.2g}"),
    }


def record(label: str, values: dict[str, tuple[float, str]], note: str) -> None:
    """Print the metrics and append them to the results."""
    for metric, (value, more) in values.items():
        print(f"{label}: {metric} {value:.4g} {more}", flush=True)
        results.append(
            benchmark=BENCHMARK,
            quantity=f"{label}: {metric}",
            value=value,
            unit=metric,
            note="; ".join(filter(None, (note, more))),
        )


def floor(seed: int, test: Tensor, others: int = 5) -> None:
    """Record the distances of real data: the mean over other test sets."""
    sets = [
        synthetic.correlated_cauchy(SAMPLES, 4, seed=1000 + others * seed + k)
        for k in range(others)
    ]
    values = [distances(x, test) for x in sets]
    means = {
        metric: (
            statistics.mean(v[metric][0] for v in values),
            f"from {min(v[metric][0] for v in values):.3g}",
        )
        for metric in values[0]
    }
    record(f"two test sets, seed {seed}", means, f"the floor, mean of {others}")


def rates(data: Tensor, rounds: int = 100) -> None:
    """Record the CPU milliseconds of one iteration, in interleaved rounds.

    Of every run, and of the paper's recipe with its loop over the rows of a batch.
    """
    runs = {name: Run(name, 0, data) for name in (*SAMPLERS, ROW_BY_ROW)}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            began = time.process_time()
            run.step()
            times[name].append(1e3 * (time.process_time() - began))
    median = {name: statistics.median(values[rounds // 10 :]) for name, values in times.items()}
    for name in runs:
        note = f"batch {BATCH}, 1 thread, median of {rounds} interleaved rounds; "
        note += f"{median[name] / median[OURS]:.1f} times ours"
        results.append(
            benchmark=BENCHMARK,
            quantity=f"iteration, {name}",
            value=median[name],
            unit="ms",
            note=note,
        )
        print(f"iteration, {name}: {median[name]:.2f} ms, {note}")


def main() -> None:
    """Train and measure, one run and seed at a time, what the results do not hold yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    torch.set_num_threads(1)
    for seed in args.seeds:
        data = synthetic.correlated_cauchy(TRAINING, 4, seed=100 + seed)
        test = synthetic.correlated_cauchy(SAMPLES, 4, seed=200 + seed)
        done = results.finished(BENCHMARK)
        if f"iteration, {OURS}" not in done:
            rates(data)
        if f"two test sets, seed {seed}: MMD^2" not in done:
            floor(seed, test)
        for name, samplers in SAMPLERS.items():
            if all(f"{name}, {sampler}, seed {seed}: MMD^2" in done for sampler in samplers):
                continue
            run = Run(name, seed, data)
            run.train(SECONDS)
            for sampler, samples in run.samples().items():
                if f"{name}, {sampler}, seed {seed}: MMD^2" not in done:
                    note = f"{run.steps} iterations in {SECONDS:.0f} s of one core"
                    record(f"{name}, {sampler}, seed {seed}", distances(samples, test), note)


if __name__ == "__main__":
    main()
