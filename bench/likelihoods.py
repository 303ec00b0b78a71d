"""Held-out log-likelihoods: correlated Cauchy vectors, and bits per dimension of images.

2,000 vectors in 4 dimensions, of a seed that no model saw. Their exact density is known:
x = A c / 50 with independent Cauchy variables c. The models are

    rotation    "cauchy-rotation" as shipped; the norms' density is a KDE of log-norms with a
                Pareto tail
    VP          "cauchy-vp" as shipped
    baselines   EDM and t-EDM of cauchy_baselines.py at the same budget, trained once into a
                cache. Their flow in the noise level s is dx/ds = (x - D) / s, for Student-t noise
                as well, and starts at their smallest one

    python -m bench.likelihoods        skips finished rows and trained baselines

All by the exact divergence and Dormand-Prince steps with tolerances of 1e-4; VP, whose steps become
tiny at extremes, by 64 steps of RK4. Bits per dimension are those of "fashion-gbm" on the first
test images of Fashion-MNIST given their class, by 16 steps of RK4, which are within 0.001 of 64
steps on the first eight.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import torch
from torch import Tensor

from bench import cauchy_baselines
from bench.harness import results
from fastmsgm import data
from fastmsgm.data import synthetic
from fastmsgm.evaluation.bits import bits_per_dimension
from fastmsgm.evaluation.elbo import elbo
from fastmsgm.evaluation.likelihood import LogLikelihood, log_likelihood

BENCHMARK = "likelihoods"
VECTORS, IMAGES, SEED, TOLERANCE = 2_000, 128, 10_000, 1e-4
ADAPTIVE: dict[str, Any] = {"rtol": TOLERANCE, "atol": TOLERANCE}
MODELS: dict[str, dict[str, Any]] = {  # and how their flow is followed
    "cauchy-rotation": ADAPTIVE,
    "cauchy-vp": {"solver": "rk4", "steps": 64},
}


def truth(x: Tensor) -> Tensor:
    """Return the exact log-density of correlated Cauchy vectors (n, d)."""
    matrix = synthetic.mixing(x.shape[1]) / 50
    c = torch.linalg.solve(matrix, x.double().mT).mT
    return -torch.log(math.pi * (1 + c.square())).sum(1) - torch.linalg.slogdet(matrix)[1]


def record(quantity: str, result: LogLikelihood, exact: Tensor, note: str) -> None:
    """Print and append a mean log-likelihood, with what it lacks of the truth."""
    gap = exact - result.values
    error = float(gap.std()) / math.sqrt(len(gap))
    note += f"; truth {float(exact.mean()):.4f}, lacks {float(gap.mean()):.4f} +- {error:.4f}"
    note += f", median {float(gap.median()):.4f}"
    print(f"{quantity}: {result.mean:.4f}; {note}", flush=True)
    results.append(
        benchmark=BENCHMARK,
        quantity=quantity,
        value=result.mean,
        unit="nats",
        note=f"{len(gap)} held-out vectors, standard error {result.standard_error:.3f}; {note}",
    )


def vectors() -> None:
    """Record the log-likelihoods of the Cauchy models and baselines."""
    x = synthetic.correlated_cauchy(VECTORS, 4, seed=SEED)
    exact, done = truth(x), results.finished(BENCHMARK)
    for name, how in MODELS.items():
        if name not in done:
            result = log_likelihood(name, x, **how)
            record(name, result, exact, f"{result.settings['network_calls']:.0f} network calls")
        if f"{name}, ELBO" not in done:
            record(f"{name}, ELBO", elbo(name, x, draws=32), exact, "32 draws")
    for name in cauchy_baselines.MODELS:
        if name not in done:
            result = log_likelihood(cauchy_baselines.train(name), x, rtol=TOLERANCE, atol=TOLERANCE)
            record(name, result, exact, f"{result.settings['network_calls']:.0f} network calls")


def images() -> None:
    """Record the bits per dimension of Fashion-MNIST's test images."""
    quantity = "fashion-gbm, bits per dimension"
    if quantity in results.finished(BENCHMARK):
        return
    pictures, labels = data.fashion_mnist("test", labels=True)
    result = bits_per_dimension(
        "fashion-gbm", pictures[:IMAGES], label=labels[:IMAGES], solver="rk4", steps=16
    )
    print(quantity, result, flush=True)
    results.append(
        benchmark=BENCHMARK,
        quantity=quantity,
        value=result.mean,
        unit="bits",
        note=f"first {IMAGES} test images, one dequantisation and probe each, given the class; "
        f"standard error {result.standard_error:.3f}",
    )


def main() -> None:
    """Measure what the results do not hold yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    torch.set_num_threads(parser.parse_args().threads)
    vectors()
    images()


if __name__ == "__main__":
    main()
