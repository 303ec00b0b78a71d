"""The command line: ``fastmsgm train | sample | demo | info``; ``python -m fastmsgm`` is the same."""

from __future__ import annotations

import argparse
import importlib.util
import logging
import platform
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import fastmsgm
from fastmsgm import data, nets, ops, pictures
from fastmsgm.solvers import ALIASES, AMBIENT_SOLVERS, GBM_SOLVERS, RING_SOLVERS, ROTATION_SOLVERS


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the exit status is 0, or 1 after an error that it has explained."""
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
    parser = argparse.ArgumentParser(prog="fastmsgm", description="Multiplicative diffusion models, fast.")
    parser.add_argument("--version", action="version", version=fastmsgm.__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="train | sample | demo | info")

    train = commands.add_parser("train", help="train a GBM model on images or vectors")
    train.add_argument("--data", required=True, help=f"{', '.join(data.NAMES)}, or a .npy or .safetensors file")
    train.add_argument("--out", required=True, help="folder of the checkpoint; an interrupted run there is resumed")
    train.add_argument("--steps", type=int, default=20_000, help="optimizer steps (default 20000)")
    train.add_argument("--batch-size", type=int, default=128)
    train.add_argument("--lr", type=float, default=1e-3)
    train.add_argument("--ema", type=float, default=0.999)
    train.add_argument("--sigma", type=float, default=10.0, help="largest log-noise level (default 10)")
    train.add_argument("--prediction", default="denoiser", choices=("denoiser", "hyvarinen", "score"))
    train.add_argument("--offset", type=float, help="added to the data; default 1 for images in [0, 1], else 0")
    train.add_argument("--width", type=int, default=64, help="of the network (default 64)")
    train.add_argument("--precision", default="bf16", choices=("fp32", "bf16"))
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--device", default=_default_device())
    train.set_defaults(run=_train)

    sample = commands.add_parser("sample", help="draw samples from a model")
    sample.add_argument(
        "--model", default="fashion-gbm", help="a shipped model or a checkpoint folder (default fashion-gbm)"
    )
    sample.add_argument("--n", type=int, default=50_000, help="how many (default 50000)")
    sample.add_argument("--steps", type=int, help="updates on the time grid; default: the solver's own")
    names = dict.fromkeys([*GBM_SOLVERS, *ALIASES, *ROTATION_SOLVERS, *RING_SOLVERS, *AMBIENT_SOLVERS])
    sample.add_argument("--solver", help=f"{', '.join(names)}; default: the model's own")
    sample.add_argument("--seed", type=int, default=0)
    sample.add_argument("--start", type=int, default=0, help="index of the first sample")
    sample.add_argument("--batch-size", type=int)
    sample.add_argument("--device", default=_default_device())
    sample.add_argument("--out", required=True, help="a .npy file, written chunk by chunk")
    sample.add_argument("--grid", help="also write a picture of the first 100 samples")
    sample.add_argument("--no-progress", action="store_true")
    sample.set_defaults(run=_sample)

    demo = commands.add_parser("demo", help="sample the shipped model and draw the pictures")
    demo.add_argument("--out", default="demo", help="folder for the pictures (default demo)")
    demo.add_argument("--n", type=int, default=256, help="how many samples (default 256)")
    demo.add_argument("--device", default=_default_device())
    demo.set_defaults(run=_demo)

    info = commands.add_parser("info", help="versions and backends, for bug reports")
    info.set_defaults(run=_info)
    return parser


def _train(args: argparse.Namespace) -> None:
    x = data.load(args.data)
    if x.ndim not in (2, 4):
        raise ValueError(f"--data must be vectors (n, d) or images (n, channels, height, width), got {tuple(x.shape)}")
    image = x.ndim == 4
    unit = bool((x.min() >= 0) & (x.max() <= 1))
    offset = args.offset if args.offset is not None else (1.0 if image and unit else 0.0)
    bounds = (0.0, 1.0) if image and unit else None
    torch.manual_seed(args.seed)
    net = nets.UNet(x.shape[1], args.width, 2 * args.width, 1) if image else nets.MLP(x.shape[1], args.width)
    model = fastmsgm.GBMModel.for_data(
        net, fastmsgm.GBM(sigma=args.sigma), x, prediction=args.prediction, offset=offset, bounds=bounds
    ).to(args.device)
    fastmsgm.fit(
        model, x, steps=args.steps, batch_size=args.batch_size, lr=args.lr, ema=args.ema, precision=args.precision,
        out=args.out, seed=args.seed,
    )  # fmt: skip
    print(
        f"{args.out}: trained for {args.steps} steps; draw samples with: fastmsgm sample --model {args.out} --out x.npy"
    )


def _sample(args: argparse.Namespace) -> None:
    model = fastmsgm.load(args.model, args.device)
    if args.grid:
        pictures.check(model.shape)
    samples = fastmsgm.sample(
        model, args.n, steps=args.steps, solver=args.solver, seed=args.seed, start=args.start,
        batch_size=args.batch_size, out=args.out, progress=not args.no_progress,
    )  # fmt: skip
    if args.grid:
        pictures.grid(samples[:100], args.grid, columns=10)
        print(args.grid)
    print(args.out)


def _demo(args: argparse.Namespace) -> None:
    model = fastmsgm.load("fashion-gbm", args.device)
    pictures.check(model.shape)
    images, film = Path(args.out) / "fashion.png", Path(args.out) / "denoising.png"
    pictures.grid(fastmsgm.sample(model, args.n), images)
    _film(model, film)
    print(f"{images}\n{film}")


def _film(model: fastmsgm.ScoreModel, path: Path, rows: int = 4) -> None:
    """One trajectory of a few samples, from log-normal noise to images."""
    frames: list[Tensor] = []
    levels: list[float] = []

    def keep(step: fastmsgm.Step) -> None:
        frames.append(step.x[:rows])
        levels.append(step.level)

    for _ in fastmsgm.sample_iter(model, rows, progress=False, callback=keep):
        pass
    shown = np.unique(np.linspace(0, len(frames) - 1, 10).round().astype(int))
    data = torch.log(frames[-1])
    log_range = (float(data.min()), float(data.max()))
    pictures.film_strip([frames[i] for i in shown], [levels[i] for i in shown], path, log_range)


def _info(args: argparse.Namespace) -> None:
    print(f"fastmsgm {fastmsgm.__version__}, Python {platform.python_version()}, torch {torch.__version__}")
    print(f"{platform.platform()}, {torch.get_num_threads()} threads")
    for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
        name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
        print(f"{device} ({name}): backend {ops.backend(device)}")
    for package in ("numba", "triton", "matplotlib", "torchvision"):
        print(f"{package}: {'installed' if importlib.util.find_spec(package) else 'not installed'}")


def _default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
