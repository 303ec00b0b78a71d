"""FittedSolver: a table of coefficients that was fitted to many-call samples.

A row (sigma, c_in, A, B, B', C) is one network call, in the terms of ``state.py``:

    f = net(c_in y, log(sigma) / 4),    D = k0 y + k1 f,    y <- A y + B D + B' D_prev + C

with k0 = c_skip and k1 = c_out at sigma. It is the row of a multistep solver whose numbers follow
from no formula: also what the network sees, c_in y, may differ from EDM's scaling at the noise
level that c_noise says.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fastmsgm.checks import check_int, is_number
from fastmsgm.gbm.preconditioning import GBMPreconditioning
from fastmsgm.gbm.state import GBMPlan, check_family, gbm_plan
from fastmsgm.solver import Solver

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


def check_denoiser(preconditioning: GBMPreconditioning) -> None:
    """Raise ValueError unless the network is a denoiser."""
    if not preconditioning.denoiser:
        raise ValueError(
            "fitted solvers need a denoiser, got a network that predicts "
            f'"{preconditioning.prediction}": build the model with prediction="denoiser"'
        )
