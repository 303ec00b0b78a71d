"""Correlated Cauchy in 4 dimensions at equal training time: the paper's recipe, and ours.

The same perceptron (3 x 128), batch 256, Adam 1e-3, EMA 0.999, five minutes of one core each, 3 seeds; 20,000 samples.

    ours     isotropic noise, denoising score matching; spherical DPM-Solver++(2M), 20 calls
    paper    dense G, sliced score matching on paths of 16 or 128 forward steps; RK4 and Heun of 128 steps

    python bench/cauchy_arms.py        resumes: finished rows are skipped

Distances are sliced Wasserstein-2 of u log(1 + r / median), of the directions u alone, and the squared MMD. Time is
CPU time of the one thread, so what else the machine does takes nothing from it.
"""

from __future__ import annotations

import argparse
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
SECONDS, BATCH, SAMPLES, TRAINING = 300.0, 256, 20_000, 100_000
ARMS = ("ours", "paper, 16 forward steps", "paper, 128 forward steps")


def train(arm: str, seed: int, data: Tensor, seconds: float) -> tuple[fastmsgm.RotationModel, int]:
    """The arm's network after its budget, averaged, in a model that holds the prior; and its iterations."""
    torch.manual_seed(seed)
    net = MLP(4, conditions=2)
    model = fastmsgm.RotationModel.for_data(net, fastmsgm.Rotation(), data)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.999))
    centre, spread = float(model.log_norms.mean()), float(model.log_norms.std(correction=0))
    g = msgm_authors.dense_tensor(4, seed)
    stream, steps, began = rng.stream(seed), 0, time.process_time()
    while time.process_time() - began < seconds:
        batch = data[torch.randint(len(data), (BATCH,))]
        if arm == "ours":
            loss = losses.loss(model, batch, stream, steps)
        else:
            loss = msgm_authors.loss(net, g, batch, int(arm.split()[1]), centre, spread)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(net)
        steps += 1
    model.net = average.module.eval()
    return model, steps


def draws(arm: str, model: fastmsgm.RotationModel, seed: int) -> dict[str, Tensor]:
    """20,000 samples by each of the arm's samplers."""
    if arm == "ours":
        return {"DPM-Solver++(2M), 20 calls": fastmsgm.sample(model, SAMPLES, steps=20, seed=seed, progress=False)}
    centre, spread = float(model.log_norms.mean()), float(model.log_norms.std(correction=0))
    g = msgm_authors.dense_tensor(4, seed)
    torch.manual_seed(seed)
    norms = model.prior.draw(SAMPLES, rng.stream(seed))
    return {
        f"{name}, 128 steps": msgm_authors.sample(model.net, g, norms, 128, method, centre, spread)
        for name, method in (("RK4", "rk4"), ("Heun", "heun"))
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


def record(label: str, samples: Tensor, test: Tensor, note: str) -> None:
    for metric, (value, more) in distances(samples, test).items():
        print(f"{label}: {metric} {value:.4g} {more}", flush=True)
        results.append(
            benchmark=BENCHMARK, quantity=f"{label}: {metric}", value=value, unit=metric,
            note="; ".join(filter(None, (note, more))),
        )  # fmt: skip


def main() -> None:
    """Train and measure what is not measured yet, one arm and seed at a time."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for seed in range(args.seeds):
        data = simulated.correlated_cauchy(TRAINING, 4, seed=100 + seed)
        test, other = (simulated.correlated_cauchy(SAMPLES, 4, seed=s + seed) for s in (200, 300))
        done = results.finished(BENCHMARK)
        if f"two test sets, seed {seed}: MMD^2" not in done:
            record(f"two test sets, seed {seed}", other, test, "the floor")
        for arm in ARMS:
            names = {"ours": ("DPM-Solver++(2M), 20 calls",)}.get(arm, ("RK4, 128 steps", "Heun, 128 steps"))
            if all(f"{arm}, {name}, seed {seed}: MMD^2" in done for name in names):
                continue
            model, steps = train(arm, seed, data, SECONDS)
            for name, samples in draws(arm, model, seed).items():
                if f"{arm}, {name}, seed {seed}: MMD^2" not in done:
                    note = f"{steps} iterations in {SECONDS:.0f} s of one core"
                    record(f"{arm}, {name}, seed {seed}", samples, test, note)


if __name__ == "__main__":
    main()
