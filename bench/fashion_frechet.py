"""The Frechet distance of Fashion-MNIST samples to the 10,000 test images.

In the classifier's 128 features. Each of these appends rows to the results:

    python -m bench.fashion_frechet --samples samples.npy --name gbm-dpm++2m --nfe 20
    python -m bench.fashion_frechet --floor

The floor is the distance of real images, from the half of the training set that the classifier
never saw. It depends on the number of images: compare samples with the floor of their own number.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from bench.classifier import Classifier, features, half_split, load_classifier
from bench.harness import results
from fastmsgm import data
from fastmsgm.evaluation.metrics import frechet_distance

BENCHMARK = "fashion_frechet"
FLOOR_IMAGES, FLOOR_SUBSET = 10_000, 1_000


def as_images(samples: Tensor) -> Tensor:
    """Return samples as image files store them: (n, 1, 28, 28) in [0, 1], in 256 grey levels.

    Args:
        samples: (n, 1, 28, 28) or (n, 28, 28).

    Raises:
        ValueError: Another shape.
    """
    if samples.shape[1:] not in ((1, 28, 28), (28, 28)):
        raise ValueError(
            f"samples must have shape (n, 1, 28, 28) or (n, 28, 28), got {tuple(samples.shape)}"
        )
    return (samples.reshape(-1, 1, 28, 28).clamp(0, 1) * 255).round() / 255


def floors(network: Classifier, reference: Tensor) -> tuple[float, Tensor]:
    """Return the distance of 10,000 unseen images, and those of their ten subsets of 1,000."""
    _, unseen = half_split()
    real = features(data.fashion_mnist("train")[unseen[:FLOOR_IMAGES]], network)
    subsets = [frechet_distance(subset, reference) for subset in real.split(FLOOR_SUBSET)]
    return frechet_distance(real, reference), torch.tensor(subsets)


def record(quantity: str, value: float, note: str) -> None:
    """Print one distance and append it to the results."""
    print(f"{quantity}: {value:.4f} ({note})")
    results.append(benchmark=BENCHMARK, quantity=quantity, value=value, unit="feature^2", note=note)


def main() -> None:
    """Measure what the command line asks for and record it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--samples", type=Path, help=".npy, float (n, 1, 28, 28) or (n, 28, 28), in [0, 1]"
    )
    what.add_argument(
        "--floor",
        action="store_true",
        help="measure real images instead: 10,000, and subsets of 1,000",
    )
    parser.add_argument("--name", help="how the samples were made: the row's quantity")
    parser.add_argument("--nfe", type=int, help="network calls per sample")
    args = parser.parse_args()
    if args.samples and (args.name is None or args.nfe is None):
        parser.error("--samples needs --name and --nfe")

    network = load_classifier()
    reference = features(data.fashion_mnist("test"), network)
    if args.floor:
        whole, subsets = floors(network, reference)
        record(
            f"floor, {FLOOR_IMAGES} images",
            whole,
            "unseen half of the training set against the test set",
        )
        note = f"mean of {len(subsets)} disjoint subsets, standard deviation {subsets.std():.4f}"
        record(f"floor, {FLOOR_SUBSET} images", subsets.mean().item(), note)
    else:
        samples = as_images(data.load(args.samples))
        distance = frechet_distance(features(samples, network), reference)
        record(
            args.name,
            distance,
            f"{len(samples)} samples, {args.nfe} network calls each",
        )


if __name__ == "__main__":
    main()
