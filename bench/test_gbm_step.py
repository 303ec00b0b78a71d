"""``gbm_step`` on the CPU against the authors' eager expression and against ``torch.add``, 50,000 x 784 float32.

``torch.add(x, s, out=o)`` moves the same 12 bytes an element as a step in place and computes nothing: the memory's own
time. All are timed in turns in one process on all of torch's threads, each from the same state; ratios of medians.
"""

from __future__ import annotations

import statistics
import time

import pytest
import results
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from fastmsgm import ops, rng

N, D, ROUNDS = 50_000, 784, 20
SIGMA, MU, DELTA, ANNEAL = 0.8, 0.32, 1e-3, 0.5


class Problem:
    """A state, a network output and what a step needs, of ``n`` samples; the methods are what is timed."""

    def __init__(self, n: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.start = 1 + torch.rand(n, D, generator=generator)
        self.x, self.out = self.start.clone(), torch.empty(n, D)
        self.score = torch.randn(n, D, generator=generator)
        self.history = torch.zeros(n, D)
        self.bad = torch.full((n,), -1, dtype=torch.int32)
        self.stream = rng.stream(0)
        e, c, s = DELTA * SIGMA**2, DELTA * (SIGMA**2 / 2 - MU), ANNEAL * SIGMA * DELTA**0.5
        # At s = 0, from the Stein score: log x' = log x + e (x score + 1) + c + s z.
        self.dale_langevin = torch.tensor([[1 - e, e, 0, c, s, 1, 1, 1, 1]])
        self.multistep_row = torch.tensor([[0.8, 0.3, -0.1, 0, 0.1, 0.5, 0.5, 0, 1]])

    def eager(self) -> Tensor:
        """The authors' update: x exp(delta (sigma^2 x score - mu + 3/2 sigma^2) + anneal sigma sqrt(delta) z)."""
        x, noise = self.x, ANNEAL * SIGMA * DELTA**0.5
        drift = SIGMA**2 * DELTA * (x * self.score) - (MU - 1.5 * SIGMA**2) * DELTA * torch.ones_like(x)
        return x.mul(torch.exp(drift + noise * torch.randn_like(x)))

    def add(self) -> None:
        torch.add(self.x, self.score, out=self.out)

    def step(self) -> None:
        args = (self.dale_langevin, self.stream, 0, self.bad, None, None)
        ops.gbm_step_(self.x, self.score, *args, stein=True, linear=False, log_state=False)

    def multistep(self) -> None:
        args = (self.multistep_row, self.stream, 0, self.bad, self.history, None)
        ops.gbm_step_(self.x, self.score, *args, stein=False, linear=False, log_state=True)


@pytest.mark.parametrize("name", ["step", "multistep"])
def test_step_equals_reference(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problems = {}
    for backend in ("cpu", "reference"):
        monkeypatch.setenv("FASTMSGM_BACKEND", backend)
        problems[backend] = Problem(100)
        getattr(problems[backend], name)()
    ours, theirs = problems["cpu"], problems["reference"]
    torch.testing.assert_close(ours.x, theirs.x, rtol=2e-6, atol=0)
    torch.testing.assert_close(ours.history, theirs.history, rtol=2e-6, atol=2e-6)
    assert (ours.bad == -1).all()


def test_eager_is_a_step_with_other_noise() -> None:
    problem = Problem(1000)
    eager = problem.eager()
    problem.step()
    difference = (problem.x / eager).log()
    noise = 2**0.5 * ANNEAL * SIGMA * DELTA**0.5
    assert abs(difference.mean()) < 6 * noise / difference.numel() ** 0.5
    assert difference.std() == pytest.approx(noise, rel=0.01)


def test_gbm_step(benchmark: BenchmarkFixture, request: pytest.FixtureRequest) -> None:
    timed = request.config.getoption("--benchmark")
    assert ops.backend("cpu") == "cpu", "the CPU kernels do not run here: nothing to time"
    problem = Problem(N if timed else 500)
    seconds: dict[str, list[float]] = {name: [] for name in ("eager", "add", "step", "multistep")}

    def turn() -> None:
        for name, times in seconds.items():
            problem.x.copy_(problem.start)
            begin = time.perf_counter()
            getattr(problem, name)()
            times.append(time.perf_counter() - begin)

    turn()  # compiles the kernels
    for times in seconds.values():
        times.clear()
    benchmark.pedantic(turn, rounds=ROUNDS if timed else 1)
    assert (problem.bad == -1).all()
    if timed:
        _report(seconds)


def _report(seconds: dict[str, list[float]]) -> None:
    median = {name: statistics.median(times) for name, times in seconds.items()}
    threads = torch.get_num_threads()
    for name, times in seconds.items():
        low, _, high = statistics.quantiles(times, n=4)
        note = f"{N} x {D} float32, {threads} threads, quartiles {1e3 * low:.1f} .. {1e3 * high:.1f} ms"
        results.append(benchmark="gbm_step", quantity=name, value=1e3 * median[name], unit="ms", note=note)
    for name in ("step", "multistep"):
        for quantity, value in (
            (f"{name}: times faster than eager", median["eager"] / median[name]),
            (f"{name}: times slower than torch.add", median[name] / median["add"]),
        ):
            note = f"medians of {ROUNDS} in turns, {threads} threads"
            results.append(benchmark="gbm_step", quantity=quantity, value=value, unit="ratio", note=note)
            print(f"{quantity}: {value:.2f}")
