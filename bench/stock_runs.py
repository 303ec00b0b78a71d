"""Daily returns of 20 stocks: tails of returns and of a portfolio, against years held out.

Models, data and training are those of train/stocks.py: one perceptron, 4,000 steps of 256, the
returns of 1990 to 2015. 100,000 samples of each model, 20,000 of VP, against the 1,760 days of 2016
to 2022:

    returns     P(|r| > q) / P_test(|r| > q) over all stocks, q what 1 % and 0.1 % of the test
                exceed, r standardised
    portfolio   of equal weights: its 99 % value at risk and expected shortfall, in per cent of its
                value, and P(loss > q) / P_test(loss > q), q the value at risk of the test

    python -m bench.stock_runs    skips finished rows; a stopped training resumes

"historical" samples the training years themselves. The standard errors of the test are of 200
block bootstraps (blocks of 20 days). Rows are the mean of three seeds. With the samples of a run in
the cache it draws docs/images/stocks.png.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastmsgm
from bench.harness import results
from fastmsgm import data
from fastmsgm.edm import EDMHeun
from fastmsgm.evaluation import plots
from train import stocks as recipe

BENCHMARK = "stock_runs"
CACHE = Path(__file__).parent / "cache" / BENCHMARK
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "stocks.png"
SEEDS, SAMPLES, LEVEL = (0, 1, 2), 100_000, 0.99
TAILS = {"1 %": 0.01, "0.1 %": 0.001}
BLOCK, BOOTSTRAPS = 20, 200
MODELS: dict[str, tuple[str, int, dict[str, Any]]] = {  # row -> model, n, arguments of sample
    "rotation": ("rotation", SAMPLES, {}),
    "EDM": ("edm", SAMPLES, {"solver": EDMHeun(), "steps": 18}),
    "t-EDM": ("t-edm", SAMPLES, {"solver": EDMHeun(), "steps": 18}),
    "VP, sliced score matching": ("vp", SAMPLES // 5, {"steps": 64}),
}


def portfolio_loss(x: Tensor) -> Tensor:
    """Return the loss of equal weights, (n,), in per cent, of standardised returns (n, 20)."""
    growth = torch.exp(x.double() * recipe.scale() / 100)
    return 100 * (1 - growth.mean(1))


def statistics_of(x: Tensor, test: Tensor) -> dict[str, float]:
    """Return the statistics of standardised returns x (n, 20)."""
    values = {}
    for name, share in TAILS.items():
        limit = test.abs().flatten().quantile(1 - share)
        exceeded, expected = ((y.abs() > limit).double().mean() for y in (x, test))
        values[f"returns beyond the test's {name}, relative"] = float(exceeded / expected)
    loss, truth = portfolio_loss(x), portfolio_loss(test)
    at_risk, limit = loss.quantile(LEVEL), truth.quantile(LEVEL)
    values["portfolio's value at risk"] = float(at_risk)
    values["portfolio's expected shortfall"] = float(loss[loss >= at_risk].mean())
    ratio = (loss > limit).double().mean() / (truth > limit).double().mean()
    values["losses beyond the test's value at risk, relative"] = float(ratio)
    return values


def bootstrap_errors(test: Tensor) -> dict[str, float]:
    """Return the standard errors of the test's own statistics, by blocks of successive days."""
    generator = torch.Generator().manual_seed(0)
    found: dict[str, list[float]] = {}
    for _ in range(BOOTSTRAPS):
        starts = torch.randint(len(test) - BLOCK, (len(test) // BLOCK,), generator=generator)
        days = (starts[:, None] + torch.arange(BLOCK)).flatten()
        for quantity, value in statistics_of(test[days], test).items():
            found.setdefault(quantity, []).append(value)
    return {quantity: statistics.stdev(values) for quantity, values in found.items()}


def sample_file(name: str, seed: int) -> Path:
    """Return the path of the samples of a model."""
    return CACHE / f"{MODELS[name][0]}-{seed}.npy"


def samples_of(name: str, seed: int) -> Tensor:
    """Return samples of a model, which are kept in the cache; it is trained where it is not yet."""
    key, n, options = MODELS[name]
    path = sample_file(name, seed)
    if path.is_file():
        return data.load(path)
    model = recipe.RECIPE.train(key, CACHE / f"{key}-{seed}", seed=seed)
    return fastmsgm.sample(model, n, seed=seed, batch_size=10_000, out=path, **options)


def draw(sets: dict[str, Tensor]) -> None:
    """Write the survival functions of |returns| and of the portfolio's loss."""
    picture = plots.figure(figsize=(11, 4.4), layout="constrained")
    colors = ("black", "dimgray", "tab:blue", "tab:orange", "tab:green", "tab:red")
    panels = picture.subplots(1, 2)
    for panel, what, of in zip(
        panels,
        ("|return| (standard deviations)", "loss of the portfolio (%)"),
        (lambda x: x.abs().flatten(), portfolio_loss),
        strict=True,
    ):
        for (name, x), color in zip(sets.items(), colors, strict=False):
            ordered = of(x).double().sort(descending=True).values
            share = torch.arange(1, len(ordered) + 1).double() / len(ordered)
            kept = (ordered > (1 if what.startswith("|") else 0.5)) & (share * len(ordered) >= 5)
            shape = {"linewidth": 2.5} if "2016" in name else {"linewidth": 1.2}
            panel.loglog(ordered[kept], share[kept], color=color, label=name, **shape)
        panel.set(xlabel=what, ylabel="share beyond", ylim=(1e-5, 1))
    panels[0].legend(loc="lower left", fontsize=8)
    picture.savefig(PICTURE, dpi=100)


def main() -> None:
    """Train and measure what is not there yet."""
    torch.set_num_threads(1)
    test, history = recipe.returns("test"), recipe.returns()
    done = {quantity.partition(": ")[0] for quantity in results.finished(BENCHMARK)}
    if "test" not in done:
        errors = bootstrap_errors(test)
        for quantity, value in statistics_of(test, test).items():
            results.append_all(
                BENCHMARK, "test", {quantity: value}, f"standard error {errors[quantity]:.3g}"
            )
    if "historical" not in done:
        results.append_all(
            BENCHMARK, "historical", statistics_of(history, test), f"{len(history)} days"
        )
    for name, (_, n, _) in MODELS.items():
        if name in done:
            continue
        found = [statistics_of(samples_of(name, seed), test) for seed in SEEDS]
        for quantity in found[0]:
            values = [f[quantity] for f in found]
            spread = f"from {min(values):.4g} to {max(values):.4g}"
            note = f"mean of {len(SEEDS)} seeds, {spread}, {n} samples each"
            results.append_all(BENCHMARK, name, {quantity: statistics.mean(values)}, note)
    if all(sample_file(name, 0).is_file() for name in MODELS):
        sets = {"2016 to 2022, held out": test, "1990 to 2015, training": history}
        draw(sets | {name: samples_of(name, 0) for name in MODELS})


if __name__ == "__main__":
    main()
