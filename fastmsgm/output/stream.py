"""Stream: samples on their way to a file or folder, chunk by chunk; a run that was killed goes on.

A journal beside the samples says what the run is and which chunks are finished, with a checksum of
each; it is written after its samples. Called again, a run looks at what is there, computes what is
missing or damaged, and gives the file its name when all chunks are there. Several processes write
to one file, each with a journal of its own.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from torch import Tensor

from fastmsgm.files import remove_leftovers
from fastmsgm.output.array_file import ArrayFile
from fastmsgm.output.chunks import Chunks
from fastmsgm.output.found import (
    Store,
    complete,
    is_finished,
    journal_path,
    journal_paths,
    read_journals,
    remove_journal,
    sound_chunks,
)
from fastmsgm.output.journal import Journal
from fastmsgm.output.pictures import Pictures
from fastmsgm.processes import Processes

JOURNAL_SECONDS = 10.0  # between two writes of the journal: the work that a kill can cost
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
        self._path = journal_path(store, part)
        self._journal = Journal(settings)
        self._lock = FileLock(self._path.with_suffix(".lock"))
        processes.check_same(settings)
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
        with self._naming_the_file():
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
        try:
            self._write_journal()
            if self._shard is not None:
                return self._store.tensor(0)
            self._processes.wait()
            self._store.close()
            self._processes.lead(lambda: complete(self._store, self._chunks))
        finally:
            self._close()
        return self._store.tensor(self._chunks.n)

    def stopped(self) -> Tensor | None:
        """Close a run that ended early; what is finished stays.

        Returns:
            The finished samples before the first that is not, mapped; None for a folder.
        """
        done = self._journal.chunks
        first = next((c for c in range(len(self._chunks)) if c not in done), len(self._chunks))
        try:
            if done:
                self._write_journal()
            elif self._processes.size == 1 and self._shard is None:
                self._path.unlink(missing_ok=True)
                self._store.discard()
        except OSError as error:  # what ended the run is the one to be raised
            _log.warning("the journal of %s could not be written (%s)", self._store.path, error)
        finally:
            self._close()
        if isinstance(self._store, Pictures):
            return None
        return self._store.tensor(self._chunks.rows(first - 1).stop if first else 0)

    def _prepare(self) -> tuple[bool, set[int]]:
        """Look at what is there; return whether it is complete, and the chunks that are."""
        store, settings = self._store, self._journal.settings
        store.manifest.parent.mkdir(parents=True, exist_ok=True)
        _acquire(self._lock, store)
        fresh = False
        try:
            if self._shard is None:
                manifest = store.manifest
                remove_leftovers(manifest.parent, manifest.name)
                remove_leftovers(store.journals.parent, store.journals.name)
            if is_finished(store, self._chunks, settings):
                self._close()
                return True, set()
            paths = journal_paths(store)
            for path in paths:  # of runs that may be at work; parts of one run work side by side
                whole = path == journal_path(store, None)
                if path != self._path and (self._shard is None or whole):
                    lock = FileLock(path.with_suffix(".lock"))
                    _acquire(lock, store)
                    lock.release()
            found = read_journals(store, paths, settings)
            if found is None and store.foreign:
                what = "pictures with the names of these samples"
                raise ValueError(
                    f"out={str(store.path)!r}: there is {store.partial.name}, which this run did "
                    "not write: give another name, or remove it"
                    if isinstance(store, ArrayFile)
                    else f"out={str(store.path)!r} holds {what}, which would be overwritten: give "
                    "another folder, or remove them"
                )
            if found is None:
                self._journal.write(self._path)  # says that what comes is this run's
                fresh = True
            store.create(more=2**16 + 200 * len(self._chunks))
            if self._shard:  # other parts keep their own journals, and may be at work
                paths = [path for path in paths if path == self._path]
                found = read_journals(store, paths, settings)
            self._journal.chunks = sound_chunks(store, self._chunks, found or {})
            self._write_journal()
            for path in paths:
                if path != self._path:
                    remove_journal(path)
        except BaseException:
            if fresh:
                self._path.unlink(missing_ok=True)
                store.discard()
            self._close()
            raise
        if found:
            _log.info("resumed %s at %d of %d chunks", store.path, len(found), len(self._chunks))
        return False, set(self._journal.chunks)

    def _write_journal(self) -> None:
        with self._naming_the_file():
            self._store.sync()  # a journal must not be ahead of its samples
            self._journal.write(self._path)
        self._written = time.monotonic()

    @contextlib.contextmanager
    def _naming_the_file(self) -> Iterator[None]:
        """Add to errors of the disk which file they are about, and what to do."""
        try:
            yield
        except OSError as error:
            raise OSError(
                error.errno,
                f"{error.strerror}: finished chunks stay, and the same call goes on",
                str(error.filename or self._store.path),
            ) from error

    def _close(self) -> None:
        self._store.close()
        self._lock.release()
        if not self._path.exists():
            with contextlib.suppress(OSError):  # another run may hold it
                Path(self._lock.lock_file).unlink()


def _acquire(lock: FileLock, store: Store) -> None:
    """Acquire the lock of a run or of a part of it; ValueError where another holds it."""
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ValueError(
            f"out={str(store.path)!r} is in use by another run: wait for it, or give another name"
        ) from error
