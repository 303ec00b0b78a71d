"""``rotation_step`` on the CPU against plain PyTorch and against the authors' Runge-Kutta steps, all on one thread.

A step is SDE-DPM-Solver++(1): the exact flow towards the denoised direction, then heat-kernel noise. The authors' steps
get their network's outputs for nothing, too. All of one size are timed in turns in one process; ratios of medians.
"""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Callable

import msgm_authors
import pytest
import results
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from fastmsgm import ops, rng

ELEMENTS, ROUNDS = 2**22, 10
LAW = (0.6, 0.05, 0.0, 0.8, 0.0, 0.0, 0.0, 0.7, 1.0)  # a row of the solver's table; the step's noise has spread 0.7
ANGLES = torch.linspace(0.2, 1.8, 257)[None]  # V at z = -6 .. 6
DT, T = 1 / 128, 0.5  # the authors' step and where in time it is


class Problem:
    """Directions, a network's output and what a step needs, n samples of d features; the methods are what is timed."""

    def __init__(self, n: int, d: int) -> None:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(n, d, generator=generator)
        self.start = x / x.norm(dim=1, keepdim=True)
        self.u = self.start.clone()
        self.f = torch.randn(n, d, generator=generator)
        self.bad = torch.full((n,), -1, dtype=torch.int32)
        self.stream, self.table = rng.stream(0), torch.tensor([LAW])

    def step(self) -> None:
        args = (self.table, ANGLES, self.stream, 0, self.bad, None, None)
        ops.rotation_step_(self.u, self.f, *args, geodesic=False)

    def plain(self) -> Tensor:
        """The same formula as one writes it in PyTorch, with its own generator."""
        u, (alpha, sigma, _, length, *_, spread, _) = self.u, LAW
        aim = alpha * u + sigma * tangent(self.f, u)
        along = (aim * u).sum(1, keepdim=True)
        across = aim - along * u
        width, size = across.norm(dim=1, keepdim=True), aim.norm(dim=1, keepdim=True)
        half = torch.where(along >= 0, width / (size + along), (size - along) / width)
        turned = half * -torch.expm1(-size * length) / (1 + half**2 * torch.exp(-size * length))
        u = ((1 - turned**2) * u + 2 * turned * (across / width)) / (1 + turned**2)
        position = (torch.randn(len(u)).clamp(-6, 6) + 6) * ((ANGLES.shape[1] - 1) / 12)
        column = position.long().clamp(max=ANGLES.shape[1] - 2)
        v = (spread * torch.lerp(ANGLES[0, column], ANGLES[0, column + 1], position - column)).clamp(0, 2)[:, None]
        w = tangent(torch.randn_like(u), u)
        return (1 - v) * u + torch.sqrt(v * (2 - v)) / w.norm(dim=1, keepdim=True) * w

    def authors(self, product: msgm_authors.Product) -> Tensor:
        """A step of their Runge-Kutta method, then the norms are restored."""
        drive = self.f * DT + math.sqrt(DT) * torch.randn_like(self.u)
        x = msgm_authors.rk4(lambda x, t: math.sqrt(msgm_authors.beta(t)) * product(x, drive), self.u, T, DT)
        return x * (1 / x.norm(dim=1, keepdim=True))


def tangent(v: Tensor, u: Tensor) -> Tensor:
    return v - (v * u).sum(1, keepdim=True) * u


def test_plain_is_the_same_step_with_other_noise() -> None:
    problem = Problem(20_000, 16)
    plain = problem.plain()
    problem.step()
    assert (problem.bad == -1).all()
    for mean in (lambda x: (x * problem.start).sum(1), lambda x: (x * tangent(problem.f, problem.start)).sum(1)):
        ours, theirs = mean(problem.u), mean(plain)
        error = math.hypot(ours.std(), theirs.std()) / len(ours) ** 0.5
        assert abs(ours.mean() - theirs.mean()) < 5 * error


def test_products_of_the_authors_keep_norms_and_agree() -> None:
    x, w = torch.randn(5, 6), torch.randn(5, 6)
    eye = torch.eye(6)
    ring = msgm_authors.sparse_product(6)
    tensor = torch.stack([torch.stack([ring(e[None], k[None])[0] for e in eye], 1) for k in eye], 2)
    torch.testing.assert_close(msgm_authors.dense_product(tensor)(x, w), ring(x, w))
    assert (ring(x, w) * x).sum(1).abs().max() < 1e-5
    assert tensor.square().sum() == pytest.approx(6)


SIZES = {  # features: what is timed there
    16: ("step",), 128: ("step", "authors, dense"), 256: ("step",), 1024: ("step", "plain", "authors, sparse"),
    4096: ("step",), 16384: ("step",),
}  # fmt: skip


def test_rotation_step(benchmark: BenchmarkFixture, request: pytest.FixtureRequest) -> None:
    timed = bool(request.config.getoption("--benchmark"))
    assert ops.backend("cpu") == "cpu", "the CPU kernels do not run here: nothing to time"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    runs = {(name, d): run(name, d, timed) for d, names in SIZES.items() for name in names}
    seconds: dict[tuple[str, int], list[float]] = {key: [] for key in runs}

    def turn() -> None:
        for key, (step, n) in runs.items():
            begin = time.perf_counter()
            step()
            seconds[key].append((time.perf_counter() - begin) / n)

    try:
        turn()  # compiles the kernels
        for times in seconds.values():
            times.clear()
        benchmark.pedantic(turn, rounds=ROUNDS if timed else 1)
    finally:
        torch.set_num_threads(threads)
    if timed:
        report(seconds)


def run(name: str, d: int, timed: bool) -> tuple[Callable[[], object], int]:
    """What to call, and how many samples it steps."""
    elements = ELEMENTS if timed else 2**12
    n = max(1, elements // d // (d if name == "authors, dense" else 1))
    problem = Problem(n, d)
    if name == "authors, dense":
        return functools.partial(problem.authors, msgm_authors.dense_product(msgm_authors.dense_tensor(d, 0))), n
    if name == "authors, sparse":
        return functools.partial(problem.authors, msgm_authors.sparse_product(d)), n
    return getattr(problem, name), n


def report(seconds: dict[tuple[str, int], list[float]]) -> None:
    """Rows of the results: nanoseconds an element, and the ratios that the comparison is about."""
    median = {key: statistics.median(times) for key, times in seconds.items()}
    for (name, d), times in seconds.items():
        low, _, high = (1e9 / d * t for t in statistics.quantiles(times, n=4))
        note = f"float32, 1 thread, {ROUNDS} rounds in turns, quartiles {low:.3g} .. {high:.3g}"
        row(f"{name}, d = {d}", 1e9 / d * median[name, d], "ns/element", note)
    for name, d in (("plain", 1024), ("authors, dense", 128), ("authors, sparse", 1024)):
        row(f"times faster than {name}, d = {d}", median[name, d] / median["step", d], "ratio", "medians, 1 thread")
    element = {d: median["step", d] / d for d in SIZES}
    wide = [element[d] for d in (256, 1024, 4096, 16384)]
    row("dearest over cheapest element, d = 256 .. 16384", max(wide) / min(wide), "ratio", "medians, 1 thread")
    row("an element at d = 16 over one at d = 1024", element[16] / element[1024], "ratio", "medians, 1 thread")


def row(quantity: str, value: float, unit: str, note: str) -> None:
    results.append(benchmark="rotation_step", quantity=quantity, value=value, unit=unit, note=note)
    print(f"{quantity}: {value:.3g} {unit}")
