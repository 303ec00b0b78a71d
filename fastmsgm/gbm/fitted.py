"""FittedSolver: a table of coefficients fitted to many-call samples, and how a fit sees it.

A row (sigma, c_in, A, B, B', C) is one network call, in the terms of ``plan.py``:

    f = net(c_in y, log(sigma) / 4),    D = k0 y + k1 f,    y <- A y + B D + B' D_prev + C

with k0 = c_skip and k1 = c_out at sigma. It is the row of a multistep solver whose numbers follow
from no formula: also what the network sees, c_in y, may differ from EDM's scaling at the noise
level that it is told.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from fastmsgm.checks import check_int, is_number
from fastmsgm.gbm.plan import check_family, gbm_plan
from fastmsgm.gbm.preconditioning import GBMPreconditioning
from fastmsgm.gbm.state import GBMPlan
from fastmsgm.solver import Solver

if TYPE_CHECKING:
    from fastmsgm.gbm.model import GBMModel

COLUMNS = ("sigma", "c_in", "A", "B", "B'", "C")


@dataclass(frozen=True, repr=False)
class FittedSolver(Solver):
    """A solver of as many network calls as its table has rows; ``fastmsgm.fit_solver`` makes it.

    It is for the network that it was fitted to: another one, or the same after more training, needs
    a table of its own.

    Args:
        table: (R, 6) numbers, R rows of ``COLUMNS``.

    Raises:
        ValueError: Not rows of six finite numbers, or a sigma or c_in that is not positive.
    """

    table: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        try:
            rows = tuple(tuple(row) for row in self.table)
        except TypeError:  # no rows
            rows = ()
        good = rows and all(len(row) == len(COLUMNS) and all(map(is_number, row)) for row in rows)
        if not good or any(min(row[:2]) <= 0 for row in rows):
            raise ValueError(
                f"table must be rows of {', '.join(COLUMNS)}, finite numbers of which the first "
                f"two are positive, got {self.table!r}: use fastmsgm.fit_solver"
            )
        object.__setattr__(self, "table", tuple(tuple(map(float, row)) for row in rows))

    def __repr__(self) -> str:
        sigmas = ", ".join(f"{row[0]:.3g}" for row in self.table)
        digest = hashlib.sha256(repr(self.table).encode()).hexdigest()[:8]
        return f"FittedSolver({len(self.table)} network calls at sigma = {sigmas}; {digest})"

    @property  # of an instance, since it is the length of a table
    def default_steps(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The number of network calls."""
        return len(self.table)

    def config(self) -> dict[str, list[float]]:
        """Return the columns by name, as JSON can hold them; ``from_config`` reads them."""
        columns = zip(*self.table, strict=True)
        return dict(zip(COLUMNS, map(list, columns), strict=True))

    @classmethod
    def from_config(cls, config: Mapping[str, Sequence[float]]) -> FittedSolver:
        """Return the solver of a checkpoint."""
        return cls(tuple(zip(*(config[name] for name in COLUMNS), strict=True)))

    def plan(self, preconditioning: GBMPreconditioning, steps: int) -> GBMPlan:
        check_family(self, preconditioning)
        if check_int("steps", steps, 1) != len(self.table):
            raise ValueError(
                f"steps must be {len(self.table)}, those that the solver was fitted for, got "
                f"{steps}: leave steps out, or fit another with fit_solver(model, {steps})"
            )
        check_denoiser(preconditioning)
        sigmas, c_in, *columns = np.array(self.table).T
        rows = np.stack((*columns, np.zeros_like(sigmas)), axis=1)
        return gbm_plan(preconditioning, sigmas, rows, multistep=True, c_in=c_in)


class TrainableTable(nn.Module):
    """The table as parameters, from that of a solver with as many rows, without noise.

    Args:
        model: Whose network it calls; its parameters stay as they are.
        solver: Gives the initial values.
        steps: Number of network calls.

    Raises:
        ValueError: The model is not a denoiser, or the solver has noise or another number of calls.
    """

    def __init__(self, model: GBMModel, solver: Solver, steps: int) -> None:
        super().__init__()
        check_denoiser(model.preconditioning)
        plan = solver.plan(model.preconditioning, steps)
        noisy = isinstance(plan, GBMPlan) and bool(plan.table[:, 4].any())
        if not isinstance(plan, GBMPlan) or plan.nfe != steps or noisy:
            raise ValueError(
                f"solver must have {steps} network calls and no noise, got {solver!r}: use "
                "DPMSolverPP2M()"
            )
        self.model = model
        c_in = np.append(plan.c_in, plan.table[:-1, 8])
        start = np.column_stack((np.log(plan.noise_levels), np.log(c_in), plan.table[:, :4]))
        self.log_inputs = nn.Parameter(torch.tensor(start[:, :2], device="cpu"))
        self.coefficients = nn.Parameter(torch.tensor(start[:, 2:], device="cpu"))

    def forward(self, noise: Tensor, means: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        """Return the samples y = log(x / scale), (n, ...).

        Args:
            noise: (n, ...) standard normals, those of the prior.
            means: Like noise, log of the prior's means.
            condition: What else the network is conditioned on, each (n, ...).
        """
        model, log_std = self.model, self.model.log_std
        inputs, rows = (p.to(noise.device, torch.float32) for p in self.parameters_of_table())
        log_sigmas, log_c_in = inputs.unbind(1)
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

    def parameters_of_table(self) -> tuple[nn.Parameter, nn.Parameter]:
        """Return (R, 2) log sigma and log c_in, and (R, 4) coefficients, float64 on the CPU."""
        return self.log_inputs, self.coefficients

    def solver(self) -> FittedSolver:
        """Return the table as it is now."""
        inputs = self.log_inputs.detach().exp()
        table = torch.cat((inputs, self.coefficients.detach()), dim=1)
        return FittedSolver(tuple(map(tuple, table.tolist())))


def check_denoiser(preconditioning: GBMPreconditioning) -> None:
    """Raise ValueError unless the network is a denoiser."""
    if not preconditioning.denoiser:
        raise ValueError(
            "fitted solvers need a denoiser, got a network that predicts "
            f'"{preconditioning.prediction}": build the model with prediction="denoiser"'
        )
