"""``fastmsgm sample``: the options of ``sample``, as text."""

from __future__ import annotations

import argparse
import functools
import math
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, distributed

import fastmsgm
from fastmsgm.checks import RESERVED, check_int
from fastmsgm.data.items import as_float
from fastmsgm.evaluation import plots
from fastmsgm.families import solver_names
from fastmsgm.output.targets import DTYPES
from fastmsgm.tools.arguments import (
    about,
    add_option,
    add_run_options,
    named_conditions,
    read_classes,
    read_condition,
)

GRID = 100  # samples in the picture of ``sample --grid``


def add_options(sample: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    sample.set_defaults(run=_run)
    _add_sample_options(sample)
    _add_output_options(sample)
    group = sample.add_argument_group("solver")
    add = functools.partial(add_option, group)
    add("--solver", f"{', '.join(solver_names())}; default: the model's own")
    add("--steps", "updates on the time grid; default: the solver's own", type=int)
    add(
        "--batch-size",
        "samples per network call, for bit-equal parts of a stream; default: by their size",
        type=int,
    )
    group.add_argument("--compile", action="store_true", help="torch.compile; CUDA graphs on CUDA")
    add_run_options(sample)


def _add_sample_options(sample: argparse.ArgumentParser) -> None:
    group = sample.add_argument_group("samples")
    add = functools.partial(add_option, group)
    add("--model", "a shipped model or a checkpoint folder", "fashion-gbm")
    # Under torchrun --n could be an option of its own, cut short.
    group.add_argument("-n", "--n", type=int, default=50_000, help="how many (default %(default)s)")
    add("--start", "index of the first sample in the stream of the seed", 0)
    add(
        "--label",
        "the class of all samples, or a .npy file of n classes; default: every class in turn",
        metavar="CLASS",
    )
    add(
        "--condition",
        "what the network is conditioned on: a number for all samples, or a .npy file (n,) or "
        "(n, k) with a row for each; can be given for several names",
        action="append",
        metavar="NAME=VALUE",
    )
    group.add_argument(
        "--guidance",
        type=float,
        default=1.0,
        help="weight of classifier-free guidance, for a model trained with --drop (default "
        "%(default)s, none)",
    )


def _add_output_options(sample: argparse.ArgumentParser) -> None:
    add = functools.partial(add_option, sample.add_argument_group("output"))
    add(
        "--out",
        "a .npy file, a .npz file (images as n, height, width, channels) or, without suffix, a "
        "folder of PNG files; written chunk by chunk",
        required=True,
    )
    add(
        "--dtype",
        "uint8 is 0 .. 255 over the range of the data; default: uint8 for PNG files and for images "
        "in a .npz, else float32",
        choices=tuple(DTYPES),
    )
    add(
        "--shard",
        "compute part I = 0 .. K - 1 of the chunks; fastmsgm merge completes them",
        metavar="I/K",
    )
    add("--grid", f"also write a picture of the first {GRID} samples", metavar="PICTURE")


def _run(args: argparse.Namespace) -> None:
    model = fastmsgm.load(args.model, args.device)
    if args.grid:
        with about("--grid"):
            plots.check(model.shape, args.grid)
    samples = fastmsgm.sample(
        model,
        args.n,
        steps=args.steps,
        solver=args.solver,
        seed=args.seed,
        start=args.start,
        label=_label(args.label),
        condition=_condition_of_samples(model, args),
        guidance=args.guidance,
        batch_size=args.batch_size,
        out=args.out,
        dtype=_dtype(model, args),
        shard=args.shard,
        distributed=distributed.is_torchelastic_launched(),
        compile=args.compile,
        progress=not args.no_progress,
    )
    if os.environ.get("RANK", "0") != "0":
        return  # of torchrun: rank 0 speaks for all
    if args.grid and args.shard is None:
        with about("--grid"):
            plots.grid(_first(samples, model, args), args.grid, columns=10)
        print(args.grid)
    print(args.out)


def _dtype(model: fastmsgm.ScoreModel, args: argparse.Namespace) -> str:
    """Return --dtype, or what suits --out; ValueError where the model has no range for uint8."""
    suffix, scaled = Path(args.out).suffix, _range(model) is not None
    default = "uint8" if suffix == ".npz" and len(model.shape) == 3 and scaled else "float32"
    dtype: str = "uint8" if suffix == "" else args.dtype or default
    if dtype == "uint8" and not scaled:
        raise ValueError(
            f"{'--dtype uint8' if suffix else '--out, a folder of PNG files,'} needs a model that "
            "was trained on images in [0, 1]: write a .npy or .npz file with --dtype float32"
        )
    return dtype


def _range(model: fastmsgm.ScoreModel) -> tuple[float, float] | None:
    """Return the model's bounds where they are finite."""
    return model.bounds if model.bounds and all(map(math.isfinite, model.bounds)) else None


def _label(text: str | None) -> int | Tensor | None:
    if text is None:
        return None
    try:
        return int(text)
    except ValueError:
        return read_classes("--label", text, "a class, such as 3, or ")


def _condition_of_samples(
    model: fastmsgm.ScoreModel, args: argparse.Namespace
) -> dict[str, Tensor]:
    """Return the conditions of the samples by name, all that the network was built with."""
    given = named_conditions(args.condition)
    own = [name for name in getattr(model.net, "condition", given) if name not in RESERVED]
    if set(own) != set(given):
        raise ValueError(
            f"--condition must name what the model was trained with, {', '.join(own) or 'nothing'},"
            f" got {', '.join(given) or 'nothing'}: give NAME=NUMBER or NAME=FILE.npy"
        )
    n, condition = check_int("n", args.n, 1), {}
    for name, value in given.items():
        try:
            condition[name] = torch.full((n,), float(value), dtype=torch.float32, device="cpu")
        except ValueError:
            condition[name] = read_condition(value)
    return condition


def _first(samples: Tensor, model: fastmsgm.ScoreModel, args: argparse.Namespace) -> Tensor:
    """Return the first samples, scaled from the model's bounds to [0, 1]; a folder's are read."""
    if not len(samples):
        from PIL import Image

        indices = range(args.start, args.start + min(args.n, GRID))
        images = [np.asarray(Image.open(Path(args.out) / f"{i:06d}.png")) for i in indices]
        stacked = torch.from_numpy(np.stack(images))
        samples = stacked[:, None] if stacked.ndim == 3 else stacked.movedim(-1, 1)
    low, high = (0.0, 1.0) if samples.dtype == torch.uint8 else _range(model) or (0.0, 1.0)
    return (as_float(samples[:GRID]) - low) / (high - low)
