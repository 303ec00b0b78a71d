"""The command line: ``fastmsgm train | sample | demo | info``, or ``python -m fastmsgm``."""

from __future__ import annotations

import argparse
import importlib.util
import logging
import platform
import sys
from typing import Any

import torch
from torch import Tensor, nn

import fastmsgm
from fastmsgm import data, nets, ops, rng
from fastmsgm.evaluation import plots
from fastmsgm.families import solver_names
from fastmsgm.gbm.preconditioning import PREDICTIONS
from fastmsgm.rotation.process import NOISES
from fastmsgm.tools import demo, roofline

OPTIONS: dict[str, dict[str, Any]] = {  # of each family, with their defaults
    "gbm": {"sigma": None, "prediction": "denoiser"},
    "rotation": {"noise": "isotropic", "beta_max": 20.0, "pareto": 0.0},
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: None takes those of the process.

    Returns:
        The exit status: 0, 1 after an error, which is printed, or 130 after an interrupt.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    args = _parser().parse_args(arguments)
    try:
        args.run(args)
    except (ValueError, TypeError, ImportError, OSError, RuntimeError, FloatingPointError) as error:
        print(f"fastmsgm {args.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print(f"fastmsgm {args.command}: {str(stop) or 'interrupted'}", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastmsgm", description="Multiplicative diffusion models, fast."
    )
    parser.add_argument("--version", action="version", version=fastmsgm.__version__)
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="train | sample | demo | info"
    )

    train = commands.add_parser("train", help="train a model on images or vectors")
    train.add_argument(
        "--data", required=True, help=f"{', '.join(data.NAMES)}, or a .npy or .safetensors file"
    )
    train.add_argument(
        "--out", required=True, help="folder of the checkpoint; an interrupted run there is resumed"
    )
    train.add_argument("--steps", type=int, default=20_000, help="optimizer steps (default 20000)")
    train.add_argument("--batch-size", type=int, default=128)
    train.add_argument("--lr", type=float, default=1e-3)
    train.add_argument("--ema", type=float, default=0.999)
    train.add_argument(
        "--family", default="gbm", choices=tuple(OPTIONS), help="of the process (default gbm)"
    )
    gbm, rotation = (train.add_argument_group(f"--family {family}") for family in OPTIONS)
    gbm.add_argument(
        "--sigma",
        type=float,
        help="largest log-noise level (default 10 for a denoiser, else the paper's 0.8)",
    )
    gbm.add_argument(
        "--prediction", choices=PREDICTIONS, help="what the network predicts (default denoiser)"
    )
    rotation.add_argument("--noise", choices=NOISES, help="default isotropic")
    rotation.add_argument("--beta-max", type=float, help="speed of the noise at t = 1 (default 20)")
    rotation.add_argument(
        "--pareto", type=float, help="share of the norms that a Pareto tail replaces (default 0)"
    )
    train.add_argument(
        "--offset",
        type=float,
        help="added to the data; default 1 for GBM on images in [0, 1], else 0",
    )
    train.add_argument("--width", type=int, default=64, help="of the network (default 64)")
    train.add_argument("--precision", default="bf16", choices=("fp32", "bf16"))
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--device", default=_default_device())
    train.set_defaults(run=_train)

    sample = commands.add_parser("sample", help="sample a model")
    sample.add_argument(
        "--model",
        default="fashion-gbm",
        help="a shipped model or a checkpoint folder (default fashion-gbm)",
    )
    sample.add_argument("--n", type=int, default=50_000, help="how many (default 50000)")
    sample.add_argument(
        "--steps", type=int, help="updates on the time grid; default: the solver's own"
    )
    sample.add_argument("--solver", help=f"{', '.join(solver_names())}; default: the model's own")
    sample.add_argument("--seed", type=int, default=0)
    sample.add_argument("--start", type=int, default=0, help="index of the first sample")
    sample.add_argument(
        "--label", type=int, help="the class of all samples; default: every class in turn"
    )
    sample.add_argument("--batch-size", type=int)
    sample.add_argument("--device", default=_default_device())
    sample.add_argument("--out", required=True, help="a .npy file, written chunk by chunk")
    sample.add_argument("--grid", help="also write a picture of the first 100 samples")
    sample.add_argument("--compile", action="store_true", help="torch.compile; CUDA graphs on CUDA")
    sample.add_argument("--no-progress", action="store_true")
    sample.set_defaults(run=_sample)

    pictures = commands.add_parser("demo", help="sample the shipped models and draw pictures")
    pictures.add_argument("--out", default="demo", help="folder for the pictures (default demo)")
    pictures.add_argument("--images", type=int, default=200, help="how many images (default 200)")
    pictures.add_argument(
        "--vectors", type=int, default=50_000, help="how many heavy-tailed vectors (default 50000)"
    )
    pictures.add_argument("--device", default=_default_device())
    pictures.set_defaults(run=_demo)

    info = commands.add_parser("info", help="versions and backends, for bug reports")
    info.add_argument(
        "--roofline",
        action="store_true",
        help="also modelled GPU times of the kernels, and measured times on this machine",
    )
    info.set_defaults(run=_info)
    return parser


