"""Where ``sample`` writes: a tensor, an array, a ``.npy`` or ``.npz`` file, or a folder of PNGs.

Samples arrive chunk by chunk. Files are written as they arrive, in memory that does not grow with
their number.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import weakref
import zipfile
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastmsgm.files import write_atomically

_log = logging.getLogger("fastmsgm")
DTYPES = {"float32": torch.float32, "uint8": torch.uint8}


class Output(ABC):
    """Where the samples of one run go; ``open_output`` makes it.

    Args:
        shape: Shape of one sample.
        bounds: The range that becomes 0 .. 255, for samples written as uint8; else None.
        manifest: Path of the file that says how the samples were made, or None.
    """

    def __init__(
        self, shape: tuple[int, ...], bounds: tuple[float, float] | None, manifest: Path | None
    ) -> None:
        self._shape, self._bounds, self._manifest = shape, bounds, manifest

    @property
    def _dtype(self) -> str:
        return "float32" if self._bounds is None else "uint8"

    def write(self, position: int, samples: Tensor) -> None:
        """Write the next samples.

        Args:
            position: Index of the first of them, counted from the run's first sample.
            samples: (m, *shape) float32, in the data's own range.
        """
        self._store(position, samples if self._bounds is None else _to_uint8(samples, self._bounds))

    def finished(self, manifest: dict[str, Any]) -> Tensor:
        """Close the output and write the manifest of a file or folder.

        Args:
            manifest: How the samples were made, as JSON can hold it.

        Returns:
            (n, *shape) the samples: ``out`` itself, or a tensor on the memory of an array or file.
            Changes to the tensor of a ``.npz`` are not written to it. (0, *shape) for a folder.
        """
        result = self._close()
        if self._manifest is not None:
            text = json.dumps(manifest, indent=2) + "\n"
            write_atomically(self._manifest, lambda path: path.write_text(text))
        return result

    @abstractmethod
    def samples(self, count: int) -> Tensor | None:
        """Return the first ``count`` samples, which were written; None for a folder."""

    @abstractmethod
    def _store(self, position: int, samples: Tensor) -> None:
        """Write samples (m, *shape) that have the output's dtype."""

    @abstractmethod
    def _close(self) -> Tensor:
        """Close the output and return what ``finished`` returns."""


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
    """Check where samples go, and open it: a file is made, and an older file's manifest removed.

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
        return _open_path(Path(out), n, shape, start, dtype, bounds)
    if out is not None and not isinstance(out, (Tensor, np.ndarray)):
        raise TypeError(f"out must be a tensor, an array or a path, got {type(out).__name__}")
    levels = _levels(dtype, bounds)
    if out is None:
        out = torch.empty((n, *shape), dtype=DTYPES[dtype], device=device)
    return _Memory(_tensor(out, (n, *shape), dtype), shape, levels, None)


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
        manifest = Path(f"{os.fspath(path)}.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        manifest.unlink(missing_ok=True)  # an older file's: written again at the end
        if path.suffix == ".npz":
            return _Npz(path, n, shape, levels, manifest)
        array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=(n, *shape))
        return _Memory(torch.from_numpy(array), shape, levels, manifest)
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
    return _Pictures(path, n, shape, _levels("uint8", bounds), start)


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


def _to_uint8(samples: Tensor, bounds: tuple[float, float]) -> Tensor:
    low, high = bounds
    return ((samples - low) * (255 / (high - low))).round_().clamp_(0, 255).to(torch.uint8)


class _Memory(Output):
    """A tensor, an array or a memory-mapped ``.npy``.

    Args:
        tensor: (n, *shape) in the output's dtype.
        shape: As of ``Output``, like the arguments that follow.
        bounds: The range that becomes 0 .. 255, or None.
        manifest: Path of the manifest, or None.
    """

    def __init__(
        self,
        tensor: Tensor,
        shape: tuple[int, ...],
        bounds: tuple[float, float] | None,
        manifest: Path | None,
    ) -> None:
        super().__init__(shape, bounds, manifest)
        self._tensor = tensor

    def samples(self, count: int) -> Tensor | None:
        return self._tensor[:count]

    def _store(self, position: int, samples: Tensor) -> None:
        self._tensor[position : position + len(samples)].copy_(samples)

    def _close(self) -> Tensor:
        return self._tensor


class _Npz(Output):
    """An uncompressed ``.npz`` with one array ``arr_0``, written from front to back.

    Args:
        path: Of the file.
        n: Number of samples.
        shape: As of ``Output``, like the arguments that follow.
        bounds: The range that becomes 0 .. 255, or None.
        manifest: Path of the manifest.
    """

    def __init__(
        self,
        path: Path,
        n: int,
        shape: tuple[int, ...],
        bounds: tuple[float, float] | None,
        manifest: Path,
    ) -> None:
        super().__init__(shape, bounds, manifest)
        self._path, self._n, self._written = path, n, 0
        self._stored = (*shape[1:], shape[0]) if len(shape) == 3 else shape
        files = contextlib.ExitStack()
        self._file = files.enter_context(path.open("w+b"))
        archive = files.enter_context(zipfile.ZipFile(self._file, "w"))
        info = zipfile.ZipInfo("arr_0.npy")
        # Five bytes more, an extra field of Android's zipalign, make the zip header 64 bytes long.
        # So the array is aligned in the file, and can be memory-mapped.
        info.extra = b"\x35\xd9\x01\x00\x00"
        self._member = files.enter_context(archive.open(info, "w", force_zip64=True))
        # Closes from the innermost outwards, also where the run ends early.
        self._close_files = weakref.finalize(self, files.close)
        header = {
            "descr": np.lib.format.dtype_to_descr(np.dtype(self._dtype)),
            "fortran_order": False,
            "shape": (n, *self._stored),
        }
        np.lib.format.write_array_header_1_0(self._member, header)
        self._offset = self._file.tell()

    def samples(self, count: int) -> Tensor | None:
        if count == 0:  # which cannot be mapped
            return torch.empty((0, *self._shape), dtype=DTYPES[self._dtype])
        if not self._file.closed:
            self._file.flush()
        # Copy on write: torch has no read-only tensors.
        array = np.memmap(self._path, self._dtype, "c", self._offset, (count, *self._stored))
        tensor = torch.from_numpy(array)
        return tensor.movedim(-1, 1) if len(self._shape) == 3 else tensor

    def _store(self, position: int, samples: Tensor) -> None:
        if position != self._written:
            raise ValueError(
                f"a .npz is written from front to back: position must be {self._written}, got "
                f"{position}"
            )
        if len(self._shape) == 3:
            samples = samples.movedim(1, -1)
        self._member.write(samples.cpu().contiguous().numpy().data)
        self._written += len(samples)

    def _close(self) -> Tensor:
        self._close_files()
        samples = self.samples(self._n)
        assert samples is not None
        return samples


class _Pictures(Output):
    """A folder of PNGs, with ``samples.json`` as their manifest.

    Args:
        folder: Made if absent.
        n: Number of samples.
        shape: As of ``Output``.
        bounds: The range that becomes 0 .. 255, or None.
        start: Index of the first sample in the stream.
    """

    def __init__(
        self,
        folder: Path,
        n: int,
        shape: tuple[int, ...],
        bounds: tuple[float, float] | None,
        start: int,
    ) -> None:
        super().__init__(shape, bounds, folder / "samples.json")
        try:
            from PIL import Image
        except ImportError as error:
            raise ImportError('PNGs need Pillow: pip install "fastmsgm[images]"') from error
        self._folder, self._start, self._image = folder, start, Image
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "samples.json").unlink(missing_ok=True)  # an older run's
        own = range(start, start + n)
        others = sum(
            not (path.stem.isdecimal() and int(path.stem) in own) for path in folder.glob("*.png")
        )
        if others:
            _log.warning(
                "%s holds %d PNGs of other samples, which stay: samples.json does not cover them",
                folder,
                others,
            )

    def samples(self, count: int) -> Tensor | None:
        return None

    def _store(self, position: int, samples: Tensor) -> None:
        pictures = samples.movedim(1, -1).cpu().numpy()
        if self._shape[0] == 1:
            pictures = pictures[..., 0]
        for index, picture in enumerate(pictures, self._start + position):
            self._image.fromarray(picture).save(self._folder / f"{index:06d}.png")

    def _close(self) -> Tensor:
        return torch.empty((0, *self._shape), dtype=torch.uint8)
