"""Where ``sample`` writes: a tensor, an array, a ``.npy`` or ``.npz`` file, or a folder of PNGs.

Samples arrive chunk by chunk. Files are written as they arrive, in memory that does not grow with
their number. Nothing on the disk changes before the first chunk, so that an older file outlives a
run that fails in its first network call.
"""

from __future__ import annotations

import io
import json
import logging
import math
import os
import weakref
import zipfile
import zlib
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
        self._opened = False

    @property
    def _dtype(self) -> str:
        return "float32" if self._bounds is None else "uint8"

    def write(self, position: int, samples: Tensor) -> None:
        """Write the next samples.

        Args:
            position: Index of the first of them, counted from the run's first sample.
            samples: (m, *shape) float32, in the data's own range.

        Raises:
            OSError: The file cannot be written.
        """
        if not self._opened:
            if self._manifest is not None:
                self._manifest.parent.mkdir(parents=True, exist_ok=True)
                self._manifest.unlink(missing_ok=True)  # an older run's: written again at the end
            self._open()
            self._opened = True
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

    def stopped(self, count: int) -> Tensor | None:
        """Close the output of a run that ended early, without a manifest.

        A ``.npz`` holds no other samples than those that were written, a ``.npy`` has zeros in the
        rows of the others, and a tensor or array that was given keeps what it held there.

        Args:
            count: Number of samples that were written.

        Returns:
            (count, *shape) those samples; None for a folder.
        """
        return self._close()[:count]

    @abstractmethod
    def _open(self) -> None:
        """Make what is missing; an older file is replaced."""

    @abstractmethod
    def _store(self, position: int, samples: Tensor) -> None:
        """Write samples (m, *shape) that have the output's dtype."""

    @abstractmethod
    def _close(self) -> Tensor:
        """Close the output and return the samples that it holds, as ``finished`` does."""


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
    return _Memory(_tensor(out, (n, *shape), dtype), shape, levels)


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
        return (_Npz if path.suffix == ".npz" else _Npy)(path, n, shape, levels)
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
    """A tensor or an array.

    Args:
        tensor: (n, *shape) in the output's dtype.
        shape: As of ``Output``.
        bounds: The range that becomes 0 .. 255, or None.
    """

    def __init__(
        self, tensor: Tensor, shape: tuple[int, ...], bounds: tuple[float, float] | None
    ) -> None:
        super().__init__(shape, bounds, None)
        self._tensor = tensor

    def _open(self) -> None:
        pass  # it is there

    def _store(self, position: int, samples: Tensor) -> None:
        self._tensor[position : position + len(samples)].copy_(samples)

    def _close(self) -> Tensor:
        return self._tensor


class _File(Output):
    """A file of one array, with a ``.json`` beside it as its manifest.

    Args:
        path: Of the file.
        n: Number of samples.
        shape: As of ``Output``.
        bounds: The range that becomes 0 .. 255, or None.
    """

    def __init__(
        self, path: Path, n: int, shape: tuple[int, ...], bounds: tuple[float, float] | None
    ) -> None:
        super().__init__(shape, bounds, Path(f"{os.fspath(path)}.json"))
        self._path, self._n = path, n

    @property
    def _empty(self) -> Tensor:
        return torch.empty((0, *self._shape), dtype=DTYPES[self._dtype])


class _Npy(_File):
    """A memory-mapped ``.npy``; rows that are not written are zeros."""

    _tensor: Tensor

    def _open(self) -> None:
        array = np.lib.format.open_memmap(
            self._path, mode="w+", dtype=self._dtype, shape=(self._n, *self._shape)
        )
        self._tensor = torch.from_numpy(array)

    def _store(self, position: int, samples: Tensor) -> None:
        self._tensor[position : position + len(samples)].copy_(samples)

    def _close(self) -> Tensor:
        return self._tensor if self._opened else self._empty


