"""The roofline: the least time of a step, from its bytes and instructions.

For GPUs nothing here is timed. Bytes and instructions an element are read off the machine code (the
table that ``tests/kernels/machine_code.py`` writes), and a kernel is taken to last as long as the
slowest of its parts at full rate: memory, the issue of instructions, and the pipes that they use.
Its slack is the time of memory over that of the slowest other part: above 1 it is bound by memory.
These figures are called *modelled*.

On this machine the same operations are timed; these figures are called *measured*.
"""

from __future__ import annotations

import csv
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import resources
from typing import Any

import torch

from fastmsgm import ops, rng

N, D = 50_000, 784
ROUNDS = 5
_FLUSH = 2**30  # bytes that are written before every run on CUDA


@dataclass(frozen=True)
class GPU:
    """A model of a GPU.

    Args:
        name: Part of the name that CUDA gives the card.
        target: What its code is compiled for.
        bandwidth: Bandwidth of its memory, bytes/s, as the vendor states it.
        multiprocessors: Their number.
        clock: Boost clock, Hz.
        fp32: Lanes of the float32 pipe, per clock and multiprocessor.
        issue: Lanes issued.
        imad: Lanes of the integer multiply pipe.
        alu: Lanes of the integer pipe.
        special: Lanes of the special-function pipe.
        shared: Lanes of shared memory.
    """

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
        """Return lanes a second of "issue" or of a pipe."""
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
    """A kernel on a GPU, per element.

    Args:
        kernel: Its name.
        variant: Its compile-time switches, in words.
        gpu: Name of the GPU.
        bytes: Moved.
        instructions: Issued.
        memory: Seconds of the memory.
        other: Seconds of the slowest other part.
    """

    kernel: str
    variant: str
    gpu: str
    bytes: float
    instructions: float
    memory: float
    other: float

    @property
    def seconds(self) -> float:
        """Modelled time, s."""
        return max(self.memory, self.other)

    @property
    def slack(self) -> float:
        """Time of memory over that of the slowest other part; above 1 bound by memory."""
        return self.memory / self.other


def model(row: Mapping[str, Any], gpu: GPU) -> Modelled:
    """Return a row of the table of machine code as a model for a GPU."""
    instructions, moved = float(row["instructions_per_element"]), float(row["bytes_per_element"])
    each = instructions / int(row["instructions"])  # passes of an instruction, for each element
    parts = {"issue": instructions} | {pipe: each * int(row[f"pipe_{pipe}"]) for pipe in _PIPES}
    slowest = max(amount / gpu.rate(part) for part, amount in parts.items())
    return Modelled(
        row["kernel"], row["variant"], gpu.name, moved, instructions, moved / gpu.bandwidth, slowest
    )


def modelled() -> Iterator[Modelled]:
    """Yield every kernel and variant of the table, on every GPU that it was compiled for."""
    text = resources.files("fastmsgm.kernels").joinpath("machine_code.csv").read_text()
    for row in csv.DictReader(text.splitlines()):
        yield from (model(row, gpu) for gpu in GPUS if gpu.target == row["target"])


def modelled_seconds(kernel: str, variant: str, card: str) -> float | None:
    """Return the modelled time per element.

    Args:
        kernel: Its name.
        variant: Its compile-time switches, in words.
        card: The name that CUDA gives the card.

    Returns:
        Seconds, or None for a card without a model.

    Raises:
        ValueError: The table of machine code has no such kernel and variant.
    """
    models = [m for m in modelled() if (m.kernel, m.variant) == (kernel, variant)]
    if not models:
        raise ValueError(
            "kernel and variant must be in kernels/machine_code.csv, got "
            f"{kernel!r} and {variant!r}"
        )
    return next((m.seconds for m in models if m.gpu in card), None)


def modelled_table() -> Iterator[str]:
    """Yield lines: time of a step of 50,000 x 784, and slack, for every kernel and GPU."""
    yield (
        f"modelled, never timed: microseconds of {N:,} x {D}, and slack (time of memory over that "
        "of the slowest other part)"
    )
    lines: dict[tuple[str, str], list[Modelled]] = {}
    for m in modelled():
        lines.setdefault((m.kernel, m.variant), []).append(m)
    yield f"  {'':42}" + "".join(f"{gpu.name:>22}" for gpu in GPUS)
    yield f"  {'kernel':42}" + f"{'instr  us  slack':>22}" * len(GPUS)
    for (kernel, variant), models in lines.items():
        cells = {
            m.gpu: f"{m.instructions:6.1f} {1e6 * N * D * m.seconds:6.0f} {m.slack:5.2f}"
            for m in models
        }
        name = f"{kernel} {variant}".strip() + f", {models[0].bytes:.0f} bytes"
        yield f"  {name:42}" + "".join(f"{cells.get(gpu.name, '-'):>22}" for gpu in GPUS)


