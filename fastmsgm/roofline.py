"""The roofline: what a step must take at least, by the bytes that it moves and the instructions that it is made of.

For GPUs nothing here was timed: bytes and instructions an element are read off the machine code (the table that
``tests/machine_code.py`` writes), and a kernel is taken to last as long as the slowest of its parts on a machine that
does each of them at full rate: memory, the issue of instructions, and the pipes they go to. Its slack is the memory's
time over that of the slowest of the others: above 1 it is bound by memory. Figures of it are called *modelled*.

On the machine at hand the same operations are timed, and called *measured*.
"""

from __future__ import annotations

import csv
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import torch

from fastmsgm import ops, rng

N, D = 50_000, 784
ROUNDS = 5
_FLUSH = 2**30  # bytes that are written before every run on CUDA


@dataclass(frozen=True)
class GPU:
    """A machine model: the vendor's memory bandwidth (bytes/s), multiprocessors and boost clock (Hz), and what each of
    them does in a clock: lanes of a warp issued, and of the pipes."""

    name: str
    target: str
    bandwidth: float
    multiprocessors: int
    clock: float
    fp32: int = 128
    issue: int = 128
    imad: int = 64
    alu: int = 64
    special: int = 16
    shared: int = 32

    def rate(self, part: str) -> float:
        """Lanes a second of "issue" or of a pipe."""
        return getattr(self, part) * self.multiprocessors * self.clock


GPUS = (
    GPU("A100", "sm_80", 2.039e12, 108, 1.41e9, fp32=64),
    GPU("H100", "sm_90", 3.35e12, 132, 1.755e9),
    GPU("H200", "sm_90", 4.8e12, 132, 1.755e9),
    GPU("B200", "sm_100", 8.0e12, 148, 1.85e9),
)
_PIPES = ("fp32", "imad", "alu", "special", "shared")


@dataclass(frozen=True)
class Modelled:
    """A kernel on a GPU, for each element: bytes, instructions, seconds by memory and by the slowest other part."""

    kernel: str
    form: str
    gpu: str
    bytes: float
    instructions: float
    memory: float
    other: float

    @property
    def seconds(self) -> float:
        """An element's share of a launch."""
        return max(self.memory, self.other)

    @property
    def slack(self) -> float:
        """How much slower than memory alone everything else would have to be before it counts."""
        return self.memory / self.other


def model(row: Mapping[str, Any], gpu: GPU) -> Modelled:
    """A row of the table of machine code on a GPU."""
    instructions, moved = float(row["instructions_per_element"]), float(row["bytes_per_element"])
    each = instructions / int(row["instructions"])  # passes of an instruction, for each element
    parts = {"issue": instructions} | {pipe: each * int(row[f"pipe_{pipe}"]) for pipe in _PIPES}
    slowest = max(amount / gpu.rate(part) for part, amount in parts.items())
    return Modelled(row["kernel"], row["form"], gpu.name, moved, instructions, moved / gpu.bandwidth, slowest)


def modelled() -> Iterator[Modelled]:
    """Every kernel and form of the table of machine code, on every GPU that it was compiled for."""
    text = resources.files("fastmsgm.kernels").joinpath("machine_code.csv").read_text()
    for row in csv.DictReader(text.splitlines()):
        yield from (model(row, gpu) for gpu in GPUS if gpu.target == row["target"])


def modelled_seconds(kernel: str, form: str, card: str) -> float | None:
    """An element's modelled share of a launch on a card by the name that CUDA gives it; None for a card without model.

    Raises:
        ValueError: the table of machine code has no such kernel and form.
    """
    models = [m for m in modelled() if (m.kernel, m.form) == (kernel, form)]
    if not models:
        raise ValueError(f"kernel and form must be in kernels/machine_code.csv, got {kernel!r} and {form!r}")
    return next((m.seconds for m in models if m.gpu in card), None)


def modelled_table() -> Iterator[str]:
    """Lines: time of a step of 50,000 x 784 and slack to the memory's time, for every kernel and GPU."""
    yield f"modelled, never timed: microseconds of {N:,} x {D}, and slack (memory's time over the slowest other part's)"
    lines: dict[tuple[str, str], list[Modelled]] = {}
    for m in modelled():
        lines.setdefault((m.kernel, m.form), []).append(m)
    yield f"  {'':42}" + "".join(f"{gpu.name:>22}" for gpu in GPUS)
    yield f"  {'kernel':42}" + f"{'instr  us  slack':>22}" * len(GPUS)
    for (kernel, form), models in lines.items():
        cells = {m.gpu: f"{m.instructions:6.1f} {1e6 * N * D * m.seconds:6.0f} {m.slack:5.2f}" for m in models}
        name = f"{kernel} {form}".strip() + f", {models[0].bytes:.0f} bytes"
        yield f"  {name:42}" + "".join(f"{cells.get(gpu.name, '-'):>22}" for gpu in GPUS)


