"""``gbm_perturb`` (x_t and the network's input in one pass) against PyTorch, 50,000 x 784 float32.

The limit is ``torch.add``, which moves the same 12 bytes per element: it reads two arrays and
writes one, ``gbm_perturb`` reads one and writes two.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from bench.harness import checks, compiling
from bench.harness.interleaved import Compare, Provider
from bench.harness.limits import ADD, CopyLimit
from fastmsgm import ops, reference, rng

N, D = 50_000, 784
Perturbed = tuple[Tensor, Tensor]  # x_t and the network's input


class Problem:
    """Data and a noise level per sample. Every provider returns x_t and the network's input."""

    def __init__(self, n: int, device: torch.device) -> None:
        torch.manual_seed(0)
        self.x0 = 1 + torch.rand(n, D, device=device)
        self.coefficients = 0.1 + torch.rand(n, 3, device=device)
        self.shift, self.s, self.c_in = (column[:, None] for column in self.coefficients.unbind(1))
        self.other = torch.rand(n, D, device=device)
        self.x_t, self.model_input, self.scratch = (torch.empty_like(self.x0) for _ in range(3))
        self.stream = rng.stream(0, 0, device)
        self.compiled = compiling.compiled(formula, device)

    def ours(self) -> Perturbed:
        ops.gbm_perturb_(
            self.x0,
            self.coefficients,
            self.stream,
            rng.Purpose.TRAINING_NOISE,
            0,
            x_t=self.x_t,
            model_input=self.model_input,
            z=None,
        )
        return self.x_t, self.model_input

    def eager(self) -> Perturbed:
        return formula(self.x0, self.shift, self.s, self.c_in)

    def in_place(self) -> Perturbed:
        self.scratch.normal_().mul_(self.s).add_(self.shift)
        torch.abs(self.x0, out=self.model_input).log_().add_(self.scratch).mul_(self.c_in)
        torch.exp(self.scratch, out=self.x_t).mul_(self.x0)
        return self.x_t, self.model_input

    def graph(self) -> Perturbed:
        return self.compiled(self.x0, self.shift, self.s, self.c_in)

    def check_ours(self, perturbed: Perturbed) -> None:
        x_t, model_input = perturbed
        for samples in checks.first_and_last(len(self.x0)):
            x0 = self.x0[samples]
            wanted_x_t, wanted_input = torch.empty_like(x0), torch.empty_like(x0)
            reference.gbm_perturb(
                x0,
                self.coefficients[samples],
                rng.stream(0, samples.start, x0.device),
                rng.Purpose.TRAINING_NOISE,
                0,
                x_t=wanted_x_t,
                model_input=wanted_input,
                z=None,
            )
            checks.assert_close(x_t[samples], wanted_x_t)
            checks.assert_close(model_input[samples], wanted_input, absolute=5e-6)

    def check_theirs(self, perturbed: Perturbed) -> None:
        x_t, model_input = perturbed
        checks.assert_close(model_input, self.c_in * torch.log(x_t), absolute=2e-5)
        normals = self._normals(x_t)
        checks.assert_same_distribution(normals, self._normals(self.ours()[0]))

    def _normals(self, x_t: Tensor) -> Tensor:
        return (torch.log(x_t / self.x0) - self.shift) / self.s


def formula(x0: Tensor, shift: Tensor, s: Tensor, c_in: Tensor) -> Perturbed:
    """Return x_t and the network's input, the plain way."""
    increment = shift + s * torch.randn_like(x0)
    return x0 * torch.exp(increment), c_in * (torch.log(x0.abs()) + increment)


def test_gbm_perturb(compare: Compare) -> None:
    p = Problem(compare.size(N, 500), compare.device)
    theirs = functools.partial(Provider, check=p.check_theirs, against="perturb", limit=ADD)
    providers = [
        Provider("perturb", p.ours, p.check_ours, limit=ADD),
        theirs("eager", p.eager),
        theirs("in place", p.in_place),
        theirs("compiled", p.graph, compiled=True),
        *CopyLimit(p.x0, p.other).providers(),
    ]
    compare("gbm_perturb", f"{len(p.x0)} x {D} float32", providers)
