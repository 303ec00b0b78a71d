"""``rotation_step`` against PyTorch and ``torch.add``, 10,000 x 1024 float32.

A second benchmark, on one thread, measures its cost by dimension and the authors' Runge-Kutta
steps.

A step is SDE-DPM-Solver++(1), or (2M) with ``prev_denoised``: the exact flow towards the denoised
direction, then heat-kernel noise.
"""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

from bench.harness import checks, compiling
from bench.harness.directions import Directions, tangent, unit
from bench.harness.interleaved import SEED, Compare, Provider
from bench.harness.limits import ADD, ADD_AND_COPY, CopyLimit
from fastmsgm import ops, reference, rng

N, D = 10_000, 1024
ALPHA, SIGMA, LENGTH, SPREAD = 0.6, 0.05, 0.8, 0.7
NODES, Z_MAX, SLOPE = 257, 6.0, 0.13  # of the table of angles: 1 + 0.13 z at z = -6 .. 6


class Problem(Directions):
    """What a step needs. Every provider returns the new directions."""

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
        return self._step(self.first, None)

    def multistep(self) -> Tensor:
        return self._step(self.second, self.prev_denoised)

    def _step(self, table: Tensor, prev_denoised: Tensor | None) -> Tensor:
        args = (self.stream, 0, self.first_nonfinite_step, prev_denoised, None)
        ops.rotation_step_(self.u, self.f, table, self.angles, *args, geodesic=False)
        return self.u

    def check_step(self, u: Tensor) -> None:
        self._check(u, self.first, None)

    def check_multistep(self, u: Tensor) -> None:
        self._check(u, self.second, self.prev_start)

    def _check(self, u: Tensor, table: Tensor, prev_start: Tensor | None) -> None:
        assert bool((self.first_nonfinite_step == -1).all())
        for samples in checks.first_and_last(len(u)):
            wanted = torch.empty_like(u[samples])
            prev_denoised = None if prev_start is None else prev_start[samples].clone()
            reference.rotation_step(
                self.start[samples],
                self.f[samples],
                table,
                self.angles,
                rng.stream(0, samples.start, u.device),
                0,
                self.first_nonfinite_step[samples].clone(),
                wanted,
                prev_denoised,
                None,
                geodesic=False,
            )
            checks.assert_close(u[samples], wanted, absolute=1e-5)
            if prev_denoised is not None:
                checks.assert_close(self.prev_denoised[samples], prev_denoised, absolute=1e-5)

    # ---- theirs ----

    def plain(self) -> Tensor:
        return formula(self.u, self.f, self.angles[0])

    def graph(self) -> Tensor:
        return self.compiled(self.u, self.f, self.angles[0])

    def in_place(self) -> Tensor:
        """Take a step without allocating anything of the size of u.

        Both halves of the step are p u + q v with numbers p and q per sample.
        """
        u, f, noise = self.u, self.f, self.scratch
        radial = dot(f, u)
        width = SIGMA * (dot(f, f) - radial**2).sqrt()
        cosine, sine = flow(torch.full_like(width, ALPHA), width)
        sine = sine * SIGMA / width
        u.mul_(cosine - sine * radial).addcmul_(f, sine)
        v = angle(self.z.normal_(), self.angles[0])
        noise.normal_()
        radial = dot(noise, u)
        sine = torch.sqrt(v * (2 - v)) / (dot(noise, noise) - radial**2).sqrt()
        return u.mul_(1 - v - sine * radial).addcmul_(noise, sine)

    def check_theirs(self, u: Tensor) -> None:
        """Check against the reference's flow and the normals that the provider sampled."""
        torch.manual_seed(SEED)
        z, noise = torch.randn_like(self.z), torch.randn_like(self.u)
        for samples in checks.first_and_last(len(u)):
            start, f = self.start[samples].double(), self.f[samples].double()
            flowed = torch.empty_like(start)
            reference.rotation_step(
                start,
                f,
                self.first,
                None,
                self.stream,
                0,
                self.first_nonfinite_step[samples].clone(),
                flowed,
                None,
                None,
                geodesic=False,
            )
            v = SPREAD * (1 + SLOPE * z[samples].double()[:, None])
            w = unit(tangent(noise[samples].double(), flowed))
            wanted = (1 - v) * flowed + torch.sqrt(v * (2 - v)) * w
            checks.assert_close(u[samples].double(), wanted, absolute=1e-5)

    def check_compiled(self, u: Tensor) -> None:
        self.reset()
        self.check_same_distribution(u, self.step())


