"""Solver and Plan: how a number of steps becomes a table of coefficients; the Karras grid.

A solver turns noise levels into a table of coefficients, in float64 on the host, and a kernel
applies a row of it to arrays at each step. So SDE and ODE, first and second order, are one kernel
with different coefficients. The table and the noise levels are a ``Plan``; a plan makes the
``SamplerState`` that follows it.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fastmsgm.checks import check_int
from fastmsgm.state import SamplerState
from fastmsgm.types import Array


@dataclass(frozen=True, kw_only=True)
class Plan(ABC):
    """The precomputed run of a solver: one row, with one network call, after the other.

    Args:
        noise_levels: (R,) the noise level of each network call; the prior is sampled at the
            first. A sigma for geometric Brownian motion, an integrated beta for other families.
        table: (R, columns) coefficients of each step, float64.
        c_noise: (R,) the number that tells the network the noise level (EDM's c_noise).
    """

    noise_levels: Array
    table: Array
    c_noise: Array

    @property
    def nfe(self) -> int:
        """Number of function evaluations: network calls per sample."""
        return len(self.noise_levels)

    def checksum(self) -> str:
        """Return the SHA-256 of the numbers, in float32: the last digits vary with the machine."""
        found = hashlib.sha256()
        for values in self.numbers:
            found.update(np.ascontiguousarray(values, np.float32).tobytes())
        return found.hexdigest()

    @property
    def numbers(self) -> tuple[Array, ...]:
        """All numbers that decide the samples."""
        return self.noise_levels, self.table, self.c_noise

    @abstractmethod
    def state(self, model: Any, size: int) -> SamplerState:
        """Allocate the state of a chunk.

        Args:
            model: A model of the family that the plan is for.
            size: Number of samples.
        """


class Solver(ABC):
    """Turns a number of steps into a plan.

    Attributes:
        default_steps: Number of steps that ``sample`` takes where none is given.
    """

    default_steps: ClassVar[int]

    @abstractmethod
    def plan(self, preconditioning: Any, steps: int) -> Plan:
        """Return the plan of ``steps`` steps on the time grid.

        Args:
            preconditioning: What the solver needs to know of a model, ``model.preconditioning``:
                the process, the range of noise levels, and what the network's output means.
            steps: Number of noise levels before the final 0, at least 1.

        Raises:
            TypeError: The preconditioning is of another family than the solver.
            ValueError: The solver does not apply to this process.
        """


def karras_sigmas(steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Array:
    """Noise levels evenly spaced in sigma^(1/rho), then 0 (Karras et al., 2022, equation 5).

    Args:
        steps: Number of noise levels before the 0.
        sigma_min: The last of them.
        sigma_max: The first.
        rho: How much the grid favours small noise levels.

    Returns:
        (steps + 1,) float64, decreasing.

    Example:
        >>> karras_sigmas(3, 0.1, 10.0).round(3).tolist()
        [10.0, 1.451, 0.1, 0.0]
    """
    steps = check_int("steps", steps, 1)
    ramp = np.linspace(0, 1, steps) if steps > 1 else np.zeros(1)
    root = sigma_max ** (1 / rho) + ramp * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))
    return np.append(root**rho, 0.0)