@dataclass(frozen=True)
class Measured:
    """An operation on this machine.

    Args:
        name: Name of the operation.
        bytes: Moved per element.
        seconds: Seconds of a whole step.
        limit: Seconds of a copy of the same bytes.
    """

    name: str
    bytes: int
    seconds: float
    limit: float


def measured(device: torch.device, n: int = N) -> list[Measured]:
    """Return interleaved times of all operations on n x 784; "copy" is ``torch.add``."""
    operations = _operations(device, n)
    seconds: dict[str, list[float]] = {name: [] for name in operations}
    for k in range(ROUNDS + 1):  # the first compiles
        for name, (_, run) in operations.items():
            taken = clock(run, device)
            if k:
                seconds[name].append(taken)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    limit = median["copy"] / operations["copy"][0]
    return [
        Measured(name, moved, median[name], moved * limit)
        for name, (moved, _) in operations.items()
    ]


def measured_table(device: torch.device | str, n: int = N) -> Iterator[str]:
    """Yield lines: time of every operation on this machine, and the share of a copy in it."""
    device = torch.device(device)
    copy, *others = measured(device, n)
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    backend, bandwidth = ops.backend(device.type), copy.bytes * n * D / copy.seconds / 1e9
    yield f"measured, {device.type}{threads}, backend {backend}: {n:,} x {D}, median of {ROUNDS}"
    yield f"  copy bandwidth {bandwidth:.1f} GB/s (torch.add of two arrays into a third)"
    yield f"  {'operation':42}{'bytes':>8}{'ms':>10}{'share of the limit':>22}"
    for m in others:
        yield f"  {m.name:42}{m.bytes:8}{1e3 * m.seconds:10.2f}{m.limit / m.seconds:22.0%}"


def _operations(device: torch.device, n: int) -> dict[str, tuple[int, Callable[[], object]]]:
    """Return bytes per element, and what to call, by name."""
    kind: dict[str, Any] = {"dtype": torch.float32, "device": device}
    x, f, prev_denoised, out = (torch.ones(n, D, **kind) for _ in range(4))
    ops.fill_normal_(f, rng.stream(1, 0, device), rng.Purpose.PRIOR, 0)
    u = torch.full((n, D), D**-0.5, **kind)
    flags = torch.full((n,), -1, dtype=torch.int32, device=device)  # first_nonfinite_step
    stream, purpose = rng.stream(0, 0, device), rng.Purpose.TRAINING_NOISE
    # A step that leaves x about where it is, however often it is taken.
    table = torch.tensor([[1.0, 0.0, 0.0, 0.0, 1e-3, 0.0, 1e-3, 0.0, 1.0]], **kind)
    rotation = torch.tensor([[0.6, 0.05, 0.0, 0.8, 0.0, 0.0, 0.0, 0.7, 1.0]], **kind)
    angles = torch.linspace(0.2, 1.8, 257, **kind)[None]
    ring = torch.tensor([[0.1, 0.1, 1.0]], **kind)
    perturbation = torch.tensor([0.0, 0.5, 1.0], **kind).repeat(n, 1)
    lr = torch.tensor([1e-6], **kind)

    gbm = partial(ops.gbm_step_, x, f, table, stream, 0, flags)
    spherical = partial(ops.rotation_step_, u, f, rotation, angles, stream, 0, flags)
    on_ring = partial(ops.ring_step_, u, f, ring, stream, 0, flags, None, None, False)
    perturb = partial(ops.gbm_perturb_, x, perturbation, stream, purpose, 0)
    return {
        "copy": (12, partial(torch.add, x, f, out=out)),
        "fill_normal": (4, partial(ops.fill_normal_, out, stream, purpose, 0)),
        "gbm_perturb": (8, partial(perturb, out, None, None)),
        "gbm_step": (12, partial(gbm, None, None, False, False, False)),
        "gbm_step, logarithm and prev_denoised": (
            20,
            partial(gbm, prev_denoised, None, False, False, True),
        ),
        "rotation_step": (12, partial(spherical, None, None, False)),
        "ring_step": (12, partial(on_ring, False)),
        "ring_step, noise": (12, partial(on_ring, True)),
        "egd_step": (12, partial(ops.egd_step_, x, f, lr)),
    }


def clock(run: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of one run."""
    if device.type != "cuda":
        began = time.perf_counter()
        run()
        return time.perf_counter() - began
    # The device is kept busy until the launches of ``run`` are in its queue, and its cache is
    # emptied.
    torch.empty(_FLUSH, dtype=torch.int8, device=device).zero_()
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    began.record()
    run()
    ended.record()
    ended.synchronize()
    return began.elapsed_time(ended) / 1e3
