"""The examples of docs/integrations.md, by heading."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

DOCUMENT = Path(__file__).parents[2] / "docs" / "integrations.md"
SECTION = re.compile(r"^## (.*)\n", re.MULTILINE)
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def sections() -> dict[str, list[str]]:
    """Return the Python blocks of every section; those before the first are under ""."""
    first, *rest = SECTION.split(DOCUMENT.read_text())
    return dict(zip(["", *rest[::2]], map(BLOCK.findall, [first, *rest[1::2]]), strict=True))


def example(heading: str) -> str:
    """Return the one block of a section."""
    (block,) = sections()[heading]
    return block


def run(heading: str) -> dict[str, Any]:
    """Run a section after the lines that all share; return what it defined."""
    namespace: dict[str, Any] = {"__name__": "example"}
    for block in (*sections()[""], example(heading)):
        exec(compile(block, heading, "exec"), namespace)
    return namespace


def on_two_ranks(heading: str, after: str, folder: Path) -> str:
    """Run a section and more lines on two processes; return what they print.

    They exit without the interpreter's shutdown, in which PyTorch's gloo threads abort at times.
    """
    script, leave = folder / "script.py", "torch.distributed.destroy_process_group()\n"
    end = f"{leave}import os, sys\nsys.stdout.flush()\nos._exit(0)\n"
    text = example(heading).removesuffix(leave)
    script.write_text(f"{text}\n{after}\ntorch.distributed.barrier()\n{end}")
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *launch, str(script)],
        cwd=folder,
        env=environment | {"HOME": str(folder), "PYTHONPATH": str(DOCUMENT.parents[1])},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
