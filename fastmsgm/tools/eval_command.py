"""``fastmsgm eval``: compare samples with data they should be distributed as."""

from __future__ import annotations

import argparse
import functools
import math
from pathlib import Path
from typing import Any

from torch import Tensor

import fastmsgm
from fastmsgm import data
from fastmsgm.checks import check_int
from fastmsgm.data.files import BY_NAME
from fastmsgm.evaluation import extractors
from fastmsgm.evaluation.arguments import (
    FEWEST,
    METRICS,
    check_arguments,
    default_metrics,
    is_images,
)
from fastmsgm.evaluation.comparison import check_likelihood, evaluate
from fastmsgm.evaluation.report_plots import draw
from fastmsgm.tools.arguments import about, add_option, add_run_options

_DATA = f"{', '.join(data.NAMES)}, a file of samples, or a folder of images"
N = 10_000  # samples of a model
_OF_SAMPLING = ("n", "steps", "solver", "guidance")  # options without a meaning for --samples


def add_options(command: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    command.set_defaults(run=_run)
    add = functools.partial(add_option, command.add_argument_group("samples"))
    add(
        "--samples",
        f"a file of samples, or a folder of images; of {', '.join(data.NAMES)} the training split",
    )
    add(
        "--model",
        "a shipped model or a checkpoint folder: sampled where there is no --samples, and what the "
        "likelihood is of",
    )
    add("--n", f"how many samples of the model; default: {N:,}", type=int)
    add("--steps", "updates on the time grid; default: the solver's own", type=int)
    add("--solver", "as of fastmsgm sample; default: the model's own")
    add("--guidance", "weight of classifier-free guidance; default: 1, none", type=float)
    add = functools.partial(add_option, command.add_argument_group("data"))
    add(
        "--reference",
        f"data to compare with, on which no model was trained: {_DATA}; a named set gives its test "
        "split",
        required=True,
    )
    add(
        "--train",
        f"data that the model was trained on, for metric nearest: {_DATA}; a named set gives its "
        "training split; the same figures of them are shown as what to expect",
    )
    add(
        "--size",
        "side in pixels that the images of all folders are resized and cropped to; default: their "
        "own, which must be equal",
        type=int,
    )
    add = functools.partial(add_option, command.add_argument_group("figures"))
    add(
        "--metrics",
        f"{','.join(METRICS)}, with commas; default: frechet,swd for images, "
        "mmd,swd,tails for other data, and nearest with --train",
    )
    command.add_argument(
        "--likelihood",
        action="store_true",
        help="also the likelihood of the reference under --model: bits per dimension of images of "
        "8 bits, log-density of other data",
    )
    add(
        "--label",
        "class of all of the reference, for the likelihood of a class-conditional model; default: "
        "the classes of a named set",
        type=int,
    )
    add(
        "--extractor",
        f"whose features are compared: {', '.join(extractors.NAMES)}, a .pth file of Inception's "
        "weights, or module:function, which maps a batch (images in [0, 1]) to features (n, k); "
        "default: inception for fid of images, efficientnet-lite0 for other images, else raw",
    )
    add("--batch-size", "samples per call of the extractor", 64)
    add("--out", "folder for report.json, report.md and plots; default: the table alone")
    add_run_options(command)


def _run(args: argparse.Namespace) -> None:
    _check_options(args)
    reference, of_reference = _read("reference", args.reference, "test", args.size)
    train, of_train = None, {}
    if args.train is not None:
        train, of_train = _read("train", args.train, "train", args.size)
    metrics = _metrics(args, reference, train)
    model = None if args.model is None else fastmsgm.load(args.model, args.device)
    label = args.label
    if label is None and model is not None and model.classes and "likelihood" in metrics:
        label = _classes(args.reference)
    metrics, extractor = check_arguments(
        reference,
        metrics=metrics,
        extractor=args.extractor,
        train=train,
        model=model,
        label=label,
        out=args.out,
    )
    if "likelihood" in metrics:
        check_likelihood(model, reference, label)
    batch_size = check_int("batch_size", args.batch_size, 1)
    samples, of_samples = None, {}
    if args.samples is not None:
        samples, of_samples = _read("samples", args.samples, "train", args.size)
    elif model is not None and metrics != ("likelihood",):
        samples, of_samples = _sampled(args, model, reference)
    report = evaluate(
        samples,
        reference,
        metrics=metrics,
        extractor=extractor,
        train=train,
        model=model,
        label=label,
        batch_size=batch_size,
        device=args.device,
        progress=not args.no_progress,
        sources={"samples": of_samples, "reference": of_reference, "train": of_train},
    )
    print(report, flush=True)
    if args.out is not None:
        report.write(args.out)
        if samples is not None:
            draw(Path(args.out), samples, reference, train, report.neighbours)
        print(f"\n{args.out}")


def _check_options(args: argparse.Namespace) -> None:
    """Raise ValueError for a missing option, and for one that would be ignored."""
    if args.samples is None and args.model is None:
        raise ValueError("--samples or --model must be given, got neither")
    ignored = [f"--{name}" for name in _OF_SAMPLING if getattr(args, name) is not None]
    if args.samples is not None and ignored:
        raise ValueError(
            f"--samples are not drawn from a model, got {', '.join(ignored)} too: leave out either"
        )
    sources = [x for x in (args.samples, args.reference, args.train) if x is not None]
    if args.size is not None and not any(map(_is_folder, sources)):
        raise ValueError(
            f"--size is for folders of images, got none among {', '.join(sources)}: leave it out"
        )


def _is_folder(source: str) -> bool:
    return source not in data.NAMES and Path(source).is_dir()


def _metrics(args: argparse.Namespace, reference: Tensor, train: Tensor | None) -> tuple[str, ...]:
    if args.metrics is None:
        names = default_metrics(reference, train)
    else:
        names = tuple(name.strip() for name in args.metrics.split(","))
    return (*names, "likelihood") if args.likelihood else names


def _classes(source: str) -> Tensor:
    """Return the classes of the test split of a named set."""
    if source not in data.NAMES:
        raise ValueError(
            "--label must be given for the likelihood of a class-conditional model, unless the "
            f"reference is one of {', '.join(data.NAMES)}, got --reference {source}"
        )
    return BY_NAME[source]("test", labels=True)[1]


def _sampled(
    args: argparse.Namespace, model: fastmsgm.ScoreModel, reference: Tensor
) -> tuple[Tensor, dict[str, Any]]:
    """Return samples of the model, and how they were drawn."""
    n = check_int("n", N if args.n is None else args.n, FEWEST)
    guidance = 1.0 if args.guidance is None else args.guidance
    if tuple(reference.shape[1:]) != model.shape:
        raise ValueError(
            f"--reference must have the shape of the model's samples, {model.shape}, got "
            f"{tuple(reference.shape[1:])}: give data like those that {args.model} was trained on"
        )
    low, high = model.bounds or (-math.inf, math.inf)
    if is_images(reference) and not 0 <= low < high <= 1:
        raise ValueError(
            f"--model must have bounds in [0, 1], as the reference, got {model.bounds}: write its "
            "samples with fastmsgm sample, rescale or clamp them, and give --samples"
        )
    samples = fastmsgm.sample(
        model,
        n,
        steps=args.steps,
        solver=args.solver,
        seed=args.seed,
        guidance=guidance,
        progress=not args.no_progress,
    )
    solver = model.solver_of(args.steps, guidance != 1) if args.solver is None else args.solver
    return samples.cpu(), {
        "model": args.model,
        "solver": str(solver),
        "steps": "default" if args.steps is None else args.steps,
        "guidance": guidance,
        "seed": args.seed,
    }


def _read(option: str, source: str, split: str, size: int | None) -> tuple[Tensor, dict[str, Any]]:
    """Return data, and what is known of them; ``split`` is that of a named set."""
    with about(f"--{option}"):
        if source in data.NAMES:
            return BY_NAME[source](split), {"source": source, "split": split}
        resized = size if _is_folder(source) else None
        known = {"source": source} if resized is None else {"source": source, "resized to": size}
        return data.load(source, resized), known
