"""Where ``sample`` writes: a tensor, an array, a ``.npy`` or ``.npz`` file, or a folder of PNGs.

Samples arrive chunk by chunk. Files are written as they arrive, in memory that does not grow with
their number. Nothing on the disk changes before the first chunk, so that an older file outlives a
run that fails in its first network call.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastmsgm.writers import DTYPES, Memory, Npy, Npz, Output, Pictures


def open_output(
    out: Tensor | np.ndarray | str | os.PathLike[str] | None,
    n: int,
    shape: tuple[int, ...],
    *,
    start: int,
    device: torch.device,
    dtype: str = "float32",
    bounds: tuple[float, float] | None = None,
) -> Output:
    """Check where samples go. Files and folders are made by the first ``write``.

    Args:
        out: None for a new tensor on ``device``; a tensor or array (n, *shape) of ``dtype``, which
            is filled; or a path. ``.npy`` is memory-mapped. ``.npz`` holds one uncompressed array
            ``arr_0``, images as (n, height, width, channels). A path without suffix is a folder of
            PNGs, named by the sample's index in the stream, as in ``000123.png``; other files in it
            stay.
        n: Number of samples, at least 1.
        shape: Shape of one sample.
        start: Index of the first sample in the stream, for the names of PNGs.
        device: Of a new tensor.
        dtype: "float32", or "uint8" for round(255 (x - low) / (high - low)). PNGs are always uint8.
        bounds: (low, high), the data's own range, or None.

    Raises:
        TypeError: out is of another type.
        ValueError: out does not fit the samples, cannot be written or is another kind of path;
            dtype is unknown, or uint8 without finite bounds.
        ImportError: A folder, and Pillow is missing.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    if isinstance(out, (str, os.PathLike)):
        return _open_path(_checked_path(out), n, shape, start, dtype, bounds)
    if out is not None and not isinstance(out, (Tensor, np.ndarray)):
        raise TypeError(f"out must be a tensor, an array or a path, got {type(out).__name__}")
    levels = _levels(dtype, bounds)
    if out is None:
        out = torch.empty((n, *shape), dtype=DTYPES[dtype], device=device)
    return Memory(_tensor(out, (n, *shape), dtype), shape, levels)


def _checked_path(out: str | os.PathLike[str]) -> Path:
    """Return a path that has a name and can be written; nothing is made yet."""
    given, path = os.fspath(out), Path(out)
    if path.name in ("", ".."):
        raise ValueError(
            f"out must be a path that ends in the name of a file or folder, got {given!r}: give "
            "one, as samples.npy"
        )
    folder = path.absolute().parent
    while not folder.exists():
        folder = folder.parent
    # The manifest of a file is beside it, that of a folder in it.
    for place in (path,) if path.is_dir() else (folder, path):
        if place.exists() and not os.access(place, os.W_OK):
            raise ValueError(
                f"out must be writable, got {given!r}: no permission to write to "
                f"{os.fspath(place)!r}"
            )
    if not folder.is_dir():
        raise ValueError(f"out must be in a folder, got {given!r}: {os.fspath(folder)!r} is a file")
    return path


def _open_path(
    path: Path,
    n: int,
    shape: tuple[int, ...],
    start: int,
    dtype: str,
    bounds: tuple[float, float] | None,
) -> Output:
    if path.suffix not in (".npy", ".npz", ""):
        raise ValueError(
            "out must be a path that ends in .npy or .npz, or a folder for PNGs, which has no "
            f"suffix, got {os.fspath(path)!r}"
        )
    if path.suffix:
        levels = _levels(dtype, bounds)
        if path.is_dir():
            raise ValueError(
                f"out must be a file where it ends in {path.suffix}, but {os.fspath(path)!r} is a "
                "folder: give another name"
            )
        return (Npz if path.suffix == ".npz" else Npy)(path, n, shape, levels)
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise ValueError(
            "out without a suffix is a folder of PNGs, which need samples of shape (1 or 3, "
            f"height, width); the model's are {shape}: give a path that ends in .npy or .npz"
        )
    if path.exists() and not path.is_dir():
        raise ValueError(
            f"out without a suffix is a folder of PNGs, but {os.fspath(path)!r} is a file: give "
            "another name"
        )
    return Pictures(path, n, shape, _levels("uint8", bounds), start)


def _levels(dtype: str, bounds: tuple[float, float] | None) -> tuple[float, float] | None:
    """Return the range that becomes 0 .. 255, or None for float32."""
    if dtype == "float32":
        return None
    if bounds is None or not all(map(math.isfinite, bounds)):
        raise ValueError(
            f"uint8 and PNGs need a model with finite bounds, got bounds={bounds}: give the model "
            'the range of its data, as bounds=(0.0, 1.0), or write dtype="float32" into a .npy or '
            ".npz"
        )
    return bounds


def _tensor(out: Tensor | np.ndarray, shape: tuple[int, ...], dtype: str) -> Tensor:
    """Return the tensor itself, or one on the array's memory, where it can take the samples."""
    if isinstance(out, np.ndarray) and not out.flags.writeable:
        raise ValueError(
            "out must be writable, got a read-only array: open a memmap with mode 'r+'"
        )
    tensor = torch.from_numpy(out) if isinstance(out, np.ndarray) else out
    if tuple(tensor.shape) != shape or tensor.dtype != DTYPES[dtype]:
        other = next(name for name in DTYPES if name != dtype)
        hint = f': dtype="{other}" fills it' if tensor.dtype == DTYPES[other] else ""
        raise ValueError(
            f"out must be {dtype} of shape {shape}, got {tensor.dtype} {tuple(tensor.shape)}{hint}"
        )
    return tensor
