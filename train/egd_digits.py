"""Exponentiated gradient, SGD and Adam on scikit-learn's digits: accuracy, and the law of the trained hidden weights.

python -m fastmsgm.recipes.egd_digits --out docs/images/egd.png        (needs the extras experiments and images)

One perceptron, split, budget and seeds for all, from two laws of initial weights: uniform (PyTorch's own), and one size
with random signs, so that any law of log|w| in the end is the training's work. Validation chooses the learning rates.
"""

from __future__ import annotations

import argparse

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn, optim

from fastmsgm import quantiles
from fastmsgm.optim import ExponentiatedGradient as EGD

SEEDS, EPOCHS, BATCH = 5, 40, 8
RATES = {EGD: (0.03, 0.1, 0.3, 1), optim.SGD: (0.01, 0.03, 0.1, 0.3), optim.Adam: (0.0003, 0.001, 0.003, 0.01)}


def train(law: str, kind: type, lr: float, seed: int) -> tuple[float, float, Tensor, Tensor]:
    """Accuracies in validation and test, and log|w| of the hidden weights before and after."""
    images, labels = (torch.as_tensor(array) for array in load_digits(return_X_y=True))
    split = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).split([1077, 360, 360])
    (x, y), *held_out = [(images[rows].float() / 16, labels[rows]) for rows in split]
    torch.manual_seed(seed)
    first, hidden, last = layers = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)
    for layer in layers if law == "one size" else ():
        layer.weight.data = layer.weight.data.sign() / 8
    before = hidden.weight.detach().abs().log().flatten()
    net = nn.Sequential(first, nn.Tanh(), nn.Dropout(0.2), hidden, nn.Tanh(), nn.Dropout(0.2), last)
    optimizer = kind(net.parameters(), lr=lr)
    for batch in (rows for _ in range(EPOCHS) for rows in torch.randperm(len(x)).split(BATCH)):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x[batch]), y[batch]).backward()
        optimizer.step()
    validation, test = (float((net.eval()(x).argmax(1) == y).float().mean()) for x, y in held_out)
    return validation, test, before, hidden.weight.detach().abs().log().flatten()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="docs/images/egd.png", help="the picture")
    panels, out = {}, parser.parse_args().out
    for law, kind in ((law, kind) for law in ("uniform", "one size") for kind in RATES):
        runs = {lr: [train(law, kind, lr, seed) for seed in range(SEEDS)] for lr in RATES[kind]}
        validation = {lr: round(sum(run[0] for run in runs[lr]) / SEEDS, 4) for lr in runs}
        print(f"{kind.__name__} from {law}: validation {validation}")
        chosen = runs[max(runs, key=lambda lr: validation[lr])]
        for _, test, *laws in chosen:
            print(f"    test {test:.4f}, Anderson-Darling", *(f"{quantiles.anderson_darling(x):.2f}" for x in laws))
        panels[f"{kind.__name__} from {law}"] = [after for *_, after in chosen]
    quantiles.plot(panels, out, columns=3)


if __name__ == "__main__":
    main()