def _train(args: argparse.Namespace) -> None:
    x = data.load(args.data)
    if x.ndim not in (2, 4):
        raise ValueError(
            "--data must be vectors (n, d) or images (n, channels, height, width), got "
            f"{tuple(x.shape)}"
        )
    options = _options(args)
    rng.stream(args.seed)  # refuses a seed out of range
    torch.manual_seed(args.seed)
    model = (_gbm_model if args.family == "gbm" else _rotation_model)(x, args, **options)
    fastmsgm.fit(
        model.to(args.device),
        x,
        steps=args.steps,
        batch_size=args.batch_size,
        lr=args.lr,
        ema=args.ema,
        precision=args.precision,
        out=args.out,
        seed=args.seed,
    )
    print(
        f"{args.out}: trained for {args.steps} steps; sample it with: fastmsgm sample --model "
        f"{args.out} --out x.npy"
    )


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options of the chosen family; ValueError where one of the other was given."""
    for family, defaults in OPTIONS.items():
        for name in defaults:
            if family != args.family and getattr(args, name) is not None:
                raise ValueError(
                    f"--{name.replace('_', '-')} is for --family {family}, got --family "
                    f"{args.family}"
                )
    given = {name: getattr(args, name) for name in OPTIONS[args.family]}
    return OPTIONS[args.family] | {
        name: value for name, value in given.items() if value is not None
    }


def _gbm_model(
    x: Tensor, args: argparse.Namespace, sigma: float | None, prediction: str
) -> fastmsgm.ScoreModel:
    if sigma is None:  # a network that sees x itself cannot follow it over e^67
        sigma = 10.0 if prediction == "denoiser" else 0.8
    bounds = _bounds(x)
    offset = args.offset if args.offset is not None else float(bounds is not None)
    return fastmsgm.GBMModel.for_data(
        _net(x, args.width, 1),
        fastmsgm.GBM(sigma),
        x,
        prediction=prediction,
        offset=offset,
        bounds=bounds,
    )


def _rotation_model(
    x: Tensor, args: argparse.Namespace, noise: str, beta_max: float, pareto: float
) -> fastmsgm.ScoreModel:
    process, offset = fastmsgm.Rotation(noise=noise, beta_max=beta_max), args.offset or 0.0
    return fastmsgm.RotationModel.for_data(
        _net(x, args.width, 2),
        process,
        x,
        prior=fastmsgm.RadialPrior.fit(x + offset, pareto=pareto),
        offset=offset,
        bounds=_bounds(x),
    )


def _net(x: Tensor, width: int, cond_dim: int) -> nn.Module:
    """Return a U-Net for images, a perceptron for vectors."""
    if x.ndim == 4:
        return nets.UNet(x.shape[1], width, 2 * width, blocks=1, deep_blocks=2, cond_dim=cond_dim)
    return nets.MLP(x.shape[1], width, cond_dim=cond_dim)


def _bounds(x: Tensor) -> tuple[float, float] | None:
    """Return the range that samples are clamped to: that of images in [0, 1]."""
    return (0.0, 1.0) if x.ndim == 4 and bool((x.min() >= 0) & (x.max() <= 1)) else None


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
        label=args.label,
        batch_size=args.batch_size,
        out=args.out,
        compile=args.compile,
        progress=not args.no_progress,
    )
    if args.grid:
        plots.grid(samples[:100], args.grid, columns=10)
        print(args.grid)
    print(args.out)


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
        for line in (*roofline.modelled_table(), *roofline.measured_table(_default_device())):
            print(line)


def _default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
