"""Compilation of the CPU kernels: they release the GIL and are cached on disk."""

from __future__ import annotations

import functools
from typing import Any

from numba import njit

# For functions that allocate: workspace for a range of rows, which they pass to a routine.
allocating: Any = functools.partial(njit, nogil=True, cache=True)
# For all others. They do not count references to arrays, which would take atomic operations for
# every slice and call. So they must neither return an array nor call a function that allocates.
routine: Any = functools.partial(njit, nogil=True, cache=True, _nrt=False)  # pyright: ignore[reportCallIssue]
# For functions called for every row: passing arrays takes as long as computing a dozen elements.
inlined: Any = functools.partial(routine, forceinline=True)
