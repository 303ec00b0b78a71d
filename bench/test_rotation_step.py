"""``rotation_step`` against PyTorch and ``torch.add``, 10,000 x 1024; then, on one thread, its cost by dimension, and
the authors' Runge-Kutta steps.

A step is SDE-DPM-Solver++(1), or (2M) with its history: the exact flow towards the denoised direction, then heat-kernel
noise.
"""

from __future__ import annotations

import functools

import compiling
import gates
import pytest
import torch
from directions import Directions, tangent, unit
from interleaved import SEED, Compare, Contender
from limits import ADD, ADD_AND_COPY, CopyLimit
from torch import Tensor

from fastmsgm import ops, reference, rng

N, D = 10_000, 1024
ALPHA, SIGMA, LENGTH, SPREAD = 0.6, 0.05, 0.8, 0.7
NODES, Z_MAX, SLOPE = 257, 6.0, 0.13  # of the table of angles: 1 + 0.13 z at z = -6 .. 6


class Problem(Directions):
    """What a step needs, n samples of d features."""

    def __init__(self, n: int, d: int, device: torch.device) -> None:
        super().__init__(n, d, device)
        first = (ALPHA, SIGMA, 0.0, LENGTH, 0.0, 0.0, 0.0, SPREAD, 1.0)
        second = (ALPHA, SIGMA, 0.4, LENGTH, 0.0, 0.0, 0.0, SPREAD, 1.0)
        self.first, self.second = (torch.tensor([row], device=device) for row in (first, second))
        self.angles = 1 + SLOPE * torch.linspace(-Z_MAX, Z_MAX, NODES, device=device)[None]
        self.scratch, self.z = torch.empty_like(self.u), torch.empty(n, device=device)
        self.compiled = compiling.compiled(formula, device)

    # ---- ours ----

    def step(self) -> Tensor:
        args = (self.first, self.angles, self.stream, 0, self.bad, None, None)
        ops.rotation_step_(self.u, self.f, *args, geodesic=False)
        return self.u

    def multistep(self) -> Tensor:
        args = (self.second, self.angles, self.stream, 0, self.bad, self.history, None)
        ops.rotation_step_(self.u, self.f, *args, geodesic=False)
        return self.u

    def check_step(self, u: Tensor) -> None:
        self._check(u, self.first, None)

    def check_multistep(self, u: Tensor) -> None:
        self._check(u, self.second, self.past)

    def _check(self, u: Tensor, table: Tensor, past: Tensor | None) -> None:
        assert bool((self.bad == -1).all())
        for rows in gates.ends(len(u)):
            wanted, bad = torch.empty_like(u[rows]), self.bad[rows].clone()
            history = None if past is None else past[rows].clone()
            args = (table, self.angles, rng.stream(0, rows.start, u.device), 0, bad, wanted, history, None)
            reference.rotation_step(self.start[rows], self.f[rows], *args, geodesic=False)
            gates.close(u[rows], wanted, absolute=1e-5)
            if history is not None:
                gates.close(self.history[rows], history, absolute=1e-5)

    # ---- theirs ----

    def plain(self) -> Tensor:
        return formula(self.u, self.f, self.angles[0])

    def graph(self) -> Tensor:
        return self.compiled(self.u, self.f, self.angles[0])

    def in_place(self) -> Tensor:
        """Both halves of a step as p u + q v with numbers p and q of each row, nothing of the size of u allocated."""
        u, f, noise = self.u, self.f, self.scratch
        radial = rows_dot(f, u)
        width = SIGMA * (rows_dot(f, f) - radial**2).sqrt()
        cosine, sine = flow(torch.full_like(width, ALPHA), width)
        sine = sine * SIGMA / width
        u.mul_(cosine - sine * radial).addcmul_(f, sine)
        v = angle(self.z.normal_(), self.angles[0])
        noise.normal_()
        radial = rows_dot(noise, u)
        sine = torch.sqrt(v * (2 - v)) / (rows_dot(noise, noise) - radial**2).sqrt()
        return u.mul_(1 - v - sine * radial).addcmul_(noise, sine)

    def check_theirs(self, u: Tensor) -> None:
        """The reference's flow, then the noise that the contender drew."""
        torch.manual_seed(SEED)
        z, noise = torch.randn_like(self.z), torch.randn_like(self.u)
        for rows in gates.ends(len(u)):
            start, f, bad = self.start[rows].double(), self.f[rows].double(), self.bad[rows].clone()
            flowed = torch.empty_like(start)
            reference.rotation_step(start, f, self.first, None, self.stream, 0, bad, flowed, None, None, geodesic=False)
            v = SPREAD * (1 + SLOPE * z[rows].double()[:, None])
            w = unit(tangent(noise[rows].double(), flowed))
            gates.close(u[rows].double(), (1 - v) * flowed + torch.sqrt(v * (2 - v)) * w, absolute=1e-5)

    def check_compiled(self, u: Tensor) -> None:
        self.reset()
        self.check_same_law(u, self.step())


