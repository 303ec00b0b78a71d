"""``fill_normal`` against PyTorch's generator, 50,000 x 784 float32.

The limit is ``fill_``, which writes the same bytes.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from bench.harness import checks
from bench.harness.interleaved import Compare, Provider
from fastmsgm import ops, reference, rng

N, D = 50_000, 784


class Problem:
    """An array to fill. Every provider returns what it filled."""

    def __init__(self, n: int, device: torch.device) -> None:
        self.out, self.stream = torch.empty(n, D, device=device), rng.stream(0, 0, device)

    def poison(self) -> None:
        self.out.fill_(torch.nan)

    def ours(self) -> Tensor:
        ops.fill_normal_(self.out, self.stream, rng.Purpose.STEP, 0)
        return self.out

    def in_place(self) -> Tensor:
        return self.out.normal_()

    def eager(self) -> Tensor:
        return torch.randn_like(self.out)

    def fill(self) -> Tensor:
        return self.out.fill_(1.0)

    def check_ours(self, out: Tensor) -> None:
        for samples in checks.first_and_last(len(out)):
            wanted = torch.empty_like(out[samples])
            stream = rng.stream(0, samples.start, out.device)
            reference.fill_normal(wanted, stream, rng.Purpose.STEP, 0)
            checks.assert_close(out[samples], wanted, absolute=2e-6)

    def check_theirs(self, out: Tensor) -> None:
        out = out.clone()
        checks.assert_same_distribution(out, self.ours())

    def check_fill(self, out: Tensor) -> None:
        assert bool((out == 1).all())


def test_normal(compare: Compare) -> None:
    p = Problem(compare.size(N, 500), compare.device)
    provider = functools.partial(Provider, prepare=p.poison)
    theirs = functools.partial(provider, check=p.check_theirs, against="fill_normal", limit="fill_")
    modelled = ("fill_normal", "", p.out.numel())
    providers = [
        provider("fill_normal", p.ours, p.check_ours, limit="fill_", modelled=modelled),
        theirs("normal_", p.in_place),
        theirs("randn_like", p.eager),
        provider("fill_", p.fill, p.check_fill),
    ]
    compare("normal", f"{len(p.out)} x {D} float32", providers)
