"""What the commands share: how options are added, and how their values are read."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastmsgm.data.reading import read_npy, reading


def add_option(
    group: argparse._ActionsContainer, name: str, help: str, default: Any = None, **settings: Any
) -> None:
    """Add an option with a value.

    Args:
        group: Of options.
        name: With its dashes.
        help: What it is; a default is added to the text.
        default: None is none; else its type is that of the values.
        settings: Of ``add_argument``.
    """
    if default is not None:
        help += " (default %(default)s)"
        settings.setdefault("type", type(default))
    group.add_argument(name, default=default, help=help, **settings)


def add_run_options(command: argparse.ArgumentParser) -> None:
    """Add what ``train`` and ``sample`` share."""
    group = command.add_argument_group("run")
    add_option(group, "--seed", "0 .. 2^64 - 1", 0)
    add_device_option(group)
    group.add_argument("--no-progress", action="store_true", help="show no progress bar")


def add_device_option(group: argparse._ActionsContainer) -> None:
    """Add ``--device``, by default a GPU where there is one; torchrun's processes have one each."""
    gpu = f"cuda:{os.environ['LOCAL_RANK']}" if "LOCAL_RANK" in os.environ else "cuda"
    default = gpu if torch.cuda.is_available() else "cpu"
    add_option(group, "--device", "where to run", default, type=_device)


def _device(name: str) -> str:
    try:
        torch.ones(1, dtype=torch.float32, device=name).item()  # the device "meta" holds no numbers
    except Exception as error:  # each kind of device has exceptions of its own
        raise argparse.ArgumentTypeError(
            f"must be one that this PyTorch can use, such as cpu or cuda, got {name!r}"
        ) from error
    return name


@contextmanager
def about(option: str) -> Iterator[None]:
    """Add to errors inside which option they are about, where they do not name one.

    Args:
        option: With its dashes.

    Raises:
        ValueError: Instead of the error inside.
    """
    try:
        yield
    except (ValueError, TypeError, OSError) as error:
        message, argument = str(error), option.removeprefix("--")
        named = message.startswith(("--", f"{argument} ", f"{argument}:"))
        raise ValueError(message if named else f"{option}: {message}") from error


def named_conditions(texts: list[str] | None) -> dict[str, str]:
    """Return what stands behind each name of ``--condition NAME=VALUE``."""
    named: dict[str, str] = {}
    for text in texts or []:
        name, _, value = text.partition("=")
        if not name or not value or name in named:
            raise ValueError(f"--condition must be NAME=VALUE, with every name once, got {text!r}")
        named[name] = value
    return named


def read_condition(path: str) -> Tensor:
    """Return the numbers of a .npy file as float32, (n,) or (n, k)."""
    array = _array("--condition", path)
    if not np.issubdtype(array.dtype, np.number) or np.iscomplexobj(array):
        raise ValueError(f"--condition must be a file of numbers, got {array.dtype} in {path}")
    if array.ndim not in (1, 2):
        raise ValueError(
            f"--condition must be a file of shape (n,) or (n, k), one row for each sample, got "
            f"{array.shape} in {path}: flatten the rows"
        )
    return torch.from_numpy(array.astype(np.float32))


def read_classes(option: str, path: str, other: str = "") -> Tensor:
    """Return the integers of a .npy file as int64; ``other`` is what else the option takes."""
    array = _array(option, path, other)
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{option} must be a file of integers, got {array.dtype} in {path}")
    return torch.from_numpy(array.astype(np.int64))


def _array(option: str, path: str, other: str = "") -> np.ndarray[Any, Any]:
    if Path(path).suffix != ".npy":
        raise ValueError(f"{option} must be {other}a .npy file, got {path!r}")
    if not Path(path).is_file():
        raise FileNotFoundError(f"{option}: there is no file {path}")
    with (
        about(option),
        reading(path, ".npy file", "write it with numpy.save, no objects"),
        open(path, "rb") as file,
    ):
        return read_npy(Path(path), file, os.fstat(file.fileno()).st_size)
