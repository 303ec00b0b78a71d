"""``gbm_perturb``, x_t and the network's input at once, against PyTorch, 50,000 x 784 float32.

``torch.add`` moves the same 12 bytes an element: it reads two arrays and writes one, noising reads one and writes two.
"""

from __future__ import annotations

import functools

import compiling
import gates
import torch
from interleaved import Compare, Contender
from limits import ADD, CopyLimit
from torch import Tensor

from fastmsgm import ops, reference, rng

N, D = 50_000, 784
Noised = tuple[Tensor, Tensor]  # x_t and the network's input


class Problem:
    """Data and a noise level a sample; every method returns the noised data and the network's input."""

    def __init__(self, n: int, device: torch.device) -> None:
        torch.manual_seed(0)
        self.x0 = 1 + torch.rand(n, D, device=device)
        self.coefficients = 0.1 + torch.rand(n, 3, device=device)
        self.shift, self.s, self.c_in = (column[:, None] for column in self.coefficients.unbind(1))
        self.other = torch.rand(n, D, device=device)
        self.x_t, self.net_in, self.scratch = (torch.empty_like(self.x0) for _ in range(3))
        self.stream = rng.stream(0, 0, device)
        self.compiled = compiling.compiled(formula, device)

    def ours(self) -> Noised:
        args = (self.coefficients, self.stream, rng.Kind.TRAINING_NOISE, 0, self.x_t, self.net_in, None)
        ops.gbm_perturb_(self.x0, *args)
        return self.x_t, self.net_in

    def eager(self) -> Noised:
        return formula(self.x0, self.shift, self.s, self.c_in)

    def in_place(self) -> Noised:
        self.scratch.normal_().mul_(self.s).add_(self.shift)
        torch.abs(self.x0, out=self.net_in).log_().add_(self.scratch).mul_(self.c_in)
        torch.exp(self.scratch, out=self.x_t).mul_(self.x0)
        return self.x_t, self.net_in

    def graph(self) -> Noised:
        return self.compiled(self.x0, self.shift, self.s, self.c_in)

    def check_ours(self, noised: Noised) -> None:
        for rows in gates.ends(len(self.x0)):
            wanted = torch.empty_like(self.x0[rows]), torch.empty_like(self.x0[rows])
            args = (rng.stream(0, rows.start, self.x0.device), rng.Kind.TRAINING_NOISE, 0, *wanted, None)
            reference.gbm_perturb(self.x0[rows], self.coefficients[rows], *args)
            gates.close(noised[0][rows], wanted[0])
            gates.close(noised[1][rows], wanted[1], absolute=5e-6)

    def check_theirs(self, noised: Noised) -> None:
        x_t, net_in = noised
        gates.close(net_in, self.c_in * torch.log(x_t), absolute=2e-5)
        normals = self._normals(x_t)
        gates.same_law(normals, self._normals(self.ours()[0]))

    def _normals(self, x_t: Tensor) -> Tensor:
        return (torch.log(x_t / self.x0) - self.shift) / self.s


def formula(x0: Tensor, shift: Tensor, s: Tensor, c_in: Tensor) -> Noised:
    increment = shift + s * torch.randn_like(x0)
    return x0 * torch.exp(increment), c_in * (torch.log(x0.abs()) + increment)


def test_gbm_perturb(compare: Compare) -> None:
    p = Problem(compare.size(N, 500), compare.device)
    theirs = functools.partial(Contender, check=p.check_theirs, against="perturb", limit=ADD)
    contenders = [
        Contender("perturb", p.ours, p.check_ours, limit=ADD),
        theirs("eager", p.eager),
        theirs("in place", p.in_place),
        theirs("compiled", p.graph, compiled=True),
        *CopyLimit(p.x0, p.other).contenders(),
    ]
    compare("gbm_perturb", f"{len(p.x0)} x {D} float32", contenders)
