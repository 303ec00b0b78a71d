"""Classifiers of image sets; Frechet distances are measured in their 128 penultimate features.

An ordinary convolutional network, trained with cross-entropy on a seeded half of the training set.
The other half, which it never sees, gives the floor: the distance of real images from the test set.
To train one again:

    python -m bench.classifier --data mnist    (about five minutes on one core)
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bench.image_sets import SETS

FOLDER = Path(__file__).parent / "classifiers"
SEED = 0
EPOCHS, BATCH, LEARNING_RATE = 8, 128, 2e-3


class Classifier(nn.Module):
    """Three 3x3 convolutions (32, 64, 128 channels) with pooling, 128 features, 10 classes."""

    def __init__(self) -> None:
        super().__init__()
        channels = (1, 32, 64, 128)
        blocks = [
            nn.Sequential(
                nn.Conv2d(i, o, 3, padding=1, bias=False),
                nn.BatchNorm2d(o),
                nn.ReLU(),
                nn.MaxPool2d(2),
            )
            for i, o in itertools.pairwise(channels)
        ]
        self.convolutions = nn.Sequential(*blocks, nn.Flatten())
        self.dropout = nn.Dropout(0.25)
        self.hidden = nn.Linear(128 * 3 * 3, 128)
        self.head = nn.Linear(128, 10)

    def features(self, images: Tensor) -> Tensor:
        """Return the features (n, 128), after the ReLU, of images (n, 1, 28, 28) in [0, 1]."""
        return torch.relu(self.hidden(self.dropout(self.convolutions(images))))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.dropout(self.features(images)))


def half_split() -> tuple[Tensor, Tensor]:
    """Return indices into the training set: the classifier's half and the other, (30,000,) each."""
    order = torch.randperm(60_000, generator=torch.Generator().manual_seed(SEED))
    return order[:30_000], order[30_000:]


def load_classifier(name: str = "fashion-mnist") -> Classifier:
    """Return the trained network of a data set, in evaluation mode, float32."""
    path = FOLDER / f"{name}.safetensors"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist: run python -m bench.classifier --data {name} to train it"
        )
    network = Classifier()
    network.load_state_dict(load_file(path))
    return network.eval()


@torch.inference_mode()
def features(images: Tensor, network: Classifier | None = None) -> Tensor:
    """Return features (n, 128) float32 of images (n, 1, 28, 28) float32 in [0, 1]."""
    network = network or load_classifier()
    return torch.cat([network.features(batch) for batch in images.split(500)])


@torch.inference_mode()
def accuracy(network: Classifier, images: Tensor, labels: Tensor) -> float:
    """Return the share of images that the network classifies correctly."""
    predicted = network.eval().head(features(images, network)).argmax(1)
    return (predicted == labels).double().mean().item()


def train(name: str) -> Classifier:
    """Train by Adam on cross-entropy; where the set allows it, half of the images are mirrored."""
    images, labels = SETS[name].read("train", labels=True)
    half, _ = half_split()
    images, labels = images[half], labels[half]
    torch.manual_seed(SEED)
    network = Classifier()
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    steps = EPOCHS * (len(images) // BATCH)
    step = 0
    for epoch in range(EPOCHS):
        network.train()
        for batch in torch.randperm(len(images))[: len(images) // BATCH * BATCH].split(BATCH):
            x = images[batch]
            if SETS[name].mirrored:
                x = torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.flip(3), x)
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * step / steps))
            loss = nn.functional.cross_entropy(network(x), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
        print(f"epoch {epoch + 1} of {EPOCHS}", flush=True)
    return network.eval()


def main() -> None:
    """Train, store the weights in float16, and record the test accuracy of the stored weights."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", choices=tuple(SETS), required=True)
    name = parser.parse_args().data
    torch.set_num_threads(1)
    start = time.process_time()
    network = train(name)
    seconds = time.process_time() - start
    FOLDER.mkdir(exist_ok=True)
    # The batch counts of the normalisation layers stay integers.
    save_file(
        {k: v.half() if v.is_floating_point() else v for k, v in network.state_dict().items()},
        FOLDER / f"{name}.safetensors",
    )
    images, labels = SETS[name].read("test", labels=True)
    record = {
        "test_accuracy": accuracy(load_classifier(name), images, labels),
        "training_images": len(half_split()[0]),
        "epochs": EPOCHS,
        "seed": SEED,
        "cpu_seconds": round(seconds, 1),
        "torch": torch.__version__,
    }
    (FOLDER / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
