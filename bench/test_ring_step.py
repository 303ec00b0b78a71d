"""``ring_step``, by Lie's and by Strang's splitting, against PyTorch, the authors' sparse Runge-Kutta step and
``torch.add``, 10,000 x 1024."""

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
DRIFT, NOISE = 5.0, 0.3
LAST = (slice(D - 1, D), slice(0, 1))  # the pair around the end
EVEN = ((slice(0, D, 2), slice(1, D, 2)),)  # pairs as columns and the columns that follow them
ODD = ((slice(1, D - 1, 2), slice(2, D, 2)), LAST)


class Problem(Directions):
    """What a step needs, n samples of an even number of features."""

    def __init__(self, n: int, device: torch.device) -> None:
        super().__init__(n, D, device)
        self.table = torch.tensor([(DRIFT, NOISE, 1.0)], device=device)
        self.angles = torch.empty_like(self.u)
        self.more, self.cos, self.sin, self.scratch = (torch.empty(n, D // 2, device=device) for _ in range(4))
        self.compiled = compiling.compiled(formula, device)

    # ---- ours ----

    def lie(self) -> Tensor:
        return self._step(strang=False)

    def strang(self) -> Tensor:
        return self._step(strang=True)

    def _step(self, strang: bool) -> Tensor:
        args = (self.table, self.stream, 0, self.bad, None, None)
        ops.ring_step_(self.u, self.f, *args, restart=False, strang=strang)
        return self.u

    def check_lie(self, u: Tensor) -> None:
        self._check(u, strang=False)

    def check_strang(self, u: Tensor) -> None:
        self._check(u, strang=True)

    def _check(self, u: Tensor, strang: bool) -> None:
        assert bool((self.bad == -1).all())
        for rows in gates.ends(len(u)):
            wanted, bad = torch.empty_like(u[rows]), self.bad[rows].clone()
            args = (self.table, rng.stream(0, rows.start, u.device), 0, bad, wanted, None, None)
            reference.ring_step(self.start[rows], self.f[rows], *args, restart=False, strang=strang)
            gates.close(u[rows], wanted, absolute=1e-5)

    # ---- theirs: Strang's splitting ----

    def plain(self) -> Tensor:
        return formula(self.u, self.f)

    def graph(self) -> Tensor:
        return self.compiled(self.u, self.f)

    def in_place(self) -> Tensor:
        """Nothing of the size of u is allocated."""
        u, f, angles, half = self.u, self.f, self.angles, math.sqrt(0.5)
        for k, ahead in ((slice(0, D - 1), slice(1, D)), LAST):
            torch.mul(u[:, ahead], f[:, k], out=angles[:, k]).addcmul_(u[:, k], f[:, ahead], value=-1).mul_(DRIFT)
        self._turn(EVEN, angles[:, 0::2], 0.5)
        self._turn(ODD, angles[:, 1::2], 1.0)
        self._turn(EVEN, angles[:, 0::2], 0.5)
        angles.normal_(0, NOISE)
        self._turn(EVEN, angles[:, 0::2], half)
        self._turn(ODD, angles[:, 1::2], 1.0)
        self._turn(EVEN, self.more.normal_(0, NOISE), half)
        return u

    def _turn(self, pairs: Sequence[tuple[slice, slice]], angles: Tensor, factor: float) -> None:
        torch.mul(angles, factor, out=self.sin)
        torch.cos(self.sin, out=self.cos)
        self.sin.sin_()
        done = 0
        for k, ahead in pairs:
            a, b = self.u[:, k], self.u[:, ahead]
            cos, sin, new = (x[:, done : done + a.shape[1]] for x in (self.cos, self.sin, self.scratch))
            torch.mul(a, cos, out=new).addcmul_(b, sin)
            b.mul_(cos).addcmul_(a, sin, value=-1)
            a.copy_(new)
            done += a.shape[1]

    def check_theirs(self, u: Tensor, few: int = 4) -> None:
        """The reference's flow, then the rotations that the contender drew, pair by pair."""
        torch.manual_seed(SEED)
        first, second = (NOISE * torch.randn_like(x)[:few].double() for x in (self.u, self.more))
        wanted, bad = torch.empty(few, D, dtype=torch.float64, device=u.device), self.bad[:few].clone()
        still = self.table * torch.tensor([1.0, 0.0, 1.0], device=u.device)
        args = (still, self.stream, 0, bad, wanted, None, None)
        reference.ring_step(self.start[:few].double(), self.f[:few].double(), *args, restart=False, strang=True)
        for start, angles, factor in ((0, first[:, 0::2], 0.5), (1, first[:, 1::2], 1.0), (0, second, 0.5)):
            for k, angle in zip(range(start, D, 2), factor**0.5 * angles.T, strict=True):
                pair = [k, (k + 1) % D]
                (a, b), cos, sin = wanted[:, pair].T, torch.cos(angle), torch.sin(angle)
                wanted[:, pair] = torch.stack((cos * a + sin * b, cos * b - sin * a), dim=1)
        gates.close(u[:few].double(), wanted, absolute=1e-5)

    def check_compiled(self, u: Tensor) -> None:
        self.reset()
        self.check_same_law(u, self.strang())


def formula(u: Tensor, f: Tensor) -> Tensor:
    """A step as one writes it in PyTorch, with its own generator."""
    phi = DRIFT * (u.roll(-1, 1) * f - u * f.roll(-1, 1))
    even, odd, half = phi[:, 0::2], phi[:, 1::2], math.sqrt(0.5)
    u = turned(turned(turned(u, 0.5 * even, 0), odd, 1), 0.5 * even, 0)
    first, second = NOISE * torch.randn_like(u), NOISE * torch.randn(len(u), D // 2, device=u.device)
    return turned(turned(turned(u, half * first[:, 0::2], 0), first[:, 1::2], 1), half * second, 0)


def turned(u: Tensor, angles: Tensor, first: int) -> Tensor:
    """The even (``first`` 0) or odd (1) pairs of neighbours, the one around the end among them."""
    u = u.roll(-first, 1)
    a, b, cos, sin = u[:, 0::2], u[:, 1::2], torch.cos(angles), torch.sin(angles)
    return torch.stack((cos * a + sin * b, cos * b - sin * a), dim=2).flatten(1).roll(first, 1)


def test_ring_step(compare: Compare) -> None:
    p = Problem(compare.size(N, 128), compare.device)
    authors, check_authors = p.authors_sparse()
    row = functools.partial(Contender, prepare=p.reset)
    theirs = functools.partial(row, limit=ADD)
    contenders = [
        row("Lie", p.lie, p.check_lie, limit=ADD),
        row("Strang", p.strang, p.check_strang, limit=ADD),
        theirs("authors, sparse", authors, check_authors, against="Lie"),
        theirs("plain Strang", p.plain, p.check_theirs, against="Strang"),
        theirs("in place Strang", p.in_place, p.check_theirs, against="Strang"),
        theirs("compiled Strang", p.graph, p.check_compiled, against="Strang", compiled=True),
        *CopyLimit(p.start, p.f).contenders(),
    ]
    compare("ring_step", f"{len(p.u)} x {D} float32", contenders)
