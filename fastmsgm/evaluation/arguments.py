"""What ``evaluate`` may be given: checks that need no samples, and checks of the samples."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastmsgm.checks import check_tensor
from fastmsgm.evaluation import extractors, fidelity
from fastmsgm.evaluation.extractors import Extractor, efficientnet, inception
from fastmsgm.evaluation.extractors.resolve import RAW
from fastmsgm.evaluation.figures import OF_TWO_SETS, ON_FEATURES
from fastmsgm.evaluation.plots.canvas import load_matplotlib
from fastmsgm.model import ScoreModel

METRICS = (*OF_TWO_SETS, "nearest", "likelihood")
FEWEST = 10  # samples in a set


def is_images(x: Tensor) -> bool:
    """Whether data are images of 1 or 3 channels, uint8 or in [0, 1]."""
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        return False
    return x.dtype == torch.uint8 or bool((x.min() >= 0) & (x.max() <= 1))


def default_metrics(reference: Tensor, train: Tensor | None) -> tuple[str, ...]:
    """Return the metrics of ``evaluate(metrics=None)``, by the kind of data."""
    found = ("frechet", "swd") if is_images(reference) else ("mmd", "swd", "tails")
    return found if train is None else (*found, "nearest")


def check_arguments(
    reference: Tensor,
    *,
    metrics: Iterable[str] | None = None,
    extractor: str | Extractor | Callable[[Tensor], Any] | None = None,
    train: Tensor | None = None,
    model: ScoreModel | None = None,
    label: int | Tensor | None = None,
    out: str | os.PathLike[str] | None = None,
) -> tuple[tuple[str, ...], Extractor | None]:
    """Check everything but the samples, so that errors come before a model is sampled.

    Args:
        reference: As of ``evaluate``, like all arguments.
        metrics: Names of metrics; None is the default.
        extractor: Whose features are compared.
        train: The data that the model was trained on.
        model: For the likelihood.
        label: Of the reference, for the likelihood.
        out: Folder of the report, which is made here.

    Returns:
        The names of the metrics, each once, and the extractor, None where no metric takes features.

    Raises:
        ImportError: A package of the extra "eval" or "images" is missing.
        RuntimeError: The weights of the extractor could not be downloaded.
        TypeError: An argument of the wrong type.
        ValueError: As of ``evaluate``.
        OSError: ``out`` cannot be made.
    """
    check_set("reference", reference, reference)
    if train is not None:
        check_set("train", train, reference)
    chosen = _checked(default_metrics(reference, train) if metrics is None else metrics)
    if "nearest" in chosen and train is None:
        raise ValueError("metrics: nearest needs train=..., the data that the model was trained on")
    if label is not None and "likelihood" not in chosen:
        raise ValueError("label must be left out where metrics have no likelihood, got a label")
    if set(chosen) & {"fid", "kid", "prc"}:
        fidelity.check_package()
    used = _extractor(extractor, chosen, reference)
    if out is not None:
        Path(out).mkdir(parents=True, exist_ok=True)
        load_matplotlib()
    return chosen, used


def check_set(name: str, x: Tensor, reference: Tensor) -> None:
    """Check a set of samples against the reference.

    Args:
        name: Of the argument.
        x: Its samples.
        reference: What they are compared with, checked already or x itself.

    Raises:
        TypeError: No tensor, of another dtype, or uint8 beside other data than images.
        ValueError: Another shape or range than the reference's, too few samples, or values that are
            not finite.
    """
    check_tensor(name, x)
    if x.dtype != torch.uint8 and not x.is_floating_point():
        raise TypeError(f"{name} must be of floating point, or uint8 images, got {x.dtype}")
    if x.ndim < 2 or len(x) < FEWEST or x.shape[1:] != reference.shape[1:]:
        raise ValueError(
            f"{name} must have shape (n, {', '.join(map(str, reference.shape[1:]))}), as the "
            f"reference, with n >= {FEWEST}, got {tuple(x.shape)}"
        )
    if x.is_floating_point() and not bool(x.isfinite().all()):
        raise ValueError(
            f"{name} must be finite, got {int((~x.isfinite()).sum())} NaN or infinite values"
        )
    if is_images(reference):
        if not is_images(x):
            raise ValueError(
                f"{name} must be in [0, 1], as the reference, got {float(x.min()):.4g} to "
                f"{float(x.max()):.4g}: rescale or clamp them"
            )
    elif (x.dtype == torch.uint8) != (reference.dtype == torch.uint8):
        raise TypeError(
            f"{name} must be of the reference's kind, {reference.dtype}, got {x.dtype}: uint8 is "
            "divided by 255, so both must be images of 1 or 3 channels in [0, 1]"
        )


def _checked(metrics: Iterable[str]) -> tuple[str, ...]:
    """Return the names of the metrics, each once, in the order of ``METRICS``."""
    if isinstance(metrics, str):
        raise TypeError(f"metrics must be several names, got the text {metrics!r}: give a list")
    names = list(metrics)
    unknown = [name for name in names if name not in METRICS]
    if unknown or not names:
        got = ", ".join(map(repr, unknown)) or "none"
        raise ValueError(f"metrics must be among {', '.join(METRICS)}, got {got}")
    return tuple(name for name in METRICS if name in names)


def _extractor(
    given: str | Extractor | Callable[[Tensor], Any] | None,
    metrics: tuple[str, ...],
    reference: Tensor,
) -> Extractor | None:
    """Return the extractor; None where no metric takes features."""
    images, on_features = is_images(reference), set(metrics) & set(ON_FEATURES)
    if given is not None and not on_features and "nearest" not in metrics:
        raise ValueError(
            f"extractor must be left out where no metric takes features, got metrics "
            f"{', '.join(metrics)}: {', '.join(ON_FEATURES)} and nearest do"
        )
    if given is None:
        if not on_features and not (images and "nearest" in metrics):
            return None
        of_images = inception.NAME if "fid" in metrics else efficientnet.NAME
        given = of_images if images else RAW
    found = extractors.resolve(given)
    if found.images and not images:
        raise ValueError(
            f"extractor {found.name} takes images of 1 or 3 channels in [0, 1], got "
            f"{tuple(reference.shape)} from {float(reference.min()):.4g} to "
            f"{float(reference.max()):.4g}: give extractor='raw' or a function of your own"
        )
    return found
