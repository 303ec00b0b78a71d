"""verify and merge: files of samples looked at, and completed from parts, without their model."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

from torch import Tensor

from fastmsgm.output import found
from fastmsgm.output.array_file import ArrayFile
from fastmsgm.output.chunks import Chunks
from fastmsgm.output.found import Store
from fastmsgm.output.journal import Journal
from fastmsgm.output.pictures import Pictures
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
    partial = found.journals_beside(path)
    if not manifest.exists() and partial:
        raise ValueError(
            f"{str(path)!r} is not finished: run the same command again, or, where all parts of it "
            "are done, fastmsgm merge"
        )
    if not manifest.exists():
        raise FileNotFoundError(
            f"{str(path)!r} has no manifest, {manifest.name}, which sample writes: it cannot be "
            "checked"
        )
    journal = Journal.read(manifest)
    store, chunks = _opened(path, journal.settings, manifest)
    if not path.exists():
        raise FileNotFoundError(f"{str(path)!r}, which {manifest.name} describes, is missing")
    if len(journal.chunks) != len(chunks) or not all(0 <= c < len(chunks) for c in journal.chunks):
        raise DamagedFileError(
            f"{str(manifest)!r} has {len(journal.chunks)} of {len(chunks)} chunks"
        )
    whole = store.frame() == journal.frame
    rows = map(chunks.rows, range(len(chunks)))
    damaged = [
        f"{chunks.start + part.start} .. {chunks.start + part.stop - 1}"
        for chunk, part in enumerate(rows)
        if store.checksum(part) != journal.chunks[chunk]
    ]
    if damaged or not whole:
        shown = ", ".join(damaged[:8]) + (", ..." if len(damaged) > 8 else "")
        what = f"samples {shown}" if damaged else "its header or its length"
        raise DamagedFileError(
            f"{str(path)!r} is damaged ({what}): remove it and {manifest.name}, and sample again"
        )
    return journal.settings


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
    journals = found.journals_beside(path)
    if not journals:
        raise FileNotFoundError(f"{str(path)!r} has no parts: sample them first, with shard")
    settings = Journal.read(journals[0]).settings
    store, chunks = _opened(path, settings, journals[0])
    if not found.is_finished(store, chunks, settings):
        there = found.read_journals(store, found.journal_paths(store), settings) or {}
        sound = found.sound_chunks(store, chunks, there)
        if len(sound) < len(chunks):
            raise RuntimeError(found.missing(store, chunks, sound))
        found.complete(store, chunks)
    return store.tensor(chunks.n)


def _opened(path: Path, settings: dict[str, Any], described: Path) -> tuple[Store, Chunks]:
    """Return samples as their manifest or journal describes them."""
    try:
        n, start = settings["n"], settings["start"]
        chunks = Chunks(start, n, settings["batch_size"], settings["first"])
        numbers = (n, start, chunks.size, chunks.first, *settings["shape"])
        if settings["dtype"] not in ("float32", "uint8"):
            raise ValueError("an unknown dtype")
        if not all(type(number) is int and 0 <= number < 2**62 for number in numbers):
            raise ValueError("numbers out of range")
        large = n * math.prod(settings["shape"]) >= 2**60
        if large or not n or not chunks.size or not chunks.first <= start:
            raise ValueError("numbers out of range")
        shape = tuple(settings["shape"])
        if path.suffix:
            return ArrayFile(path, n, shape, settings["dtype"]), chunks
        return Pictures(path, n, shape, start), chunks
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DamagedFileError(f"{str(described)!r} describes no samples ({error!r})") from error
