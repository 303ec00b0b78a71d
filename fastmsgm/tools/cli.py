"""The command line: ``fastmsgm train | sample | demo | info``, or ``python -m fastmsgm``.

``train`` has the options of ``fastmsgm.fit`` and ``sample`` those of ``fastmsgm.sample``, under the
same names; functions, which cannot be written as text, are left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import platform
import re
import sys
from collections.abc import Collection, Mapping
from pathlib import Path

import torch

import fastmsgm
from fastmsgm import ops
from fastmsgm.tools import demo, roofline, sample_command, train_command
from fastmsgm.tools.arguments import add_device_option, add_option


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: None takes those of the process.

    Returns:
        The exit status: 0, 1 after an error, which is printed, or 130 after an interrupt.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    main_parser = parser()
    args = main_parser.parse_args(arguments)
    given = {name: value for name, value in vars(args).items() if name not in ("command", "run")}
    try:
        _check_texts(given)
        args.run(args)
    except (ValueError, TypeError, ImportError, OSError, RuntimeError, FloatingPointError) as error:
        message = name_options(_message(error, given), given, _all_names(main_parser))
        print(f"fastmsgm {args.command}: {message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print(f"fastmsgm {args.command}: {str(stop) or 'interrupted'}", file=sys.stderr)
        return 130
    return 0


def _check_texts(given: Mapping[str, object]) -> None:
    """Raise ValueError for an empty text, and for an output that would fill the root folder."""
    for name, value in given.items():
        if value == "":
            raise ValueError(f"{name} must not be empty, got ''")
    out = given.get("out")
    if isinstance(out, str) and Path(out).resolve() == Path(out).resolve().parent:
        raise ValueError(f"out must not be the root folder, got {out!r}: give a folder in it")


def _message(error: Exception, given: Mapping[str, object]) -> str:
    """Return an error's message; that of the system about a file begins with the option's name."""
    if not isinstance(error, OSError) or not error.filename:
        return str(error)
    about = Path(os.fsdecode(error.filename))
    for name in ("out", *given):
        if isinstance(given.get(name), str) and _belongs(about, Path(str(given[name]))):
            return f"{name}: {error.strerror}: {about}"
    return str(error)


def _belongs(path: Path, given: Path) -> bool:
    """Whether a path is above, below or beside, as a manifest is, a path that was given."""
    beside = path.parent == given.parent and given.name in path.name
    return beside or path.is_relative_to(given) or given.is_relative_to(path)


def name_options(message: str, names: Collection[str], others: Collection[str] = ()) -> str:
    """Return an error's message with options of the command line instead of Python's arguments.

    Args:
        message: Of ``fit`` or ``sample``, which begins with an argument's name, shows arguments as
            name=value, or has one that cannot be a word since it has an underscore.
        names: Of the command's options, as arguments of Python.
        others: Names of the options of all commands, which a remedy can show.

    Example:
        >>> name_options("batch_size must be at least 1, got batch_size=0", ["batch_size"])
        '--batch-size must be at least 1, got --batch-size 0'
    """
    message = message.replace("labels=True", "--labels data")
    message = re.sub(r"fit\(\.\.\., (\w+)=([^)]*)\)", r"fastmsgm train --\1 \2", message)

    def option(found: re.Match[str]) -> str:
        name, value = found[1], found[0].endswith("=")
        if name not in names and not (value and name in others):
            name = "label" if name == "labels" else name
        if name not in names and not (value and name in others):
            return found[0]
        return f"--{name.replace('_', '-')}" + (" " if value else "")

    # The first word, then name=value and names with an underscore everywhere, but for attributes
    # such as model.drop=0, and for parts of paths.
    message = re.sub(r"^(\w+)(?=[ :])", option, message)
    message = re.sub(r"(?<![\w.-])(\w+)=(?:True\b|(?=\S))", option, message)
    return re.sub(r"(?<![\w./-])([a-z]+_[a-z_]+)(?![\w/-]|\.\w)", option, message)


def _all_names(main_parser: argparse.ArgumentParser) -> set[str]:
    """Return the names of the options of all commands, as arguments of Python."""
    commands = next(a for a in main_parser._actions if isinstance(a, argparse._SubParsersAction))
    names = {action.dest for command in commands.choices.values() for action in command._actions}
    return names - {"help"}


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    main_parser = argparse.ArgumentParser(
        prog="fastmsgm", description="Multiplicative diffusion models, fast."
    )
    main_parser.add_argument("--version", action="version", version=fastmsgm.__version__)
    commands = main_parser.add_subparsers(
        dest="command", required=True, metavar="train | sample | demo | info"
    )
    train_command.add_options(
        commands.add_parser("train", help="train a model on images or vectors")
    )
    sample_command.add_options(commands.add_parser("sample", help="sample a model"))

    pictures = commands.add_parser("demo", help="sample the shipped models and draw pictures")
    add_option(pictures, "--out", "folder for the pictures", "demo")
    add_option(pictures, "--images", "how many images", 200)
    add_option(pictures, "--vectors", "how many heavy-tailed vectors", 50_000)
    add_device_option(pictures)
    pictures.set_defaults(run=_demo)

    info = commands.add_parser("info", help="versions and backends, for bug reports")
    info.add_argument(
        "--roofline",
        action="store_true",
        help="also modelled GPU times of the kernels, and measured times on this machine",
    )
    info.set_defaults(run=_info)
    return main_parser


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
