"""``gbm_step`` against the authors' eager expression and better PyTorch, 50,000 x 784 float32.

The limit is ``torch.add(x, s, out=o)``, which moves the same 12 bytes per element as a step in
place and computes nothing. A multistep row also reads and writes ``prev_denoised``: 20 bytes, which
an addition and a copy move.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from bench.harness import checks, compiling
from bench.harness.interleaved import Compare, Provider
from bench.harness.limits import ADD, ADD_AND_COPY, CopyLimit
from fastmsgm import ops, reference, rng

N, D = 50_000, 784
SIGMA, MU, DELTA, ANNEAL = 0.8, 0.32, 1e-3, 0.5
NOISE = ANNEAL * SIGMA * DELTA**0.5
GAIN, SHIFT = SIGMA**2 * DELTA, (1.5 * SIGMA**2 - MU) * DELTA


class Problem:
    """A state, a score and what a step needs. Every provider returns the new state."""

    def __init__(self, n: int, device: torch.device) -> None:
        torch.manual_seed(0)
        self.start = 1 + torch.rand(n, D, device=device)
        self.prev_start = torch.randn(n, D, device=device)
        self.score = torch.randn(n, D, device=device)
        self.x, self.prev_denoised = self.start.clone(), self.prev_start.clone()
        self.scratch = torch.empty_like(self.x)
        self.first_nonfinite_step = torch.full((n,), -1, dtype=torch.int32, device=device)
        self.stream = rng.stream(0, 0, device)
        # At s = 0, from the Stein score: log x' = log x + e (x score + 1) + c + s z.
        e, c = GAIN, DELTA * (SIGMA**2 / 2 - MU)
        self.dale_langevin = torch.tensor([[1 - e, e, 0, c, NOISE, 1, 1, 1, 1]], device=device)
        self.multistep_row = torch.tensor([[0.8, 0.3, -0.1, 0, 0.1, 0.5, 0.5, 0, 1]], device=device)
        self.compiled = compiling.compiled(formula, device)

    def reset(self) -> None:
        self.x.copy_(self.start)
        self.prev_denoised.copy_(self.prev_start)

    # ---- ours ----

    def step(self) -> Tensor:
        args = (self.dale_langevin, self.stream, 0, self.first_nonfinite_step, None, None)
        flags = {"stein_score": True, "sign_agnostic": False, "log_state": False}
        ops.gbm_step_(self.x, self.score, *args, **flags)
        return self.x

    def multistep(self) -> Tensor:
        prev_denoised = self.prev_denoised
        args = (self.multistep_row, self.stream, 0, self.first_nonfinite_step, prev_denoised, None)
        flags = {"stein_score": False, "sign_agnostic": False, "log_state": True}
        ops.gbm_step_(self.x, self.score, *args, **flags)
        return self.x

    def check_step(self, x: Tensor) -> None:
        self._check(x, self.dale_langevin, None, stein_score=True)

    def check_multistep(self, x: Tensor) -> None:
        self._check(x, self.multistep_row, self.prev_start, stein_score=False)

    def _check(
        self, x: Tensor, table: Tensor, prev_start: Tensor | None, stein_score: bool
    ) -> None:
        assert bool((self.first_nonfinite_step == -1).all())
        for samples in checks.first_and_last(len(x)):
            wanted = torch.empty_like(x[samples])
            prev_denoised = None if prev_start is None else prev_start[samples].clone()
            reference.gbm_step(
                self.start[samples],
                self.score[samples],
                table,
                rng.stream(0, samples.start, x.device),
                0,
                self.first_nonfinite_step[samples].clone(),
                wanted,
                prev_denoised,
                None,
                stein_score=stein_score,
                sign_agnostic=False,
                log_state=not stein_score,
            )
            checks.assert_close(x[samples], wanted)
            if prev_denoised is not None:
                checks.assert_close(self.prev_denoised[samples], prev_denoised, absolute=2e-6)

    # ---- theirs ----

    def eager(self) -> Tensor:
        """Return the authors' update.

        x exp(delta (sigma^2 x score - mu + 3/2 sigma^2) + anneal sigma sqrt(delta) z)
        """
        x = self.x
        drift = SIGMA**2 * DELTA * (x * self.score) - (
            MU - 1.5 * SIGMA**2
        ) * DELTA * torch.ones_like(x)
        return x.mul(torch.exp(drift + NOISE * torch.randn_like(x)))

    def in_place(self) -> Tensor:
        self.scratch.normal_(SHIFT, NOISE).addcmul_(self.x, self.score, value=GAIN).exp_()
        return self.x.mul_(self.scratch)

    def graph(self) -> Tensor:
        return self.compiled(self.x, self.score)

    def check_theirs(self, x: Tensor) -> None:
        increment = (x / self.start).log()
        self.reset()
        checks.assert_same_distribution(
            increment, (self.step() / self.start).log(), given=self.start * self.score
        )


def formula(x: Tensor, score: Tensor) -> Tensor:
    """Update x in place, the plain way."""
    return x.mul_(torch.exp(GAIN * x * score + SHIFT + NOISE * torch.randn_like(x)))


def test_gbm_step(compare: Compare) -> None:
    p = Problem(compare.size(N, 500), compare.device)
    provider = functools.partial(Provider, prepare=p.reset)
    theirs = functools.partial(provider, check=p.check_theirs, against="step", limit=ADD)
    modelled = ("gbm_step", "float32", p.x.numel())
    providers = [
        provider("step", p.step, p.check_step, limit=ADD, modelled=modelled),
        provider("multistep", p.multistep, p.check_multistep, limit=ADD_AND_COPY),
        theirs("eager", p.eager),
        theirs("in place", p.in_place),
        theirs("compiled", p.graph, compiled=True),
        *CopyLimit(p.start, p.score, p.prev_start).providers(),
    ]
    compare("gbm_step", f"{len(p.x)} x {D} float32", providers, rounds=20)
