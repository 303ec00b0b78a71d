"""Fuzzing of every reader: damaged files load well-formed, or are refused as documented.

    python -m tests.soak.fuzz --cases 100000 --seed 1
    python -m tests.soak.fuzz --seed 1 --case 4711     # one case again, with its traceback

Case k of a seed is the same on every machine. A case fails if its reader raises anything else than
its documented errors, raises one that does not name the file, loads something damaged that carries
a checksum, needs more than 1 GiB of memory, takes more than 10 seconds or ends the process.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import selectors
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

MEMORY = 2**30  # bytes that a case may take
SECONDS = 10  # that a case may take
SILENCE = 60  # seconds without a result after which a process is ended; it starts in less
SHOWN = 20  # failures that are printed


class TimeUp(BaseException):
    """A case has taken too long."""


@dataclass
class Report:
    """What happened to the cases: "loaded", "refused" or "failed" by reader, and the failures."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    failures: list[dict[str, Any]] = field(default_factory=list)

    def add(self, result: dict[str, Any]) -> None:
        self.counts[result["reader"], result["outcome"]] += 1
        if result["outcome"] == "failed":
            self.failures.append(result)

    @property
    def cases(self) -> int:
        return sum(self.counts.values())

    def table(self) -> Iterator[str]:
        """Yield the lines of a table."""
        outcomes = ("loaded", "refused", "failed")
        yield f"{'reader':<24}{'cases':>9}" + "".join(f"{name:>9}" for name in outcomes)
        for reader in [*sorted({reader for reader, _ in self.counts}), "all"]:
            numbers = [
                sum(n for (r, o), n in self.counts.items() if o == outcome and reader in (r, "all"))
                for outcome in outcomes
            ]
            yield f"{reader:<24}{sum(numbers):>9}" + "".join(f"{n:>9}" for n in numbers)


def fuzz(cases: int, seed: int, processes: int = 2) -> Report:
    """Run cases 0 .. cases - 1 of a seed in several processes."""
    report, selector = Report(), selectors.DefaultSelector()
    with tempfile.TemporaryDirectory(dir=_memory_folder()) as folder:
        workers = [_Worker(k, processes, cases, seed, folder) for k in range(min(processes, cases))]
        try:
            for worker in workers:
                worker.start(selector)
            while any(not worker.done for worker in workers):
                for key, _ in selector.select(timeout=1):
                    key.data.read(selector, report)
                for worker in workers:
                    worker.end_if_silent(selector, report)
        finally:
            for worker in workers:
                if worker.process is not None:
                    worker.process.kill()
                    worker.process.wait()
                    worker.process.stdout.close()
    return report


