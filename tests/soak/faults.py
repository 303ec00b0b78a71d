"""Faults at every write, sync, rename and removal of a run: errors of the disk, and kills.

A run happens in a forked process, in which one operation on a file fails: once with an input/output
error, from then on for want of space, or by the death of the process, in the middle of a write.
Afterwards what is there must be the state before or after; and the same run again must end in files
that are bit-equal to those of a run that nothing happened to.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fastmsgm.output import stream
from fastmsgm.training import trainer
from tests.soak.runs import Run

KINDS = ("error", "full", "kill")
_DIED, _REPORTED, _BROKEN = 9, 3, 4  # exit codes: killed, an OSError, anything else


class Disk:
    """Operations on files, counted; one of them fails.

    Args:
        at: Which one.
        kind: "error", that operation alone; "full", writes from there on; "kill", the process dies.
    """

    def __init__(self, at: int, kind: str) -> None:
        self.at, self.kind, self.count = at, kind, 0

    def operation(self, writes: bool, before_death: Callable[[], object] = lambda: None) -> None:
        """Count an operation, and let it fail if it is its turn."""
        now, self.count = self.count, self.count + 1
        if self.kind == "full" and now >= self.at and writes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if now != self.at:
            return
        if self.kind == "error":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        if self.kind == "kill":
            before_death()
            os._exit(_DIED)

    def install(self) -> None:
        """Replace the functions of this process by ones that count and fail."""
        for module, name, writes in (
            (os, "replace", False),
            (os, "fsync", True),
            (os, "unlink", False),
            (os, "mkdir", True),
            (os, "posix_fallocate", True),
        ):
            setattr(module, name, self._counted(getattr(module, name), writes))
        opened = builtins.open

        def opening(path: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            if not set(mode) & set("wax+"):
                return opened(path, mode, *arguments, **options)
            self.operation(writes=True)
            return File(opened(path, mode, *arguments, **options), self)

        builtins.open = io.open = opening

    def _counted(self, function: Callable[..., Any], writes: bool) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            self.operation(writes)
            return function(*arguments, **options)

        return counted


class File:
    """An open file whose writes count as operations; death comes in the middle of one."""

    def __init__(self, file: Any, disk: Disk) -> None:
        self._file, self._disk = file, disk

    def write(self, data: Any) -> int:
        def half() -> None:
            self._file.write(data[: len(data) // 2])
            self._file.flush()

        self._disk.operation(True, before_death=half)
        return self._file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> File:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[Any]:
        return iter(self._file)


@dataclass
class Tally:
    """What happened in the faults of a run.

    Args:
        operations: On files, in one run.
        cases: Faults.
        died: Runs that were killed.
        reported: Runs that ended in an OSError.
        finished: Runs that ended well in spite of the fault.
        failures: What should not have happened.
    """

    operations: int
    cases: int = 0
    died: int = 0
    reported: int = 0
    finished: int = 0
    failures: list[str] = field(default_factory=list)


def forked(work: Callable[[], object]) -> int:
    """Do work in a forked process and return its exit code."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status)
    code = _BROKEN
    try:
        work()
        code = 0
    except OSError:
        code = _REPORTED
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def operations_of(run: Run, folder: Path) -> int:
    """Return the number of operations of a run that nothing happens to."""
    count = folder / "count"

    def work() -> None:
        disk = Disk(-1, "none")
        disk.install()
        run.work(folder)
        os.write(descriptor, str(disk.count).encode())

    descriptor = os.open(count, os.O_CREAT | os.O_WRONLY)
    assert forked(work) == 0
    os.close(descriptor)
    number = int(count.read_text())
    count.unlink()
    return number


def inject(run: Run, root: Path, stride: int = 1) -> Tally:
    """Let every ``stride``-th operation of a run fail in every way."""
    whole, first = root / "whole", root / "first"
    root.mkdir()
    for folder in (first, whole):
        run.prepare(folder)
    run.work(first)  # loads in this process what the forked ones then have
    tally = Tally(operations_of(run, whole))
    expected = run.result(whole)
    for at in range(0, tally.operations, stride):
        for kind in KINDS:
            folder = root / "broken"
            shutil.rmtree(folder, ignore_errors=True)
            run.prepare(folder)

            def work(folder: Path = folder, at: int = at, kind: str = kind) -> None:
                Disk(at, kind).install()
                run.work(folder)

            code = forked(work)
            where = f"{run.name}, operation {at}, {kind}"
            tally.cases += 1
            tally.died += code == _DIED
            tally.reported += code == _REPORTED
            tally.finished += code == 0
            if code not in (0, _DIED, _REPORTED):
                tally.failures.append(f"{where}: exit code {code}")
            for problem in (run.look(folder), *_again(run, folder, expected)):
                if problem:
                    tally.failures.append(f"{where}: {problem}")
    shutil.rmtree(root)
    return tally


def _again(run: Run, folder: Path, expected: dict[str, bytes]) -> list[str]:
    """Run once more, without a fault; return what is wrong then."""
    code = forked(lambda: run.work(folder))
    if code:
        return [f"the run after it ended with {code}"]
    result = run.result(folder)
    different = [n for n in {**result, **expected} if result.get(n) != expected.get(n)]
    return [f"{', '.join(sorted(different))} differ afterwards"] if different else []


def always_save() -> None:
    """Checkpoints and journals are written at every step and chunk; one thread, for the forks."""
    torch.set_num_threads(1)
    trainer.CHECKPOINT_SECONDS = stream.JOURNAL_SECONDS = -1.0
