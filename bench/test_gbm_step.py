"""``gbm_step`` against the authors' eager expression, the same done well in PyTorch, and ``torch.add``, 50,000 x 784.

``torch.add(x, s, out=o)`` moves the same 12 bytes an element as a step in place and computes nothing: the memory's own
time. A multistep row reads and writes its history, too: 20 bytes, which an addition and a copy move.
"""

from __future__ import annotations

import functools

import compiling
import gates
import torch
from interleaved import Compare, Contender
from limits import ADD, ADD_AND_COPY, CopyLimit
from torch import Tensor

from fastmsgm import ops, reference, rng

N, D = 50_000, 784
SIGMA, MU, DELTA, ANNEAL = 0.8, 0.32, 1e-3, 0.5
NOISE = ANNEAL * SIGMA * DELTA**0.5
GAIN, SHIFT = SIGMA**2 * DELTA, (1.5 * SIGMA**2 - MU) * DELTA


class Problem:
    """A state, a network output and what a step needs, of ``n`` samples; every method returns the new state."""

    def __init__(self, n: int, device: torch.device) -> None:
        torch.manual_seed(0)
        self.start = 1 + torch.rand(n, D, device=device)
        self.past = torch.randn(n, D, device=device)
        self.score = torch.randn(n, D, device=device)
        self.x, self.history = self.start.clone(), self.past.clone()
        self.scratch = torch.empty_like(self.x)
        self.bad = torch.full((n,), -1, dtype=torch.int32, device=device)
        self.stream = rng.stream(0, 0, device)
        # At s = 0, from the Stein score: log x' = log x + e (x score + 1) + c + s z.
        e, c = GAIN, DELTA * (SIGMA**2 / 2 - MU)
        self.dale_langevin = torch.tensor([[1 - e, e, 0, c, NOISE, 1, 1, 1, 1]], device=device)
        self.multistep_row = torch.tensor([[0.8, 0.3, -0.1, 0, 0.1, 0.5, 0.5, 0, 1]], device=device)
        self.compiled = compiling.compiled(formula, device)

    def reset(self) -> None:
        self.x.copy_(self.start)
        self.history.copy_(self.past)

    # ---- ours ----

    def step(self) -> Tensor:
        args = (self.dale_langevin, self.stream, 0, self.bad, None, None)
        ops.gbm_step_(self.x, self.score, *args, stein=True, linear=False, log_state=False)
        return self.x

    def multistep(self) -> Tensor:
        args = (self.multistep_row, self.stream, 0, self.bad, self.history, None)
        ops.gbm_step_(self.x, self.score, *args, stein=False, linear=False, log_state=True)
        return self.x

    def check_step(self, x: Tensor) -> None:
        self._check(x, self.dale_langevin, None, stein=True)

    def check_multistep(self, x: Tensor) -> None:
        self._check(x, self.multistep_row, self.past, stein=False)

    def _check(self, x: Tensor, table: Tensor, past: Tensor | None, stein: bool) -> None:
        assert bool((self.bad == -1).all())
        for rows in gates.ends(len(x)):
            wanted, bad = torch.empty_like(x[rows]), self.bad[rows].clone()
            history = None if past is None else past[rows].clone()
            args = (table, rng.stream(0, rows.start, x.device), 0, bad, wanted, history, None)
            reference.gbm_step(
                self.start[rows], self.score[rows], *args, stein=stein, linear=False, log_state=not stein
            )
            gates.close(x[rows], wanted)
            if history is not None:
                gates.close(self.history[rows], history, absolute=2e-6)

    # ---- theirs ----

    def eager(self) -> Tensor:
        """The authors' update: x exp(delta (sigma^2 x score - mu + 3/2 sigma^2) + anneal sigma sqrt(delta) z)."""
        x = self.x
        drift = SIGMA**2 * DELTA * (x * self.score) - (MU - 1.5 * SIGMA**2) * DELTA * torch.ones_like(x)
        return x.mul(torch.exp(drift + NOISE * torch.randn_like(x)))

    def in_place(self) -> Tensor:
        self.scratch.normal_(SHIFT, NOISE).addcmul_(self.x, self.score, value=GAIN).exp_()
        return self.x.mul_(self.scratch)

    def graph(self) -> Tensor:
        return self.compiled(self.x, self.score)

    def check_theirs(self, x: Tensor) -> None:
        increment = (x / self.start).log()
        self.reset()
        gates.same_law(increment, (self.step() / self.start).log(), given=self.start * self.score)


def formula(x: Tensor, score: Tensor) -> Tensor:
    return x.mul_(torch.exp(GAIN * x * score + SHIFT + NOISE * torch.randn_like(x)))


def test_gbm_step(compare: Compare) -> None:
    p = Problem(compare.size(N, 500), compare.device)
    row = functools.partial(Contender, prepare=p.reset)
    theirs = functools.partial(row, check=p.check_theirs, against="step", limit=ADD)
    contenders = [
        row("step", p.step, p.check_step, limit=ADD, modelled=("gbm_step", "float32", p.x.numel())),
        row("multistep", p.multistep, p.check_multistep, limit=ADD_AND_COPY),
        theirs("eager", p.eager),
        theirs("in place", p.in_place),
        theirs("compiled", p.graph, compiled=True),
        *CopyLimit(p.start, p.score, p.past).contenders(),
    ]
    compare("gbm_step", f"{len(p.x)} x {D} float32", contenders, rounds=20)
