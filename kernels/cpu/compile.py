"""How the CPU kernels are compiled: without the GIL, and kept on disk."""

from __future__ import annotations

import functools
from typing import Any

from numba import njit

# What allocates: room for a range of rows, which is then given to a routine.
allocating: Any = functools.partial(njit, nogil=True, cache=True)
# All else. It counts no references to arrays, which are atomic operations, some for every slice and call, and so must
# not return an array or call what allocates.
routine: Any = functools.partial(njit, nogil=True, cache=True, _nrt=False)  # pyright: ignore[reportCallIssue]
# What is called for every row: to hand over arrays takes as long as a dozen elements.
inlined: Any = functools.partial(routine, forceinline=True)
