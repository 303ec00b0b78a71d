"""``fastmsgm eval``: compare samples with data they should be distributed as."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

import fastmsgm
from fastmsgm import data
from fastmsgm.data.files import BY_NAME
from fastmsgm.evaluation import extractors
from fastmsgm.evaluation.comparison import METRICS, default_metrics, evaluate
from fastmsgm.tools.arguments import about, add_option, add_run_options

_DATA = f"{', '.join(data.NAMES)}, a file of samples, or a folder of images"


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
    add("--n", "how many samples of the model", 10_000)
    add("--steps", "updates on the time grid; default: the solver's own", type=int)
    add("--solver", "as of fastmsgm sample; default: the model's own")
    add("--guidance", "weight of classifier-free guidance", 1.0)
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
        help="also the log-likelihood of the reference under --model",
    )
    add(
        "--extractor",
        f"whose features are compared: {', '.join(extractors.NAMES)}, a .pth file of Inception's "
        "weights, or module:function, which maps a batch (images in [0, 1]) to features (n, k); "
        "default: inception for fid of images, efficientnet-lite0 for other images, else raw",
    )
    add("--batch-size", "samples per call of the extractor", 64)
    add("--out", "folder for report.json, report.md and pictures; default: the table alone")
    add_run_options(command)


def _run(args: argparse.Namespace) -> None:
    if args.samples is None and args.model is None:
        raise ValueError("--samples or --model must be given, got neither")
    reference, of_reference = _read("reference", args.reference, "test", args.size)
    train, of_train = None, {}
    if args.train is not None:
        train, of_train = _read("train", args.train, "train", args.size)
    metrics = _metrics(args, reference, train)
    model = None if args.model is None else fastmsgm.load(args.model, args.device)
    samples, of_samples = _samples(args, model, metrics)
    report = evaluate(
        samples,
        reference,
        metrics=metrics,
        extractor=args.extractor,
        train=train,
        model=model,
        out=args.out,
        batch_size=args.batch_size,
        device=args.device,
        progress=not args.no_progress,
        sources={"samples": of_samples, "reference": of_reference, "train": of_train},
    )
    print(report)
    if args.out is not None:
        print(f"\n{args.out}")


def _metrics(args: argparse.Namespace, reference: Tensor, train: Tensor | None) -> Iterable[str]:
    if args.metrics is None:
        names: tuple[str, ...] = default_metrics(reference, train)
    else:
        names = tuple(name.strip() for name in args.metrics.split(","))
    return (*names, "likelihood") if args.likelihood else names


def _samples(
    args: argparse.Namespace, model: fastmsgm.ScoreModel | None, metrics: Iterable[str]
) -> tuple[Tensor | None, dict[str, Any]]:
    """Return the samples of a file, a folder or the model, and what is known of them."""
    if args.samples is not None:
        return _read("samples", args.samples, "train", args.size)
    if model is None or set(metrics) == {"likelihood"}:
        return None, {}
    samples = fastmsgm.sample(
        model,
        args.n,
        steps=args.steps,
        solver=args.solver,
        seed=args.seed,
        guidance=args.guidance,
        progress=not args.no_progress,
    )
    solver = model.solver_of(args.steps, args.guidance != 1) if args.solver is None else args.solver
    return samples.cpu(), {
        "model": args.model,
        "solver": str(solver),
        "steps": "default" if args.steps is None else args.steps,
        "guidance": args.guidance,
        "seed": args.seed,
    }


def _read(option: str, source: str, split: str, size: int | None) -> tuple[Tensor, dict[str, Any]]:
    """Return data, and what is known of them; ``split`` is that of a named set."""
    with about(f"--{option}"):
        if source in data.NAMES:
            return BY_NAME[source](split), {"source": source, "split": split}
        resized = size if Path(source).is_dir() else None
        known = {"source": source} if resized is None else {"source": source, "resized to": size}
        return data.load(source, resized), known
