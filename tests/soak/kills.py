"""Kills at random moments: a run that is killed again and again ends as if nothing had happened."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import fastmsgm
from tests.soak.runs import Run, fit, sample


def killed_after(work: Callable[[], object], seconds: float) -> bool:
    """Do work in a forked process that is killed after some time; return whether it was.

    Raises:
        RuntimeError: The work itself failed.
    """
    sys.stdout.flush()
    child = os.fork()
    if not child:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            os._exit(1)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            if status:
                raise RuntimeError(f"the run ended with {os.waitstatus_to_exitcode(status)}")
            return False
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def kill(run: Run, root: Path, kills: int, seed: int) -> list[str]:
    """Kill a run so many times, over as many runs as it takes, and return what was wrong."""
    generator, problems, done = random.Random(seed), [], 0
    root.mkdir()
    whole, first = root / "whole", root / "first"
    for folder in (first, whole):
        run.prepare(folder)
    run.work(first)  # loads in this process what the forked ones then have
    began = time.monotonic()
    killed_after(lambda: run.work(whole), 1e9)
    duration, expected = time.monotonic() - began, run.result(whole)
    folder = root / "killed"
    while done < kills:
        shutil.rmtree(folder, ignore_errors=True)
        run.prepare(folder)
        # Longer than a run at times, so that it ends.
        while killed_after(lambda: run.work(folder), generator.uniform(0, 1.2 * duration)):
            done += 1
            if problem := run.look(folder):
                problems.append(f"{run.name}, kill {done}: {problem}")
        result = run.result(folder)
        if different := [n for n in {**result, **expected} if result.get(n) != expected.get(n)]:
            problems.append(f"{run.name}, after kill {done}: {', '.join(different)} differ")
    shutil.rmtree(root)
    return problems


def longer(run: Run) -> Run:
    """Return a run of more steps or samples, so that kills fall into its middle."""
    works: dict[str, Callable[[Path], object]] = {
        "fit": lambda folder: fit(folder, steps=8),
        "sample x.npy": lambda folder: sample("x.npy", folder, n=40),
        "sample x.npz": lambda folder: sample("x.npz", folder, n=40),
    }
    look = loads if run.name == "fit" else run.look
    return Run(run.name, works[run.name], look, run.prepare)


def loads(folder: Path) -> str | None:
    """A model that is there can be loaded."""
    if (folder / "run" / "model.safetensors").exists():
        try:
            fastmsgm.load(folder / "run")
        except ValueError as error:
            return str(error)
    return None
