"""SDEModel: what Runge-Kutta solvers and sliced score matching need of a model.

The process is an SDE of the state x in R^d, driven by G(x) dW and an integrated beta B; it gives
the products of G (``g_prod``, ``g_transpose_prod``; torchsde's name) and the reverse drift.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from fastmsgm.checks import is_number
from fastmsgm.model import ScoreModel
from fastmsgm.sde.beta_schedule import TIME_MIN
from fastmsgm.types import Array


class SDE(Protocol):
    """A process dx = drift dB + G(x) dW per unit of its integrated beta."""

    def beta(self, t: ArrayLike) -> Array:
        """Return beta at times t."""
        ...

    def integrated_beta(self, t: ArrayLike) -> Array:
        """Return B at times t."""
        ...

    def time(self, B: ArrayLike) -> Array:
        """Return the times at which the integrated beta is B."""
        ...

    def g_prod(self, x: Tensor, v: Tensor) -> Tensor:
        """Return G(x) v, both (n, d)."""
        ...

    def g_transpose_prod(self, x: Tensor, v: Tensor) -> Tensor:
        """Return G(x)^T v, both (n, d)."""
        ...

    def reverse_drift(
        self, x: Tensor, score: Tensor, eta: float = 1.0, ito: bool = False
    ) -> Tensor:
        """Return the drift of the reversed process; eta = 0 is the ODE, 1 the SDE."""
        ...

    def project(self, x: Tensor) -> Tensor:
        """Return x (n, d) on the process's own surface, from which rounding moves it."""
        ...


class NormPrior(Protocol):
    """The distribution of the norms of the samples."""

    def sample(self, n: int, stream: Tensor) -> Tensor:
        """Return (n,) float32 norms of samples ``stream[1]`` .. ``stream[1] + n - 1``."""
        ...


@dataclass(frozen=True)
class SDEPreconditioning(ABC):
    """What solvers and losses need to know of an ``SDEModel``.

    Args:
        process: The forward process.
        time_min: The smallest time t at which sliced score matching trains and solvers of R^d
            call the network, in (0, 1).

    Raises:
        ValueError: time_min is out of range.
    """

    process: SDE
    time_min: float = field(default=TIME_MIN, kw_only=True)

    def __post_init__(self) -> None:
        if not is_number(self.time_min) or not 0 < self.time_min < 1:
            raise ValueError(
                f"time_min must be between 0 and 1, both excluded, got {self.time_min!r}"
            )
        object.__setattr__(self, "time_min", float(self.time_min))

    @property
    @abstractmethod
    def c_in(self) -> float:
        """The network sees c_in times the state."""

    @abstractmethod
    def score(self, model_output: Tensor, B: Array) -> Tensor:
        """Return the score of the state.

        Args:
            model_output: (n, d) the network's raw output.
            B: (n,) integrated betas, or (1,) for all.
        """

    def c_noise(self, B: Array) -> Array:
        """Return what tells the network the noise level: (log B + 3) / 3."""
        return (np.log(B) + 3) / 3


class SDEModel(ScoreModel):
    """A model whose process is an SDE in R^d; its preconditioning is an ``SDEPreconditioning``."""

    @property
    @abstractmethod
    def prior(self) -> NormPrior:
        """The distribution of the norms that multiply samples; ones where x has its own."""

    def condition_of(self, norms: Tensor) -> dict[str, Tensor]:
        """Return what the family conditions the network on, by name: nothing, unless overridden.

        Args:
            norms: (n,) norms of the samples.

        Returns:
            (n,) float32 each, on the device of the norms.
        """
        return {}

    @abstractmethod
    def perturb_state(self, x0: Tensor, B: Array, stream: Tensor, step: int) -> Tensor:
        """Sample the state x_t given x0 (n, d) at integrated betas B (n,)."""

    def forward_step(self, x: Tensor, B: Array, stream: Tensor, step: int) -> Tensor:
        """Sample the state (n, d) after x, one step of a path whose integrated beta grows by B."""
        return self.perturb_state(x, B, stream, step)
