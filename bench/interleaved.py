"""Contenders for the same work, timed in turns in one process.

All of them are checked before any is timed, so that nothing wrong is ever called fast. A round then runs each once, in
an order of its own: what the machine does meanwhile, and what one leaves in the caches for the next, falls on all
alike, and ratios of medians mean something. Only ``run`` is timed, ``prepare`` is not. Each has the cores to
itself: OpenMP's threads go to sleep first, which spin for some milliseconds after an operation of PyTorch's.
"""

from __future__ import annotations

import functools
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import compiling
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from fastmsgm import roofline

# Of torch's generator when a contender runs for its check: what it drew can be drawn again. Problems draw their arrays
# from another seed, or a contender's noise would be its own data.
SEED = 1
OPENMP_SPINS = 0.02  # seconds at most, of GNU's OpenMP, which PyTorch brings on Linux
UNITS: dict[str, Callable[[float], float]] = {  # from the seconds that one item takes
    "ms": lambda seconds: 1e3 * seconds,
    "ns/element": lambda seconds: 1e9 * seconds,
    "samples/s": lambda seconds: 1 / seconds,
}


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Contender:
    """One way to do the work.

    Args:
        name: unique in its comparison.
        run: what is timed; what it returns goes to ``check``.
        check: raises where the result is wrong.
        prepare: puts back what ``run`` changes in place.
        items: how much a run does; times are per item.
        against: the contender of ours that it is there to be compared with; None for ours and for limits.
        limit: the contender that moves the same bytes and computes nothing.
        compiled: by torch.compile, so it is left out where that does not work.
        modelled: its kernel and form in the table of machine code, and the elements of an item, where it has any there.
    """

    name: str
    run: Callable[[], Any]
    check: Callable[[Any], object]
    prepare: Callable[[], object] = _nothing
    items: int = 1
    against: str | None = None
    limit: str | None = None
    compiled: bool = False
    modelled: tuple[str, str, int] | None = None


@dataclass(frozen=True)
class Outcome:
    """What a comparison measured.

    Args:
        benchmark: its name in the results.    setting: what was measured, in words.    unit: a key of ``UNITS``.
        card: the name of the CUDA device, or "".
        seconds: per item, of every contender and round.
        derived: further ratios of medians, by name.
    """

    benchmark: str
    setting: str
    unit: str
    device: torch.device
    card: str
    contenders: Sequence[Contender]
    seconds: dict[str, list[float]]
    derived: dict[str, float]

    def value(self, name: str) -> float:
        """The median in the comparison's unit."""
        return UNITS[self.unit](statistics.median(self.seconds[name]))

    def quartiles(self, name: str) -> tuple[float, float]:
        """In the comparison's unit, the lower first."""
        first, _, third = statistics.quantiles(self.seconds[name], n=4, method="inclusive")
        low, high = sorted(UNITS[self.unit](seconds) for seconds in (first, third))
        return low, high

    def modelled(self, contender: Contender) -> float | None:
        """What the roofline says of it on this card, in the comparison's unit."""
        if contender.modelled is None or not self.card:
            return None
        kernel, form, elements = contender.modelled
        seconds = roofline.modelled_seconds(kernel, form, self.card)
        return None if seconds is None else UNITS[self.unit](seconds * elements)

    def times(self, name: str, other: str | None) -> float | None:
        """How many times as long as another contender it takes."""
        if other is None:
            return None
        return statistics.median(self.seconds[name]) / statistics.median(self.seconds[other])


class Compare:
    """The fixture ``compare``, to be called once in a test.

    Attributes:
        outcome: what was measured, None until then.    obstacle: why compiled contenders were left out, or None.
    """

    def __init__(self, benchmark: BenchmarkFixture, device: torch.device, timed: bool) -> None:
        self.benchmark, self.device, self.timed = benchmark, device, timed
        self.outcome: Outcome | None = None
        self.obstacle: str | None = None

    def size(self, timed: int, checked: int) -> int:
        """The size of the problem: the one to be timed, or a small one to be checked only."""
        return timed if self.timed else checked

    def __call__(
        self, benchmark: str, setting: str, contenders: Sequence[Contender], *, unit: str = "ms", rounds: int = 10,
        derived: Mapping[str, Callable[[dict[str, float]], float]] | None = None,
    ) -> None:  # fmt: skip
        """Check all contenders, then time them, if that is asked for.

        Args:
            derived: further ratios to record, each a function of the medians, seconds by contender.
        """
        if any(c.compiled for c in contenders):
            self.obstacle = compiling.obstacle(self.device)
        if self.obstacle is not None:
            contenders = [c for c in contenders if not c.compiled]
        seconds: dict[str, list[float]] = {c.name: [] for c in contenders}
        order = random.Random(SEED)

        def turn() -> None:
            for c in order.sample(contenders, len(contenders)):
                c.prepare()
                if self.timed and self.device.type == "cpu":
                    time.sleep(OPENMP_SPINS)
                seconds[c.name].append(roofline.clock(c.run, self.device) / c.items)

        check_once = functools.cache(functools.partial(check, contenders))
        self.benchmark.pedantic(turn, setup=check_once, rounds=rounds if self.timed else 1)
        if not self.timed:
            return
        setting = f"{setting}{threads(self.device)}, {rounds} rounds in turns"
        medians = {name: statistics.median(times) for name, times in seconds.items()}
        ratios = {name: ratio(medians) for name, ratio in (derived or {}).items()}
        card = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else ""
        self.outcome = Outcome(benchmark, setting, unit, self.device, card, contenders, seconds, ratios)
        self.benchmark.extra_info.update(summary(self.outcome))


def check(contenders: Sequence[Contender]) -> None:
    """Run each once and raise where a result is wrong; kernels are compiled by the way."""
    for c in contenders:
        torch.manual_seed(SEED)
        c.prepare()
        c.check(c.run())


def threads(device: torch.device) -> str:
    """A part of the setting, where it matters."""
    if device.type != "cpu":
        return ""
    number = torch.get_num_threads()
    return f", {number} threads" if number > 1 else ", 1 thread"


def summary(outcome: Outcome) -> dict[str, Any]:
    """An outcome as JSON holds it."""
    rows = {
        c.name: {
            "median": outcome.value(c.name), "quartiles": outcome.quartiles(c.name), "unit": outcome.unit,
            "times limit": outcome.times(c.name, c.limit), "times ours": outcome.times(c.name, c.against),
            "modelled": outcome.modelled(c),
        }
        for c in outcome.contenders
    }  # fmt: skip
    return {"setting": outcome.setting, "contenders": rows, "derived": outcome.derived}
