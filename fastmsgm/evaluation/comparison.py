"""evaluate: compare samples with data they should be distributed as, and report all figures."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastmsgm.checks import check_int, check_tensor
from fastmsgm.evaluation import extractors
from fastmsgm.evaluation.extractors import Extractor, efficientnet, inception
from fastmsgm.evaluation.extractors.resolve import RAW
from fastmsgm.evaluation.figures import OF_TWO_SETS, ON_FEATURES, Set
from fastmsgm.evaluation.neighbours import Neighbours, memorisation, nearest
from fastmsgm.evaluation.pictures import draw
from fastmsgm.evaluation.report import Figure, Report
from fastmsgm.model import ScoreModel

METRICS = (*OF_TWO_SETS, "nearest", "likelihood")
FEWEST = 10  # samples in a set


def evaluate(
    samples: Tensor | None,
    reference: Tensor,
    *,
    metrics: Iterable[str] | None = None,
    extractor: str | Extractor | Callable[[Tensor], Any] | None = None,
    train: Tensor | None = None,
    model: ScoreModel | None = None,
    out: str | os.PathLike[str] | None = None,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    progress: bool = True,
    sources: Mapping[str, Mapping[str, Any]] | None = None,
) -> Report:
    """Compare samples with a reference.

    The metrics are

        fid         Frechet distance of features by torch-fidelity. It is called FID where the
                    features are Inception's and both sets have at least 10,000 samples, and by the
                    extractor's name and the number of samples elsewhere.
        kid, prc    kernel distance; precision and recall, of features by torch-fidelity
        frechet     Frechet distance of features in float64
        mmd         maximum mean discrepancy: as the MSGM authors report it, and without bias
        swd         sliced Wasserstein distance
        tails       tail index, survival function and Kolmogorov-Smirnov statistic of the norms, and
                    directions of the largest 1 %
        nearest     distance to the nearest sample of ``train``, compared with the reference's: the
                    values (pixels), and the features where there is an extractor
        likelihood  log-density of the reference under ``model``

    The default is frechet and swd for images, mmd, swd and tails for other data, and nearest for
    both where ``train`` is given. Images have 1 or 3 channels and values in [0, 1], or are uint8.

    Args:
        samples: (n, ...) floating point, or uint8 images, n >= 10; None where only the likelihood
            is asked for.
        reference: (m, ...) data that no model was trained on, m >= 10, with the same features.
        metrics: Names of metrics; None is the default.
        extractor: Whose features are compared, see ``extractors.resolve``. None is "inception" for
            images where fid is asked for, "efficientnet-lite0" for other images, and "raw", the
            values themselves, for other data.
        train: (k, ...) the data that the model was trained on. The first n of them also take the
            place of the samples: what a distance then is, is expected of a perfect model.
        model: For the likelihood.
        out: Folder for report.json, report.md and pictures; made if absent.
        batch_size: Samples per call of the extractor.
        device: Where the extractor runs.
        progress: Show progress bars.
        sources: What is known of "samples", "reference" and "train", for the report.

    Returns:
        The report; ``print(report)`` shows it as a table.

    Raises:
        ImportError: A package of the extra "eval" or "images" is missing.
        RuntimeError: The weights of the extractor could not be downloaded.
        TypeError: An argument of the wrong type.
        ValueError: An unknown metric, a metric without what it needs, wrong shapes, too few
            samples, or values that are not finite.
        OSError: ``out`` cannot be written.

    Example:
        >>> x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
        >>> report = evaluate(x[:100] + 1.0, x[100:], metrics=["swd"], progress=False)
        >>> round(report["sliced Wasserstein"].value, 1)  # |shift| / sqrt(2), and noise
        1.1
    """
    check_tensor("reference", reference)
    chosen = _checked(default_metrics(reference, train) if metrics is None else metrics)
    batch_size = check_int("batch_size", batch_size, 1)
    _check_sets(chosen, samples, reference, train, model)
    used = _extractor(extractor, chosen, reference)
    given = {"samples": samples, "reference": reference, "train": train}
    sets = {
        name: Set(name, x, used, batch_size, device, progress)
        for name, x in given.items()
        if x is not None
    }
    figures: list[Figure] = []
    found: dict[str, Neighbours] = {}
    # First, since it needs the features of all of the training set.
    closest = _nearest(sets, found, progress) if "nearest" in chosen else []
    if samples is not None and train is not None and len(train) >= len(samples):
        sets["expected"] = sets["train"].part(len(samples))
    for name in OF_TWO_SETS:
        if name in chosen:
            figures += _of_two_sets(name, sets)
    figures += closest
    if "likelihood" in chosen:
        figures += _likelihood(model, reference, progress)
    report = Report(tuple(figures), _settings(sets, used, sources or {}))
    if out is not None:
        report.write(out)
        if samples is not None:
            draw(Path(out), samples, reference, train, found)
    return report


def is_images(x: Tensor) -> bool:
    """Whether data are images of 1 or 3 channels, uint8 or in [0, 1]."""
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        return False
    return x.dtype == torch.uint8 or bool((x.min() >= 0) & (x.max() <= 1))


def default_metrics(reference: Tensor, train: Tensor | None) -> tuple[str, ...]:
    """Return the metrics of ``evaluate(metrics=None)``, by the kind of data."""
    found = ("frechet", "swd") if is_images(reference) else ("mmd", "swd", "tails")
    return found if train is None else (*found, "nearest")


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


def _check_sets(
    metrics: tuple[str, ...],
    samples: Tensor | None,
    reference: Tensor,
    train: Tensor | None,
    model: ScoreModel | None,
) -> None:
    if samples is None and metrics != ("likelihood",):
        raise ValueError("samples must be given, unless metrics are the likelihood alone, got None")
    if "nearest" in metrics and train is None:
        raise ValueError("metrics: nearest needs train=..., the data that the model was trained on")
    if "likelihood" in metrics and model is None:
        raise ValueError("metrics: likelihood needs model=...")
    for name, x in (("samples", samples), ("reference", reference), ("train", train)):
        if x is None:
            continue
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


def _extractor(
    given: str | Extractor | Callable[[Tensor], Any] | None,
    metrics: tuple[str, ...],
    reference: Tensor,
) -> Extractor | None:
    """Return the extractor; None where no metric takes features."""
    images = is_images(reference)
    needed = set(metrics) & set(ON_FEATURES) or ("nearest" in metrics and (images or given))
    if not needed:
        return None
    if given is None:
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


def _of_two_sets(name: str, sets: Mapping[str, Set]) -> list[Figure]:
    """Return the figures of a metric, with what is expected by the training set's."""
    compare, reference = OF_TWO_SETS[name], sets["reference"]
    figures = compare(sets["samples"], reference)
    if "expected" not in sets:
        return figures
    of_train = compare(sets["expected"], reference)
    return [
        replace(figure, expected=other.value) if figure.expected is None else figure
        for figure, other in zip(figures, of_train, strict=True)
    ]


