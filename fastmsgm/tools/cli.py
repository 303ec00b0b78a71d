"""The command line: ``fastmsgm train | sample | eval | verify | merge | demo | info``.

``train`` has the options of ``fastmsgm.fit``, ``sample`` those of ``fastmsgm.sample`` and ``eval``
those of ``fastmsgm.evaluation.evaluate``, under the same names; functions, which cannot be written
as text, are left out.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import logging
import os
import platform
import re
import sys
import traceback
from collections.abc import Collection, Mapping
from pathlib import Path

import torch

import fastmsgm
from fastmsgm import ops
from fastmsgm.tools import (
    demo,
    eval_command,
    files_command,
    roofline,
    sample_command,
    train_command,
)
from fastmsgm.tools.arguments import add_device_option, add_option

_EXPECTED = (ValueError, TypeError, ImportError, OSError, RuntimeError, FloatingPointError)
_SIZES = ("batch_size", "n", "width", "images", "vectors")  # options that cost memory


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    An error is printed on standard error, without a traceback; the environment variable
    ``FASTMSGM_TRACEBACK=1`` adds it.

    Args:
        arguments: None takes those of the process.

    Returns:
        The exit status: 0; 1 after an error; 70 after an error that only a fault of this package
        can cause; 130 after an interrupt; 141 where what reads the output has ended, as ``head``
        does. For wrong options ``argparse`` exits with 2.

    Raises:
        SystemExit: Wrong options, or ``--help``.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files need not be text
        sys.stdout.reconfigure(errors="backslashreplace")
    logging.basicConfig(
        level=logging.INFO, format="%(message)s", handlers=[_LogHandler(sys.stdout)]
    )
    try:
        try:
            return _run_command(arguments)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        status = 141
    except OSError as error:
        print(f"fastmsgm: standard output: {error}", file=sys.stderr)
        status = 1
    # What is left in its buffer would fail again at exit.
    with contextlib.suppress(OSError):
        descriptor = sys.stdout.fileno()
        os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    return status


class _LogHandler(logging.StreamHandler):
    """A handler that raises where its stream fails, instead of printing a traceback."""

    def handleError(self, record: logging.LogRecord) -> None:
        raise


def _run_command(arguments: list[str] | None) -> int:
    """Run a command and return its exit status; only BrokenPipeError is not reported here."""
    main_parser = parser()
    args = main_parser.parse_args(arguments)
    given = {name: value for name, value in vars(args).items() if name not in ("command", "run")}
    try:
        _check_texts(given)
        args.run(args)
        return 0
    except BrokenPipeError:
        raise
    except KeyboardInterrupt as stop:
        message, status = str(stop) or "interrupted", 130
    except Exception as error:
        if os.environ.get("FASTMSGM_TRACEBACK") == "1":
            traceback.print_exc()
        message, status = _message(error, given), 70 if _is_fault(error) else 1
    message = name_options(message, given, _all_names(main_parser))
    print(f"fastmsgm {args.command}: {message}", file=sys.stderr)
    return status


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
    text = str(error).partition("\nException raised from")[0]  # PyTorch adds its stack in C++
    if _is_fault(error):
        return (
            f"a fault of fastmsgm ({type(error).__name__}: {text}): please report it, with what "
            "it prints under FASTMSGM_TRACEBACK=1 and with the output of fastmsgm info"
        )
    if _is_shortage(error):
        sizes = [name for name in _SIZES if name in given]
        remedy = ": lower --" + " or --".join(sizes).replace("_", "-") if sizes else ""
        return f"there is not enough memory ({text}){remedy}"
    if not isinstance(error, OSError) or not error.filename:
        return text
    about = Path(os.fsdecode(error.filename))
    for name in ("out", *given):
        if isinstance(given.get(name), str) and _belongs(about, Path(str(given[name]))):
            return f"{name}: {error.strerror}: {about}"
    return text


def _is_shortage(error: Exception) -> bool:
    """Whether memory ran out; on a CPU PyTorch raises a plain RuntimeError."""
    full = isinstance(error, RuntimeError) and "allocate memory" in str(error)
    return full or isinstance(error, MemoryError | torch.OutOfMemoryError)


def _is_fault(error: Exception) -> bool:
    """Whether an error is of a kind that neither this package nor PyTorch raises on purpose."""
    return not _is_shortage(error) and not isinstance(error, _EXPECTED)


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
    message = re.sub(r"(?<![\w./-])([a-z]+_[a-z_]+)(?![\w/-]|\.\w)", option, message)
    # A remedy, as "lower sigma".
    return re.sub(r"(?<=\blower )([a-z]+)\b", option, message)


def _all_names(main_parser: argparse.ArgumentParser) -> set[str]:
    """Return the names of the options of all commands, as arguments of Python."""
    commands = next(a for a in main_parser._actions if isinstance(a, argparse._SubParsersAction))
    names = {action.dest for command in commands.choices.values() for action in command._actions}
    return names - {"help"}


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    main_parser = argparse.ArgumentParser(
        prog="fastmsgm",
        description="Multiplicative diffusion models, fast.",
        epilog="Exit status: 0; 1 after an error, 2 for wrong options, 70 after a fault of "
        "fastmsgm, 130 after an interrupt, 141 where nobody reads the output. "
        "FASTMSGM_TRACEBACK=1 adds tracebacks to messages.",
    )
    main_parser.add_argument("--version", action="version", version=fastmsgm.__version__)
    commands = main_parser.add_subparsers(
        dest="command",
        required=True,
        metavar="train | sample | eval | verify | merge | demo | info",
    )
    train_command.add_options(
        commands.add_parser("train", help="train a model on images or vectors")
    )
    sample_command.add_options(commands.add_parser("sample", help="sample a model"))
    eval_command.add_options(commands.add_parser("eval", help="compare samples with data"))
    files_command.add_verify(
        commands.add_parser("verify", help="check samples against their checksums")
    )
    files_command.add_merge(
        commands.add_parser("merge", help="complete samples whose parts were made with --shard")
    )

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
