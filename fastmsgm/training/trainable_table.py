"""TrainableTable: the table of a fitted solver as parameters, and what it samples."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from fastmsgm.gbm.fitted import FittedSolver, check_denoiser
from fastmsgm.gbm.model import GBMModel
from fastmsgm.gbm.solvers import DPMSolverPP2M


class TrainableTable(nn.Module):
    """The table as parameters, which begin at DPM-Solver++(2M) of as many network calls.

    Args:
        model: A denoiser, whose network it calls.
        steps: Number of network calls.

    Attributes:
        log_inputs: (R, 2) log sigma and log c_in, float64 on the CPU.
        coefficients: (R, 4) A, B, B' and C, float64 on the CPU.

    Raises:
        ValueError: The model is not a denoiser.
    """

    def __init__(self, model: GBMModel, steps: int) -> None:
        super().__init__()
        check_denoiser(model.preconditioning)
        plan = DPMSolverPP2M().plan(model.preconditioning, steps)
        self.model = model
        c_in = np.append(plan.c_in, plan.table[:-1, 8])
        start = np.column_stack((np.log(plan.noise_levels), np.log(c_in), plan.table[:, :4]))
        numbers = torch.from_numpy(start)
        self.log_inputs = nn.Parameter(numbers[:, :2].clone())
        self.coefficients = nn.Parameter(numbers[:, 2:].clone())

    def forward(self, noise: Tensor, means: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        """Return the samples y = log(x / scale), (n, ...).

        Args:
            noise: (n, ...) standard normals, those of the prior.
            means: Like noise, log of the prior's means.
            condition: What else the network is conditioned on, each (n, ...).
        """
        model, log_std = self.model, self.model.log_std
        rows = self.coefficients.to(noise.device, torch.float32)
        log_sigmas, log_c_in = self.log_inputs.to(noise.device, torch.float32).unbind(1)
        sigmas = log_sigmas.exp()
        y = means + torch.sqrt(model.variance + sigmas[0].square()) * noise
        previous = torch.zeros_like(y)
        for k, (a, b, b_previous, c) in enumerate(rows.unbind(0)):
            total = sigmas[k].square() + log_std**2
            c_noise = (log_sigmas[k] / 4).expand(len(y))
            model_input = (log_c_in[k].exp() * y).to(model.input_dtype)
            f = model(model_input, c_noise, **condition).float()
            denoised = log_std**2 / total * y + sigmas[k] * log_std / total.sqrt() * f
            y = a * y + b * denoised + b_previous * previous + c
            previous = denoised
        return y

    def solver(self) -> FittedSolver:
        """Return the table as it is now."""
        inputs = self.log_inputs.detach().exp()
        table = torch.cat((inputs, self.coefficients.detach()), dim=1)
        return FittedSolver(tuple(map(tuple, table.tolist())))
