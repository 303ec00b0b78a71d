"""The command line: ``fastmsgm train | sample | demo | info``, or ``python -m fastmsgm``.

``train`` has the options of ``fastmsgm.fit`` and ``sample`` those of ``fastmsgm.sample``, under the
same names; functions, which cannot be written as text, are left out.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import logging
import platform
import re
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm.auto import tqdm

import fastmsgm
from fastmsgm import data, nets, ops, rng
from fastmsgm.checks import RESERVED, check_condition, check_int, check_labels
from fastmsgm.data.batches import as_float
from fastmsgm.data.files import BY_NAME as NAMED_SETS
from fastmsgm.evaluation import plots
from fastmsgm.families import solver_names
from fastmsgm.gbm.preconditioning import PREDICTIONS
from fastmsgm.output import DTYPES
from fastmsgm.rotation.process import NOISES
from fastmsgm.tools import demo, roofline
from fastmsgm.trainer import TrainStep

OPTIONS: dict[str, dict[str, Any]] = {  # of each family, with their defaults
    "gbm": {"sigma": None, "prediction": "denoiser", "offset": None},
    "rotation": {"noise": "isotropic", "pareto": 0.0, "offset": 0.0, "beta_max": 20.0},
    "vp": {"beta_max": 20.0},
}
OPTIMIZERS: dict[str, Any] = {
    "adam": None,
    "adamw": functools.partial(torch.optim.AdamW, fused=True),
    "sgd": functools.partial(torch.optim.SGD, momentum=0.9),
}
GRID = 100  # samples in the picture of ``sample --grid``


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: None takes those of the process.

    Returns:
        The exit status: 0, 1 after an error, which is printed, or 130 after an interrupt.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    args = parser().parse_args(arguments)
    try:
        args.run(args)
    except (ValueError, TypeError, ImportError, OSError, RuntimeError, FloatingPointError) as error:
        message = name_options(str(error), vars(args).keys() - {"command", "run"})
        print(f"fastmsgm {args.command}: {message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print(f"fastmsgm {args.command}: {str(stop) or 'interrupted'}", file=sys.stderr)
        return 130
    return 0


def name_options(message: str, names: Collection[str]) -> str:
    """Return an error's message with the command's options instead of Python's arguments.

    Args:
        message: Of ``fit`` or ``sample``, which begins with an argument's name or shows arguments
            as name=value.
        names: Of the command's options, as arguments of Python.

    Example:
        >>> name_options("batch_size must be at least 1, got batch_size=0", ["batch_size"])
        '--batch-size must be at least 1, got --batch-size 0'
    """
    message = message.replace("labels=True", "--labels data")
    message = re.sub(r"fit\(\.\.\., (\w+)=([^)]*)\)", r"fastmsgm train --\1 \2", message)

    def option(found: re.Match[str]) -> str:
        name = found[1]
        name = "label" if name == "labels" and name not in names else name
        if name not in names:
            return found[0]
        return f"--{name.replace('_', '-')}" + (" " if found[0].endswith("=") else "")

    # The first word, then name=value everywhere, but for attributes such as model.drop=0.
    message = re.sub(r"^(\w+)(?=[ :])", option, message)
    return re.sub(r"(?<![\w.-])(\w+)=(?:True\b|(?=\S))", option, message)


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    main_parser = argparse.ArgumentParser(
        prog="fastmsgm", description="Multiplicative diffusion models, fast."
    )
    main_parser.add_argument("--version", action="version", version=fastmsgm.__version__)
    commands = main_parser.add_subparsers(
        dest="command", required=True, metavar="train | sample | demo | info"
    )
    _train_options(commands.add_parser("train", help="train a model on images or vectors"))
    _sample_options(commands.add_parser("sample", help="sample a model"))

    pictures = commands.add_parser("demo", help="sample the shipped models and draw pictures")
    pictures.add_argument(
        "--out", default="demo", help="folder for the pictures (default %(default)s)"
    )
    pictures.add_argument(
        "--images", type=int, default=200, help="how many images (default %(default)s)"
    )
    pictures.add_argument(
        "--vectors",
        type=int,
        default=50_000,
        help="how many heavy-tailed vectors (default %(default)s)",
    )
    _device_option(pictures)
    pictures.set_defaults(run=_demo)

    info = commands.add_parser("info", help="versions and backends, for bug reports")
    info.add_argument(
        "--roofline",
        action="store_true",
        help="also modelled GPU times of the kernels, and measured times on this machine",
    )
    info.set_defaults(run=_info)
    return main_parser


# ---- train ----


def _train_options(train: argparse.ArgumentParser) -> None:
    train.set_defaults(run=_train)
    add = train.add_argument_group("data").add_argument
    files = "a .npy, .npz or .safetensors file, or a folder of images"
    add("--data", required=True, help=f"{', '.join(data.NAMES)}, {files}")
    add(
        "--size",
        type=int,
        help="side in pixels that the images of a folder are resized and cropped to; default: "
        "their own, which must be equal",
    )
    add(
        "--labels",
        metavar="FILE",
        help="class labels, for a class-conditional model: a .npy file of integers from 0, or "
        "'data' for those of a named set or of a folder with a folder for each class; "
        "default: none",
    )
    add(
        "--condition",
        action="append",
        metavar="NAME=FILE",
        help="condition the network on the rows of a .npy file, one for each sample; standardise "
        "them; can be given for several names",
    )
    add(
        "--validation",
        metavar="SHARE",
        help="share of the data to hold out, as 0.1, or data of their own like --data, of which a "
        "named set gives its test images; default: none",
    )
    add = train.add_argument_group("training").add_argument
    add(
        "--out", required=True, help="folder of the checkpoint; an interrupted run there is resumed"
    )
    add(
        "--steps",
        type=int,
        default=20_000,
        help="optimizer steps in all; more than before extend a run (default %(default)s)",
    )
    add(
        "--batch-size", type=int, default=128, help="samples per network call (default %(default)s)"
    )
    add(
        "--accumulate",
        type=int,
        default=1,
        help="batches per optimizer step, whose gradients are averaged (default %(default)s)",
    )
    add(
        "--lr",
        type=float,
        default=1e-3,
        help="peak learning rate, which decays to 0 as a cosine (default %(default)s)",
    )
    add(
        "--warmup",
        type=int,
        default=500,
        help="steps in which the learning rate rises to its peak (default %(default)s)",
    )
    add("--clip", type=float, default=1.0, help="largest gradient norm (default %(default)s)")
    add(
        "--optimizer",
        default="adam",
        choices=tuple(OPTIMIZERS),
        help="of torch.optim; sgd with momentum 0.9 (default %(default)s)",
    )
    add(
        "--ema",
        type=float,
        default=0.999,
        help="decay of the average of the weights, per step (default %(default)s)",
    )
    add(
        "--drop",
        type=float,
        default=0.0,
        help="share of the samples whose label and conditions are dropped, for sample --guidance; "
        "0.1 is usual (default %(default)s)",
    )
    add(
        "--precision",
        default="bf16",
        choices=("fp32", "bf16"),
        help="of the network (default %(default)s)",
    )
    add(
        "--every",
        type=int,
        default=500,
        help="steps between two lines of losses, two validations, two images in TensorBoard "
        "(default %(default)s)",
    )
    add("--tensorboard", action="store_true", help="also write losses and images for TensorBoard")
    _run_options(train)

    add = train.add_argument_group("model").add_argument
    add(
        "--family",
        default="gbm",
        choices=tuple(OPTIONS),
        help="of the process: geometric Brownian motion, norm-preserving rotations, or the "
        "additive baseline (default %(default)s)",
    )
    add(
        "--width",
        type=int,
        default=64,
        help="channels of the U-Net's finest level, or width of the perceptron "
        "(default %(default)s)",
    )
    add(
        "--levels",
        type=int,
        help="of the U-Net, resolutions below the image's; default: 2 for sides of up to 48 "
        "pixels, 3 of up to 128, else 4",
    )
    add = train.add_argument_group("--family gbm").add_argument
    add(
        "--sigma",
        type=float,
        help="largest log-noise level; default: 10 for a denoiser, else the paper's 0.8",
    )
    add("--prediction", choices=PREDICTIONS, help="what the network predicts (default denoiser)")
    add = train.add_argument_group("--family gbm or rotation").add_argument
    add(
        "--offset",
        type=float,
        help="added to the data; default: 1 for GBM on images in [0, 1], else 0",
    )
    add = train.add_argument_group("--family rotation").add_argument
    add("--noise", choices=NOISES, help="of the rotations (default isotropic)")
    add("--pareto", type=float, help="share of the norms that a Pareto tail replaces (default 0)")
    add = train.add_argument_group("--family rotation or vp").add_argument
    add("--beta-max", type=float, help="speed of the noise at t = 1 (default 20)")


def _run_options(command: argparse.ArgumentParser) -> None:
    """Add what ``train`` and ``sample`` share."""
    group = command.add_argument_group("run")
    group.add_argument("--seed", type=int, default=0, help="0 .. 2^64 - 1 (default %(default)s)")
    _device_option(group)
    group.add_argument("--no-progress", action="store_true", help="show no progress bar")


def _device_option(group: argparse._ActionsContainer) -> None:
    default = "cuda" if torch.cuda.is_available() else "cpu"
    group.add_argument(
        "--device", type=_device, default=default, help="where to run (default %(default)s)"
    )


def _device(name: str) -> str:
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise argparse.ArgumentTypeError(
            f"must be one that this PyTorch can use, such as cpu or cuda, got {name!r}"
        ) from error
    return name


def _train(args: argparse.Namespace) -> None:
    options = _options(args)
    rng.stream(args.seed)  # refuses a seed out of range
    samples, held_out = _split(_samples(args), args)
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


def _report(steps: int, seen: TrainStep) -> None:
    """Print a line about a step, above the progress bar."""
    validation = (
        "" if seen.validation_loss is None else f", validation loss {seen.validation_loss:.4g}"
    )
    tqdm.write(
        f"step {seen.step} of {steps}: loss {seen.loss:.4g}{validation}, learning rate "
        f"{seen.lr:.3g}, gradient norm {seen.grad_norm:.3g}"
    )


@dataclass(frozen=True)
class _Samples(Dataset[Any]):
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

    def part(self, index: Tensor) -> _Samples:
        """Return some of the samples; a class may be missing among them."""
        return _Samples(*self[index], self.classes)

    @property
    def labels(self) -> Tensor | None:
        return self.given.get("label")

    @property
    def condition(self) -> dict[str, Tensor]:
        return {name: values for name, values in self.given.items() if name != "label"}

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The range that samples are clamped to: that of images in [0, 1]."""
        if self.x.dtype == torch.uint8:  # divided by 255 in training
            return (0.0, 1.0)
        inside = self.x.ndim == 4 and bool((self.x.min() >= 0) & (self.x.max() <= 1))
        return (0.0, 1.0) if inside else None


