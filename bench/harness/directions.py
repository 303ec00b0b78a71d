"""The problem of the rotation benchmarks: unit directions, and the authors' step on them.

Like ours, the authors' step receives the network output and does not compute it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from bench.harness import checks, msgm_authors
from bench.harness.interleaved import SEED
from fastmsgm import Rotation, rng

Run = Callable[[], Tensor]
Check = Callable[[Tensor], None]
DT, T = 1 / 128, 0.5  # length and time of the authors' step


class Directions:
    """n directions of d features and a network output.

    Args:
        n: Number of samples.
        d: Number of features.
        device: Where the arrays are.
    """

    def __init__(self, n: int, d: int, device: torch.device) -> None:
        torch.manual_seed(0)
        self.start = unit(torch.randn(n, d, device=device))
        self.prev_start = torch.randn(n, d, device=device)
        self.f = torch.randn(n, d, device=device)  # the network output
        self.u, self.prev_denoised = self.start.clone(), self.prev_start.clone()
        self.first_nonfinite_step = torch.full((n,), -1, dtype=torch.int32, device=device)
        self.stream = rng.stream(0, 0, device)

    @property
    def elements(self) -> int:
        return self.u.numel()

    def reset(self) -> None:
        self.u.copy_(self.start)
        self.prev_denoised.copy_(self.prev_start)

    def check_same_distribution(self, new: Tensor, ours: Tensor) -> None:
        """Check the norms, and the projections on the start and on the network output."""
        norms = new.norm(dim=1)
        checks.assert_close(norms, torch.ones_like(norms))
        for axis in (self.start, tangent(self.f, self.start)):
            checks.assert_same_distribution((new * axis).sum(1), (ours * axis).sum(1))

    # ---- the authors' step: what to run, and its check against the same step in float64 with
    # another implementation of the product ----

    def authors_sparse(self) -> tuple[Run, Check]:
        with self.u.device:
            product = msgm_authors.sparse_product(self.u.shape[1])
        return self._authors(product, Rotation(noise="ring").g_prod)

    def authors_dense(self) -> tuple[Run, Check]:
        g = msgm_authors.dense_tensor(self.u.shape[1], 0).to(self.u.device)
        exact = g.double()
        return self._authors(
            msgm_authors.dense_product(g), lambda x, w: torch.einsum("ijk,nj,nk->ni", exact, x, w)
        )

    def _authors(
        self, product: msgm_authors.Product, other: msgm_authors.Product
    ) -> tuple[Run, Check]:
        def run() -> Tensor:
            return authors_step(product, self.u, self._drive())

        def check(new: Tensor, count: int = 4) -> None:
            torch.manual_seed(SEED)
            drive = self._drive()
            wanted = authors_step(other, self.start[:count].double(), drive[:count].double())
            checks.assert_close(new[:count].double(), wanted, absolute=1e-5)

        return run, check

    def _drive(self) -> Tensor:
        return self.f * DT + math.sqrt(DT) * torch.randn_like(self.u)


def authors_step(product: msgm_authors.Product, u: Tensor, drive: Tensor) -> Tensor:
    """Take a step of the authors' Runge-Kutta method and restore the norms."""
    return unit(
        msgm_authors.rk4(lambda x, t: math.sqrt(msgm_authors.beta(t)) * product(x, drive), u, T, DT)
    )


def unit(x: Tensor) -> Tensor:
    """Return x (n, d) divided by its norms."""
    return x * (1 / x.norm(dim=1, keepdim=True))


def tangent(v: Tensor, u: Tensor) -> Tensor:
    """Return the part of v (n, d) orthogonal to unit directions u (n, d)."""
    return v - (v * u).sum(1, keepdim=True) * u
