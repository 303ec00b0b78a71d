"""``egd_step`` against PyTorch, 2^25 float32 weights.

The limit is a step of gradient descent, w - lr g, which moves the same 12 bytes per weight.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from bench.harness import checks, compiling
from bench.harness.interleaved import Compare, Provider
from fastmsgm import ops, reference

WEIGHTS, LR = 2**25, 0.1


class Problem:
    """Weights of both signs and a gradient. Every provider returns the new weights."""

    def __init__(self, n: int, device: torch.device) -> None:
        torch.manual_seed(0)
        self.start, self.g = torch.randn(n, device=device), torch.randn(n, device=device)
        self.w, self.scratch = self.start.clone(), torch.empty_like(self.start)
        self.lr = torch.tensor([LR], device=device)
        self.compiled = compiling.compiled(formula, device)

    def reset(self) -> None:
        self.w.copy_(self.start)

    def ours(self) -> Tensor:
        ops.egd_step_(self.w, self.g, self.lr)
        return self.w

    def eager(self) -> Tensor:
        return formula(self.w, self.g)

    def in_place(self) -> Tensor:
        return self.w.mul_(torch.sign(self.w, out=self.scratch).mul_(self.g).mul_(-LR).exp_())

    def graph(self) -> Tensor:
        return self.compiled(self.w, self.g)

    def descent(self) -> Tensor:
        return self.w.add_(self.g, alpha=-LR)

    def check(self, w: Tensor) -> None:
        wanted = self.start.clone()
        reference.egd_step(wanted, self.g, self.lr)
        checks.assert_close(w, wanted)

    def check_descent(self, w: Tensor) -> None:
        checks.assert_close(w, self.start - LR * self.g, absolute=1e-6)


def formula(w: Tensor, g: Tensor) -> Tensor:
    """Update w in place, the plain way."""
    return w.mul_(torch.exp(-LR * torch.sign(w) * g))


def test_egd_step(compare: Compare) -> None:
    p = Problem(compare.size(WEIGHTS, 2**14), compare.device)
    provider = functools.partial(Provider, prepare=p.reset)
    theirs = functools.partial(
        provider, check=p.check, against="egd_step", limit="gradient descent"
    )
    providers = [
        provider(
            "egd_step",
            p.ours,
            p.check,
            limit="gradient descent",
            modelled=("egd_step", "", len(p.w)),
        ),
        theirs("eager", p.eager),
        theirs("in place", p.in_place),
        theirs("compiled", p.graph, compiled=True),
        provider("gradient descent", p.descent, p.check_descent),
    ]
    compare("egd_step", f"{len(p.w)} float32 weights", providers)
