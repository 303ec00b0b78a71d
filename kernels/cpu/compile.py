"""Compilation of the CPU kernels: they release the GIL, and their machine code is kept on disk."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba import njit
from numba.core import config, event
from numba.core.caching import FunctionCache, IndexDataCacheFile, NullCache
from numba.core.serialize import dumps

from fastmsgm import constants, rng

if config.DISABLE_JIT:  # pyright: ignore[reportAttributeAccessIssue]
    raise ImportError("NUMBA_DISABLE_JIT is set")

_log = logging.getLogger("fastmsgm")
_HERE = Path(__file__).parent
_DIGEST = hashlib.sha256().digest_size


def _sources() -> list[Path]:
    """Return the files that the machine code of any kernel can depend on."""
    others = [Path(str(module.__file__)) for module in (constants, rng)]
    return [*sorted(_HERE.glob("*.py")), _HERE.parent / "polynomials.py", *others]


def _fingerprint() -> str:
    digests = [hashlib.sha256(source.read_bytes()).digest() for source in _sources()]
    return hashlib.sha256(b"".join(digests)).hexdigest()[:16]


# Folders of machine code are named by the interpreter and the source.
_FOLDERS = f"fastmsgm-{sys.implementation.cache_tag}-"
_warned: set[str] = set()

try:
    _IMPORTED: str | None = _fingerprint()
except OSError:  # no source, as in a frozen application
    _IMPORTED = None


class _Cache(FunctionCache):
    """Machine code on disk in numba's folder; what cannot be read or written is no error.

    numba's own cache only notices a changed file of the cached function, though the functions that
    it calls are part of the machine code. It raises what pickle raises of a damaged file, and two
    processes that compile at the same time can mix up two signatures. Here a folder belongs to one
    state of the source, and a file to one signature.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        self._cache_path = os.path.join(self._cache_path, f"{_FOLDERS}{_IMPORTED}")
        self._cache_file = _Files(self._cache_path, self._impl.filename_base, _IMPORTED)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        if not _unchanged():
            return None
        try:
            return super().load_overload(sig, target_context)
        except Exception as error:  # pickle and numba can raise anything
            _warn_once("CPU kernels in %s cannot be read: compiling again", self.cache_path, error)
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        if not _unchanged():
            return
        try:
            super().save_overload(sig, data)
        except OSError as error:
            _warn_once("CPU kernels cannot be kept in %s", self.cache_path, error)


class _Files(IndexDataCacheFile):
    """A file for each signature of a kernel: what numba writes, then the SHA-256 of that."""

    def load(self, key: Any) -> Any:
        path = self._path(key)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        if hashlib.sha256(content[:-_DIGEST]).digest() != content[-_DIGEST:]:
            raise ValueError(f"{path.name} is damaged")
        written, data = self._load_data(path.name)  # numba's reader stops before the digest
        return data if written == key else None

    def save(self, key: Any, data: Any) -> None:
        path = self._path(key)
        if not path.parent.is_dir():
            path.parent.mkdir(exist_ok=True)
            for folder in path.parent.parent.glob(f"{_FOLDERS}*"):
                if folder != path.parent:  # of source that is no longer there
                    shutil.rmtree(folder, ignore_errors=True)
        content = dumps((key, data))
        with self._open_for_write(path) as file:
            file.write(content + hashlib.sha256(content).digest())

    def _path(self, key: Any) -> Path:
        name = hashlib.sha256(repr((numba.__version__, key)).encode()).hexdigest()[:16]
        return Path(self._cache_path, f"{self._index_name.removesuffix('.nbi')}.{name}.nbc")


def _unchanged() -> bool:
    """Return whether the source is what was imported.

    Otherwise the modules of a process that has been running for long are of different versions.
    """
    try:
        return _fingerprint() == _IMPORTED
    except OSError:
        return False


def _warn_once(message: str, folder: str, error: Exception) -> None:
    if message not in _warned:
        _warned.add(message)
        _log.warning(f"{message} (%s: %s)", folder, type(error).__name__, error)


def _cache(function: Callable[..., Any]) -> _Cache | NullCache:
    try:
        return NullCache() if _IMPORTED is None else _Cache(function)
    except RuntimeError:  # numba finds no folder that can be written
        return NullCache()


def _jit(function: Any = None, **options: Any) -> Any:
    """``numba.njit`` with the GIL released and ``_Cache``: a decorator, with or without options."""
    if function is None:
        return functools.partial(_jit, **options)
    kernel: Any = njit(nogil=True, **options)(function)
    kernel._cache = _cache(function)
    return kernel


# For functions that allocate: workspace for a range of rows, which they pass to a routine.
allocating: Any = _jit
# For all others. They do not count references to arrays, which would take atomic operations for
# every slice and call. So they must neither return an array nor call a function that allocates.
routine: Any = functools.partial(_jit, _nrt=False)
# For functions called for every row: passing arrays takes as long as computing a dozen elements.
inlined: Any = functools.partial(routine, forceinline=True)


class _Notice(event.Listener):
    """Log one line before the first kernel is compiled; nothing where all come from the cache."""

    def __init__(self) -> None:
        self._due = True

    # numba reports a compilation once it has found no cached machine code, and under its lock, so
    # that threads cannot both log.
    def on_start(self, event: Any) -> None:
        kernel = event.data["dispatcher"]
        if self._due and kernel.py_func.__module__.startswith(f"{__package__}."):
            self._due = False
            folder = kernel.stats.cache_path
            if folder is None:
                _log.warning(
                    "compiling the CPU kernels, which takes up to a minute in every process, as "
                    "there is no folder to keep the machine code in: set NUMBA_CACHE_DIR to a "
                    "folder that can be written"
                )
            else:
                _log.warning(
                    "compiling the CPU kernels, which takes up to a minute the first time; the "
                    "machine code is kept in %s for the next time",
                    folder,
                )

    def on_end(self, event: Any) -> None:
        pass


event.register("numba:compile", _Notice())