class _Npz(_File):
    """An uncompressed ``.npz`` with one array ``arr_0``, written from front to back."""

    _archive: _Archive

    def _open(self) -> None:
        shape = self._shape
        stored = (*shape[1:], shape[0]) if len(shape) == 3 else shape
        self._archive = _Archive(self._path, self._n, stored, self._dtype)
        weakref.finalize(self, self._archive.close)  # where the run is given up without a word

    def _store(self, position: int, samples: Tensor) -> None:
        if position != self._archive.rows:
            raise ValueError(
                f"a .npz is written from front to back: position must be {self._archive.rows}, got "
                f"{position}"
            )
        if len(self._shape) == 3:
            samples = samples.movedim(1, -1)
        self._archive.write(samples.cpu().contiguous().numpy())

    def _close(self) -> Tensor:
        if not self._opened:
            return self._empty
        archive = self._archive
        archive.close()
        if not archive.rows:  # which cannot be mapped
            return self._empty
        stored = (archive.rows, *archive.shape)
        # Copy on write: torch has no read-only tensors.
        array = np.memmap(self._path, self._dtype, "c", archive.offset, stored)
        tensor = torch.from_numpy(array)
        return tensor.movedim(-1, 1) if len(self._shape) == 3 else tensor


class _Archive:
    """The file of a ``.npz``. Closed early, it holds the rows that were written.

    Args:
        path: Of the file.
        n: Number of rows.
        shape: Of a row.
        dtype: Of the array.
    """

    def __init__(self, path: Path, n: int, shape: tuple[int, ...], dtype: str) -> None:
        self.n, self.shape, self.rows = n, shape, 0
        self._dtype, self._file = np.dtype(dtype), path.open("w+b")
        self._zip = zipfile.ZipFile(self._file, "w")
        self._info = zipfile.ZipInfo("arr_0.npy")
        # Five bytes more, an extra field of Android's zipalign, make the zip header 64 bytes long.
        # So the array is aligned in the file, and can be memory-mapped.
        self._info.extra = b"\x35\xd9\x01\x00\x00"
        self._member = self._zip.open(self._info, "w", force_zip64=True)
        self._start, self._header = self._file.tell(), self._npy_header(n)
        self._member.write(self._header)
        self.offset = self._file.tell()  # of the first row

    def write(self, rows: np.ndarray) -> None:
        """Append rows (m, *shape)."""
        self._member.write(rows.data)
        self.rows += len(rows)

    def close(self) -> None:
        """Close the file, once; where rows are missing, its header is set to those written."""
        if self._file.closed:
            return
        with self._file, self._zip:
            self._member.close()
            if self.rows < self.n:
                self._shorten()

    def _npy_header(self, rows: int) -> bytes:
        header = io.BytesIO()
        fields = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (rows, *self.shape),
        }
        np.lib.format.write_array_header_1_0(header, fields)
        return header.getvalue()

    def _shorten(self) -> None:
        """Write the number of rows into the array's header, and the new checksum into the zip's."""
        # As long as the old one: the length in bytes 8 and 9 counts the spaces before the line end.
        text = self._npy_header(self.rows)[10:].rstrip()
        header = self._header[:10] + text.ljust(len(self._header) - 11) + b"\n"
        self._file.seek(self._start)
        self._file.write(header)
        self._file.seek(self._start)
        checksum, left = 0, self._info.file_size
        while left and (block := self._file.read(min(left, 2**20))):
            checksum, left = zlib.crc32(block, checksum), left - len(block)
        self._info.CRC = checksum  # goes into the directory at the end, too
        self._file.seek(self._info.header_offset)
        self._file.write(self._info.FileHeader(zip64=True))


class _Pictures(Output):
    """A folder of PNGs, with ``samples.json`` as their manifest.

    Args:
        folder: Of the pictures.
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

    def stopped(self, count: int) -> None:
        return None

    def _open(self) -> None:
        pass  # the folder holds the manifest, too

    def _store(self, position: int, samples: Tensor) -> None:
        pictures = samples.movedim(1, -1).cpu().numpy()
        if self._shape[0] == 1:
            pictures = pictures[..., 0]
        for index, picture in enumerate(pictures, self._start + position):
            self._image.fromarray(picture).save(self._folder / f"{index:06d}.png")

    def _close(self) -> Tensor:
        return torch.empty((0, *self._shape), dtype=torch.uint8)
