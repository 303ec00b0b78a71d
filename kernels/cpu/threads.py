"""Multithreading: kernels that release the GIL run on ``torch.get_num_threads()`` threads at once.

A thread takes the next range of rows when it has finished one. So a thread that shares its core
takes fewer ranges, and the others do not wait for it. Cores are shared because OpenMP's threads
keep spinning for a few milliseconds after a PyTorch operation.

The module has its own thread pool because numba's parallel loops abort the process after a fork
(OpenMP) or when two threads call them at the same time (workqueue).
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import torch

# Fewest elements per thread: about 20 us of work on one core, the possible cost of handing over a
# range.
GRAIN = 2**15
RANGE = 2**18  # elements of a range


def over_rows(kernel: Callable[..., None], n: int, d: int, *args: Any) -> None:
    """Call ``kernel(first, last, *args)`` for ranges of rows that together cover 0 to n - 1.

    The calling thread is one of the workers.

    Args:
        kernel: Releases the GIL.
        n: Number of rows.
        d: Elements of a row.
        *args: Further arguments of the kernel.
    """
    threads = max(1, min(torch.get_num_threads(), n, n * d // GRAIN))
    if threads == 1:
        kernel(0, n, *args)
        return
    count = min(n, max(threads, n * d // RANGE))
    ranges = iter([(n * i // count, n * (i + 1) // count) for i in range(count)])

    def work() -> None:
        for first, last in ranges:  # taking the next range is atomic in the interpreter
            kernel(first, last, *args)

    others: list[Future[None]] = []
    try:
        others.extend(_pool(torch.get_num_threads() - 1).submit(work) for _ in range(threads - 1))
        work()
    finally:
        for _ in ranges:  # after an error or an interrupt, no thread takes another range
            pass
        wait(others)  # no thread writes into the arrays after the call
    for other in others:
        other.result()


@functools.cache
def _pool(workers: int) -> ThreadPoolExecutor:
    # It starts threads as they are needed.
    return ThreadPoolExecutor(workers, thread_name_prefix="fastmsgm")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork
