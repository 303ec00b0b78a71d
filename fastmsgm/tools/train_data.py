"""The data of ``fastmsgm train``: samples, labels, conditions, and what is held out."""

from __future__ import annotations

import argparse
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from fastmsgm import data
from fastmsgm.checks import check_conditions
from fastmsgm.data.files import BY_NAME
from fastmsgm.data.folders import class_folders
from fastmsgm.tools.arguments import (
    about,
    add_option,
    named_conditions,
    read_classes,
    read_condition,
)


@dataclass(frozen=True)
class Samples(Dataset[Any]):
    """Samples, and what they are conditioned on.

    Args:
        x: (n, ...) the data.
        given: Labels, as "label", and conditions by name, each (n, ...).
        classes: Number of classes, 0 without labels.
    """

    x: Tensor
    given: dict[str, Tensor]
    classes: int

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: Any) -> tuple[Tensor, dict[str, Tensor]]:
        return self.x[index], {name: values[index] for name, values in self.given.items()}

    def part(self, index: Tensor) -> Samples:
        """Return some of the samples; a class may be missing among them."""
        return Samples(*self[index], self.classes)

    @property
    def labels(self) -> Tensor | None:
        """(n,) int64, or None."""
        return self.given.get("label")

    @property
    def condition(self) -> dict[str, Tensor]:
        """The conditions by name, without labels."""
        return {name: values for name, values in self.given.items() if name != "label"}

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The range that samples are clamped to: that of images in [0, 1]."""
        if self.x.dtype == torch.uint8:  # divided by 255 in training
            return (0.0, 1.0)
        inside = self.x.ndim == 4 and bool((self.x.min() >= 0) & (self.x.max() <= 1))
        return (0.0, 1.0) if inside else None


def add_data_options(train: argparse.ArgumentParser) -> None:
    """Add the options of what is trained on."""
    add = functools.partial(add_option, train.add_argument_group("data"))
    files = "a .npy, .npz, .safetensors, .h5, .hdf5 or .nc file, or a folder of images"
    add("--data", f"{', '.join(data.NAMES)}, {files}", required=True)
    add(
        "--size",
        "side in pixels that the images of a folder are resized and cropped to; default: their "
        "own, which must be equal",
        type=int,
    )
    add(
        "--labels",
        "class labels, for a class-conditional model: a .npy file of integers from 0, or 'data' "
        "for those of a named set or of a folder with a folder for each class; default: none",
        metavar="FILE",
    )
    add(
        "--condition",
        "condition the network on the rows of a .npy file (n,) or (n, k), one for each sample; "
        "standardise them; can be given for several names",
        action="append",
        metavar="NAME=FILE",
    )
    add(
        "--validation",
        "share of the data to hold out, as 0.1, or data of their own like --data, of which a named "
        "set gives its test images; default: none",
        metavar="SHARE",
    )


def read_samples(args: argparse.Namespace) -> Samples:
    """Return all samples of ``--data``, with labels and conditions."""
    with about("--data"):
        x, labels = _read(args.data, "train", args.labels == "data", args.size)
    if x.ndim not in (2, 4):
        raise ValueError(
            "--data must be vectors (n, d) or images (n, channels, height, width), got "
            f"{tuple(x.shape)}"
        )
    folders = _folders(args.data) if args.labels == "data" else []
    if labels is not None and len(labels.unique()) < len(folders):
        empty = [name for k, name in enumerate(folders) if not bool((labels == k).any())]
        raise ValueError(
            f"--data must have images in every class folder, got none in {', '.join(empty)}: "
            "remove what is empty"
        )
    if args.labels not in (None, "data"):
        labels = read_classes("--labels", args.labels)
    files = named_conditions(args.condition)
    condition = {name: read_condition(path) for name, path in files.items()}
    given = check_conditions(labels, condition, len(x))
    return Samples(x, given, 0 if labels is None else int(labels.max()) + 1)


def hold_out(samples: Samples, args: argparse.Namespace) -> tuple[Samples, Samples | None]:
    """Return the data to train on, and those that are held out for validation."""
    if args.validation is None:
        return samples, None
    try:
        share = float(args.validation)
    except ValueError:
        return samples, _validation_data(samples, args)
    n = len(samples)
    count = round(share * n) if 0 < share < 1 else 0
    if not 0 < count < n:
        raise ValueError(
            f"--validation must be a share of the {n} samples in (0, 1), neither none nor all of "
            f"them, or data of their own, got {args.validation}"
        )
    held_out = data.DataOrder(n, count, args.seed).batch(0)
    rest = torch.ones(n, dtype=torch.bool, device="cpu")
    rest[held_out] = False
    return samples.part(rest), samples.part(held_out)


def _validation_data(samples: Samples, args: argparse.Namespace) -> Samples:
    """Return validation data of their own, which fit the training data."""
    source: str = args.validation
    if samples.condition or args.labels not in (None, "data"):
        raise ValueError(
            "--validation must be a share, such as 0.1, together with --condition or --labels "
            f"FILE, which hold one row for each sample of --data; got {source!r}"
        )
    if args.labels and _folders(source) != _folders(args.data):
        raise ValueError(f"--validation must have the class folders of --data, got {source!r}")
    with about("--validation"):
        size = args.size if Path(source).is_dir() else None
        x, labels = _read(source, "test", args.labels == "data", size)
    if x.shape[1:] != samples.x.shape[1:]:
        raise ValueError(
            f"--validation must have samples of shape {tuple(samples.x.shape[1:])}, as --data, got "
            f"{tuple(x.shape[1:])}"
        )
    return Samples(x, {} if labels is None else {"label": labels}, samples.classes)


def _folders(source: str) -> list[str]:
    return class_folders(Path(source)) if Path(source).is_dir() else []


def _read(
    source: str, split: str, labelled: bool, size: int | None
) -> tuple[Tensor, Tensor | None]:
    """Return data, and the labels that they bring.

    Args:
        source: A named set, a file or a folder.
        split: "train" or "test", of a named set.
        labelled: Whether labels are wanted.
        size: Of the images of a folder.
    """
    if size is not None and not Path(source).is_dir():
        raise ValueError(f"--size is for folders of images, got {source!r}: leave it out")
    if source in data.NAMES:
        images, labels = BY_NAME[source](split, labels=True)
        return images, labels if labelled else None
    if not labelled:
        return data.load(source, size), None
    if not Path(source).is_dir():
        raise ValueError(
            "--labels data needs a named set, or a folder with a folder for each class, got "
            f"{source!r}: give --labels FILE.npy"
        )
    return data.image_folder(source, size, labels=True, channels=None)