def formula(u: Tensor, f: Tensor, angles: Tensor) -> Tensor:
    """A step as one writes it in PyTorch, with its own generator."""
    aim = ALPHA * u + SIGMA * tangent(f, u)
    along = (aim * u).sum(1, keepdim=True)
    across = aim - along * u
    width = across.norm(dim=1, keepdim=True)
    cosine, sine = flow(along, width)
    u = cosine * u + sine * (across / width)
    v = angle(torch.randn(len(u), device=u.device), angles)
    w = tangent(torch.randn_like(u), u)
    return (1 - v) * u + torch.sqrt(v * (2 - v)) / w.norm(dim=1, keepdim=True) * w


def flow(along: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the angle that the flow turns u by, towards an aim with these parts along and across u."""
    size = torch.hypot(along, width)
    half = torch.where(along >= 0, width / (size + along), (size - along) / width)
    turned = half * -torch.expm1(-size * LENGTH) / (1 + half**2 * torch.exp(-size * LENGTH))
    return (1 - turned**2) / (1 + turned**2), 2 * turned / (1 + turned**2)


def angle(z: Tensor, angles: Tensor) -> Tensor:
    """1 - cosine of the noise's angle, (n, 1), from a normal each."""
    position = (z.clamp(-Z_MAX, Z_MAX) + Z_MAX) * ((NODES - 1) / (2 * Z_MAX))
    column = position.long().clamp(max=NODES - 2)
    return (SPREAD * torch.lerp(angles[column], angles[column + 1], position - column)).clamp(0, 2)[:, None]


def rows_dot(x: Tensor, y: Tensor) -> Tensor:
    return torch.linalg.vecdot(x, y)[:, None]


def test_rotation_step(compare: Compare) -> None:
    p = Problem(compare.size(N, 128), D, compare.device)
    row = functools.partial(Contender, prepare=p.reset)
    theirs = functools.partial(row, against="step", limit=ADD)
    contenders = [
        row("step", p.step, p.check_step, limit=ADD),
        row("multistep", p.multistep, p.check_multistep, limit=ADD_AND_COPY),
        theirs("plain", p.plain, p.check_theirs),
        theirs("in place", p.in_place, p.check_theirs),
        theirs("compiled", p.graph, p.check_compiled, compiled=True),
        *CopyLimit(p.start, p.f, p.past).contenders(),
    ]
    compare("rotation_step", f"{len(p.u)} x {D} float32", contenders)


WIDTHS = (16, 128, 256, 1024, 4096, 16384)
WIDE = WIDTHS[2:]  # whose elements should cost the same
DENSE, SPARSE = 128, 1024  # where the authors' steps are timed


@pytest.mark.usefixtures("one_thread")
def test_rotation_step_by_dimension(compare: Compare) -> None:
    elements, device = compare.size(2**22, 2**17), compare.device
    contenders = []
    for d in WIDTHS:
        p = Problem(elements // d, d, device)
        row = functools.partial(Contender, prepare=p.reset, items=p.elements)
        theirs = functools.partial(row, against=f"step, d = {d}", limit=ADD)
        contenders.append(row(f"step, d = {d}", p.step, p.check_step, limit=ADD))
        if d == SPARSE:
            authors, check = p.authors_sparse()
            contenders.append(theirs(f"plain, d = {d}", p.plain, p.check_theirs))
            contenders.append(theirs(f"authors, sparse, d = {d}", authors, check))
            contenders += CopyLimit(p.start, p.f, items=p.elements).contenders()
        if d == DENSE:
            few = Problem(elements // d**2, d, device)  # a sample takes d^2 numbers
            authors, check = few.authors_dense()
            contenders.append(theirs(f"authors, dense, d = {d}", authors, check, prepare=few.reset, items=few.elements))
    derived = {
        f"dearest over cheapest element, d = {WIDE[0]} .. {WIDE[-1]}": lambda m: (
            max(m[f"step, d = {d}"] for d in WIDE) / min(m[f"step, d = {d}"] for d in WIDE)
        ),
        "an element at d = 16 over one at d = 1024": lambda m: m["step, d = 16"] / m["step, d = 1024"],
    }
    compare("rotation_step", "float32", contenders, unit="ns/element", derived=derived)
