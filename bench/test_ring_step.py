"""``ring_step``, with noise and without (``flow``), against PyTorch, 10,000 x 1024 float32.

Also against the authors' sparse Runge-Kutta step and ``torch.add``. The PyTorch providers toss no
coin: all samples rotate the even pairs first.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from bench.harness import checks, compiling
from bench.harness.directions import Directions
from bench.harness.interleaved import SEED, Compare, Provider
from bench.harness.limits import ADD, CopyLimit
from fastmsgm import ops, reference, rng

N, D = 10_000, 1024
DRIFT, NOISE = 5.0, 0.3  # radians
AROUND = (slice(D - 1, D), slice(0, 1))  # the pair around the end
EVEN = ((slice(0, D, 2), slice(1, D, 2)),)  # pairs as columns and the columns that follow them
ODD = ((slice(1, D - 1, 2), slice(2, D, 2)), AROUND)


class Problem(Directions):
    """What a step needs, for an even number of features. Every provider returns the directions."""

    def __init__(self, n: int, device: torch.device) -> None:
        super().__init__(n, D, device)
        self.table = torch.tensor([(DRIFT / math.pi, NOISE / math.pi, 1.0)], device=device)
        self.angles, self.noise = torch.empty_like(self.u), torch.empty_like(self.u)
        self.cos, self.sin, self.scratch = (torch.empty(n, D // 2, device=device) for _ in range(3))
        self.compiled = compiling.compiled(formula, device)

    # ---- ours ----

    def step(self) -> Tensor:
        return self._step(noisy=True)

    def flow(self) -> Tensor:
        return self._step(noisy=False)

    def _step(self, noisy: bool) -> Tensor:
        args = (self.table, self.stream, 0, self.first_nonfinite_step, None, None)
        ops.ring_step_(self.u, self.f, *args, restart=False, noisy=noisy)
        return self.u

    def check_step(self, u: Tensor) -> None:
        self._check(u, noisy=True)

    def check_flow(self, u: Tensor) -> None:
        self._check(u, noisy=False)

    def _check(self, u: Tensor, noisy: bool) -> None:
        assert bool((self.first_nonfinite_step == -1).all())
        for samples in checks.first_and_last(len(u)):
            wanted = torch.empty_like(u[samples])
            reference.ring_step(
                self.start[samples],
                self.f[samples],
                self.table,
                rng.stream(0, samples.start, u.device),
                0,
                self.first_nonfinite_step[samples].clone(),
                wanted,
                None,
                None,
                restart=False,
                noisy=noisy,
            )
            checks.assert_close(u[samples], wanted, absolute=1e-5)

    # ---- theirs ----

    def plain(self) -> Tensor:
        return formula(self.u, self.f)

    def graph(self) -> Tensor:
        return self.compiled(self.u, self.f)

    def in_place(self) -> Tensor:
        """Take a step without allocating anything of the size of u."""
        u, f, angles, noise = self.u, self.f, self.angles, self.noise.normal_(0, NOISE)
        for k, following in ((slice(0, D - 1), slice(1, D)), AROUND):
            torch.mul(u[:, following], f[:, k], out=angles[:, k]).addcmul_(
                u[:, k], f[:, following], value=-1
            ).mul_(DRIFT)
        self._rotate(EVEN, angles[:, 0::2])
        self._rotate(ODD, angles[:, 1::2].add_(noise[:, 1::2]))
        self._rotate(EVEN, noise[:, 0::2])
        return u

    def _rotate(self, pairs: Sequence[tuple[slice, slice]], angles: Tensor) -> None:
        torch.sin(angles, out=self.sin)
        torch.cos(angles, out=self.cos)
        done = 0
        for k, following in pairs:
            a, b = self.u[:, k], self.u[:, following]
            cos, sin, new = (
                x[:, done : done + a.shape[1]] for x in (self.cos, self.sin, self.scratch)
            )
            torch.mul(a, cos, out=new).addcmul_(b, sin)
            b.mul_(cos).addcmul_(a, sin, value=-1)
            a.copy_(new)
            done += a.shape[1]

    def check_theirs(self, u: Tensor, count: int = 4) -> None:
        """Check against the rotations pair by pair, with the normals that the provider sampled."""
        torch.manual_seed(SEED)
        wanted, f = self.start[:count].double().clone(), self.f[:count].double()
        phi = DRIFT * (wanted.roll(-1, 1) * f - wanted * f.roll(-1, 1))
        xi = NOISE * torch.randn_like(self.u)[:count].double()
        for start, angles in ((0, phi), (1, phi + xi), (0, xi)):
            for k in range(start, D, 2):
                pair, cos, sin = [k, (k + 1) % D], torch.cos(angles[:, k]), torch.sin(angles[:, k])
                a, b = wanted[:, pair].T
                wanted[:, pair] = torch.stack((cos * a + sin * b, cos * b - sin * a), dim=1)
        checks.assert_close(u[:count].double(), wanted, absolute=1e-5)

    def check_compiled(self, u: Tensor) -> None:
        self.reset()
        self.check_same_distribution(u, self.step())


def formula(u: Tensor, f: Tensor) -> Tensor:
    """Take a step the plain way, with PyTorch's normals."""
    phi, xi = DRIFT * (u.roll(-1, 1) * f - u * f.roll(-1, 1)), NOISE * torch.randn_like(u)
    return rotate(rotate(rotate(u, phi[:, 0::2], 0), (phi + xi)[:, 1::2], 1), xi[:, 0::2], 0)


def rotate(u: Tensor, angles: Tensor, first: int) -> Tensor:
    """Rotate the even (``first`` 0) or odd (1) pairs of neighbours, with the one around the end."""
    u = u.roll(-first, 1)
    a, b, cos, sin = u[:, 0::2], u[:, 1::2], torch.cos(angles), torch.sin(angles)
    return torch.stack((cos * a + sin * b, cos * b - sin * a), dim=2).flatten(1).roll(first, 1)


def test_ring_step(compare: Compare) -> None:
    p = Problem(compare.size(N, 128), compare.device)
    authors, check_authors = p.authors_sparse()
    provider = functools.partial(Provider, prepare=p.reset)
    theirs = functools.partial(provider, against="step", limit=ADD)
    providers = [
        provider("step", p.step, p.check_step, limit=ADD),
        provider("flow", p.flow, p.check_flow, limit=ADD),
        theirs("authors, sparse", authors, check_authors),
        theirs("plain", p.plain, p.check_theirs),
        theirs("in place", p.in_place, p.check_theirs),
        theirs("compiled", p.graph, p.check_compiled, compiled=True),
        *CopyLimit(p.start, p.f).providers(),
    ]
    compare("ring_step", f"{len(p.u)} x {D} float32", providers)
