"""The sampling loop of a GBM denoiser as one writes it in PyTorch: DPM-Solver++(2M) on y = log x, with torch's normals.

It follows the plan of the model's own solver and calls the same network as ``fastmsgm.sample``. A move takes y, the
network's output, the denoised log-state of the step before and a row of the plan, and gives the next y and the denoised
one:

    D = k0 y + k1 f + k2,    y' = A y + B D + B' D_prev + C + S z
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import compiling
import torch
from torch import Tensor

from fastmsgm import GBMModel
from fastmsgm.sampling import plan_for

Row = Sequence[Any]  # A, B, B', C, S, k0, k1, k2, each a number or a tensor of one
Move = Callable[[Tensor, Tensor, Tensor, Row], tuple[Tensor, Tensor]]


class PlainLoop:
    """Calling it draws so many chunks of ``batch`` samples, in the data's own range.

    Args:
        move: one of those below.    on_device: it takes its rows as tensors.
    """

    def __init__(self, model: GBMModel, chunks: int, batch: int, move: Move, on_device: bool = False) -> None:
        self.model, self.chunks, self.batch, self.move = model, chunks, batch, move
        plan, device = plan_for(model, None, None), model.device
        table = torch.from_numpy(plan.table).float().to(device)
        self.rows = [row[:8].unbind() for row in table] if on_device else [row[:8] for row in plan.table.tolist()]
        levels = torch.from_numpy(model.condition(plan.levels)).float().to(device)
        rows = torch.arange(batch, device=device)
        self.conditions = [level.expand(batch) for level in levels]
        if model.classes:
            self.conditions = [torch.stack((c, (rows % model.classes).float()), dim=1) for c in self.conditions]
        self.c_in = [float(model.preconditioning(plan.levels[:1])[0, 3]), *plan.table[:, 8].tolist()]
        centres = (model.prior.centres / model.scale).log()
        self.centre = centres[rows % len(centres)]
        self.spread = model.prior.std(float(plan.levels[0]))

    @torch.no_grad()
    def __call__(self) -> Tensor:
        return torch.cat([self._chunk() for _ in range(self.chunks)])

    def _chunk(self) -> Tensor:
        model, shape = self.model, (self.batch, *self.model.shape)
        y = self.centre + self.spread * torch.randn(shape, device=model.device)
        denoised = torch.zeros_like(y)
        net_in = (self.c_in[0] * y).to(model.input_dtype)
        for condition, row, c_in in zip(self.conditions, self.rows, self.c_in[1:], strict=True):
            y, denoised = self.move(y, model(net_in, condition).float(), denoised, row)
            torch.mul(y, c_in, out=net_in)
        return model.to_data(torch.exp(y))


def eager(y: Tensor, f: Tensor, before: Tensor, row: Row) -> tuple[Tensor, Tensor]:
    a, b, b_prev, c, s, k0, k1, k2 = row
    denoised = k0 * y + k1 * f + k2
    return a * y + b * denoised + b_prev * before + c + s * torch.randn_like(y), denoised


def in_place(y: Tensor, f: Tensor, before: Tensor, row: Row) -> tuple[Tensor, Tensor]:
    """One array is allocated, for the noise."""
    a, b, b_prev, c, s, k0, k1, k2 = row
    noise = torch.empty_like(y).normal_(c, s).add_(before, alpha=b_prev)
    denoised = torch.mul(y, k0, out=before).add_(f, alpha=k1).add_(k2)
    return y.mul_(a).add_(denoised, alpha=b).add_(noise), denoised


def compiled(device: torch.device) -> Move:
    """Its rows are tensors, or each would be compiled by itself."""
    return compiling.compiled(eager, device)
