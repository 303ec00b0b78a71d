"""``ring_step``, with noise and without (``flow``), against PyTorch, the authors' sparse Runge-Kutta step and
``torch.add``, 10,000 x 1024. In PyTorch no coin is tossed: all rows turn the even group first."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import compiling
import gates
import torch
from directions import Directions
from interleaved import SEED, Compare, Contender
from limits import ADD, CopyLimit
from torch import Tensor

from fastmsgm import ops, reference, rng

N, D = 10_000, 1024
DRIFT, NOISE = 5.0, 0.3  # radians
LAST = (slice(D - 1, D), slice(0, 1))  # the pair around the end
EVEN = ((slice(0, D, 2), slice(1, D, 2)),)  # pairs as columns and the columns that follow them
ODD = ((slice(1, D - 1, 2), slice(2, D, 2)), LAST)


class Problem(Directions):
    """What a step needs, n samples of an even number of features."""

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
        args = (self.table, self.stream, 0, self.bad, None, None)
        ops.ring_step_(self.u, self.f, *args, restart=False, noisy=noisy)
        return self.u

    def check_step(self, u: Tensor) -> None:
        self._check(u, noisy=True)

    def check_flow(self, u: Tensor) -> None:
        self._check(u, noisy=False)

    def _check(self, u: Tensor, noisy: bool) -> None:
        assert bool((self.bad == -1).all())
        for rows in gates.ends(len(u)):
            wanted, bad = torch.empty_like(u[rows]), self.bad[rows].clone()
            args = (self.table, rng.stream(0, rows.start, u.device), 0, bad, wanted, None, None)
            reference.ring_step(self.start[rows], self.f[rows], *args, restart=False, noisy=noisy)
            gates.close(u[rows], wanted, absolute=1e-5)

    # ---- theirs ----

    def plain(self) -> Tensor:
        return formula(self.u, self.f)

    def graph(self) -> Tensor:
        return self.compiled(self.u, self.f)

    def in_place(self) -> Tensor:
        """Nothing of the size of u is allocated."""
        u, f, angles, noise = self.u, self.f, self.angles, self.noise.normal_(0, NOISE)
        for k, ahead in ((slice(0, D - 1), slice(1, D)), LAST):
            torch.mul(u[:, ahead], f[:, k], out=angles[:, k]).addcmul_(u[:, k], f[:, ahead], value=-1).mul_(DRIFT)
        self._turn(EVEN, angles[:, 0::2])
        self._turn(ODD, angles[:, 1::2].add_(noise[:, 1::2]))
        self._turn(EVEN, noise[:, 0::2])
        return u

    def _turn(self, pairs: Sequence[tuple[slice, slice]], angles: Tensor) -> None:
        torch.sin(angles, out=self.sin)
        torch.cos(angles, out=self.cos)
        done = 0
        for k, ahead in pairs:
            a, b = self.u[:, k], self.u[:, ahead]
            cos, sin, new = (x[:, done : done + a.shape[1]] for x in (self.cos, self.sin, self.scratch))
            torch.mul(a, cos, out=new).addcmul_(b, sin)
            b.mul_(cos).addcmul_(a, sin, value=-1)
            a.copy_(new)
            done += a.shape[1]

    def check_theirs(self, u: Tensor, few: int = 4) -> None:
        """The rotations of the flow and those that the contender drew, pair by pair."""
        torch.manual_seed(SEED)
        wanted, f = self.start[:few].double().clone(), self.f[:few].double()
        phi = DRIFT * (wanted.roll(-1, 1) * f - wanted * f.roll(-1, 1))
        xi = NOISE * torch.randn_like(self.u)[:few].double()
        for start, angles in ((0, phi), (1, phi + xi), (0, xi)):
            for k in range(start, D, 2):
                pair, cos, sin = [k, (k + 1) % D], torch.cos(angles[:, k]), torch.sin(angles[:, k])
                a, b = wanted[:, pair].T
                wanted[:, pair] = torch.stack((cos * a + sin * b, cos * b - sin * a), dim=1)
        gates.close(u[:few].double(), wanted, absolute=1e-5)

    def check_compiled(self, u: Tensor) -> None:
        self.reset()
        self.check_same_law(u, self.step())


def formula(u: Tensor, f: Tensor) -> Tensor:
    """A step as one writes it in PyTorch, with its own generator."""
    phi, xi = DRIFT * (u.roll(-1, 1) * f - u * f.roll(-1, 1)), NOISE * torch.randn_like(u)
    return turned(turned(turned(u, phi[:, 0::2], 0), (phi + xi)[:, 1::2], 1), xi[:, 0::2], 0)


def turned(u: Tensor, angles: Tensor, first: int) -> Tensor:
    """The even (``first`` 0) or odd (1) pairs of neighbours, the one around the end among them."""
    u = u.roll(-first, 1)
    a, b, cos, sin = u[:, 0::2], u[:, 1::2], torch.cos(angles), torch.sin(angles)
    return torch.stack((cos * a + sin * b, cos * b - sin * a), dim=2).flatten(1).roll(first, 1)


def test_ring_step(compare: Compare) -> None:
    p = Problem(compare.size(N, 128), compare.device)
    authors, check_authors = p.authors_sparse()
    row = functools.partial(Contender, prepare=p.reset)
    theirs = functools.partial(row, against="step", limit=ADD)
    contenders = [
        row("step", p.step, p.check_step, limit=ADD),
        row("flow", p.flow, p.check_flow, limit=ADD),
        theirs("authors, sparse", authors, check_authors),
        theirs("plain", p.plain, p.check_theirs),
        theirs("in place", p.in_place, p.check_theirs),
        theirs("compiled", p.graph, p.check_compiled, compiled=True),
        *CopyLimit(p.start, p.f).contenders(),
    ]
    compare("ring_step", f"{len(p.u)} x {D} float32", contenders)
