"""Several providers of the same operation, timed in interleaved rounds in one process.

All providers are checked before any of them is timed. In each round every provider runs once, in
random order. Changes in machine load and cache contents thus affect all of them alike, and ratios
of medians are meaningful. Only ``run`` is timed, ``prepare`` is not.

PyTorch's OpenMP threads spin for some milliseconds after an operation. On a CPU every run therefore
waits until they sleep, so that each provider has the cores to itself.
"""

from __future__ import annotations

import functools
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.harness import compiling
from fastmsgm.tools import roofline

# Seeds torch's generator before a provider runs for its check, so that the check can sample the
# same noise again. Problems use another seed for their data, or noise and data would be equal.
SEED = 1
OPENMP_SPINS = 0.02  # seconds; GNU's OpenMP, which PyTorch uses on Linux, spins at most this long
UNITS: dict[str, Callable[[float], float]] = {  # from seconds per item
    "ms": lambda seconds: 1e3 * seconds,
    "ns/element": lambda seconds: 1e9 * seconds,
    "samples/s": lambda seconds: 1 / seconds,
}


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Provider:
    """One implementation of an operation.

    Args:
        name: Unique in its comparison.
        run: What is timed. Its result goes to ``check``.
        check: Raises if the result is wrong.
        prepare: Restores what ``run`` changes in place.
        items: Number of items that a run processes. Times are per item.
        against: Our provider that this one is compared with; None for ours and for limits.
        limit: The provider that moves the same bytes and computes nothing.
        compiled: Whether it uses torch.compile. If so it is left out where that does not work.
        modelled: Kernel and variant in the table of machine code, and elements per item; None if
            the table has no such kernel.
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
    """The result of a comparison.

    Args:
        benchmark: Its name in results.csv.
        setting: What was measured, in words.
        unit: A key of ``UNITS``.
        device: Where everything ran.
        card: Name of the CUDA device, or "".
        providers: All that were timed.
        seconds: Per item, for each provider and round.
        derived: Further ratios of medians, by name.
    """

    benchmark: str
    setting: str
    unit: str
    device: torch.device
    card: str
    providers: Sequence[Provider]
    seconds: dict[str, list[float]]
    derived: dict[str, float]

    def value(self, name: str) -> float:
        """Return the median of a provider in the unit of the comparison."""
        return UNITS[self.unit](statistics.median(self.seconds[name]))

    def quartiles(self, name: str) -> tuple[float, float]:
        """Return the quartiles in the unit of the comparison, the lower one first."""
        first, _, third = statistics.quantiles(self.seconds[name], n=4, method="inclusive")
        low, high = sorted(UNITS[self.unit](seconds) for seconds in (first, third))
        return low, high

    def modelled(self, provider: Provider) -> float | None:
        """Return the roofline's time on this card in the unit of the comparison, if it has one."""
        if provider.modelled is None or not self.card:
            return None
        kernel, variant, elements = provider.modelled
        seconds = roofline.modelled_seconds(kernel, variant, self.card)
        return None if seconds is None else UNITS[self.unit](seconds * elements)

    def times(self, name: str, other: str | None) -> float | None:
        """Return the median time of a provider over that of another one; None without another."""
        if other is None:
            return None
        return statistics.median(self.seconds[name]) / statistics.median(self.seconds[other])


class Compare:
    """The fixture ``compare``, which a test calls once.

    Args:
        benchmark: Fixture of pytest-benchmark.
        device: Where the providers run.
        timed: Whether they are timed, or only checked.

    Attributes:
        outcome: What was measured, or None.
        compile_error: Why compiled providers were left out, or None.
    """

    def __init__(self, benchmark: BenchmarkFixture, device: torch.device, timed: bool) -> None:
        self.benchmark, self.device, self.timed = benchmark, device, timed
        self.outcome: Outcome | None = None
        self.compile_error: str | None = None

    def size(self, timed: int, checked: int) -> int:
        """Return the size of the problem: ``timed``, or ``checked`` if nothing is timed."""
        return timed if self.timed else checked

    def __call__(
        self,
        benchmark: str,
        setting: str,
        providers: Sequence[Provider],
        *,
        unit: str = "ms",
        rounds: int = 10,
        derived: Mapping[str, Callable[[dict[str, float]], float]] | None = None,
    ) -> None:
        """Check all providers, then time them if the run is timed.

        Args:
            benchmark: Its name in results.csv.
            setting: What is measured, in words.
            providers: What is compared.
            unit: A key of ``UNITS``.
            rounds: In each of them every provider runs once.
            derived: Further ratios to record, each a function of the medians (seconds by provider).
        """
        if any(p.compiled for p in providers):
            self.compile_error = compiling.error(self.device)
        if self.compile_error is not None:
            providers = [p for p in providers if not p.compiled]
        seconds: dict[str, list[float]] = {p.name: [] for p in providers}
        order = random.Random(SEED)

        def one_round() -> None:
            for p in order.sample(providers, len(providers)):
                p.prepare()
                if self.timed and self.device.type == "cpu":
                    time.sleep(OPENMP_SPINS)
                seconds[p.name].append(roofline.clock(p.run, self.device) / p.items)

        check_once = functools.cache(functools.partial(check, providers))
        self.benchmark.pedantic(one_round, setup=check_once, rounds=rounds if self.timed else 1)
        if not self.timed:
            return
        setting = f"{setting}{threads(self.device)}, {rounds} interleaved rounds"
        medians = {name: statistics.median(times) for name, times in seconds.items()}
        ratios = {name: ratio(medians) for name, ratio in (derived or {}).items()}
        card = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else ""
        self.outcome = Outcome(
            benchmark, setting, unit, self.device, card, providers, seconds, ratios
        )
        self.benchmark.extra_info.update(summary(self.outcome))


def check(providers: Sequence[Provider]) -> None:
    """Run each provider once and raise if a result is wrong. This also compiles the kernels."""
    for p in providers:
        torch.manual_seed(SEED)
        p.prepare()
        p.check(p.run())


def threads(device: torch.device) -> str:
    """Return the number of threads on a CPU, as the end of a setting; "" on other devices."""
    if device.type != "cpu":
        return ""
    number = torch.get_num_threads()
    return f", {number} threads" if number > 1 else ", 1 thread"


def summary(outcome: Outcome) -> dict[str, Any]:
    """Return an outcome as JSON can hold it."""
    providers = {
        p.name: {
            "median": outcome.value(p.name),
            "quartiles": outcome.quartiles(p.name),
            "unit": outcome.unit,
            "times limit": outcome.times(p.name, p.limit),
            "times ours": outcome.times(p.name, p.against),
            "modelled": outcome.modelled(p),
        }
        for p in outcome.providers
    }
    return {"setting": outcome.setting, "providers": providers, "derived": outcome.derived}
