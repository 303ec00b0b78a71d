"""The sampling loop of a GBM denoiser as one would write it in PyTorch.

DPM-Solver++(2M) on y = log x with torch's normals. It follows the plan of the model's own solver
and calls the same network as ``fastmsgm.sample``. An update takes y, the network output f, the
denoised log-state of the previous step and a row of the plan. It returns the next y and the
denoised log-state:

    D = k0 y + k1 f + k2,    y' = A y + B D + B' D_prev + C + S z
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bench.harness import compiling
from fastmsgm import GBMModel
from fastmsgm.sampling import plan_for

Row = Sequence[Any]  # A, B, B', C, S, k0, k1, k2, each a number or a tensor of one element
Update = Callable[[Tensor, Tensor, Tensor, Row], tuple[Tensor, Tensor]]


class PlainLoop:
    """Calling it samples ``chunks`` chunks of ``batch`` samples, in the data's own range.

    Args:
        model: A denoiser.
        chunks: Number of chunks.
        batch: Samples per chunk.
        update: ``eager``, ``in_place`` or ``compiled(device)``.
        on_device: Whether the update takes rows of tensors instead of numbers.
    """

    def __init__(
        self, model: GBMModel, chunks: int, batch: int, update: Update, on_device: bool = False
    ) -> None:
        self.model, self.chunks, self.batch, self.update = model, chunks, batch, update
        plan, device = plan_for(model, None, None), model.device
        table = torch.from_numpy(plan.table).float().to(device)
        self.rows = (
            [row[:8].unbind() for row in table]
            if on_device
            else [row[:8] for row in plan.table.tolist()]
        )
        indices = torch.arange(batch, device=device)
        c_noise = torch.from_numpy(plan.c_noise).float().to(device)
        self.c_noise = [c.expand(batch) for c in c_noise]
        self.condition = {"label": indices % model.classes} if model.classes else {}
        self.c_in = [
            float(model.preconditioning.coefficients(plan.noise_levels[:1])[0, 3]),
            *plan.table[:, 8].tolist(),
        ]
        log_means = (model.prior.means / model.scale).log()
        self.mean = log_means[indices % len(log_means)]
        self.std = model.prior.std(float(plan.noise_levels[0]))

    @torch.no_grad()
    def __call__(self) -> Tensor:
        return torch.cat([self._chunk() for _ in range(self.chunks)])

    def _chunk(self) -> Tensor:
        model, shape = self.model, (self.batch, *self.model.shape)
        y = self.mean + self.std * torch.randn(shape, device=model.device)
        denoised = torch.zeros_like(y)
        model_input = (self.c_in[0] * y).to(model.input_dtype)
        for c_noise, row, c_in in zip(self.c_noise, self.rows, self.c_in[1:], strict=True):
            f = model(model_input, c_noise, **self.condition).float()
            y, denoised = self.update(y, f, denoised, row)
            torch.mul(y, c_in, out=model_input)
        return model.to_data(torch.exp(y))


def eager(y: Tensor, f: Tensor, prev_denoised: Tensor, row: Row) -> tuple[Tensor, Tensor]:
    """Update in plain PyTorch."""
    a, b, b_prev, c, s, k0, k1, k2 = row
    denoised = k0 * y + k1 * f + k2
    return a * y + b * denoised + b_prev * prev_denoised + c + s * torch.randn_like(y), denoised


def in_place(y: Tensor, f: Tensor, prev_denoised: Tensor, row: Row) -> tuple[Tensor, Tensor]:
    """Update in place; only the noise is allocated."""
    a, b, b_prev, c, s, k0, k1, k2 = row
    noise = torch.empty_like(y).normal_(c, s).add_(prev_denoised, alpha=b_prev)
    denoised = torch.mul(y, k0, out=prev_denoised).add_(f, alpha=k1).add_(k2)
    return y.mul_(a).add_(denoised, alpha=b).add_(noise), denoised


def compiled(device: torch.device) -> Update:
    """Return ``eager`` compiled; it needs rows of tensors, as it compiles anew for every number."""
    return compiling.compiled(eager, device)
