"""Exponentiated gradient, SGD and Adam on scikit-learn's digits: accuracy and weight distribution.

    python -m fastmsgm.recipes.egd_digits --out docs/images/egd.png [--smoke]

"Dale meets Langevin" (arXiv 2510.02730), its claim that weights trained by exponentiated gradient
become log-normal. Expected figures are in docs/egd.md. Hours on 2 cores: 0.2, estimated from the
time of a step. Needs the extras ``experiments`` and ``images``.

All runs have the same perceptron, split, budget and seeds. The hidden weights start from one of two
distributions: uniform (PyTorch's default), or one size with random signs. From the second start,
the final distribution of log|w| comes from training alone. The learning rates are chosen by
validation accuracy.
"""

from __future__ import annotations

import argparse

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn, optim

from fastmsgm.evaluation import normality
from fastmsgm.optim import ExponentiatedGradient as EGD

SEEDS, EPOCHS, BATCH = 5, 40, 8
STARTS = ("uniform", "one size")
RATES = {
    EGD: (0.03, 0.1, 0.3, 1),
    optim.SGD: (0.01, 0.03, 0.1, 0.3),
    optim.Adam: (0.0003, 0.001, 0.003, 0.01),
}


def train(
    start: str, optimizer: type, lr: float, seed: int, epochs: int = EPOCHS
) -> tuple[float, float, Tensor, Tensor]:
    """Train a perceptron.

    Args:
        start: The distribution of the initial weights, one of ``STARTS``.
        optimizer: A key of ``RATES``.
        lr: Its learning rate.
        seed: Of weights, batches and dropout.
        epochs: Passes over the training set.

    Returns:
        Validation and test accuracy, and log|w| of the hidden weights before and after training.
    """
    images, labels = (torch.as_tensor(array) for array in load_digits(return_X_y=True))
    split = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).split(
        [1077, 360, 360]
    )
    (x, y), *held_out = [(images[part].float() / 16, labels[part]) for part in split]
    torch.manual_seed(seed)
    first, hidden, last = layers = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)
    for layer in layers if start == "one size" else ():
        layer.weight.data = layer.weight.data.sign() / 8
    before = hidden.weight.detach().abs().log().flatten()
    net = nn.Sequential(first, nn.Tanh(), nn.Dropout(0.2), hidden, nn.Tanh(), nn.Dropout(0.2), last)
    stepper = optimizer(net.parameters(), lr=lr)
    for batch in (part for _ in range(epochs) for part in torch.randperm(len(x)).split(BATCH)):
        stepper.zero_grad()
        nn.functional.cross_entropy(net(x[batch]), y[batch]).backward()
        stepper.step()
    validation, test = (float((net.eval()(x).argmax(1) == y).float().mean()) for x, y in held_out)
    return validation, test, before, hidden.weight.detach().abs().log().flatten()


def main(arguments: list[str] | None = None) -> None:
    """Train all runs, print accuracies and Anderson-Darling statistics, and plot the quantiles."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", help="path of the plot, default docs/images/egd.png")
    parser.add_argument("--smoke", action="store_true", help="one epoch of few runs")
    args, panels = parser.parse_args(arguments), {}
    out = args.out or ("egd-smoke.png" if args.smoke else "docs/images/egd.png")
    seeds, epochs, count = (1, 1, 1) if args.smoke else (SEEDS, EPOCHS, None)
    for start, optimizer in ((start, optimizer) for start in STARTS for optimizer in RATES):
        runs = {
            lr: [train(start, optimizer, lr, seed, epochs) for seed in range(seeds)]
            for lr in RATES[optimizer][:count]
        }
        validation = {lr: round(sum(run[0] for run in runs[lr]) / seeds, 4) for lr in runs}
        name = f"{optimizer.__name__} from {start}"
        print(f"{name}: validation {validation}")
        best = runs[max(runs, key=lambda lr: validation[lr])]
        for _, test, *logs in best:
            statistics = (f"{normality.anderson_darling(x):.2f}" for x in logs)
            print(f"    test {test:.4f}, Anderson-Darling", *statistics)
        panels[name] = [after for *_, after in best]
    normality.plot(panels, out, columns=3)


if __name__ == "__main__":
    main()
