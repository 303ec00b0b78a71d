"""Compilation of the CPU kernels: they release the GIL and are cached on disk."""

from __future__ import annotations

import functools
import logging
from typing import Any

from numba import njit
from numba.core import event

_log = logging.getLogger("fastmsgm")

# For functions that allocate: workspace for a range of rows, which they pass to a routine.
allocating: Any = functools.partial(njit, nogil=True, cache=True)
# For all others. They do not count references to arrays, which would take atomic operations for
# every slice and call. So they must neither return an array nor call a function that allocates.
routine: Any = functools.partial(njit, nogil=True, cache=True, _nrt=False)  # pyright: ignore[reportCallIssue]
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
            _log.warning(
                "compiling the CPU kernels, which takes up to a minute the first time; the machine "
                "code is kept in %s for the next time",
                kernel.stats.cache_path,
            )

    def on_end(self, event: Any) -> None:
        pass


event.register("numba:compile", _Notice())
