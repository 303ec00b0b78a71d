"""``pytest bench`` checks at small sizes what ``pytest bench --benchmark`` times.

The timed comparisons are appended to results.csv and printed as a table. ``--benchmark-save`` and
the other options of pytest-benchmark also store them as JSON. On a machine with CUDA everything
runs on CUDA.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.harness import report
from bench.harness.interleaved import Compare, Outcome
from fastmsgm import ops

_OUTCOMES = pytest.StashKey[list[Outcome]]()
_COMPILE_ERRORS = pytest.StashKey[set[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--benchmark",
        action="store_true",
        help="time the operations and append to bench/results.csv",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    config.stash[_OUTCOMES], config.stash[_COMPILE_ERRORS] = [], set()
    if config.getoption("--benchmark"):
        config.option.benchmark_quiet = True  # its table lists rounds, ours lists providers
    else:
        config.option.benchmark_disable = True


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The device of all benchmarks."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    assert ops.backend(device.type) != "reference", (
        f"the kernels do not run on {device.type} here: nothing to time"
    )
    return device


@pytest.fixture
def compare(
    benchmark: BenchmarkFixture, device: torch.device, request: pytest.FixtureRequest
) -> Iterator[Compare]:
    """Check providers and time them in interleaved rounds."""
    comparison = Compare(benchmark, device, bool(request.config.getoption("--benchmark")))
    yield comparison
    if comparison.compile_error is not None:
        request.config.stash[_COMPILE_ERRORS].add(comparison.compile_error)
    if comparison.outcome is not None:
        report.record(comparison.outcome)
        request.config.stash[_OUTCOMES].append(comparison.outcome)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Run PyTorch and the CPU kernels on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    outcomes = config.stash[_OUTCOMES]
    if outcomes:
        terminalreporter.section("benchmarks")
        for line in report.table(outcomes):
            terminalreporter.write_line(line)
    for error in config.stash[_COMPILE_ERRORS]:
        terminalreporter.write_line(
            f"torch.compile does not work here, its providers are left out: {error}"
        )
