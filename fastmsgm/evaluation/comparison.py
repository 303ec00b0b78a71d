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

from fastmsgm.checks import check_int
from fastmsgm.evaluation.arguments import check_arguments, check_set
from fastmsgm.evaluation.bits import bits_per_dimension
from fastmsgm.evaluation.density_job import DensityJob
from fastmsgm.evaluation.extractors import Extractor
from fastmsgm.evaluation.extractors.resolve import RAW
from fastmsgm.evaluation.figures import OF_TWO_SETS, Set
from fastmsgm.evaluation.likelihood import log_likelihood
from fastmsgm.evaluation.neighbours import Neighbours, memorisation, nearest
from fastmsgm.evaluation.report import Figure, Report
from fastmsgm.evaluation.report_plots import draw
from fastmsgm.model import ScoreModel

_STEPS = 16  # of rk4, for the bits per dimension of images
_TOLERANCE = 1e-5  # of values around the levels k / 255


def evaluate(
    samples: Tensor | None,
    reference: Tensor,
    *,
    metrics: Iterable[str] | None = None,
    extractor: str | Extractor | Callable[[Tensor], Any] | None = None,
    train: Tensor | None = None,
    model: ScoreModel | None = None,
    label: int | Tensor | None = None,
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
        likelihood  of the reference under ``model``: bits per dimension of images of 8 bits, and
                    the log-density of other data

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
        train: (k, ...) the data that the model was trained on. n of them at random also take the
            place of the samples: what a distance then is, is expected of a perfect model.
        model: For the likelihood.
        label: Of a class-conditional model, for the likelihood: the class of all of the reference,
            or its m classes.
        out: Folder for report.json, report.md and plots; made if absent.
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
        >>> 0.7 < report["sliced Wasserstein"].value < 1.3  # |shift| / sqrt(2) = 1, and noise
        True
    """
    chosen, used = check_arguments(
        reference,
        metrics=metrics,
        extractor=extractor,
        train=train,
        model=model,
        label=label,
        out=out,
    )
    if "likelihood" in chosen:
        check_likelihood(model, reference, label)
    batch_size = check_int("batch_size", batch_size, 1)
    if samples is not None:
        check_set("samples", samples, reference)
    elif chosen != ("likelihood",):
        raise ValueError("samples must be given, unless metrics are the likelihood alone, got None")
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
    if model is not None and "likelihood" in chosen:
        figures.append(_likelihood(model, reference, label, progress))
    report = Report(tuple(figures), _settings(sets, used, sources or {}), found)
    if out is not None:
        report.write(out)
        if samples is not None:
            draw(Path(out), samples, reference, train, report.neighbours)
    return report


def _of_two_sets(name: str, sets: Mapping[str, Set]) -> list[Figure]:
    """Return the figures of a metric, with what is expected by the training set's."""
    compare, reference = OF_TWO_SETS[name], sets["reference"]
    figures = compare(sets["samples"], reference)
    if "expected" not in sets:
        return figures if "train" not in sets else [_without_expected(f) for f in figures]
    of_train = compare(sets["expected"], reference)
    return [
        replace(figure, expected=other.value) if figure.expected is None else figure
        for figure, other in zip(figures, of_train, strict=True)
    ]


def _without_expected(figure: Figure) -> Figure:
    """Return a figure whose note says that the training set is too small to expect a value."""
    if figure.expected is not None:
        return figure
    reason = "no expected value: train has fewer samples"
    return replace(figure, note=f"{figure.note}; {reason}" if figure.note else reason)


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
                expected=result.close_expected,
                note="closer than 1 % of the reference",
            ),
        ]
    return figures


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


def _has_8_bits(x: Tensor) -> bool:
    """Whether samples (n, c, h, w) are images of 8 bits: uint8, or k / 255 for k = 0 .. 255."""
    if x.ndim != 4 or x.dtype == torch.uint8:
        return x.ndim == 4
    if not bool((x.min() >= 0) & (x.max() <= 1)):
        return False
    return all(bool(((b * 255).round() / 255 - b).abs().max() < _TOLERANCE) for b in x.split(1000))


def check_likelihood(
    model: ScoreModel | None, reference: Tensor, label: int | Tensor | None
) -> None:
    """Check that the likelihood of the reference can be computed.

    Args:
        model: Whose likelihood.
        reference: (n, ...) data.
        label: One class for all, (n,) classes, or None.

    Raises:
        TypeError: An argument of the wrong type.
        ValueError: No model, other shapes, a class-conditional model without classes, a model
            without a probability flow, or images of 8 bits outside the model's bounds.
    """
    if model is None:
        raise ValueError("metrics: likelihood needs model=...")
    if tuple(reference.shape[1:]) != model.shape:
        raise ValueError(
            f"reference must have shape {('n', *model.shape)}, as the model, got "
            f"{tuple(reference.shape)}".replace("'", "")
        )
    if _has_8_bits(reference) and model.bounds not in (None, (0.0, 1.0)):
        raise ValueError(
            "model must have the bounds (0, 1) or None for the likelihood of images of 8 bits, "
            f"got {model.bounds}: train on images in [0, 1]"
        )
    DensityJob(model, reference, label, None, 0, None).model.probability_flow()


def _likelihood(
    model: ScoreModel, reference: Tensor, label: int | Tensor | None, progress: bool
) -> Figure:
    """Return the bits per dimension of images of 8 bits, and the log-density of other data.

    Args:
        model: Whose likelihood.
        reference: (n, ...) data.
        label: One class for all, (n,) classes, or None.
        progress: Show progress bars.
    """
    classes = "" if label is None else ", given the class"
    note = f"mean over the {len(reference):,} of the reference{classes}"
    if not _has_8_bits(reference):
        found = log_likelihood(model, reference, label=label, progress=progress)
        title, note = "log-likelihood", f"nats, {note}"
    else:
        found = bits_per_dimension(
            model, reference, label=label, solver="rk4", steps=_STEPS, progress=progress
        )
        title, note = "bits per dimension", f"bound, {note}; rk4, {_STEPS} steps"
    return Figure("likelihood", title, found.mean, found.standard_error, note=note)
