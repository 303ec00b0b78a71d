"""Error of the solvers alone: sampling with the exact score of a mixture of two log-normals.

    log x_0 = m_k + w_k z with probability p_k,    D(y, s) = E[log x_0 | log x_t = y]

In the plane D has a closed form, so there is no network error to hide the solver's. Every run
starts from exact samples of p_T (sigma = 0.8, T = 1; exact data as means, noised), which are the
same for all solvers of a seed.

Reported are sliced Wasserstein distances of log x to a large exact sample: mean and standard error
over seeds. The floor is the distance of as many exact samples. Compare W1: if the random share of
a mode is off by e, that costs e in W1 but sqrt(e) in W2, which hides the differences between
solvers.

    python -m bench.exact_score [--seeds 5] [--samples 20000]
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.harness import results
from fastmsgm import GBM, GBMModel, LogNormalPrior
from fastmsgm.evaluation.metrics import sliced_wasserstein
from fastmsgm.sampling import plan_for, sample
from fastmsgm.solvers import (
    ERSDE2,
    PUBLISHED,
    DaleLangevin,
    DPMSolverPP2M,
    Heun,
    SignAgnostic,
    Solver,
)

SIGMA, PAPER_STEPS = 0.8, 1000
REFERENCE, PROJECTIONS = 10, 64  # reference samples per measured sample; directions
MULTISTEP = ("dpm++2m, NFE 20", "er-sde-2, NFE 20")
FINE, PUBLISHED_RUN = (
    "dale-langevin, NFE 1000, delta 1/N",
    "dale-langevin, NFE 1000, fashion-mnist",
)


@dataclass(frozen=True)
class Mixture:
    """Isotropic Gaussians in log x.

    Args:
        weights: (k,) probabilities.
        means: (k, d) means, within [log 1, log 2] like pixels shifted by 1.
        widths: (k,) standard deviations.
    """

    weights: tuple[float, ...] = (0.7, 0.3)
    means: tuple[tuple[float, ...], ...] = ((0.10, 0.20), (0.60, 0.50))
    widths: tuple[float, ...] = (0.05, 0.10)

    def sample(self, n: int, seed: int) -> Tensor:
        """Return n exact samples x_0, (n, d) float32."""
        generator = torch.Generator().manual_seed(seed)
        k = torch.multinomial(torch.tensor(self.weights), n, replacement=True, generator=generator)
        means, widths = torch.tensor(self.means), torch.tensor(self.widths)
        z = torch.randn(n, means.shape[1], generator=generator)
        return torch.exp(means[k] + widths[k, None] * z)

    def score(self, y: Tensor, s: Tensor) -> Tensor:
        """Return grad_y log p(y) of log x at noise levels s (n,), for y (n, d)."""
        means, widths, weights = (
            torch.tensor(v, device=y.device) for v in (self.means, self.widths, self.weights)
        )
        variance = widths**2 + s[:, None] ** 2  # (n, k)
        off = means - y[:, None]  # (n, k, d)
        logits = (
            torch.log(weights)
            - off.square().sum(2) / (2 * variance)
            - y.shape[1] / 2 * torch.log(variance)
        )
        return torch.einsum("nk,nkd->nd", torch.softmax(logits, 1) / variance, off)

    @property
    def log_std(self) -> float:
        """Root mean square of log x_0 over features and samples."""
        weights, means, widths = (
            torch.tensor(v).double() for v in (self.weights, self.means, self.widths)
        )
        return math.sqrt(float(weights @ (means.square().mean(1) + widths**2)))


class ExactNet(nn.Module):
    """The network of a perfectly trained model.

    Args:
        mixture: The distribution of the data.
        prediction: As of ``GBMModel``.
    """

    def __init__(self, mixture: Mixture, prediction: str) -> None:
        super().__init__()
        self.mixture, self.prediction = mixture, prediction

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        """Return f(c_in y, log(s) / 4) for a denoiser, f(x, t) for a score network.

        Args:
            x: (n, d) the network's input.
            c_noise: (n,) log(s) / 4 or t.
        """
        if self.prediction == "denoiser":
            s = torch.exp(4 * c_noise)[:, None]
            total = torch.sqrt(s**2 + self.mixture.log_std**2)
            y = x * total
            # (D - c_skip y) / c_out with D = y + s^2 score
            return (
                s * y / total + s * total * self.mixture.score(y, s[:, 0])
            ) / self.mixture.log_std
        q = self.mixture.score(torch.log(x), SIGMA * torch.sqrt(c_noise)) - 1
        return q if self.prediction == "hyvarinen" else q / x


def exact_model(mixture: Mixture, prediction: str, x0: Tensor, variance: float = 0.0) -> GBMModel:
    """Return a model with the exact network.

    Args:
        mixture: The distribution of the data.
        prediction: As of ``GBMModel``.
        x0: (n, d) exact samples; sample i of the model starts from x0[i], noised.
        variance: Added to s^2 there.
    """
    return GBMModel(
        ExactNet(mixture, prediction),
        GBM(SIGMA),
        LogNormalPrior(x0, variance),
        prediction=prediction,
        scale=torch.ones_like(x0[:1]),
        log_std=mixture.log_std,
    )


def sample_exact(
    mixture: Mixture, prediction: str, solver: Solver, steps: int, x0: Tensor, seed: int
) -> tuple[Tensor, int]:
    """Sample from the exact p_T with the exact network.

    Args:
        mixture: The distribution of the data.
        prediction: As of ``GBMModel``.
        solver: What is measured.
        steps: As of ``fastmsgm.sample``.
        x0: (n, d) exact samples, which are noised to samples of p_T.
        seed: Of the noise stream.

    Returns:
        (n, d) samples, and the network calls per sample.
    """
    model = exact_model(mixture, prediction, x0)
    plan = plan_for(model, solver, steps)
    # The paper's noise levels begin at (N - 1) T / N: the prior's variance makes up the rest.
    model.variance = SIGMA**2 - float(plan.noise_levels[0]) ** 2
    return sample(model, len(x0), steps=steps, solver=solver, seed=seed, progress=False), plan.nfe


def runs() -> dict[str, tuple[str, Solver, int]]:
    """Return prediction, solver and steps of every run by its name."""
    found: dict[str, tuple[str, Solver, int]] = {
        f"{name}, NFE {nfe}": ("denoiser", solver, steps)
        for name, solver, steps, nfe in (
            ("dpm++2m", DPMSolverPP2M(), 20, 20),
            ("er-sde-2", ERSDE2(), 20, 20),
            ("sde-dpm++2m", DPMSolverPP2M(eta=1.0), 20, 20),
            ("heun", Heun(), 10, 19),
        )
    }
    found[FINE] = ("hyvarinen", DaleLangevin(), PAPER_STEPS)
    found["sign-agnostic, NFE 1000, delta 1/N"] = ("hyvarinen", SignAgnostic(), PAPER_STEPS)
    for data in ("fashion-mnist", "mnist"):
        solver = PUBLISHED[data][0]
        found[f"dale-langevin, NFE 1000, {data}"] = ("hyvarinen", solver, PAPER_STEPS)
    return found


def sliced_w1(a: Tensor, b: Tensor) -> float:
    """Return the mean Wasserstein-1 distance over directions, for a (n, d) and b (k n, d)."""
    directions = torch.randn(a.shape[1], PROJECTIONS, generator=torch.Generator().manual_seed(0))
    directions = directions / directions.norm(dim=0)
    quantiles = (a @ directions).sort(0).values.repeat_interleave(len(b) // len(a), dim=0)
    return float((quantiles - (b @ directions).sort(0).values).abs().mean())


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """Return the mean and its standard error."""
    return float(values.mean()), float(values.std()) / math.sqrt(len(values))


def main() -> None:
    """Measure all solvers, print the distances and append them to the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=20_000)
    args = parser.parse_args()

    mixture = Mixture()
    exact = torch.log(mixture.sample(REFERENCE * args.samples, seed=2**31))
    distances: dict[str, list[tuple[float, float]]] = {}

    def measure(name: str, x: Tensor) -> None:
        y = torch.log(x.abs())
        w1, w2 = sliced_w1(y, exact), sliced_wasserstein(y, exact, PROJECTIONS)
        distances.setdefault(name, []).append((w1, w2))
        print(f"{name:42s} W1 {w1:.5f}  W2 {w2:.5f}", flush=True)

    for seed in range(args.seeds):
        x0 = mixture.sample(args.samples, seed)
        measure("floor", mixture.sample(args.samples, seed + 2**30))
        for name, (prediction, solver, steps) in runs().items():
            x, nfe = sample_exact(mixture, prediction, solver, steps, x0, seed)
            if f"NFE {nfe}" not in name:
                raise RuntimeError(f"{name}: took {nfe} network calls")
            measure(name, x)

    note = f"{args.seeds} seeds, {args.samples} samples, exact start p_T; standard error "
    for column, unit in enumerate(("sliced W1 of log x", "sliced W2 of log x")):
        table = {name: torch.tensor(pairs).double()[:, column] for name, pairs in distances.items()}
        print(unit)
        for name, values in table.items():
            mean, error = mean_and_error(values)
            print(f"  {name:42s} {mean:.5f} +- {error:.5f}")
            results.append(
                benchmark="exact_score",
                quantity=name,
                value=mean,
                unit=unit,
                note=f"{note}{error:.6f}",
            )
        for name in MULTISTEP:
            difference, error = mean_and_error(table[name] - table[FINE])
            ratio = float(table[PUBLISHED_RUN].mean() / table[name].mean())
            print(
                f"  {name}: {difference:+.5f} +- {error:.5f} from delta 1/N; "
                f"{ratio:.1f} x below the published delta"
            )


if __name__ == "__main__":
    main()
