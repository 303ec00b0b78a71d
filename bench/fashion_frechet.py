"""The Frechet distance of Fashion-MNIST samples to the 10,000 test images, in the classifier's 128 features.

    python bench/fashion_frechet.py --samples samples.npy --name gbm-dpm++2m --calls 20
    python bench/fashion_frechet.py --floor

Each adds rows to the results. The floor is the distance of real images, from the half of the training set that the
classifier never saw. It depends on the number of images: compare samples with the floor of their own number.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import results
import torch
from fashion_classifier import Classifier, features, half_split, load_classifier
from torch import Tensor

from fastmsgm import data
from fastmsgm.metrics import frechet_distance

BENCHMARK = "fashion_frechet"
FLOOR_IMAGES, FLOOR_DRAW = 10_000, 1_000


def as_images(samples: Tensor) -> Tensor:
    """Samples (n, 1, 28, 28) or (n, 28, 28) as image files hold them: in [0, 1], in the data's 256 grey levels."""
    if samples.shape[1:] not in ((1, 28, 28), (28, 28)):
        raise ValueError(f"samples must have shape (n, 1, 28, 28) or (n, 28, 28), got {tuple(samples.shape)}")
    return (samples.reshape(-1, 1, 28, 28).clamp(0, 1) * 255).round() / 255


def floors(network: Classifier, reference: Tensor) -> tuple[float, Tensor]:
    """The distance of 10,000 unseen training images, and those of their ten disjoint draws of 1,000."""
    _, other = half_split()
    real = features(data.fashion_mnist("train")[other[:FLOOR_IMAGES]], network)
    draws = [frechet_distance(draw, reference) for draw in real.split(FLOOR_DRAW)]
    return frechet_distance(real, reference), torch.tensor(draws)


def record(quantity: str, value: float, note: str) -> None:
    """Print one distance and add it to the results."""
    print(f"{quantity}: {value:.4f} ({note})")
    results.append(benchmark=BENCHMARK, quantity=quantity, value=value, unit="feature^2", note=note)


def main() -> None:
    """Parse the command line, measure, record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--samples", type=Path, help=".npy, float (n, 1, 28, 28) or (n, 28, 28), in [0, 1]")
    what.add_argument("--floor", action="store_true", help="measure real images instead: 10,000, and draws of 1,000")
    parser.add_argument("--name", help="what made the samples: the row's quantity")
    parser.add_argument("--calls", type=int, help="network calls per sample")
    arguments = parser.parse_args()
    if arguments.samples and (arguments.name is None or arguments.calls is None):
        parser.error("--samples needs --name and --calls")

    network = load_classifier()
    reference = features(data.fashion_mnist("test"), network)
    if arguments.floor:
        whole, draws = floors(network, reference)
        record(f"floor, {FLOOR_IMAGES} images", whole, "unseen half of the training set against the test set")
        note = f"mean of {len(draws)} disjoint draws, standard deviation {draws.std():.4f}"
        record(f"floor, {FLOOR_DRAW} images", draws.mean().item(), note)
    else:
        samples = as_images(data.load(arguments.samples))
        distance = frechet_distance(features(samples, network), reference)
        record(arguments.name, distance, f"{len(samples)} samples, {arguments.calls} network calls each")


if __name__ == "__main__":
    main()
