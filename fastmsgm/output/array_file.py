"""ArrayFile: a .npy or an uncompressed .npz of known size, whose rows are written in any order."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import math
import os
import shutil
import weakref
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

BLOCK = 2**20  # bytes that are read at once


class ArrayFile:
    """Samples in one array, called ``arr_0`` in a ``.npz``, where images are channels-last.

    They are written to ``<path>.partial``, which gets the name ``path`` when it is complete. So no
    unfinished file can be taken for a finished one.

    Args:
        path: Ends in ``.npy`` or ``.npz``.
        n: Number of samples.
        shape: Of one sample.
        dtype: "float32" or "uint8".

    Attributes:
        path: As given.
        partial: Where the samples are before all are there.
        manifest: Path of the manifest of a finished file.
        journals: What the paths of journals begin with.
    """

    def __init__(self, path: Path, n: int, shape: tuple[int, ...], dtype: str) -> None:
        self.path, self.partial = path, Path(f"{path}.partial")
        self.manifest, self.journals = Path(f"{path}.json"), self.partial
        self._n, self._shape, self._dtype = n, shape, np.dtype(dtype)
        self._zipped = path.suffix == ".npz"
        self._channels_last = self._zipped and len(shape) == 3
        self._stored = (*shape[1:], shape[0]) if self._channels_last else shape
        self._row = math.prod(shape) * self._dtype.itemsize
        self._info = zipfile.ZipInfo("arr_0.npy")
        self._info.header_offset, self._info.CRC = 0, 0  # the checksum is known at the end
        # Five bytes more, an extra field of Android's zipalign, make the zip header 64 bytes long.
        # So the array is aligned in the file, and can be memory-mapped.
        self._info.extra = b"\x35\xd9\x01\x00\x00"
        self._header = self._npy_header()
        before = self._info.FileHeader(zip64=True) if self._zipped else b""
        self._start, self._offset = len(before), len(before) + len(self._header)
        self._file: BinaryIO | None = None

    @property
    def foreign(self) -> bool:
        """Whether a file that is not this run's is in the way, or a link."""
        return self.partial.exists() or self.partial.is_symlink()

    def create(self, more: int = 0) -> None:
        """Make the partial file, or find it there, and reserve the space of all samples.

        Args:
            more: Bytes that must be free besides, for the journal and the manifest.

        Raises:
            OSError: It cannot be written, or there is not enough space.
        """
        end = self._offset + self._n * self._row
        there = self._allocated()
        free = shutil.disk_usage(self.partial.parent).free
        if end - there + more > free:
            raise OSError(
                errno.ENOSPC,
                f"the samples need {end:,} bytes, and {free:,} are free: make room, or sample less",
                str(self.partial),
            )
        self.partial.touch()
        self._file = open(self.partial, "r+b", buffering=0)  # noqa: SIM115 - written until close
        weakref.finalize(self, self._file.close)  # where the run is given up without a word
        size = self._file.seek(0, os.SEEK_END)
        if size != end:
            self._file.truncate(end)
        # So that a disk that fills up is noticed now. Not where another process may be writing:
        # for file systems that cannot reserve, glibc writes a zero into every block.
        if (size != end or there < end) and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self._file.fileno(), 0, end)
        self._put(self._start, self._header)

    def _allocated(self) -> int:
        """Return the bytes that the partial file has on the disk; a sparse file has fewer."""
        if not self.partial.exists():
            return 0
        status = self.partial.stat()
        return getattr(status, "st_blocks", status.st_size // 512) * 512

    def write(self, rows: slice, samples: Tensor) -> str:
        """Write samples and return the SHA-256 of their bytes.

        Args:
            rows: Their positions.
            samples: (m, *shape) in the file's dtype.

        Raises:
            OSError: They cannot be written.
        """
        if self._channels_last:
            samples = samples.movedim(1, -1)
        data = samples.cpu().contiguous().numpy().reshape(-1).view(np.uint8).data
        self._put(self._offset + rows.start * self._row, data)
        return hashlib.sha256(data).hexdigest()

    def checksum(self, rows: slice) -> str:
        """Return the SHA-256 of the bytes of samples in the file, the finished or the partial one.

        Raises:
            OSError: They cannot be read.
        """
        found = hashlib.sha256()
        place, left = self._offset + rows.start * self._row, (rows.stop - rows.start) * self._row
        with self._opened() as file:
            file.seek(place)
            while left and (block := file.read(min(left, BLOCK))):
                found.update(block)
                left -= len(block)
        return found.hexdigest()

    def frame(self) -> str:
        """Return the SHA-256 of what is before and after the array in the finished file."""
        with open(self.path, "rb") as file:
            found = hashlib.sha256(file.read(self._offset))
            file.seek(self._offset + self._n * self._row)
            while block := file.read(BLOCK):
                found.update(block)
        return found.hexdigest()

    def sync(self) -> None:
        """Wait until what was written is on the disk."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def complete(self) -> None:
        """Give the file its name; all samples are there."""
        if self._file is None:
            self._file = open(self.partial, "r+b", buffering=0)  # noqa: SIM115 - written until close
        if self._zipped:
            self._close_archive(self._file)
        self.sync()
        self.close()
        os.replace(self.partial, self.path)

    def discard(self) -> None:
        """Remove a partial file without samples."""
        self.close()
        self.partial.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file; it stays where it is."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def tensor(self, count: int) -> Tensor:
        """Return the first samples (count, *shape), mapped; changes stay in memory."""
        if not count:
            return torch.from_numpy(np.empty((0, *self._shape), self._dtype))
        path = self.path if self.path.exists() else self.partial
        # Copy on write: torch has no read-only tensors.
        array = np.memmap(path, self._dtype, "c", self._offset, (count, *self._stored))
        tensor = torch.from_numpy(array)
        return tensor.movedim(-1, 1) if self._channels_last else tensor

    def _npy_header(self) -> bytes:
        header = io.BytesIO()
        fields = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (self._n, *self._stored),
        }
        np.lib.format.write_array_header_1_0(header, fields)
        return header.getvalue()

    def _opened(self) -> contextlib.AbstractContextManager[BinaryIO]:
        if self._file is not None:
            return contextlib.nullcontext(self._file)
        return open(self.path if self.path.exists() else self.partial, "rb", buffering=0)

    def _put(self, place: int, data: bytes | memoryview) -> None:
        assert self._file is not None
        self._file.seek(place)
        left = memoryview(data)
        while left:
            left = left[self._file.write(left) :]

    def _close_archive(self, file: BinaryIO) -> None:
        """Write the header and the directory of the zip archive around the array."""
        info, end = self._info, self._offset + self._n * self._row
        info.file_size = info.compress_size = end - self._start
        file.seek(self._start)
        checksum, left = 0, info.file_size
        while left and (block := file.read(min(left, BLOCK))):
            checksum, left = zlib.crc32(block, checksum), left - len(block)
        info.CRC = checksum
        self._put(0, info.FileHeader(zip64=True))
        file.seek(end)
        file.truncate()
        with zipfile.ZipFile(file, "w") as archive:
            archive.filelist.append(info)
            archive.NameToInfo[info.filename] = info
