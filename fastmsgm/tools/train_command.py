"""``fastmsgm train``: the options of ``fit``, as text."""

from __future__ import annotations

import argparse
import functools
import os
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

import fastmsgm
from fastmsgm import rng
from fastmsgm.tools.arguments import add_option, add_run_options
from fastmsgm.tools.train_data import add_data_options, hold_out, read_samples
from fastmsgm.tools.train_model import BUILDERS, add_model_options, family_options
from fastmsgm.training.report import TrainStep

OPTIMIZERS: dict[str, Any] = {
    "adam": None,
    "adamw": functools.partial(torch.optim.AdamW, fused=True),
    "sgd": functools.partial(torch.optim.SGD, momentum=0.9),
}


def add_options(train: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    train.set_defaults(run=_run)
    add_data_options(train)
    _add_training_options(train)
    add_run_options(train)
    add_model_options(train)


def _add_training_options(train: argparse.ArgumentParser) -> None:
    group = train.add_argument_group("training")
    add = functools.partial(add_option, group)
    add("--out", "folder of the checkpoint; an interrupted run there is resumed", required=True)
    add("--steps", "optimizer steps in all; more than before extend a run", 20_000)
    add("--batch-size", "samples per network call", 128)
    add("--accumulate", "batches per optimizer step, whose gradients are averaged", 1)
    add("--lr", "peak learning rate, which decays to 0 as a cosine", 1e-3)
    add("--warmup", "steps in which the learning rate rises to its peak", 500)
    add("--clip", "largest gradient norm", 1.0)
    add("--optimizer", "of torch.optim; sgd with momentum 0.9", "adam", choices=tuple(OPTIMIZERS))
    add("--ema", "decay of the average of the weights, per step", 0.999)
    add(
        "--drop",
        "share of the samples whose label and conditions are dropped, for sample --guidance; 0.1 "
        "is usual",
        0.0,
    )
    add(
        "--tail",
        "share of every batch that is taken from the largest 1 %% of the norms, for --family "
        "rotation; default: 0.5 for 10,000 or more heavy-tailed samples, else 0",
        type=float,
    )
    add("--precision", "of the network", "bf16", choices=("fp32", "bf16"))
    add(
        "--every",
        "steps between two lines of losses, two validations, two images in TensorBoard",
        500,
    )
    group.add_argument(
        "--tensorboard", action="store_true", help="also write losses and images for TensorBoard"
    )


def _run(args: argparse.Namespace) -> None:
    options = family_options(args)
    _check_out(Path(args.out))
    rng.stream(args.seed)  # refuses a seed out of range
    samples, held_out = hold_out(read_samples(args), args)
    if args.drop and not samples.given:
        raise ValueError(f"--drop needs --labels or --condition, got --drop {args.drop:g} alone")
    torch.manual_seed(args.seed)
    model = BUILDERS[args.family](samples, args, **options)
    fastmsgm.fit(
        model.to(args.device),
        samples.x,
        samples.labels,
        steps=args.steps,
        batch_size=args.batch_size,
        accumulate=args.accumulate,
        lr=args.lr,
        warmup=args.warmup,
        clip=args.clip,
        optimizer=OPTIMIZERS[args.optimizer],
        ema=args.ema,
        precision=args.precision,
        condition=samples.condition,
        drop=args.drop,
        tail=args.tail,
        validation=held_out,
        callback=functools.partial(_report, args.steps),
        every=args.every,
        out=args.out,
        seed=args.seed,
        tensorboard=args.tensorboard,
        progress=not args.no_progress,
    )
    print(
        f"{args.out}: trained for {args.steps} steps; sample it with: fastmsgm sample --model "
        f"{args.out} --out x.npy"
    )


def _check_out(out: Path) -> None:
    """Raise ValueError where the checkpoint could not be written, before hours of training."""
    existing = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise ValueError(f"--out must be a folder, got {str(out)!r}: {existing} is a file")
    if not os.access(existing, os.W_OK):
        raise ValueError(f"--out must be a folder that can be written, got {str(out)!r}")


def _report(steps: int, seen: TrainStep) -> None:
    """Print a line about a step, above the progress bar."""
    validation = (
        "" if seen.validation_loss is None else f", validation loss {seen.validation_loss:.4g}"
    )
    tqdm.write(
        f"step {seen.step} of {steps}: loss {seen.loss:.4g}{validation}, learning rate "
        f"{seen.lr:.3g}, gradient norm {seen.grad_norm:.3g}"
    )