class _Worker:
    """A process that runs every ``step``-th case, and is started again where one ends it."""

    def __init__(self, first: int, step: int, cases: int, seed: int, folder: str) -> None:
        self.next, self.step, self.cases, self.seed, self.folder = first, step, cases, seed, folder
        self.errors = Path(folder) / f"errors-{first}"
        self.process: Any = None
        self.heard, self.rest, self.done, self.ready = 0.0, b"", False, False

    def start(self, selector: selectors.BaseSelector) -> None:
        numbers = map(str, (self.next, self.step, self.cases))
        command = [sys.executable, "-m", "tests.soak.fuzz", "--seed", str(self.seed)]
        with open(self.errors, "wb") as errors:
            self.process = subprocess.Popen(
                [*command, "--folder", self.folder, "--worker", *numbers],
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        self.heard, self.rest, self.ready = time.monotonic(), b"", False
        selector.register(self.process.stdout, selectors.EVENT_READ, self)

    def read(self, selector: selectors.BaseSelector, report: Report) -> None:
        block = os.read(self.process.stdout.fileno(), 2**16)
        if not block:
            self._ended(selector, report)
            return
        self.heard = time.monotonic()
        *lines, self.rest = (self.rest + block).split(b"\n")
        for line in lines:
            result = json.loads(line)
            self.ready = True
            if not result:  # it has started
                continue
            report.add(result)
            self.next = result["case"] + self.step

    def end_if_silent(self, selector: selectors.BaseSelector, report: Report) -> None:
        if not self.done and time.monotonic() - self.heard > SILENCE:
            self.process.kill()
            self._ended(selector, report)

    def _ended(self, selector: selectors.BaseSelector, report: Report) -> None:
        selector.unregister(self.process.stdout)
        self.process.stdout.close()
        status = self.process.wait()
        self.done = self.next >= self.cases
        if not self.done:
            why = self.errors.read_text("utf-8", "replace")[-1000:]
            why = f"the process ended with status {status}: {why}"
            if not self.ready:
                raise RuntimeError(f"no case could be run: {why}")
            report.add({"case": self.next, "reader": "?", "outcome": "failed", "why": why})
            self.next += self.step
            self.done = self.next >= self.cases
        if not self.done:
            self.start(selector)


def _memory_folder() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _work(first: int, step: int, cases: int, seed: int, folder: str) -> None:
    """Run cases and print a line of JSON about each."""
    run = _Cases(seed, Path(folder))
    print("{}", flush=True)
    for case in range(first, cases, step):
        print(json.dumps(run(case)), flush=True)


class _Cases:
    """The cases of a seed, in this process, whose memory is limited."""

    def __init__(self, seed: int, folder: Path, limit: bool = True) -> None:
        warnings.simplefilter("ignore")
        os.environ["FASTMSGM_BACKEND"] = "reference"  # starts at once
        from tests.soak.readers import readers  # imports PyTorch, which the parent need not

        self.seed = seed
        self.readers = readers(Path(tempfile.mkdtemp(dir=folder)))
        self.originals = [reader.target.read_bytes() for reader in self.readers]
        for reader, original in zip(self.readers, self.originals, strict=True):
            reader.target.write_bytes(original)
            reader.read(reader.target)  # what is loaded once is not a case's
        signal.signal(signal.SIGALRM, _time_up)
        if limit:
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))

    def __call__(self, case: int) -> dict[str, Any]:
        reader, original = self._choose(case)
        random = Random(f"{self.seed}/{case}")
        sealing = (
            random.choice(reader.sealing) if reader.sealing and random.random() < 0.6 else None
        )
        damage = sealing or _blind
        raw = damage(original, random, random.choice(reader.others))
        reader.target.write_bytes(raw)
        result = {"case": case, "reader": reader.name, "outcome": "loaded"}
        signal.alarm(SECONDS)
        try:
            read = reader.read(reader.target)
            if reader.sealed and raw != original and not sealing and not read[1]:
                result |= {"outcome": "failed", "why": "damaged, but it loads"}
        except BaseException as error:
            signal.alarm(0)
            why = _fault(error, reader)
            result["outcome"] = "failed" if why else "refused"
            if why:
                result |= {"why": why, "traceback": traceback.format_exc()}
        finally:
            signal.alarm(0)
            reader.target.write_bytes(original)
        return result

    def _choose(self, case: int) -> tuple[Any, bytes]:
        which = case % len(self.readers)
        return self.readers[which], self.originals[which]


def _blind(raw: bytes, random: Random, other: bytes) -> bytes:
    from tests.soak.mutations import damage

    return damage(raw, random, other)


def _fault(error: BaseException, reader: Any) -> str:
    """Return why an error is not one that is documented, or nothing."""
    kind = f"{type(error).__name__}: {error}"[:300]
    system = isinstance(error, OSError) and OSError in reader.errors
    if type(error) not in reader.errors and not system:
        return f"undocumented {kind}"
    if (reader.named or reader.target.name) not in str(error):
        return f"names no file: {kind}"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError) or "allocate" in str(cause):
            return f"takes too much memory: {type(cause).__name__}: {cause}"[:300]
        cause = cause.__cause__ or cause.__context__
    return ""


def _time_up(*_: object) -> None:
    raise TimeUp(f"more than {SECONDS} seconds")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--case", type=int, help="run this one alone, and print its traceback")
    parser.add_argument("--worker", type=int, nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        first, step, cases = args.worker
        _work(first, step, cases, args.seed, args.folder)
        return 0
    if args.case is not None:
        with tempfile.TemporaryDirectory() as folder:
            result = _Cases(args.seed, Path(folder))(args.case)
        print(result.pop("traceback", ""), json.dumps(result, indent=1), sep="\n")
        return int(result["outcome"] == "failed")
    began = time.monotonic()
    report = fuzz(args.cases, args.seed, args.processes)
    print("\n".join(report.table()))
    for failure in report.failures[:SHOWN]:
        print(f"case {failure['case']}, {failure['reader']}: {failure['why']}")
    print(
        f"{len(report.failures)} failures in {report.cases} cases, {time.monotonic() - began:.0f} s"
    )
    return int(bool(report.failures))


if __name__ == "__main__":
    sys.exit(main())
