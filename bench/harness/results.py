"""The measurements of this project, as rows of results.csv with date, commit and device.

Dates are in UTC. A ``+`` after the commit means that files other than results.csv had uncommitted
changes.
"""

from __future__ import annotations

import csv
import datetime
import platform
import subprocess
from pathlib import Path

import torch

RESULTS = Path(__file__).parents[1] / "results.csv"
COLUMNS = ("date", "commit", "device", "torch", "benchmark", "quantity", "value", "unit", "note")


def append(
    *, benchmark: str, quantity: str, value: float, unit: str, note: str = "", device: str = "cpu"
) -> None:
    """Append one row.

    Args:
        benchmark: Name of the benchmark or experiment.
        quantity: What was measured.
        value: The measurement, written with six significant digits.
        unit: Of the value.
        note: How it was measured.
        device: Type of the device that was measured, "cpu" or "cuda".
    """
    row = {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "commit": _commit(),
        "device": torch.cuda.get_device_name() if device == "cuda" else _cpu_name(),
        "torch": torch.__version__,
        "benchmark": benchmark,
        "quantity": quantity,
        "value": f"{value:.6g}",
        "unit": unit,
        "note": note,
    }
    new = not RESULTS.exists()
    with RESULTS.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if new:
            writer.writerow(COLUMNS)
        writer.writerow(row[column] for column in COLUMNS)


def append_all(benchmark: str, name: str, values: dict[str, float], note: str) -> None:
    """Print the metrics of one thing and append a row for each.

    Args:
        benchmark: Name of the benchmark or experiment.
        name: What was measured; the quantity of a row is "name: metric".
        values: By metric, which is also the unit.
        note: How it was measured.
    """
    for metric, value in values.items():
        print(f"{name}: {metric} {value:.4g} ({note})", flush=True)
        append(
            benchmark=benchmark, quantity=f"{name}: {metric}", value=value, unit=metric, note=note
        )


def finished(benchmark: str) -> set[str]:
    """Return the quantities of a benchmark in results.csv, which a resumed experiment skips."""
    return set(latest(benchmark))


def latest(benchmark: str) -> dict[str, tuple[float, str]]:
    """Return the last value and note of every quantity of a benchmark in results.csv."""
    if not RESULTS.exists():
        return {}
    with RESULTS.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["benchmark"] == benchmark]
    return {row["quantity"]: (float(row["value"]), row["note"]) for row in rows}


def values(benchmark: str) -> dict[str, float]:
    """Return the last value of every quantity of a benchmark in results.csv."""
    return {quantity: value for quantity, (value, _) in latest(benchmark).items()}


def _commit() -> str:
    """Return the short hash of HEAD; "none" outside a repository or before its first commit."""
    try:
        others = (":(top)", f":(exclude){RESULTS.name}")
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", *others)
        return _git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "none"


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(RESULTS.parent), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _cpu_name() -> str:
    """Return the model name of the processor on Linux, else the architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
