"""What is there of a run: finished samples, journals, and the chunks whose checksums hold."""

from __future__ import annotations

import contextlib
import itertools
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastmsgm.output.array_file import ArrayFile
from fastmsgm.output.chunks import Chunks
from fastmsgm.output.journal import Journal, differences
from fastmsgm.output.pictures import Pictures
from fastmsgm.tensors import DamagedFileError

PART = r"(\.\d+-of-\d+)?\.json"  # of a journal's name
Store = ArrayFile | Pictures
_log = logging.getLogger("fastmsgm")


def is_finished(store: Store, chunks: Chunks, settings: dict[str, Any]) -> bool:
    """Whether these samples are all there, and sound; ValueError where others are."""
    if not store.manifest.exists():
        if isinstance(store, Pictures) or not store.path.exists():
            return False
        return _named_without_manifest(store, chunks, settings)
    found = Journal.read(store.manifest)
    if not store.path.exists():
        store.manifest.unlink()  # of samples that are no more
        return False
    _refuse_differences(store, found.settings, settings)
    sound = sound_chunks(store, chunks, found.chunks)
    if store.frame() != found.frame or len(sound) < len(chunks):
        raise ValueError(
            f"out={str(store.path)!r} is not what {store.manifest.name} describes: remove "
            f"{store.manifest.name} and the samples, and sample again"
        )
    _remove_journals(store)  # which a kill can have left
    _log.info("%s holds these samples already", store.path)
    return True


def _named_without_manifest(store: Store, chunks: Chunks, settings: dict[str, Any]) -> bool:
    """Whether a kill took but the manifest of a file that has its name."""
    found = read_journals(store, journal_paths(store), settings) or {}
    if len(sound_chunks(store, chunks, found)) < len(chunks):
        raise ValueError(
            f"out={str(store.path)!r} is a file that this run did not write: give another name, or "
            "remove it"
        )
    _write_manifest(store, found)
    return True


def _refuse_differences(store: Store, there: dict[str, Any], here: dict[str, Any]) -> str:
    """Raise ValueError where settings differ; return what differs in the environment."""
    settings, environment = differences(there, here)
    if settings:
        raise ValueError(
            f"out={str(store.path)!r} holds other samples, which differ in {settings}: give "
            "another name, or remove them"
        )
    return environment


def read_journals(
    store: Store, paths: Sequence[Path], settings: dict[str, Any]
) -> dict[int, str] | None:
    """Return the finished chunks of all journals; None where there are none.

    Raises:
        ValueError: Of other settings.
    """
    journals, there = [], False
    for path in paths:
        there |= path.exists()
        try:
            journals.append(Journal.read(path))
        except FileNotFoundError:
            continue
        except DamagedFileError as error:
            _log.warning("%s: its chunks are computed again", error)
    for journal in journals:
        environment = _refuse_differences(store, journal.settings, settings)
        if environment:
            _log.warning("the rest of %s differs by rounding: %s", store.path, environment)
    if not there:
        return None
    return {chunk: found for journal in journals for chunk, found in journal.chunks.items()}


def sound_chunks(store: Store, chunks: Chunks, found: dict[int, str]) -> dict[int, str]:
    """Return the chunks whose checksums hold."""
    inside = {c: checksum for c, checksum in found.items() if 0 <= c < len(chunks)}
    sound = {c: s for c, s in inside.items() if store.checksum(chunks.rows(c)) == s}
    if len(sound) < len(found):
        _log.warning(
            "%s: %d of %d finished chunks are damaged and not used",
            store.path,
            len(found) - len(sound),
            len(found),
        )
    return sound


def complete(store: Store, chunks: Chunks) -> None:
    """Give samples their name and their manifest."""
    journals = [Journal.read(path) for path in journal_paths(store)]
    found = {c: checksum for journal in journals for c, checksum in journal.chunks.items()}
    if len(found) < len(chunks):
        raise RuntimeError(missing(store, chunks, found))
    store.complete()
    _write_manifest(store, found)


def _write_manifest(store: Store, found: dict[int, str]) -> None:
    settings = Journal.read(journal_paths(store)[0]).settings
    Journal(settings, found, store.frame()).write(store.manifest)
    _remove_journals(store)


def missing(store: Store, chunks: Chunks, found: dict[int, str]) -> str:
    """Say which chunks are missing, and what to do."""
    count = len(chunks) - len(found)
    first = itertools.islice((c for c in range(len(chunks)) if c not in found), 8)
    shown = ", ".join(map(str, first)) + (", ..." if count > 8 else "")
    return (
        f"{store.path}: {count} of {len(chunks)} chunks are missing ({shown}): run the same "
        "command again, which computes them"
    )


def batch_size_of(store: Store) -> int | None:
    """Return the batch size of the run that is there, as far as there is one."""
    for path in (store.manifest, *journal_paths(store)):
        try:
            size = Journal.read(path).settings.get("batch_size")
        except (OSError, DamagedFileError):
            continue
        return size if type(size) is int and size > 0 else None
    return None


def journal_path(store: Store, part: tuple[int, int] | None) -> Path:
    """Return the journal of a process or part (i, K), or of a process alone."""
    middle = f".{part[0]}-of-{part[1]}" if part else ""
    return store.journals.with_name(f"{store.journals.name}{middle}.json")


def journal_paths(store: Store) -> list[Path]:
    """Return the journals of all processes and parts."""
    return _paths(store.journals)


def journals_beside(path: Path) -> list[Path]:
    """Return the journals of unfinished samples."""
    return _paths(
        path.with_name(f"{path.name}.partial") if path.suffix else path / "samples.partial"
    )


def _paths(journals: Path) -> list[Path]:
    folder, own = journals.parent, re.compile(re.escape(journals.name) + PART)
    there = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in there if own.fullmatch(path.name))


def _remove_journals(store: Store) -> None:
    for path in journal_paths(store):
        remove_journal(path)


def remove_journal(journal: Path) -> None:
    """Remove a journal and its lock."""
    journal.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # Windows keeps a file that is locked
        journal.with_suffix(".lock").unlink()
