"""Everything that files and processes can suffer, and what is left afterwards.

    python -m tests.soak           # make soak: less than 20 minutes on two cores
    python -m tests.soak --short   # a part of each, in make test

It ends with a table, and with status 1 where anything was lost or silently wrong.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor

from tests.soak.fuzz import SHOWN, fuzz
from tests.soak.tasks import broken, killed

RUNS = ("fit", "save", "sample x.npy", "sample x.npz", "sample folder")
KILLS = {"fit": 100, "sample x.npy": 50, "sample x.npz": 25}


def _row(what: str, happened: str, problems: list[str], seconds: float) -> int:
    print(f"{what:<24}{happened:<92}{len(problems):>4} wrong{seconds:>8.0f} s", flush=True)
    for problem in problems[:SHOWN]:
        print(f"    {problem}")
    return len(problems)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true")
    short = parser.parse_args().short
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes below, which fork
    began = time.monotonic()
    report = fuzz(1_000 if short else 100_000, seed=1)
    print("\n".join(report.table()))
    wrong = _row(
        "damaged files",
        f"{report.cases} cases",
        [f"case {f['case']}, {f['reader']}: {f['why']}" for f in report.failures],
        time.monotonic() - began,
    )
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        tasks = [pool.submit(broken, name, 45 if short else 1) for name in RUNS]
        kills = {name: min(n, 4) if short else n for name, n in KILLS.items()}
        tasks += [pool.submit(killed, name, n) for name, n in kills.items()]
        for task in tasks:
            wrong += _row(*task.result(), time.monotonic() - began)
    print(f"{wrong} wrong in {time.monotonic() - began:.0f} s")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
