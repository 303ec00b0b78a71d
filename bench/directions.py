"""Unit directions, and the authors' Runge-Kutta step of them.

The authors' step gets its network's output for nothing, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import gates
import msgm_authors
import torch
from interleaved import SEED
from torch import Tensor

from fastmsgm import Rotation, rng

Run = Callable[[], Tensor]
Check = Callable[[Tensor], None]
DT, T = 1 / 128, 0.5  # the authors' step and where in time it is


class Directions:
    """n directions of d features and a network's output; every method returns the new directions."""

    def __init__(self, n: int, d: int, device: torch.device) -> None:
        torch.manual_seed(0)
        self.start = unit(torch.randn(n, d, device=device))
        self.past = torch.randn(n, d, device=device)
        self.f = torch.randn(n, d, device=device)
        self.u, self.history = self.start.clone(), self.past.clone()
        self.bad = torch.full((n,), -1, dtype=torch.int32, device=device)
        self.stream = rng.stream(0, 0, device)

    @property
    def elements(self) -> int:
        return self.u.numel()

    def reset(self) -> None:
        self.u.copy_(self.start)
        self.history.copy_(self.past)

    def check_same_law(self, new: Tensor, ours: Tensor) -> None:
        """Directions, as far and as much towards the network's output as ours."""
        norms = new.norm(dim=1)
        gates.close(norms, torch.ones_like(norms))
        for along in (self.start, tangent(self.f, self.start)):
            gates.same_law((new * along).sum(1), (ours * along).sum(1))

    # ---- the authors' step: what to run, and its check against the same step by another product in float64 ----

    def authors_sparse(self) -> tuple[Run, Check]:
        with self.u.device:
            product = msgm_authors.sparse_product(self.u.shape[1])
        return self._authors(product, Rotation(noise="ring").turn)

    def authors_dense(self) -> tuple[Run, Check]:
        g = msgm_authors.dense_tensor(self.u.shape[1], 0).to(self.u.device)
        exact = g.double()
        return self._authors(msgm_authors.dense_product(g), lambda x, w: torch.einsum("ijk,nj,nk->ni", exact, x, w))

    def _authors(self, product: msgm_authors.Product, other: msgm_authors.Product) -> tuple[Run, Check]:
        def run() -> Tensor:
            return authors_step(product, self.u, self._drive())

        def check(new: Tensor, rows: int = 4) -> None:
            torch.manual_seed(SEED)
            drive = self._drive()
            wanted = authors_step(other, self.start[:rows].double(), drive[:rows].double())
            gates.close(new[:rows].double(), wanted, absolute=1e-5)

        return run, check

    def _drive(self) -> Tensor:
        return self.f * DT + math.sqrt(DT) * torch.randn_like(self.u)


def authors_step(product: msgm_authors.Product, u: Tensor, drive: Tensor) -> Tensor:
    """A step of their Runge-Kutta method, then the norms are restored."""
    return unit(msgm_authors.rk4(lambda x, t: math.sqrt(msgm_authors.beta(t)) * product(x, drive), u, T, DT))


def unit(x: Tensor) -> Tensor:
    return x * (1 / x.norm(dim=1, keepdim=True))


def tangent(v: Tensor, u: Tensor) -> Tensor:
    return v - (v * u).sum(1, keepdim=True) * u
