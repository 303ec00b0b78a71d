"""Rows over threads: a kernel that releases the GIL runs on ``torch.get_num_threads()`` threads at once.

Each takes the next range of rows when it is done with one. A thread that shares its core then does less and nobody
waits for it: after an operation of PyTorch's, OpenMP's own threads keep spinning for a few milliseconds.

An own pool and not numba's parallel loops: those abort the process after a fork (OpenMP) or when two threads call
at a time (workqueue).
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import torch

GRAIN = 2**15  # elements for each thread: about 20 us of one core's work, what handing over a range may cost
RANGE = 2**18  # elements of a range


def over_rows(kernel: Callable[..., None], n: int, d: int, *args: Any) -> None:
    """``kernel(first, last, *args)`` for ranges of rows that together are 0 .. n; the caller works with the others."""
    threads = max(1, min(torch.get_num_threads(), n, n * d // GRAIN))
    if threads == 1:
        kernel(0, n, *args)
        return
    count = min(n, max(threads, n * d // RANGE))
    ranges = iter([(n * i // count, n * (i + 1) // count) for i in range(count)])

    def work() -> None:
        for first, last in ranges:  # taking the next one is a single step of the interpreter
            kernel(first, last, *args)

    others: list[Future[None]] = []
    try:
        others.extend(_pool(torch.get_num_threads() - 1).submit(work) for _ in range(threads - 1))
        work()
    finally:
        for _ in ranges:  # after an error or an interrupt nobody takes another
            pass
        wait(others)  # and nobody writes into the arrays after the call
    for other in others:
        other.result()


@functools.cache
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, thread_name_prefix="fastmsgm")  # starts threads as they are needed


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork
