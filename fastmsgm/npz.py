"""NpzArchive: an uncompressed .npz of one array, written from front to back."""

from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import Path

import numpy as np


class NpzArchive:
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
