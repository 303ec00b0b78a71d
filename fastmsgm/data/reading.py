"""How files of other programs are read: errors that name the file, and arrays of ``.npy`` files."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np

# A .npy header is a Python expression. That of an array of numbers is far shorter than this, and a
# deeply nested one cannot be.
_HEADER = 1024
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_NUMBERS = "biufc"  # kinds of dtype: booleans, integers, floating point, complex
Readable: TypeAlias = io.BufferedIOBase | IO[bytes]
_BLOCK = 2**24  # bytes that are read at a time
_LONG = 200  # characters of another library's message that are shown
# The most bytes that deflate makes of one (zlib's documentation: 1032), and room for a short file.
_INFLATION, _SHORT = 1032, 2**16


@contextmanager
def reading(path: str | os.PathLike[str], form: str, remedy: str) -> Iterator[None]:
    """Turn whatever a reader raises inside into an error that names the file.

    Damaged files make the readers of Python, NumPy, Pillow and safetensors raise almost any
    exception. Errors that begin with the file's name already are kept.

    Args:
        path: The file.
        form: What it should be, such as ".npz file".
        remedy: What to do where it is damaged.

    Raises:
        MemoryError: There is not enough memory.
        OSError: The system cannot read the file.
        ValueError: The file is damaged.
    """
    try:
        yield
    except Exception as error:
        if str(error).startswith(f"{path}: "):
            raise
        if isinstance(error, MemoryError):
            raise MemoryError(f"{path}: there is not enough memory to read it") from error
        if isinstance(error, OSError) and error.errno is not None:  # else it is Pillow's or gzip's
            raise OSError(error.errno, error.strerror, os.fspath(path)) from error
        reason = shown(str(error)) or type(error).__name__
        raise ValueError(f"{path}: damaged {form} ({reason}): {remedy}") from error


def shown(text: str) -> str:
    """Return text of a file for a message: one line, no control characters, not too long."""
    line = "".join(c if c.isprintable() else " " for c in " ".join(text.split()))
    return line if len(line) <= _LONG else f"{line[:_LONG]} ..."


def listed(names: Iterable[str]) -> str:
    """Return names that stand in a file, for a message."""
    return shown(", ".join(names))


def check_inflated(path: Path, inflated: int, compressed: int) -> None:
    """Raise ValueError where deflate cannot have made so few bytes of so many.

    Args:
        path: The file.
        inflated: Bytes that a header promises.
        compressed: Bytes that the file has for them.
    """
    if inflated > _INFLATION * compressed + _SHORT:
        raise ValueError(
            f"{path}: damaged file (its header promises {inflated} bytes, which {compressed} "
            "compressed bytes cannot hold): write it anew"
        )


def read_exactly(file: Readable, array: np.ndarray[Any, Any], start: bytes = b"") -> None:
    """Fill an array with the rest of a file.

    Args:
        file: Open for reading.
        array: Contiguous.
        start: The first bytes, where they have been read already.

    Raises:
        ValueError: The file has fewer bytes, or more.
    """
    data = array.reshape(-1).view(np.uint8).data
    filled = len(start)
    data[:filled] = start
    while filled < len(data):
        block = file.read(min(_BLOCK, len(data) - filled))
        if not block:
            raise ValueError(f"{len(data)} bytes of numbers expected, got {filled}")
        data[filled : filled + len(block)] = block
        filled += len(block)
    if file.read(1):  # at its end, a compressed file also compares its checksum
        raise ValueError(f"{len(data)} bytes of numbers expected, got more")


def read_npy(path: Path, file: Readable, size: int) -> np.ndarray[Any, Any]:
    """Read an array of numbers; nothing is unpickled, and no memory is taken for a false header.

    Call it inside ``reading``: a damaged file makes it raise almost any exception.

    Args:
        path: What errors name.
        file: Open for reading, at its start.
        size: Bytes of the file.

    Returns:
        The array, in memory of its own and in the machine's byte order.

    Raises:
        TypeError: An array of something else than numbers.
    """
    start = file.read(min(size, _HEADER))
    header = io.BytesIO(start)
    version = np.lib.format.read_magic(header)
    if version not in _HEADERS:
        raise ValueError(f"format version {version} is not for arrays of numbers")
    shape, fortran, dtype = _HEADERS[version](header, max_header_size=_HEADER)
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    if dtype.kind not in _NUMBERS:
        raise TypeError(
            f"{path}: data must be of floating point, got {shown(str(dtype))}: convert it to "
            "float32"
        )
    promised = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or promised != size - header.tell():
        raise ValueError(
            f"its header promises {dtype} {shown(str(shape))}, {promised} bytes, got "
            f"{size - header.tell()}"
        )
    array = np.empty(shape[::-1] if fortran else shape, dtype)
    read_exactly(file, array, start[header.tell() :])
    native = array.astype(dtype.newbyteorder("="), copy=False)
    return native.T if fortran else native