def _nearest(sets: Mapping[str, Set], found: dict[str, Neighbours], progress: bool) -> list[Figure]:
    """Return the figures of the nearest neighbours, and put those of the samples into ``found``."""
    figures: list[Figure] = []
    extractor = sets["samples"].extractor
    kinds = {"values": lambda s: s.x}
    if extractor is not None and extractor.name != RAW:
        kinds[extractor.name] = lambda s: s.features
    for kind, of in kinds.items():
        train = of(sets["train"])
        found[kind], test = (
            nearest(of(sets[name]), train, progress, f"{name}, {kind}")
            for name in ("samples", "reference")
        )
        result = memorisation(found[kind].distances, test.distances)
        n = len(test.distances)
        figures += [
            Figure(
                "nearest",
                f"distance to the training set, {kind}",
                result.median,
                expected=result.test_median,
                note="median",
            ),
            Figure("nearest", f"memorisation ratio, {kind}", result.ratio, expected=1.0),
            Figure(
                "nearest",
                f"share close to the training set, {kind}",
                result.close,
                expected=int(0.01 * n) / n,
                note="closer than 1 % of the reference",
            ),
        ]
    return figures


def _likelihood(model: ScoreModel | None, reference: Tensor, progress: bool) -> list[Figure]:
    from fastmsgm.evaluation.likelihood import log_likelihood

    assert model is not None
    found = log_likelihood(model, reference, progress=progress)
    note = f"nats, mean over the {len(reference):,} of the reference"
    return [Figure("likelihood", "log-likelihood", found.mean, found.standard_error, note=note)]


def _settings(
    sets: Mapping[str, Set],
    extractor: Extractor | None,
    sources: Mapping[str, Mapping[str, Any]],
) -> dict[str, dict[str, Any]]:
    settings: dict[str, dict[str, Any]] = {
        name: {
            "n": len(s.x),
            "shape": tuple(s.x.shape[1:]),
            "dtype": str(s.x.dtype).removeprefix("torch."),
            **sources.get(name, {}),
        }
        for name, s in sets.items()
        if name != "expected"
    }
    if extractor is not None:
        settings["extractor"] = {
            "name": extractor.name,
            "sha256": extractor.sha256 or "none",
            "dtype": "float32",
            "input": extractor.input,
        }
    packages = ("fastmsgm", "torch", *(("torch-fidelity",) if extractor is not None else ()))
    settings["versions"] = {name: _version(name) for name in packages}
    return settings


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
