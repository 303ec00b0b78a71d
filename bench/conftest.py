"""``pytest bench`` checks everything that would be timed, at small sizes; ``pytest bench --benchmark`` times it.

Timed comparisons append to results.csv and end in a table; ``--benchmark-save`` and its like keep them as JSON, too. On
a machine with CUDA all of it runs there.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import report
import torch
from interleaved import Compare, Outcome
from pytest_benchmark.fixture import BenchmarkFixture

from fastmsgm import ops

_OUTCOMES = pytest.StashKey[list[Outcome]]()
_OBSTACLES = pytest.StashKey[set[str]]()  # to torch.compile


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--benchmark", action="store_true", help="time the operations and append to bench/results.csv")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    config.stash[_OUTCOMES], config.stash[_OBSTACLES] = [], set()
    if config.getoption("--benchmark"):
        config.option.benchmark_quiet = True  # its own table is of rounds, ours of contenders
    else:
        config.option.benchmark_disable = True


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where everything runs."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    assert ops.backend(device.type) != "reference", f"the kernels do not run on {device.type} here: nothing to time"
    return device


@pytest.fixture
def compare(benchmark: BenchmarkFixture, device: torch.device, request: pytest.FixtureRequest) -> Iterator[Compare]:
    """Checks contenders and times them in turns."""
    comparison = Compare(benchmark, device, bool(request.config.getoption("--benchmark")))
    yield comparison
    if comparison.obstacle is not None:
        request.config.stash[_OBSTACLES].add(comparison.obstacle)
    if comparison.outcome is not None:
        report.record(comparison.outcome)
        request.config.stash[_OUTCOMES].append(comparison.outcome)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """All of torch's work, and the CPU kernels', on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    outcomes = config.stash[_OUTCOMES]
    if outcomes:
        terminalreporter.section("benchmarks")
        for line in report.table(outcomes):
            terminalreporter.write_line(line)
    for obstacle in config.stash[_OBSTACLES]:
        terminalreporter.write_line(f"contenders by torch.compile are left out, it does not work here: {obstacle}")