def _samples(args: argparse.Namespace) -> _Samples:
    """Return the training data with their labels and conditions."""
    x, labels = _read(args.data, "train", args.labels == "data", args.size)
    if x.ndim not in (2, 4):
        raise ValueError(
            "--data must be vectors (n, d) or images (n, channels, height, width), got "
            f"{tuple(x.shape)}"
        )
    if args.labels not in (None, "data"):
        labels = check_labels(_integers("--labels", args.labels), len(x))
    given = {
        name: check_condition(name, _numbers(value), len(x))
        for name, value in _named(args.condition).items()
    }
    if labels is None:
        return _Samples(x, given, 0)
    return _Samples(x, {"label": labels, **given}, int(labels.max()) + 1)


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
    if source in data.NAMES and size is None:
        images, labels = NAMED_SETS[source](split, labels=True)
        return images, labels if labelled else None
    if not labelled:
        return data.load(source, size), None
    if not Path(source).is_dir():
        raise ValueError(
            "--labels data needs a named set, or a folder with a folder for each class, got "
            f"{source!r}: give --labels FILE.npy"
        )
    return data.image_folder(source, size, labels=True, channels=None)


def _split(samples: _Samples, args: argparse.Namespace) -> tuple[_Samples, _Samples | None]:
    """Return the data to train on, and those that are held out for validation."""
    if args.validation is None:
        return samples, None
    try:
        share = float(args.validation)
    except ValueError:
        return samples, _held_out(samples, args)
    n = len(samples)
    count = round(share * n) if 0 < share < 1 else 0
    if not 0 < count < n:
        raise ValueError(
            f"--validation must be a share of the {n} samples in (0, 1), neither none nor all of "
            f"them, or data of their own, got {args.validation}"
        )
    held_out = data.DataOrder(n, count, args.seed).batch(0)
    rest = torch.ones(n, dtype=torch.bool)
    rest[held_out] = False
    return samples.part(rest), samples.part(held_out)


