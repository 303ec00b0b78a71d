"""Where ``sample`` writes: a tensor, an array, a ``.npy`` or ``.npz`` file, or a folder of PNGs."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastmsgm.output.array_file import ArrayFile
from fastmsgm.output.chunks import Chunks
from fastmsgm.output.found import Store
from fastmsgm.output.pictures import Pictures
from fastmsgm.output.stream import Stream
from fastmsgm.processes import Processes

DTYPES = {"float32": torch.float32, "uint8": torch.uint8}


class Memory:
    """A tensor or an array that takes the samples.

    Args:
        tensor: (n, ...) in the samples' dtype.
        chunks: How the samples are cut.

    Attributes:
        todo: The chunks to write.
    """

    complete = False

    def __init__(self, tensor: Tensor, chunks: Chunks) -> None:
        self._tensor, self._chunks, self._done = tensor, chunks, 0
        self.todo: Sequence[int] = range(len(chunks))

    def write(self, chunk: int, samples: Tensor) -> None:
        """Write the samples of a chunk, (m, ...)."""
        rows = self._chunks.rows(chunk)
        self._tensor[rows].copy_(samples)
        self._done = rows.stop

    def finished(self) -> Tensor:
        """Return all samples."""
        return self._tensor

    def stopped(self) -> Tensor:
        """Return the samples that were written."""
        return self._tensor[: self._done]


class Output:
    """Samples on their way, in the dtype that was asked for.

    Args:
        target: Where they go.
        bounds: The range that becomes 0 .. 255, for samples written as uint8; else None.

    Attributes:
        target: Where they go.
    """

    def __init__(self, target: Memory | Stream, bounds: tuple[float, float] | None) -> None:
        self.target, self._bounds = target, bounds

    def write(self, chunk: int, samples: Tensor) -> None:
        """Write the samples of a chunk.

        Args:
            chunk: Its number.
            samples: (m, *shape) float32, in the data's own range.

        Raises:
            OSError: They cannot be written.
        """
        if self._bounds is not None:
            low, high = self._bounds
            scaled = ((samples - low) * (255 / (high - low))).round_()
            samples = scaled.clamp_(0, 255).to(torch.uint8)
        self.target.write(chunk, samples)


def open_store(
    out: str | os.PathLike[str],
    n: int,
    shape: tuple[int, ...],
    *,
    start: int,
    dtype: str = "float32",
    bounds: tuple[float, float] | None = None,
) -> tuple[Store, str]:
    """Check a path for samples; nothing is made yet.

    Args:
        out: A ``.npy`` file; a ``.npz`` file of one uncompressed array ``arr_0``, images as
            (n, height, width, channels); or, without suffix, a folder of PNGs.
        n: Number of samples, at least 1.
        shape: Shape of one sample.
        start: Index of the first sample in the stream, for the names of PNGs.
        dtype: "float32" or "uint8"; PNGs are always uint8.
        bounds: (low, high), the data's own range, or None.

    Returns:
        What the path holds, and its dtype.

    Raises:
        ValueError: The path does not fit the samples, cannot be written or is another kind of
            path; uint8 without finite bounds.
        ImportError: A folder, and Pillow is missing.
    """
    path = _checked_path(out)
    if path.suffix not in (".npy", ".npz", ""):
        raise ValueError(
            "out must be a path that ends in .npy or .npz, or a folder for PNGs, which has no "
            f"suffix, got {os.fspath(path)!r}"
        )
    if path.suffix:
        _levels(dtype, bounds)
        if path.is_dir():
            raise ValueError(
                f"out must be a file where it ends in {path.suffix}, but {os.fspath(path)!r} is a "
                "folder: give another name"
            )
        return ArrayFile(path, n, shape, dtype), dtype
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
    _levels("uint8", bounds)
    return Pictures(path, n, shape, start), "uint8"


def open_output(
    out: Tensor | np.ndarray | Store | None,
    chunks: Chunks,
    shape: tuple[int, ...],
    *,
    device: torch.device,
    dtype: str,
    bounds: tuple[float, float] | None,
    settings: Callable[[], dict[str, Any]],
    processes: Processes,
    shard: tuple[int, int] | None,
) -> Output:
    """Open the output of a run.

    Args:
        out: None for a new tensor on ``device``; a tensor or array (n, *shape) of ``dtype``, which
            is filled; or what ``open_store`` returned.
        chunks: How the samples are cut.
        shape: Shape of one sample.
        device: Of a new tensor.
        dtype: "float32", or "uint8" for round(255 (x - low) / (high - low)).
        bounds: (low, high), the data's own range, or None.
        settings: Returns what makes the samples what they are.
        processes: Those that share the run.
        shard: The part of a run that is started by itself, (i, K), or None.

    Raises:
        TypeError: out is of another type.
        ValueError: out does not fit the samples, or holds others; uint8 without finite bounds.
        OSError: A file cannot be written, or there is not enough space.
    """
    levels = _levels(dtype, bounds)
    if isinstance(out, (ArrayFile, Pictures)):
        return Output(Stream(out, chunks, settings(), processes, shard), levels)
    if out is not None and not isinstance(out, (Tensor, np.ndarray)):
        raise TypeError(f"out must be a tensor, an array or a path, got {type(out).__name__}")
    if out is None:
        out = torch.empty((chunks.n, *shape), dtype=DTYPES[dtype], device=device)
    return Output(Memory(_tensor(out, (chunks.n, *shape), dtype), chunks), levels)


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
    if any(stride == 0 and side > 1 for stride, side in zip(tensor.stride(), shape, strict=False)):
        raise ValueError(
            "out must have memory of its own for every sample, got an expanded tensor: give "
            "out.clone()"
        )
    if tensor.requires_grad:
        raise ValueError("out must not require a gradient, got one that does: give out.detach()")
    if tuple(tensor.shape) != shape or tensor.dtype != DTYPES[dtype]:
        other = next(name for name in DTYPES if name != dtype)
        hint = f': dtype="{other}" fills it' if tensor.dtype == DTYPES[other] else ""
        raise ValueError(
            f"out must be {dtype} of shape {shape}, got {tensor.dtype} {tuple(tensor.shape)}{hint}"
        )
    return tensor
