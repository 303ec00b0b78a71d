"""``fill_normal`` against PyTorch's generator, 50,000 x 784 float32, and against a fill, which writes the same."""

from __future__ import annotations

import functools

import gates
import torch
from interleaved import Compare, Contender
from torch import Tensor

from fastmsgm import ops, reference, rng

N, D = 50_000, 784


class Problem:
    """An array to fill; every method returns what it filled."""

    def __init__(self, n: int, device: torch.device) -> None:
        self.out, self.stream = torch.empty(n, D, device=device), rng.stream(0, 0, device)

    def poison(self) -> None:
        self.out.fill_(torch.nan)

    def ours(self) -> Tensor:
        ops.fill_normal_(self.out, self.stream, rng.Kind.STEP, 0)
        return self.out

    def in_place(self) -> Tensor:
        return self.out.normal_()

    def eager(self) -> Tensor:
        return torch.randn_like(self.out)

    def fill(self) -> Tensor:
        return self.out.fill_(1.0)

    def check_ours(self, out: Tensor) -> None:
        for rows in gates.ends(len(out)):
            wanted = torch.empty_like(out[rows])
            reference.fill_normal(wanted, rng.stream(0, rows.start, out.device), rng.Kind.STEP, 0)
            gates.close(out[rows], wanted, absolute=2e-6)

    def check_theirs(self, out: Tensor) -> None:
        out = out.clone()
        gates.same_law(out, self.ours())

    def check_fill(self, out: Tensor) -> None:
        assert bool((out == 1).all())


def test_normal(compare: Compare) -> None:
    p = Problem(compare.size(N, 500), compare.device)
    theirs = functools.partial(Contender, check=p.check_theirs, prepare=p.poison, against="fill_normal", limit="fill_")
    contenders = [
        Contender(
            "fill_normal", p.ours, p.check_ours, p.poison, limit="fill_", modelled=("fill_normal", "", p.out.numel())
        ),
        theirs("normal_", p.in_place),
        theirs("randn_like", p.eager),
        Contender("fill_", p.fill, p.check_fill, p.poison),
    ]
    compare("normal", f"{len(p.out)} x {D} float32", contenders)
