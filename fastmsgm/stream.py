"""Stream: samples on their way to a file or folder, chunk by chunk; a run that was killed goes on.

A journal beside the samples says what the run is and which chunks are finished, with a checksum of
each; it is written after its samples. Called again, a run looks at what is there, computes what is
missing or damaged, and gives the file its name when all chunks are there. Several processes write
to one file, each with a journal of its own.
"""

from __future__ import annotations

import contextlib
import logging
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from torch import Tensor

from fastmsgm.array_file import ArrayFile
from fastmsgm.chunks import Chunks
from fastmsgm.journal import Journal, differences
from fastmsgm.pictures import Pictures
from fastmsgm.processes import Processes
from fastmsgm.tensors import DamagedFileError

JOURNAL_SECONDS = 10.0  # between two writes of the journal: the work that a kill can cost
PART = r"(\.\d+-of-\d+)?\.json"  # of a journal's name
Store = ArrayFile | Pictures
_log = logging.getLogger("fastmsgm")


class Stream:
    """A run that writes its samples to a file or folder.

    Args:
        store: Where the samples go.
        chunks: How they are cut.
        settings: What makes them what they are, as JSON can hold it.
        processes: Those that share the run, each of which makes a stream.
        shard: (i, K) for part i of K of a run whose parts are started one by one, or None.

    Attributes:
        todo: The chunks that this process has to write.

    Raises:
        ValueError: Other samples are there, or the run is in use.
        OSError: The file cannot be written, or there is not enough space.
    """

    def __init__(
        self,
        store: Store,
        chunks: Chunks,
        settings: dict[str, Any],
        processes: Processes,
        shard: tuple[int, int] | None = None,
    ) -> None:
        self._store, self._chunks, self._processes, self._shard = store, chunks, processes, shard
        part = shard or ((processes.rank, processes.size) if processes.size > 1 else None)
        self._path = _journal_path(store, part)
        self._journal = Journal(settings)
        self._lock = FileLock(self._path.with_suffix(".lock"))
        self.complete, done = processes.lead(self._prepare)
        left = [] if self.complete else [c for c in range(len(chunks)) if c not in done]
        if shard is not None:
            self.todo: Sequence[int] = [c for c in left if c % shard[1] == shard[0]]
        else:
            self.todo = left[processes.rank :: processes.size]
        if processes.rank > 0 and not self.complete:
            store.create()
        self._written = time.monotonic()

    def write(self, chunk: int, samples: Tensor) -> None:
        """Write the samples of a chunk.

        Args:
            chunk: Its number.
            samples: (m, *shape) in the store's dtype, those of the chunk that belong to the run.

        Raises:
            OSError: They cannot be written.
        """
        self._journal.chunks[chunk] = self._store.write(self._chunks.rows(chunk), samples)
        if time.monotonic() - self._written > JOURNAL_SECONDS:
            self._write_journal()

    def finished(self) -> Tensor:
        """Close the run, with its manifest when all of its chunks are there.

        Returns:
            (n, *shape) all samples, mapped; (0, *shape) for a folder, or a part of a run.

        Raises:
            RuntimeError: Chunks are missing, which another process had to write.
        """
        if self.complete:
            return self._store.tensor(self._chunks.n)
        self._write_journal()
        if self._shard is not None:
            self._close()
            return self._store.tensor(0)
        self._processes.wait()
        self._store.close()
        self._processes.lead(lambda: _complete(self._store, self._chunks))
        self._close()
        return self._store.tensor(self._chunks.n)

    def stopped(self) -> Tensor | None:
        """Close a run that ended early; what is finished stays.

        Returns:
            The finished samples before the first that is not, mapped; None for a folder.
        """
        done = self._journal.chunks
        first = next((c for c in range(len(self._chunks)) if c not in done), len(self._chunks))
        if done:
            self._write_journal()
        elif self._processes.size == 1 and self._shard is None:
            self._path.unlink(missing_ok=True)
            self._store.discard()
        self._close()
        if isinstance(self._store, Pictures):
            return None
        return self._store.tensor(self._chunks.rows(first - 1).stop if first else 0)

    def _prepare(self) -> tuple[bool, set[int]]:
        """Look at what is there; return whether it is complete, and the chunks that are."""
        store, settings = self._store, self._journal.settings
        store.manifest.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise ValueError(
                f"out={str(store.path)!r} is in use by another run: wait for it, or give another "
                "name"
            ) from error
        try:
            if _is_finished(store, settings):
                self._close()
                return True, set()
            paths = _journal_paths(store)
            found = _read_journals(store, paths, settings)
            if found is None and store.foreign:
                raise ValueError(
                    f"out={str(store.path)!r} holds pictures with the names of these samples, "
                    "which would be overwritten: give another folder, or remove them"
                )
            store.create()
            if self._shard:  # other parts keep their own journals, and may be at work
                paths = [path for path in paths if path == self._path]
                found = _read_journals(store, paths, settings)
            self._journal.chunks = _sound(store, self._chunks, found or {})
            self._write_journal()
            for path in paths:
                if path != self._path:
                    path.unlink(missing_ok=True)
        except BaseException:
            self._close()
            raise
        if found:
            _log.info("resumed %s at %d of %d chunks", store.path, len(found), len(self._chunks))
        return False, set(self._journal.chunks)

    def _write_journal(self) -> None:
        self._store.sync()  # a journal must not be ahead of its samples
        self._journal.write(self._path)
        self._written = time.monotonic()

    def _close(self) -> None:
        self._store.close()
        self._lock.release()
        if not self._path.exists():
            with contextlib.suppress(OSError):  # another run may hold it
                Path(self._lock.lock_file).unlink()


