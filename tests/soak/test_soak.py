"""A short run of ``make soak``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_nothing_is_lost_or_silently_wrong() -> None:
    """In a process of its own: it forks, which threads of PyTorch do not survive."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.soak", "--short"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
