"""The random cases that every rotation kernel is held to the bound of ``oracle`` on: directions, so absolute errors.

A kernel and ``reference`` in float32 are both compared with ``reference`` in float64 on the SAME Philox bits. Outputs
start as NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from oracle import POISON, assert_close
from torch import Tensor

from fastmsgm import reference, rng

ROWS = 4  # of a case's table; row 2 is used


@dataclass
class StepCase:
    """The inputs of one ``rotation_step``; ``run`` gives them to a backend, ``check`` compares it with the oracle."""

    u: Tensor
    f: Tensor
    table: Tensor
    angles: Tensor | None
    stream: Tensor
    step: int
    history: Tensor | None
    net_in: torch.dtype | None
    geodesic: bool

    def run(self, rotation_step: Callable[..., None], dtype: torch.dtype = torch.float32, device: str = "cpu",
            in_place: bool = False) -> dict[str, Tensor]:  # fmt: skip
        """Outputs by name: u, bad and, where the case has them, history and net_in."""
        u = self.u.to(device, dtype, copy=True)
        f, table, stream = (t.to(device) for t in (self.f, self.table, self.stream))
        angles = None if self.angles is None else self.angles.to(device)
        history = None if self.history is None else self.history.to(device, dtype, copy=True)
        # The float64 reference keeps what the network would see unrounded.
        net_dtype = self.net_in if dtype == torch.float32 else dtype
        net_in = None if self.net_in is None else torch.full_like(u, POISON, dtype=net_dtype)
        out = u if in_place else torch.full_like(u, POISON)
        bad = torch.full((len(u),), -1, dtype=torch.int32, device=device)
        rotation_step(u, f, table, angles, stream, self.step, bad, out, history, net_in, self.geodesic)
        if not in_place:
            same = torch.allclose(u.cpu(), self.u.to(dtype), rtol=0, atol=0, equal_nan=True)
            assert same, "u changed in an out-of-place step"
        outputs = {"u": out, "bad": bad, "history": history, "net_in": net_in}
        return {name: tensor.cpu() for name, tensor in outputs.items() if tensor is not None}

    def check(self, rotation_step: Callable[..., None], device: str = "cpu", in_place: bool = False) -> None:
        got = self.run(rotation_step, device=device, in_place=in_place)
        ref32, ref64 = (self.run(reference.rotation_step, dtype) for dtype in (torch.float32, torch.float64))
        assert torch.equal(got["bad"], ref64["bad"])
        for name in got.keys() - {"bad"}:
            assert_close(got[name], ref32[name], ref64[name])


@dataclass
class PerturbCase:
    """The inputs of one ``rotation_perturb``, as ``StepCase``."""

    u0: Tensor
    coefficients: Tensor
    table: Tensor
    stream: Tensor
    step: int
    u_t: bool
    net_in: torch.dtype | None
    target: bool

    def run(self, rotation_perturb: Callable[..., None], dtype: torch.dtype = torch.float32, device: str = "cpu"
            ) -> dict[str, Tensor]:  # fmt: skip
        """Outputs by name: those of u_t, net_in and target that the case asks for."""
        u0 = self.u0.to(device, dtype)
        net_dtype = self.net_in if dtype == torch.float32 else dtype
        outputs = {
            "u_t": torch.full_like(u0, POISON) if self.u_t else None,
            "net_in": None if self.net_in is None else torch.full_like(u0, POISON, dtype=net_dtype),
            "target": torch.full_like(u0, POISON) if self.target else None,
        }
        inputs = (t.to(device) for t in (self.coefficients, self.table, self.stream))
        rotation_perturb(u0, *inputs, self.step, **outputs)
        return {name: tensor.cpu() for name, tensor in outputs.items() if tensor is not None}

    def check(self, rotation_perturb: Callable[..., None], device: str = "cpu") -> None:
        got = self.run(rotation_perturb, device=device)
        ref32, ref64 = (self.run(reference.rotation_perturb, dtype) for dtype in (torch.float32, torch.float64))
        for name, tensor in got.items():
            assert_close(tensor, ref32[name], ref64[name])


def step_case(
    n: int, d: int, *, seed: int = 0, start: int = 0, geodesic: bool = False, history: bool = False,
    angles: bool = False, net_in: torch.dtype | None = None, f_dtype: torch.dtype = torch.float32, noise: float = 0.4,
) -> StepCase:  # fmt: skip
    """A random case with everything in it that its form has: steps of order one, from directions whose norms are a
    little off, with network outputs that have a radial part."""
    generator = torch.Generator().manual_seed(seed)
    u, f, past = torch.randn(3, n, d, generator=generator)
    u = u / u.norm(dim=1, keepdim=True) * (1 + 1e-3 * torch.randn(n, 1, generator=generator))
    f = 2 * f / d**0.5 + 0.5 * u
    # The D of a row before points anywhere, so that D_w does too; a velocity is tangent.
    past = past / d**0.5
    past = (
        past - (past * u).sum(1, keepdim=True) * u if geodesic else past + 8 * torch.rand(n, 1, generator=generator) * u
    )
    alpha, length, drift = torch.rand(3, ROWS, generator=generator) * 0.5 + 0.4
    one = torch.ones(ROWS)
    w, back = (0.3 + 0.2 * geodesic) * one, history * one
    columns = (alpha, (1 - alpha**2).sqrt(), w, length, drift, noise / d**0.5 * one, back, 0.5 * one, 0.9 * one)
    table = torch.stack(columns, dim=1).contiguous()
    law = angle_law(d, 33).expand(ROWS, 33).contiguous() if angles else None
    stream = rng.stream(seed + 2**63, start)
    return StepCase(u, f.to(f_dtype), table, law, stream, 2, past if history else None, net_in, geodesic)


def perturb_case(
    n: int, d: int, *, seed: int = 0, start: int = 0, u_t: bool = True, net_in: torch.dtype | None = torch.float32,
    target: bool = True,
) -> PerturbCase:  # fmt: skip
    """A random case in which every sample has its own row of the table (both ends among them), spread, scale, c_in."""
    generator = torch.Generator().manual_seed(seed)
    u0 = torch.randn(n, d, generator=generator)
    row, spread, scale, c_in = torch.rand(4, n, generator=generator)
    nodes, columns = 9, 65
    row = (1.2 * row - 0.1).clamp(0, 1) * (nodes - 1)
    coefficients = torch.stack((row, spread**4, 1 + scale, c_in), dim=1)
    growth = torch.linspace(1, 1.3, nodes)[:, None]
    v = angle_law(d, columns) * growth
    g = (1.5 - torch.tanh(torch.linspace(-1, 1, columns))) * growth
    table = torch.stack((v, g)).contiguous()
    return PerturbCase(u0, coefficients, table, rng.stream(seed + 2**63, start), 2**32 + 7, u_t, net_in, target)


def angle_law(d: int, columns: int) -> Tensor:
    """V much like the heat kernel's: the chi-square quantile of Wilson and Hilferty, over d - 1. It is kept from 0 and
    2, where the sine has an infinite slope and no error in V is small."""
    z, c = torch.linspace(-6, 6, columns, dtype=torch.float64), 2 / (9 * (d - 1))
    return ((1 - c + z * c**0.5).clamp(min=0.05) ** 3).clamp(max=1.4).float()
