"""The solvers of 3, 4, 5, 6 and 8 network calls that are shipped with "fashion-gbm".

    python -m fastmsgm.recipes.fashion_solvers --out runs/fashion-gbm-fitted [--smoke]

Neither paper has them. Expected figure: a Frechet distance of 1.57 with 5 network calls, in the
features of the bench's classifier (docs/solvers.md; not FID). About half an hour on 2 cores. A
smoke run fits one table on random images.

The features of the loss are those of a classifier that is trained here, on the half of the training
set that the benchmark's classifier never sees. Tables that the folder holds already are kept, so a
stopped run resumes.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

import fastmsgm
from fastmsgm import data

STEPS = (3, 4, 5, 6, 8)
DEFAULT = 6  # the knee of the curve in docs/solvers.md
TEACHERS = {3: 8, 4: 8, 5: 8, 6: 8, 8: 12}  # network calls; more are no better here
TRAJECTORIES, ITERATIONS, BATCH = 1_000, 600, 10
EPOCHS = 5


def block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Return convolution, batch normalisation and SiLU."""
    convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.SiLU())


class Features(nn.Module):
    """A small classifier; its features are a 7 x 7 map and the mean of the last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Sequential(block(1, 24, 1), block(24, 48, 2), block(48, 96, 2))
        self.map = block(96, 96, 1)
        self.last = block(96, 128, 2)
        self.head = nn.Linear(128, 10)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the map (n, 96, 7, 7) and the mean (n, 128) of images (n, 1, 28, 28) in [0, 1]."""
        found = self.map(self.fine(images.contiguous(memory_format=torch.channels_last)))
        return found, self.last(found).mean((2, 3))

    def logits(self, images: Tensor) -> Tensor:
        """Return (n, 10)."""
        return self.head(self(images)[1])


def train_features(images: Tensor, labels: Tensor) -> Features:
    """Train the classifier by AdamW on half of the images, mirrored at random."""
    n = len(images)
    half = torch.randperm(n, generator=torch.Generator().manual_seed(0))[n // 2 :]
    torch.manual_seed(1)
    net = Features()
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.01)
    batches = [batch for _ in range(EPOCHS) for batch in half[torch.randperm(len(half))].split(128)]
    for step, batch in enumerate(batches):
        optimizer.param_groups[0]["lr"] = 1e-3 * (1 + math.cos(math.pi * step / len(batches)))
        x = images[batch]
        x = torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.flip(3), x)
        loss = nn.functional.cross_entropy(net.logits(x), labels[batch], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval().requires_grad_(False)


def main(arguments: list[str] | None = None) -> None:
    """Fit the tables that are not there yet, and save the model with them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", help="folder of the checkpoint, default runs/fashion-gbm-fitted")
    parser.add_argument("--model", default="fashion-gbm", help="the model to begin with")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads")
    parser.add_argument("--smoke", action="store_true", help="one table, to see that it runs")
    args = parser.parse_args(arguments)
    folder = args.out or f"runs/fashion-gbm-fitted{'-smoke' if args.smoke else ''}"
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    begun = (Path(folder) / "model.safetensors").is_file()
    model = cast(fastmsgm.GBMModel, fastmsgm.load(folder if begun else args.model))
    if not begun:
        model.fitted.clear()
    todo = [steps for steps in STEPS[: 1 if args.smoke else None] if steps not in model.fitted]
    n, iterations, batch = (2, 1, 2) if args.smoke else (TRAJECTORIES, ITERATIONS, BATCH)
    features = None
    if todo:
        images, labels = (
            (torch.rand(64, 1, 28, 28), torch.arange(64) % 10)
            if args.smoke
            else data.fashion_mnist(labels=True)
        )
        features = train_features(images, labels)
    for steps in todo:
        fastmsgm.fit_solver(
            model,
            steps,
            teacher_steps=TEACHERS[steps],
            features=features,
            n=n,
            iterations=iterations,
            batch_size=batch,
        )
        model.default_steps = DEFAULT if DEFAULT in model.fitted else None
        model.save(folder, dtype=torch.float16)


if __name__ == "__main__":
    main()
