"""Tensors in a safetensors file that carries its own checksum.

The metadata hold "sha256": the SHA-256 of the whole file, in which these 64 digits are zeros. So a
damaged file is noticed whatever part of it is damaged. Files are read, not mapped: a tensor stays
what it was when its file is changed later.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from fastmsgm.files import write_atomically

_UNSEALED = "0" * 64
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class DamagedFileError(ValueError):
    """A file of ours that cannot be what was written."""


def save_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    previous: Path | None = None,
) -> None:
    """Write tensors atomically; a tensor is copied to the CPU when its turn comes.

    Args:
        path: The file to replace; its folder must exist.
        tensors: Of any shape and device.
        metadata: Texts to keep with them.
        previous: Where the file that is replaced goes, or None.

    Raises:
        OSError: The file cannot be written; the old one stays.
        TypeError: A dtype that safetensors do not know.
    """
    header, ordered = _header(tensors, dict(metadata or {}))

    def write(temporary: Path) -> None:
        with open(temporary, "w+b") as file:
            checksum = hashlib.sha256(header)
            file.write(header)
            for value in ordered:
                data = raw_bytes(value)
                checksum.update(data)
                file.write(data)
            file.seek(header.index(_UNSEALED.encode()))
            file.write(checksum.hexdigest().encode())

    write_atomically(path, write, previous)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a file of ``save_tensors`` into memory of its own.

    Args:
        path: Of the file.

    Returns:
        The tensors by name, on the CPU, and the metadata that was kept with them.

    Raises:
        FileNotFoundError: There is no such file.
        OSError: It cannot be read.
        DamagedFileError: Its checksum or its form is wrong, or it has none.
    """
    with open(path, "rb") as file:
        try:
            header = _read_header(file)
            metadata = json.loads(header[8:])["__metadata__"]
            sum_in_file = metadata.pop("sha256")
            unsealed = header.replace(sum_in_file.encode(), _UNSEALED.encode(), 1)
            data = file.read()
            checksum = hashlib.sha256(unsealed)
            checksum.update(data)
            good = checksum.hexdigest() == sum_in_file
            tensors = load(header + data) if good else {}
        # Whatever a damaged header makes Python's and safetensors' readers raise.
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
            raise _damaged(path, f"its header cannot be read: {error!r}") from error
        except (SafetensorError, MemoryError, OverflowError) as error:
            raise _damaged(path, repr(error)) from error
    if not good:
        raise _damaged(path, "its checksum is wrong")
    return tensors, metadata


def raw_bytes(x: Tensor) -> memoryview:
    """Return the bytes of a tensor's numbers in their order, whatever its strides and device."""
    x = x.detach().cpu().resolve_conj().resolve_neg().contiguous()
    # PyTorch calls one number contiguous at any stride, but has no view of it in another dtype.
    return x.as_strided((x.numel(),), (1,)).view(torch.uint8).numpy().data


def _header(tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> tuple[bytes, list[Tensor]]:
    """Return the header, still with zeros for a checksum, and the tensors in their order."""
    for name, value in tensors.items():
        if value.dtype not in _DTYPES:
            raise TypeError(f"{name} must be of a dtype that safetensors know, got {value.dtype}")
    # Wide numbers first, so that all are aligned.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    # The checksum comes first: it is found as the header's first 64 zeros.
    entries: dict[str, object] = {"__metadata__": {"sha256": _UNSEALED, **metadata}}
    end = 0
    for name in names:
        value = tensors[name]
        begin, end = end, end + value.numel() * value.element_size()
        entries[name] = {
            "dtype": _DTYPES[value.dtype],
            "shape": list(value.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, [tensors[name] for name in names]


def _read_header(file: BinaryIO) -> bytes:
    """Return the length and the text of the header."""
    prefix = file.read(8)
    length = int.from_bytes(prefix, "little")
    rest = file.seek(0, 2) - 8
    if len(prefix) < 8 or length > rest:
        raise ValueError(f"it ends within its header, of {length} bytes")
    file.seek(8)
    return prefix + file.read(length)


def _damaged(path: Path, why: str) -> DamagedFileError:
    return DamagedFileError(f"{str(path)!r} is damaged or not a file of fastmsgm ({why})")