@dataclass(frozen=True)
class Measured:
    """An operation on this machine: bytes moved for each element, seconds of a whole step, and the memory's own."""

    name: str
    bytes: int
    seconds: float
    limit: float


def measured(device: torch.device, n: int = N) -> list[Measured]:
    """Times of every operation on n x 784, taken in turns; the first, "copy", is ``torch.add`` into a third array."""
    operations = dict(_operations(device, n))
    seconds: dict[str, list[float]] = {name: [] for name in operations}
    for turn in range(ROUNDS + 1):  # the first compiles
        for name, (_, run) in operations.items():
            taken = clock(run, device)
            if turn:
                seconds[name].append(taken)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    limit = median["copy"] / operations["copy"][0]
    return [Measured(name, moved, median[name], moved * limit) for name, (moved, _) in operations.items()]


def measured_table(device: torch.device | str, n: int = N) -> Iterator[str]:
    """Lines: time of every operation on this machine, and its share of what moving the same bytes would take."""
    device = torch.device(device)
    copy, *others = measured(device, n)
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    yield f"measured, {device.type}{threads}, backend {ops.backend(device.type)}: {n:,} x {D}, median of {ROUNDS}"
    yield f"  copy bandwidth {copy.bytes * n * D / copy.seconds / 1e9:.1f} GB/s (torch.add of two arrays into a third)"
    yield f"  {'operation':42}{'bytes':>8}{'ms':>10}{'share of the limit':>22}"
    for m in others:
        yield f"  {m.name:42}{m.bytes:8}{1e3 * m.seconds:10.2f}{m.limit / m.seconds:22.0%}"


def _operations(device: torch.device, n: int) -> Iterator[tuple[str, tuple[int, Callable[[], object]]]]:
    """Name, bytes an element, and what to call."""
    x, f, history, out = (torch.ones(n, D, device=device) for _ in range(4))
    ops.fill_normal_(f, rng.stream(1, 0, device), rng.Kind.PRIOR, 0)
    bad, stream = torch.full((n,), -1, dtype=torch.int32, device=device), rng.stream(0, 0, device)
    # A step that leaves x about where it is, as often as it is taken.
    table = torch.tensor([[1.0, 0.0, 0.0, 0.0, 1e-3, 0.0, 1e-3, 0.0, 1.0]], device=device)
    turn = torch.tensor([[0.6, 0.05, 0.0, 0.8, 0.0, 0.0, 0.0, 0.7, 1.0]], device=device)
    angles, ring = torch.linspace(0.2, 1.8, 257, device=device)[None], torch.tensor([[0.1, 0.1, 1.0]], device=device)
    perturbation = torch.tensor([0.0, 0.5, 1.0], device=device).repeat(n, 1)
    rate, kind = torch.tensor([1e-6], device=device), rng.Kind.TRAINING_NOISE
    u = torch.full((n, D), D**-0.5, device=device)

    yield "copy", (12, lambda: torch.add(x, f, out=out))
    yield "fill_normal", (4, lambda: ops.fill_normal_(out, stream, kind, 0))
    yield "gbm_perturb", (8, lambda: ops.gbm_perturb_(x, perturbation, stream, kind, 0, out, None, None))

    def gbm_step(past: torch.Tensor | None, log_state: bool) -> Callable[[], object]:
        return lambda: ops.gbm_step_(x, f, table, stream, 0, bad, past, None, False, False, log_state)

    yield "gbm_step", (12, gbm_step(None, False))
    yield "gbm_step, logarithm and history", (20, gbm_step(history, True))
    yield "rotation_step", (12, lambda: ops.rotation_step_(u, f, turn, angles, stream, 0, bad, None, None, False))
    yield "ring_step", (12, lambda: ops.ring_step_(u, f, ring, stream, 0, bad, None, None, False, False))
    yield "ring_step, noise", (12, lambda: ops.ring_step_(u, f, ring, stream, 0, bad, None, None, False, True))
    yield "egd_step", (12, lambda: ops.egd_step_(x, f, rate))


def clock(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of one run."""
    if device.type != "cuda":
        began = time.perf_counter()
        run()
        return time.perf_counter() - began
    # The device is kept busy until the launches of ``run`` are in its queue, and its cache is emptied.
    torch.empty(_FLUSH, dtype=torch.int8, device=device).zero_()
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    began.record()
    run()
    ended.record()
    ended.synchronize()
    return began.elapsed_time(ended) / 1e3
