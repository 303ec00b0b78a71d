"""fashion-gbm by default, before and after: samples per second and Frechet distance in one run.

    git worktree add /tmp/before 9107686
    python -m bench.fashion_default --before /tmp/before --samples 10000

runs ``fastmsgm sample --model fashion-gbm`` of both trees in turn, in rounds of 1,000 samples, each
in a process of its own that uses all cores, and compares the samples with the test images.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from bench.classifier import features, load_classifier
from bench.fashion_frechet import as_images
from bench.harness import results
from fastmsgm import data
from fastmsgm.evaluation.metrics import frechet_distance

BENCHMARK, ROUND = "fashion_default", 1_000
SEED = 1  # not that of the noise that the solvers were fitted to
TREES = {"after": Path(__file__).parents[1]}


def sample(tree: Path, start: int, n: int, path: Path) -> tuple[float, int]:
    """Run the command line of a tree; return samples per second without start-up, and NFE."""
    command = [sys.executable, "-m", "fastmsgm", "sample", "--model", "fashion-gbm"]
    command += ["--n", str(n), "--start", str(start), "--seed", str(SEED), "--out", str(path)]
    environment = os.environ | {"PYTHONPATH": str(tree)}
    began = time.monotonic()
    done = subprocess.run(
        command, env=environment, cwd=path.parent, check=True, capture_output=True, text=True
    )
    print(f"{tree}: {time.monotonic() - began:.0f} s with start-up", flush=True)
    found = re.search(r"(\d+) network calls each, ([\d.]+) samples/s", done.stderr + done.stdout)
    if found is None:
        raise RuntimeError(f"no rate in the output of {' '.join(command)}: {done.stderr}")
    return float(found[2]), int(found[1])


def main() -> None:
    """Sample in turns, and record rates and distances."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--before", type=Path, required=True, help="folder of the earlier tree")
    parser.add_argument("--samples", type=int, default=10_000)
    args = parser.parse_args()
    trees = {"before": args.before.resolve(), **TREES}
    network = load_classifier()
    reference = features(data.fashion_mnist("test"), network)
    rates: dict[str, list[float]] = {name: [] for name in trees}
    calls: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        for start in range(0, args.samples, ROUND):
            for name, tree in trees.items():
                path = Path(folder) / f"{name}-{start}.npy"
                rate, calls[name] = sample(tree, start, ROUND, path)
                rates[name].append(rate)
        for name in trees:
            paths = sorted(Path(folder).glob(f"{name}-*.npy"))
            x = torch.from_numpy(np.concatenate([np.load(path) for path in paths]))
            distance = frechet_distance(features(as_images(x), network), reference)
            note = f"NFE {calls[name]}, {len(x)} samples, in turns with the other"
            rate = float(np.median(rates[name]))
            for unit, value in (("samples/s", rate), ("feature^2", distance)):
                print(f"{name}: {value:.4g} {unit} ({note})")
                results.append(
                    benchmark=BENCHMARK,
                    quantity=f"{name}: {unit}",
                    value=value,
                    unit=unit,
                    note=note,
                )


if __name__ == "__main__":
    main()