def formula(u: Tensor, f: Tensor, angles: Tensor) -> Tensor:
    """Take a step the plain way, with PyTorch's normals."""
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
    """Return cosine and sine of the angle by which the flow rotates u towards an aim.

    Args:
        along: (n, 1) the aim's part along u.
        width: (n, 1) the norm of its part across u.
    """
    size = torch.hypot(along, width)
    half = torch.where(along >= 0, width / (size + along), (size - along) / width)
    tan_half = half * -torch.expm1(-size * LENGTH) / (1 + half**2 * torch.exp(-size * LENGTH))
    return (1 - tan_half**2) / (1 + tan_half**2), 2 * tan_half / (1 + tan_half**2)


def angle(z: Tensor, angles: Tensor) -> Tensor:
    """Return 1 - cosine of the noise's angle, (n, 1), from one normal per sample, z (n,)."""
    position = (z.clamp(-Z_MAX, Z_MAX) + Z_MAX) * ((NODES - 1) / (2 * Z_MAX))
    column = position.long().clamp(max=NODES - 2)
    v = SPREAD * torch.lerp(angles[column], angles[column + 1], position - column)
    return v.clamp(0, 2)[:, None]


def dot(x: Tensor, y: Tensor) -> Tensor:
    """Return the inner products of the samples of x and y (n, d), (n, 1)."""
    return torch.linalg.vecdot(x, y)[:, None]


def test_rotation_step(compare: Compare) -> None:
    p = Problem(compare.size(N, 128), D, compare.device)
    provider = functools.partial(Provider, prepare=p.reset)
    theirs = functools.partial(provider, against="step", limit=ADD)
    providers = [
        provider("step", p.step, p.check_step, limit=ADD),
        provider("multistep", p.multistep, p.check_multistep, limit=ADD_AND_COPY),
        theirs("plain", p.plain, p.check_theirs),
        theirs("in place", p.in_place, p.check_theirs),
        theirs("compiled", p.graph, p.check_compiled, compiled=True),
        *CopyLimit(p.start, p.f, p.prev_start).providers(),
    ]
    compare("rotation_step", f"{len(p.u)} x {D} float32", providers)


WIDTHS = (16, 128, 256, 1024, 4096, 16384)
WIDE = WIDTHS[2:]  # dimensions at which an element should cost the same
DENSE, SPARSE = 128, 1024  # dimensions at which the authors' steps are timed


@pytest.mark.usefixtures("one_thread")
def test_rotation_step_by_dimension(compare: Compare) -> None:
    elements, device = compare.size(2**22, 2**17), compare.device
    providers = []
    for d in WIDTHS:
        p = Problem(elements // d, d, device)
        provider = functools.partial(Provider, prepare=p.reset, items=p.elements)
        theirs = functools.partial(provider, against=f"step, d = {d}", limit=ADD)
        providers.append(provider(f"step, d = {d}", p.step, p.check_step, limit=ADD))
        if d == SPARSE:
            authors, check = p.authors_sparse()
            providers.append(theirs(f"plain, d = {d}", p.plain, p.check_theirs))
            providers.append(theirs(f"authors, sparse, d = {d}", authors, check))
            providers += CopyLimit(p.start, p.f, items=p.elements).providers()
        if d == DENSE:
            few = Problem(elements // d**2, d, device)  # d^2 numbers per sample
            authors, check = few.authors_dense()
            providers.append(
                theirs(
                    f"authors, dense, d = {d}",
                    authors,
                    check,
                    prepare=few.reset,
                    items=few.elements,
                )
            )
    derived = {
        f"slowest over fastest element, d = {WIDE[0]} .. {WIDE[-1]}": lambda m: (
            max(m[f"step, d = {d}"] for d in WIDE) / min(m[f"step, d = {d}"] for d in WIDE)
        ),
        "an element at d = 16 over one at d = 1024": lambda m: (
            m["step, d = 16"] / m["step, d = 1024"]
        ),
    }
    compare("rotation_step", "float32", providers, unit="ns/element", derived=derived)
