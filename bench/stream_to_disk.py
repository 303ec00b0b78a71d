"""Write many heavy-tailed vectors to a file: samples per second, memory, and what checksums cost.

    python -m bench.stream_to_disk --n 10000000

Resident memory is read after every chunk; it should not depend on the number of samples. A run that
was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import time
from pathlib import Path
from typing import Any

import torch

import fastmsgm
from fastmsgm.output import array_file
from fastmsgm.output.stream import Stream

PAGE = os.sysconf("SC_PAGE_SIZE")


def resident() -> int:
    """Return the bytes of memory that this process holds, without pages of files."""
    size, shared = Path("/proc/self/statm").read_text().split()[1:3]
    return (int(size) - int(shared)) * PAGE


class Clock:
    """The seconds that calls of a function take."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, function: Any) -> Any:
        def call(*arguments: Any) -> Any:
            began = time.perf_counter()
            result = function(*arguments)
            self.seconds += time.perf_counter() - began
            return result

        return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=10_000_000)
    parser.add_argument("--model", default="cauchy-rotation")
    parser.add_argument("--out", default="vectors.npy")
    args = parser.parse_args()
    memory: list[int] = []
    checksums, writes = Clock(), Clock()
    array_file.hashlib.sha256 = checksums.timed(hashlib.sha256)
    original = Stream.write

    def write(self: Stream, chunk: int, samples: torch.Tensor) -> None:
        writes.timed(original)(self, chunk, samples)
        memory.append(resident())

    Stream.write = write
    began = time.perf_counter()
    fastmsgm.sample(args.model, args.n, out=args.out)
    seconds = time.perf_counter() - began
    tenth = len(memory) // 10
    first, last = max(memory[tenth : 2 * tenth]), max(memory[-tenth:])
    print(f"{args.n:,} samples of {args.model}, {torch.get_num_threads()} threads")
    print(f"{seconds:.0f} s, {args.n / seconds:,.0f} samples/s")
    print(f"checksums {checksums.seconds:.2f} s, {checksums.seconds / seconds:.2%}")
    print(
        f"writing with checksums and journal {writes.seconds:.2f} s, {writes.seconds / seconds:.2%}"
    )
    print(f"memory, second tenth {first / 1e6:.1f} MB, last tenth {last / 1e6:.1f} MB")
    print(f"memory grows by {last / first - 1:.2%}")


if __name__ == "__main__":
    main()
