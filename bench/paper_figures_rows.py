"""What paper_figures.py measures, and how its rows in results.csv are named and read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from bench.harness import results

BENCHMARK = "paper_figures"
MMD, SLICED = "MMD", "sliced W2"
METRICS = (MMD, SLICED)
MAIN = "Cauchy, d = 4"  # the data set of everything but the comparison of data sets
CAUCHY = {"Cauchy, d = 2": 2, MAIN: 4, "Cauchy, d = 8": 8}
OTHERS = {"Swiss roll": 2, "Lorenz-63": 16}
DIMENSIONS = CAUCHY | OTHERS
ISOTROPIC = ("rotation, isotropic, DSM", "rotation, isotropic, SSM")
SIMULATED = ("rotation, ring, SSM", "rotation, dense, SSM")
ASINH = "EDM, asinh"
ADDITIVE = ("VP, SSM", "EDM", "t-EDM", ASINH)
ARMS = (*ISOTROPIC, *SIMULATED, *ADDITIVE)
LARGEST_DENSE = 8  # features: a dense tensor has d^3 numbers


@dataclass(frozen=True)
class Setting:
    """One point of a figure.

    Args:
        data: A key of ``DIMENSIONS``.
        arm: One of ``ARMS``.
        training: Number of training samples.
        trained: Optimizer steps.
        sampled: Sampling steps.
    """

    data: str
    arm: str
    training: int
    trained: int
    sampled: int

    def quantity(self, seed: int, metric: str) -> str:
        """Return its name in results.csv."""
        return (
            f"{self.data}; {self.arm}; {self.training} training samples; {self.trained} steps; "
            f"{self.sampled} sampling steps; seed {seed}; {metric}"
        )


# Column of a figure -> arm -> what is measured there.
Points = Mapping[Any, Mapping[str, Setting]]


@dataclass(frozen=True)
class Plan:
    """The grid of all measurements.

    Args:
        seeds: Of weights, batches, training samples and samples.
        training: Numbers of training samples.
        trained: Optimizer steps at which the main trainings are sampled, multiples of the first;
            the last is the length of every training.
        sampled: Sampling steps of the trained models.
        usual: Sampling steps where they do not vary.
        samples: Number of samples, and of test samples.
        batch_size: Samples of a batch.
        rounds: Interleaved rounds of the timing.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    training: tuple[int, ...] = (2**6, 2**10, 2**14)
    trained: tuple[int, ...] = (125, 250, 500, 1000)
    sampled: tuple[int, ...] = (4, 8, 16, 32, 64, 128)
    usual: int = 64
    samples: int = 2048
    batch_size: int = 256
    rounds: int = 9

    def setting(self, data: str, arm: str, training: int) -> Setting:
        """Return the setting of a finished training at the usual number of sampling steps."""
        return Setting(data, arm, training, self.trained[-1], self.usual)


FULL = Plan()
SMOKE = Plan((0,), (32, 64), (2, 4), (2, 4), usual=4, samples=64, batch_size=16, rounds=1)


@dataclass
class Rows:
    """The rows of results.csv.

    Args:
        values: Setting -> metric -> seed -> value.
        calls: Network calls of a sample by arm and sampling steps.
        floors: Data set -> metric -> distance of two test sets.
        milliseconds: Of an optimizer step, by arm.
    """

    values: dict[Setting, dict[str, dict[int, float]]] = field(default_factory=dict)
    calls: dict[tuple[str, int], int] = field(default_factory=dict)
    floors: dict[str, dict[str, float]] = field(default_factory=dict)
    milliseconds: dict[str, float] = field(default_factory=dict)

    def of(self, setting: Setting, metric: str, plan: Plan) -> list[float]:
        """Return the values of the plan's seeds that are there."""
        found = self.values.get(setting, {}).get(metric, {})
        return [found[seed] for seed in plan.seeds if seed in found]


_NAME = re.compile(
    r"(.+); (.+); (\d+) training samples; (\d+) steps; (\d+) sampling steps; seed (\d+); (.+)"
)