def _held_out(samples: _Samples, args: argparse.Namespace) -> _Samples:
    """Return validation data of their own, which fit the training data."""
    source: str = args.validation
    if samples.condition or args.labels not in (None, "data"):
        raise ValueError(
            "--validation must be a share, such as 0.1, together with --condition or --labels "
            f"FILE, which hold one row for each sample of --data; got {source!r}"
        )
    if args.labels and _folders(source) != _folders(args.data):
        raise ValueError(f"--validation must have the class folders of --data, got {source!r}")
    try:
        size = args.size if Path(source).is_dir() else None
        x, labels = _read(source, "test", args.labels == "data", size)
    except (ValueError, TypeError, OSError) as error:
        raise ValueError(f"--validation: {error}") from error
    if x.shape[1:] != samples.x.shape[1:]:
        raise ValueError(
            f"--validation must have samples of shape {tuple(samples.x.shape[1:])}, as --data, got "
            f"{tuple(x.shape[1:])}"
        )
    return _Samples(x, {} if labels is None else {"label": labels}, samples.classes)


def _folders(source: str) -> set[str]:
    path = Path(source)
    return {found.name for found in path.iterdir() if found.is_dir()} if path.is_dir() else set()


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options of the chosen family; ValueError where one of another was given."""
    own = OPTIONS[args.family]
    for name in {name for options in OPTIONS.values() for name in options} - set(own):
        if getattr(args, name) is not None:
            families = " or ".join(family for family in OPTIONS if name in OPTIONS[family])
            raise ValueError(
                f"--{name.replace('_', '-')} is for --family {families}, got --family {args.family}"
            )
    given = {name: getattr(args, name) for name in own}
    return own | {name: value for name, value in given.items() if value is not None}


def _gbm_model(
    samples: _Samples,
    args: argparse.Namespace,
    sigma: float | None,
    prediction: str,
    offset: float | None,
) -> fastmsgm.ScoreModel:
    if sigma is None:  # a network that sees x itself cannot follow it over e^67
        sigma = 10.0 if prediction == "denoiser" else 0.8
    bounds = samples.bounds
    offset = float(bounds is not None) if offset is None else offset
    try:
        return fastmsgm.GBMModel.for_data(
            _net(samples, args, {}),
            fastmsgm.GBM(sigma),
            samples.x,
            prediction=prediction,
            labels=samples.labels,
            classes=samples.classes,
            offset=offset,
            bounds=bounds,
        )
    except ValueError as error:
        shifted = as_float(samples.x) + offset
        if bool(((shifted > 0).any(0) & (shifted < 0).any(0)).any()):
            raise ValueError(f"{error}; try --family rotation") from error
        raise


def _rotation_model(
    samples: _Samples,
    args: argparse.Namespace,
    noise: str,
    pareto: float,
    offset: float,
    beta_max: float,
) -> fastmsgm.ScoreModel:
    return fastmsgm.RotationModel.for_data(
        _net(samples, args, {"log_norm": 1}),
        fastmsgm.Rotation(noise=noise, beta_max=beta_max),
        samples.x,
        pareto=pareto,
        classes=samples.classes,
        offset=offset,
        bounds=samples.bounds,
    )


def _vp_model(samples: _Samples, args: argparse.Namespace, beta_max: float) -> fastmsgm.ScoreModel:
    return fastmsgm.VPModel.for_data(
        _net(samples, args, {}), fastmsgm.VP(beta_max=beta_max), samples.x, classes=samples.classes
    )


BUILDERS: dict[str, Callable[..., fastmsgm.ScoreModel]] = {  # called with the options of OPTIONS
    "gbm": _gbm_model,
    "rotation": _rotation_model,
    "vp": _vp_model,
}


def _net(samples: _Samples, args: argparse.Namespace, own: Mapping[str, int]) -> nn.Module:
    """Return a U-Net for images, a perceptron for vectors.

    Args:
        samples: The training data.
        args: Of the command.
        own: The conditions of the family, numbers per sample by name.
    """
    condition = {**own, **{k: v[0].numel() for k, v in samples.condition.items()}}
    shape = samples.x.shape[1:]
    if len(shape) == 3:
        side = max(shape[1:])
        levels = 2 + (side > 48) + (side > 128) if args.levels is None else args.levels
        return nets.UNet(
            shape[0],
            args.width,
            2 * args.width,
            blocks=1,
            deep_blocks=2,
            levels=levels,
            condition=condition,
            classes=samples.classes,
        )
    if args.levels is not None:
        raise ValueError(f"--levels is for images, got vectors {tuple(samples.x.shape)}")
    return nets.MLP(shape[0], args.width, condition=condition, classes=samples.classes)


# ---- sample ----


def _sample_options(sample: argparse.ArgumentParser) -> None:
    sample.set_defaults(run=_sample)
    add = sample.add_argument_group("samples").add_argument
    add(
        "--model",
        default="fashion-gbm",
        help="a shipped model or a checkpoint folder (default %(default)s)",
    )
    add("--n", type=int, default=50_000, help="how many (default %(default)s)")
    add(
        "--start",
        type=int,
        default=0,
        help="index of the first sample in the stream of the seed (default %(default)s)",
    )
    add(
        "--label",
        metavar="CLASS",
        help="the class of all samples, or a .npy file of n classes; default: every class in turn",
    )
    add(
        "--condition",
        action="append",
        metavar="NAME=VALUE",
        help="what the network is conditioned on: a number for all samples, or a .npy file with a "
        "row for each; can be given for several names",
    )
    add(
        "--guidance",
        type=float,
        default=1.0,
        help="weight of classifier-free guidance, for a model trained with --drop (default "
        "%(default)s, none)",
    )
    add = sample.add_argument_group("output").add_argument
    add(
        "--out",
        required=True,
        help="a .npy file, a .npz file (images as n, height, width, channels) or, without suffix, "
        "a folder of PNG files; written chunk by chunk",
    )
    add(
        "--dtype",
        choices=tuple(DTYPES),
        help="uint8 is 0 .. 255 over the range of the data; default: uint8 for PNG files and for "
        "images in a .npz, else float32",
    )
    add("--grid", metavar="PICTURE", help=f"also write a picture of the first {GRID} samples")
    add = sample.add_argument_group("solver").add_argument
    add("--solver", help=f"{', '.join(solver_names())}; default: the model's own")
    add("--steps", type=int, help="updates on the time grid; default: the solver's own")
    add(
        "--batch-size",
        type=int,
        help="samples per network call, for bit-equal parts of a stream; default: by their size",
    )
    add("--compile", action="store_true", help="torch.compile; CUDA graphs on CUDA")
    _run_options(sample)


def _sample(args: argparse.Namespace) -> None:
    model = fastmsgm.load(args.model, args.device)
    if args.grid:
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
        dtype=args.dtype or _default_dtype(model, Path(args.out)),
        compile=args.compile,
        progress=not args.no_progress,
    )
    if args.grid:
        plots.grid(_first(samples, args), args.grid, columns=10)
        print(args.grid)
    print(args.out)


def _default_dtype(model: fastmsgm.ScoreModel, out: Path) -> str:
    images = len(model.shape) == 3 and model.bounds is not None
    return "uint8" if out.suffix == "" or (out.suffix == ".npz" and images) else "float32"


def _label(text: str | None) -> int | Tensor | None:
    if text is None:
        return None
    try:
        return int(text)
    except ValueError:
        return _integers("--label", text, "a class, such as 3, or ")


def _condition_of_samples(
    model: fastmsgm.ScoreModel, args: argparse.Namespace
) -> dict[str, Tensor]:
    """Return the conditions of the samples by name, all that the network was built with."""
    given = _named(args.condition)
    own = [name for name in getattr(model.net, "condition", given) if name not in RESERVED]
    if set(own) != set(given):
        raise ValueError(
            f"--condition must name what the model was trained with, {', '.join(own) or 'nothing'},"
            f" got {', '.join(given) or 'nothing'}: give NAME=NUMBER or NAME=FILE.npy"
        )
    n, condition = check_int("n", args.n, 1), {}
    for name, value in given.items():
        try:
            condition[name] = torch.full((n,), float(value))
        except ValueError:
            condition[name] = _numbers(value)
    return condition


def _first(samples: Tensor, args: argparse.Namespace) -> Tensor:
    """Return the first samples in [0, 1], those of a folder from its files."""
    if not len(samples):
        from PIL import Image

        indices = range(args.start, args.start + min(args.n, GRID))
        images = [np.asarray(Image.open(Path(args.out) / f"{i:06d}.png")) for i in indices]
        stacked = torch.from_numpy(np.stack(images))
        samples = stacked[:, None] if stacked.ndim == 3 else stacked.movedim(-1, 1)
    return as_float(samples[:GRID])


# ---- what both read ----


def _named(texts: list[str] | None) -> dict[str, str]:
    """Return what stands behind each name of NAME=VALUE."""
    named: dict[str, str] = {}
    for text in texts or []:
        name, _, value = text.partition("=")
        if not name or not value or name in named:
            raise ValueError(f"--condition must be NAME=VALUE, with every name once, got {text!r}")
        named[name] = value
    return named


def _integers(option: str, path: str, other: str = "") -> Tensor:
    """Return the integers of a .npy file as int64; ``other`` is what else is allowed."""
    array = _array(option, path, other)
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{option} must be a file of integers, got {array.dtype} in {path}")
    return torch.from_numpy(array.astype(np.int64))


def _numbers(path: str) -> Tensor:
    """Return the numbers of a .npy file as float32."""
    array = _array("--condition", path)
    if not np.issubdtype(array.dtype, np.number) or np.iscomplexobj(array):
        raise ValueError(f"--condition must be a file of numbers, got {array.dtype} in {path}")
    return torch.from_numpy(array.astype(np.float32))


def _array(option: str, path: str, other: str = "") -> np.ndarray[Any, Any]:
    if Path(path).suffix != ".npy":
        raise ValueError(f"{option} must be {other}a .npy file, got {path!r}")
    try:
        return np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{option}: there is no file {path}") from error
    except (ValueError, EOFError) as error:
        raise ValueError(f"{option}: {path} is not a plain .npy array ({error})") from error


# ---- demo and info ----


def _demo(args: argparse.Namespace) -> None:
    for path in demo.draw(args.out, args.images, args.vectors, args.device):
        print(path)


def _info(args: argparse.Namespace) -> None:
    print(
        f"fastmsgm {fastmsgm.__version__}, Python {platform.python_version()}, "
        f"torch {torch.__version__}"
    )
    print(f"{platform.platform()}, {torch.get_num_threads()} threads")
    for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
        name = (
            torch.cuda.get_device_name()
            if device == "cuda"
            else platform.processor() or platform.machine()
        )
        print(f"{device} ({name}): backend {ops.backend(device)}")
    for package in ("numba", "triton", "matplotlib", "torchvision"):
        print(f"{package}: {'installed' if importlib.util.find_spec(package) else 'not installed'}")
    if args.roofline:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        for line in (*roofline.modelled_table(), *roofline.measured_table(device)):
            print(line)
