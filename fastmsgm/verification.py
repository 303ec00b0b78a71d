"""verify and merge: files of samples looked at, and completed from parts, without their model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import Tensor

from fastmsgm import stream
from fastmsgm.array_file import ArrayFile
from fastmsgm.chunks import Chunks
from fastmsgm.journal import Journal
from fastmsgm.pictures import Pictures
from fastmsgm.stream import Store
from fastmsgm.tensors import DamagedFileError


def verify(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Check finished samples against the checksums in their manifest.

    Args:
        path: A ``.npy`` or ``.npz`` file or a folder that ``sample`` wrote.

    Returns:
        The manifest, without the checksums of the chunks.

    Raises:
        FileNotFoundError: There are no samples, or they have no manifest.
        OSError: They cannot be read.
        ValueError: They are damaged, or not finished; the message says which samples.
    """
    path = Path(path)
    manifest = Path(f"{path}.json") if path.suffix else path / "samples.json"
    partial = stream.journals_beside(path)
    if not manifest.exists() and partial:
        raise ValueError(
            f"{str(path)!r} is not finished: run the same command again, or, where all parts of it "
            "are done, fastmsgm merge"
        )
    found = Journal.read(manifest)
    store, chunks = _opened(path, found.settings, manifest)
    if not path.exists():
        raise FileNotFoundError(f"{str(path)!r}, which {manifest.name} describes, is missing")
    if set(found.chunks) != set(range(len(chunks))):
        raise DamagedFileError(f"{str(manifest)!r} has {len(found.chunks)} of {len(chunks)} chunks")
    whole = store.whole()
    rows = map(chunks.rows, range(len(chunks)))
    damaged = [
        f"{chunks.start + part.start} .. {chunks.start + part.stop - 1}"
        for chunk, part in enumerate(rows)
        if store.checksum(part) != found.chunks[chunk]
    ]
    if damaged or not whole:
        shown = ", ".join(damaged[:8]) + (", ..." if len(damaged) > 8 else "")
        what = f"samples {shown}" if damaged else "its header or its length"
        raise DamagedFileError(
            f"{str(path)!r} is damaged ({what}): remove it and {manifest.name}, and sample again"
        )
    return found.settings


def merge(path: str | os.PathLike[str]) -> Tensor:
    """Complete a file or folder whose parts (``sample(..., shard="i/K")``) are all done.

    Args:
        path: That of the parts.

    Returns:
        (n, ...) the samples, mapped; (0, ...) for a folder.

    Raises:
        FileNotFoundError: There are no parts.
        OSError: They cannot be read.
        ValueError: They are of different runs, or damaged.
        RuntimeError: Chunks are missing.
    """
    path = Path(path)
    journals = stream.journals_beside(path)
    if not journals:
        raise FileNotFoundError(f"{str(path)!r} has no parts: sample them first, with shard")
    settings = Journal.read(journals[0]).settings
    store, chunks = _opened(path, settings, journals[0])
    return stream.merge(store, chunks, settings)


def _opened(path: Path, settings: dict[str, Any], described: Path) -> tuple[Store, Chunks]:
    """Return samples as their manifest or journal describes them."""
    try:
        n, start = settings["n"], settings["start"]
        chunks = Chunks(start, n, settings["batch_size"], settings["first"])
        numbers = (n, start, chunks.size, chunks.first, *settings["shape"])
        if any(type(number) is not int or number < 0 for number in numbers) or chunks.size < 1:
            raise ValueError("numbers out of range")
        shape = tuple(settings["shape"])
        if path.suffix:
            return ArrayFile(path, n, shape, settings["dtype"]), chunks
        return Pictures(path, n, shape, start), chunks
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DamagedFileError(f"{str(described)!r} describes no samples ({error!r})") from error