def floor_quantity(data: str, metric: str) -> str:
    """Return the name of the distance of two test sets."""
    return f"{data}; floor; {metric}"


def time_quantity(arm: str) -> str:
    """Return the name of the CPU time of an optimizer step."""
    return f"{arm}; optimizer step"


def read() -> Rows:
    """Return the rows of results.csv."""
    rows, latest = Rows(), results.latest(BENCHMARK)
    for quantity, (value, note) in latest.items():
        if match := _NAME.fullmatch(quantity):
            data, arm, *numbers, metric = match.groups()
            training, trained, sampled, seed = map(int, numbers)
            setting = Setting(data, arm, training, trained, sampled)
            rows.values.setdefault(setting, {}).setdefault(metric, {})[seed] = value
            if calls := re.search(r"NFE (\d+)", note):
                rows.calls[arm, sampled] = int(calls[1])
    for data in DIMENSIONS:
        for metric in METRICS:
            if (name := floor_quantity(data, metric)) in latest:
                rows.floors.setdefault(data, {})[metric] = latest[name][0]
    for arm in ARMS:
        if (name := time_quantity(arm)) in latest:
            rows.milliseconds[arm] = latest[name][0]
    return rows


def arms_of(data: str) -> tuple[str, ...]:
    """Return the arms that a data set has.

    In two dimensions there is one plane to rotate in, so ring and dense noise are isotropic noise.
    """
    d = DIMENSIONS[data]
    left_out = {
        *(SIMULATED if d == 2 else ()),
        *(SIMULATED[1:] if d > LARGEST_DENSE else ()),
        *(() if data in CAUCHY else (ASINH,)),
    }
    return tuple(arm for arm in ARMS if arm not in left_out)


def trainings(plan: Plan) -> Iterator[tuple[str, str, int, int]]:
    """Yield data set, arm, number of training samples and seed, the most telling first.

    Every figure has its first seed before any has the second, and ring and dense noise, the
    slowest, come last of a seed. They are left out for few training samples.
    """
    *fewer, most = plan.training
    data_sets = (MAIN, "Cauchy, d = 8", "Cauchy, d = 2", "Lorenz-63", "Swiss roll")
    for seed in plan.seeds:
        for arm in (*ISOTROPIC, *ADDITIVE):
            yield MAIN, arm, most, seed
        for training in fewer:
            for arm in (*ISOTROPIC, *ADDITIVE):
                yield MAIN, arm, training, seed
        for data in data_sets[1:]:
            for arm in arms_of(data):
                if arm not in SIMULATED:
                    yield data, arm, most, seed
        for data in data_sets:
            for arm in arms_of(data):
                if arm in SIMULATED:
                    yield data, arm, most, seed


def settings(plan: Plan, data: str, arm: str, training: int) -> list[Setting]:
    """Return what one training measures, in the order of its optimizer steps."""
    last = plan.trained[-1]
    if data != MAIN or training != plan.training[-1]:
        return [plan.setting(data, arm, training)]
    early = [Setting(data, arm, training, steps, plan.usual) for steps in plan.trained[:-1]]
    return early + [Setting(data, arm, training, last, steps) for steps in plan.sampled]


def points(plan: Plan) -> dict[str, Points]:
    """Return the points of each figure."""
    most, last = plan.training[-1], plan.trained[-1]
    arms = arms_of(MAIN)
    by_data = {data: {a: plan.setting(data, a, most) for a in arms_of(data)} for data in DIMENSIONS}
    return {
        "steps": {k: {a: Setting(MAIN, a, most, last, k) for a in arms} for k in plan.sampled},
        "time": {k: {a: Setting(MAIN, a, most, k, plan.usual) for a in arms} for k in plan.trained},
        "dimension": {CAUCHY[data]: by_data[data] for data in CAUCHY},
        "sets": by_data,
        "samples": {n: {a: plan.setting(MAIN, a, n) for a in arms} for n in plan.training},
    }
