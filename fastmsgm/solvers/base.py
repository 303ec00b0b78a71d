"""Solver and Plan: a solver turns a model and a number of steps into the rows that sampling goes through."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fastmsgm.model import ScoreModel


@dataclass(frozen=True)
class Plan:
    """One network call and one step per row.

    Args:
        levels: (R,) the noise level of each network call; the prior is drawn at the first.
        table: (R, columns) coefficients of each step, float64.
    """

    levels: np.ndarray
    table: np.ndarray

    @property
    def calls(self) -> int:
        """Network calls per sample."""
        return len(self.levels)


class Solver(ABC):
    """Turns a model and a number of steps into a plan."""

    default_steps: ClassVar[int]

    @abstractmethod
    def plan(self, model: ScoreModel, steps: int) -> Plan:
        """The plan of ``steps`` updates on the time grid; TypeError where the model is of another process."""
