"""Parts of the soak test, each run in a process of its own; PyTorch is imported there."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def broken(name: str, stride: int) -> tuple[str, str, list[str]]:
    """Let operations on files fail; return a name, what happened, and what was wrong."""
    from tests.soak import faults
    from tests.soak.runs import RUNS as runs

    faults.always_save()
    (run,) = (run for run in runs if run.name == name)
    with tempfile.TemporaryDirectory(dir=_memory_folder()) as root:
        tally = faults.inject(run, Path(root) / "faults", stride)
    happened = (
        f"{tally.cases} faults in {tally.operations} operations: {tally.died} killed, "
        f"{tally.reported} reported, {tally.finished} finished all the same"
    )
    return f"faults of {name}", happened, tally.failures


def killed(name: str, kills: int) -> tuple[str, str, list[str]]:
    """Kill a run at random moments; return a name, what happened, and what was wrong."""
    from tests.soak import faults
    from tests.soak.kills import kill, longer
    from tests.soak.runs import RUNS as runs

    faults.always_save()
    (run,) = (run for run in runs if run.name == name)
    with tempfile.TemporaryDirectory(dir=_memory_folder()) as root:
        problems = kill(longer(run), Path(root) / "kills", kills, seed=0)
    return f"kills of {name}", f"{kills} kills", problems


def _memory_folder() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
