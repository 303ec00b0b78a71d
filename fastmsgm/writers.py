"""What writes samples: into memory, a .npy or .npz file, or a folder of PNGs."""

from __future__ import annotations

import json
import logging
import os
import weakref
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastmsgm.files import write_atomically
from fastmsgm.npz import NpzArchive

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


def _to_uint8(samples: Tensor, bounds: tuple[float, float]) -> Tensor:
    low, high = bounds
    return ((samples - low) * (255 / (high - low))).round_().clamp_(0, 255).to(torch.uint8)


class Memory(Output):
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


class File(Output):
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


class Npy(File):
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


class Npz(File):
    """An uncompressed ``.npz`` with one array ``arr_0``, written from front to back."""

    _archive: NpzArchive

    def _open(self) -> None:
        shape = self._shape
        stored = (*shape[1:], shape[0]) if len(shape) == 3 else shape
        self._archive = NpzArchive(self._path, self._n, stored, self._dtype)
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


class Pictures(Output):
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