def merge(store: Store, chunks: Chunks, settings: dict[str, Any]) -> Tensor:
    """Complete a run whose parts are finished, each started by itself.

    Args:
        store: Where the samples are.
        chunks: How they are cut.
        settings: Of the run, as the journals have them.

    Returns:
        (n, *shape) the samples, mapped; (0, *shape) for a folder.

    Raises:
        ValueError: The parts are of different runs.
        RuntimeError: Chunks are missing or damaged.
    """
    if not _is_finished(store, settings):
        found = _read_journals(store, _journal_paths(store), settings) or {}
        sound = _sound(store, chunks, found)
        if len(sound) < len(chunks):
            raise RuntimeError(_missing(store, chunks, sound))
        _complete(store, chunks)
    return store.tensor(chunks.n)


def batch_size_of(store: Store) -> int | None:
    """Return the batch size of the run that is there, as far as there is one."""
    for path in (store.manifest, *_journal_paths(store)):
        try:
            size = Journal.read(path).settings.get("batch_size")
        except (OSError, DamagedFileError):
            continue
        return size if type(size) is int and size > 0 else None
    return None


def journals_beside(path: Path) -> list[Path]:
    """Return the journals of unfinished samples."""
    return _paths(
        path.with_name(f"{path.name}.partial") if path.suffix else path / "samples.partial"
    )


def _journal_path(store: Store, part: tuple[int, int] | None) -> Path:
    middle = f".{part[0]}-of-{part[1]}" if part else ""
    return store.journals.with_name(f"{store.journals.name}{middle}.json")


def _journal_paths(store: Store) -> list[Path]:
    """Return the journals of all processes and parts."""
    return _paths(store.journals)


def _paths(journals: Path) -> list[Path]:
    folder, own = journals.parent, re.compile(re.escape(journals.name) + PART)
    there = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in there if own.fullmatch(path.name))


def _is_finished(store: Store, settings: dict[str, Any]) -> bool:
    """Whether these samples are all there; ValueError where others are."""
    if not store.manifest.exists():
        if isinstance(store, Pictures) or not store.path.exists():
            return False
        return _named_without_manifest(store, settings)
    if not store.path.exists():
        store.manifest.unlink()  # of samples that are no more
        return False
    _refuse_differences(store, Journal.read(store.manifest).settings, settings)
    if not store.whole():
        raise ValueError(
            f"out={str(store.path)!r} is not what {store.manifest.name} describes: remove "
            f"{store.manifest.name} and the samples, and sample again"
        )
    _log.info("%s holds these samples already", store.path)
    return True


def _named_without_manifest(store: Store, settings: dict[str, Any]) -> bool:
    """Whether a kill took but the manifest of a file that has its name."""
    found = _read_journals(store, _journal_paths(store), settings)
    if found is None:
        raise ValueError(
            f"out={str(store.path)!r} is a file that this run did not write: give another name, or "
            "remove it"
        )
    _write_manifest(store, found)
    return True


def _read_journals(
    store: Store, paths: Sequence[Path], settings: dict[str, Any]
) -> dict[int, str] | None:
    """Return the finished chunks of all journals; None where there are none.

    Raises:
        ValueError: Of other settings.
    """
    journals = []
    for path in paths:
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
    if not journals:
        return None
    return {chunk: found for journal in journals for chunk, found in journal.chunks.items()}


def _refuse_differences(store: Store, there: dict[str, Any], here: dict[str, Any]) -> str:
    """Raise ValueError where settings differ; return what differs in the environment."""
    settings, environment = differences(there, here)
    if settings:
        raise ValueError(
            f"out={str(store.path)!r} holds other samples, which differ in {settings}: give "
            "another name, or remove them"
        )
    return environment


def _sound(store: Store, chunks: Chunks, found: dict[int, str]) -> dict[int, str]:
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


def _complete(store: Store, chunks: Chunks) -> None:
    """Give samples their name and their manifest."""
    journals = [Journal.read(path) for path in _journal_paths(store)]
    found = {c: checksum for journal in journals for c, checksum in journal.chunks.items()}
    if len(found) < len(chunks):
        raise RuntimeError(_missing(store, chunks, found))
    store.complete()
    _write_manifest(store, found)


def _write_manifest(store: Store, found: dict[int, str]) -> None:
    paths = _journal_paths(store)
    Journal(Journal.read(paths[0]).settings, found).write(store.manifest)
    for path in paths:
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # Windows keeps a file that is locked
            path.with_suffix(".lock").unlink()


def _missing(store: Store, chunks: Chunks, found: dict[int, str]) -> str:
    missing = [c for c in range(len(chunks)) if c not in found]
    shown = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
    return (
        f"{store.path}: {len(missing)} of {len(chunks)} chunks are missing ({shown}): run the same "
        "command again, which computes them"
    )
