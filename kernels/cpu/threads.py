"""Rows over threads: a kernel that releases the GIL runs on ``torch.get_num_threads()`` ranges of rows at once.

An own pool and not numba's parallel loops: those abort the process after a fork (OpenMP) or when two threads call
at a time (workqueue).
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import torch

GRAIN = 2**15  # elements: about 20 us of one core's work, what handing over a range may cost


def over_rows(kernel: Callable[..., None], n: int, d: int, *args: Any) -> None:
    """``kernel(first, last, *args)`` for ranges of rows that together are 0 .. n; the caller works on one of them."""
    ranges = max(1, min(torch.get_num_threads(), n, n * d // GRAIN))
    if ranges == 1:
        kernel(0, n, *args)
        return
    own, *rest = itertools.pairwise(n * i // ranges for i in range(ranges + 1))
    pool = _pool(ranges - 1)
    others = [pool.submit(kernel, *rows, *args) for rows in rest]
    try:
        kernel(*own, *args)
    finally:
        wait(others)  # also when interrupted: nobody writes into the arrays after the call
    for other in others:
        other.result()


@functools.cache
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, thread_name_prefix="fastmsgm")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork
