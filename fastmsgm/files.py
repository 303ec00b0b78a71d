"""Atomic writes, and the folder for cached files."""

from __future__ import annotations

import contextlib
import os
import re
import time
import uuid
from collections.abc import Callable
from pathlib import Path

DAY = 86_400.0  # seconds after which no process can still be writing a temporary file


def write_atomically(
    path: Path, write: Callable[[Path], object], previous: Path | None = None
) -> None:
    """Replace ``path`` by what ``write`` puts into a temporary file beside it.

    The temporary name is unique, so that two processes may write at once. The file and its folder
    are synced to disk, so that neither a kill nor a power cut leaves half a file. When ``write``
    raises, the old file stays and the temporary one is removed.

    Args:
        path: The file to replace; its folder must exist.
        write: Called with the temporary path, which does not exist yet.
        previous: Where the old file goes, or None. A kill at the wrong moment leaves it there,
            with nothing at ``path``.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        write(temporary)
        _sync(temporary, os.O_RDWR)
        if previous is not None and path.exists():
            os.replace(path, previous)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":  # Windows cannot open a folder
        _sync(path.parent, os.O_RDONLY)
    remove_leftovers(path.parent, f"{path.name}.", age=DAY)


def remove_leftovers(folder: Path, name: str = "", age: float = 0.0) -> None:
    """Remove temporary files that killed processes left in a folder.

    Args:
        folder: No other process may be writing to such files in it, where age is 0.
        name: What the names of their files begin with.
        age: Only those that were last written so many seconds ago.
    """
    pattern = re.compile(rf"\.{re.escape(name)}.*\.[0-9a-f]{{32}}\.tmp")
    for path in folder.iterdir():
        if pattern.fullmatch(path.name):
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                if time.time() - path.stat().st_mtime >= age:
                    path.unlink()


def cache_folder() -> Path:
    """Where downloaded data sets and computed tables are kept; it may not exist yet.

    ``$FASTMSGM_CACHE``, else ``$XDG_CACHE_HOME/fastmsgm``, else ``~/.cache/fastmsgm``.

    Raises:
        RuntimeError: There is no home folder.
    """
    own = os.environ.get("FASTMSGM_CACHE")
    if own:
        return Path(own)
    shared = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # A relative path there is to be ignored, says the XDG specification.
    return (shared if shared.is_absolute() else Path.home() / ".cache") / "fastmsgm"


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
