"""Solvers alone: sampling error with the exact score, on a mixture of two log-normals in the plane.

    log x_0 = m_k + w_k z with probability p_k,    D(y, s) = E[log x_0 | log x_t = y] in closed form,

so that no network error hides the solver's. Every run starts from exact draws of p_T (sigma = 0.8, T = 1; exact data as
centres, noised), the same for all solvers of a seed. The figures are sliced Wasserstein distances of log x to a large
exact sample, and the floor is that of exact samples of the same number; mean and standard error over seeds. W1 is the
one to compare: a mode whose random weight is off by e costs e in W1 but sqrt(e) in W2, which hides the solvers.

    python bench/exact_score.py [--seeds 5] [--samples 20000]
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

import results
import torch
from torch import Tensor, nn

from fastmsgm import GBM, GBMModel, LogNormalPrior
from fastmsgm.metrics import sliced_wasserstein
from fastmsgm.sampling import plan_for, sample
from fastmsgm.solvers import ERSDE2, PUBLISHED, DaleLangevin, DPMSolverPP2M, Heun, SignAgnostic, Solver

SIGMA, LEVELS = 0.8, 1000
REFERENCE, PROJECTIONS = 10, 64  # exact samples for each one that is measured; directions
MULTISTEP = ("dpm++2m, 20 calls", "er-sde-2, 20 calls")
FINE, PUBLISHED_ARM = "dale-langevin, 1000 calls, delta 1/N", "dale-langevin, 1000 calls, fashion-mnist"


@dataclass(frozen=True)
class Mixture:
    """Isotropic Gaussians in log x: weights (k,), means (k, d), widths (k,)."""

    weights: tuple[float, ...] = (0.7, 0.3)
    means: tuple[tuple[float, ...], ...] = ((0.10, 0.20), (0.60, 0.50))  # within [log 1, log 2], as pixels shifted by 1
    widths: tuple[float, ...] = (0.05, 0.10)

    def draw(self, n: int, seed: int) -> Tensor:
        """n exact samples x_0, (n, d) float32."""
        generator = torch.Generator().manual_seed(seed)
        k = torch.multinomial(torch.tensor(self.weights), n, replacement=True, generator=generator)
        means, widths = torch.tensor(self.means), torch.tensor(self.widths)
        z = torch.randn(n, means.shape[1], generator=generator)
        return torch.exp(means[k] + widths[k, None] * z)

    def score(self, y: Tensor, s: Tensor) -> Tensor:
        """grad_y log p(y) of log x at noise level s; y: (n, d), s: (n,)."""
        means, widths, weights = (torch.tensor(v, device=y.device) for v in (self.means, self.widths, self.weights))
        variance = widths**2 + s[:, None] ** 2  # (n, k)
        off = means - y[:, None]  # (n, k, d)
        logits = torch.log(weights) - off.square().sum(2) / (2 * variance) - y.shape[1] / 2 * torch.log(variance)
        return torch.einsum("nk,nkd->nd", torch.softmax(logits, 1) / variance, off)

    @property
    def log_std(self) -> float:
        """Root mean square of log x_0 over features and samples."""
        weights, means, widths = (torch.tensor(v).double() for v in (self.weights, self.means, self.widths))
        return math.sqrt(float(weights @ (means.square().mean(1) + widths**2)))


class ExactNet(nn.Module):
    """The network that a perfectly trained model of this prediction would be."""

    def __init__(self, mixture: Mixture, prediction: str) -> None:
        super().__init__()
        self.mixture, self.prediction = mixture, prediction

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """f(c_in y, log(s) / 4) of a denoiser, f(x, t) of a score network; x: (n, d), c: (n,)."""
        if self.prediction == "denoiser":
            s = torch.exp(4 * c)[:, None]
            total = torch.sqrt(s**2 + self.mixture.log_std**2)
            y = x * total
            # (D - c_skip y) / c_out with D = y + s^2 score
            return (s * y / total + s * total * self.mixture.score(y, s[:, 0])) / self.mixture.log_std
        q = self.mixture.score(torch.log(x), SIGMA * torch.sqrt(c)) - 1
        return q if self.prediction == "hyvarinen" else q / x


def exact_model(mixture: Mixture, prediction: str, x0: Tensor, variance: float = 0.0) -> GBMModel:
    """A model with the exact network; its sample i starts from x0[i], noised with variance s^2 + ``variance``."""
    return GBMModel(
        ExactNet(mixture, prediction), GBM(SIGMA), LogNormalPrior(x0, variance), prediction=prediction,
        scale=torch.ones_like(x0[:1]), log_std=mixture.log_std,
    )  # fmt: skip


def draw(mixture: Mixture, prediction: str, solver: Solver, steps: int, x0: Tensor, seed: int) -> tuple[Tensor, int]:
    """Samples that start from the exact p_T, one for each of the exact draws x0, and the network calls of each."""
    model = exact_model(mixture, prediction, x0)
    plan = plan_for(model, solver, steps)
    # The paper's levels begin at (N - 1) T / N: what is missing to T goes into the prior's variance.
    model.variance = SIGMA**2 - float(plan.levels[0]) ** 2
    return sample(model, len(x0), steps=steps, solver=solver, seed=seed, progress=False), plan.calls


def arms() -> dict[str, tuple[str, Solver, int]]:
    """Name -> prediction, solver and steps."""
    found: dict[str, tuple[str, Solver, int]] = {
        f"{name}, {calls} calls": ("denoiser", solver, steps)
        for name, solver, steps, calls in (
            ("dpm++2m", DPMSolverPP2M(), 20, 20),
            ("er-sde-2", ERSDE2(), 20, 20),
            ("sde-dpm++2m", DPMSolverPP2M(eta=1.0), 20, 20),
            ("heun", Heun(), 10, 19),
        )
    }
    found[FINE] = ("hyvarinen", DaleLangevin(), LEVELS)
    found["sign-agnostic, 1000 calls, delta 1/N"] = ("hyvarinen", SignAgnostic(), LEVELS)
    for data in ("fashion-mnist", "mnist"):
        found[f"dale-langevin, 1000 calls, {data}"] = ("hyvarinen", PUBLISHED[data][0], LEVELS)
    return found


def sliced_w1(a: Tensor, b: Tensor) -> float:
    """The mean over directions of the Wasserstein-1 distance; a: (n, d), b: (k n, d)."""
    directions = torch.randn(a.shape[1], PROJECTIONS, generator=torch.Generator().manual_seed(0))
    directions = directions / directions.norm(dim=0)
    quantiles = (a @ directions).sort(0).values.repeat_interleave(len(b) // len(a), dim=0)
    return float((quantiles - (b @ directions).sort(0).values).abs().mean())


def summary(values: Tensor) -> tuple[float, float]:
    """Mean and its standard error."""
    return float(values.mean()), float(values.std()) / math.sqrt(len(values))


def main() -> None:
    """Parse the command line, measure, print, record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=20_000)
    arguments = parser.parse_args()

    mixture = Mixture()
    exact = torch.log(mixture.draw(REFERENCE * arguments.samples, seed=2**31))
    distances: dict[str, list[tuple[float, float]]] = {}

    def measure(name: str, x: Tensor) -> None:
        y = torch.log(x.abs())
        distances.setdefault(name, []).append((sliced_w1(y, exact), sliced_wasserstein(y, exact, PROJECTIONS)))
        print(f"{name:42s} W1 {distances[name][-1][0]:.5f}  W2 {distances[name][-1][1]:.5f}", flush=True)

    for seed in range(arguments.seeds):
        x0 = mixture.draw(arguments.samples, seed)
        measure("floor", mixture.draw(arguments.samples, seed + 2**30))
        for name, (prediction, solver, steps) in arms().items():
            x, calls = draw(mixture, prediction, solver, steps, x0, seed)
            if f"{calls} calls" not in name:
                raise RuntimeError(f"{name}: made {calls} calls")
            measure(name, x)

    note = f"{arguments.seeds} seeds, {arguments.samples} samples, exact start p_T; standard error "
    for column, unit in enumerate(("sliced W1 of log x", "sliced W2 of log x")):
        table = {name: torch.tensor(pairs).double()[:, column] for name, pairs in distances.items()}
        print(unit)
        for name, values in table.items():
            mean, error = summary(values)
            print(f"  {name:42s} {mean:.5f} +- {error:.5f}")
            results.append(benchmark="exact_score", quantity=name, value=mean, unit=unit, note=f"{note}{error:.6f}")
        for name in MULTISTEP:
            difference, error = summary(table[name] - table[FINE])
            ratio = float(table[PUBLISHED_ARM].mean() / table[name].mean())
            print(f"  {name}: {difference:+.5f} +- {error:.5f} from delta 1/N; {ratio:.1f} x below the published delta")


if __name__ == "__main__":
    main()
