"""ProbabilityFlow: the ordinary differential equation that carries data to the prior.

Its solutions have the distribution p_t of the noised data at every noise level (Song et al., 2021,
section 4.3), and the density changes along them by the divergence of the velocity f:

    log p(x) = log_factor + int div f dl + log p_prior(y_end),    dy/dl = f(y, l),

with l the logarithm of the noise level, s of GBM and EDM or B of rotations and VP. The flow starts
at the smallest noise level of training, where the density is that of the data with so much noise.
``log_factor`` is the Jacobian from the data's own range to the state y, and what the flow leaves
as it is. Every family has its own flow: ``gbm/flow.py``, ``rotation/flow.py``, ``sde/flow.py`` and
``edm/flow.py``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor


class FlowStart(NamedTuple):
    """Where the flow starts.

    Args:
        state: (n, d) float64, the states.
        log_factor: (n,) float64, log p of the data minus log p of the states.
        condition: What the network is conditioned on, each (n, ...), with the family's own.
    """

    state: Tensor
    log_factor: Tensor
    condition: dict[str, Tensor]


class ProbabilityFlow(ABC):
    """The probability flow of a model; see the module.

    Attributes:
        noise_levels: The smallest and the largest noise level.
    """

    noise_levels: tuple[float, float]

    @abstractmethod
    def start(self, data: Tensor, condition: Mapping[str, Tensor]) -> FlowStart:
        """Return the states of data.

        Args:
            data: (n, ...) float32 or float64, in the data's own range.
            condition: What the network is conditioned on, each (n, ...).

        Raises:
            ValueError: Data outside the support of the model.
        """

    @abstractmethod
    def velocity(self, state: Tensor, noise_level: Tensor, condition: dict[str, Tensor]) -> Tensor:
        """Return dy/dl.

        Args:
            state: (n, d) float64.
            noise_level: (n,) float64, on the CPU.
            condition: As of ``FlowStart``.

        Returns:
            (n, d) float64, differentiable in the state.
        """

    @abstractmethod
    def log_prior(self, state: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        """Return (n,) float64, the log-density of states (n, d) at the largest noise level."""

    def lower_bound(
        self,
        data: Tensor,
        condition: Mapping[str, Tensor],
        stream: Tensor,
        draw: int,
        draws: int,
    ) -> Tensor:
        """Return one estimate of the evidence lower bound (ELBO) of log p(x), (n,) float64.

        Args:
            data: As of ``start``.
            condition: As of ``start``.
            stream: The noise stream, on the CPU.
            draw: 0 .. draws - 1, part of the noise counter.
            draws: Samples of the noise; their noise levels are stratified, so that the mean over
                all of them is unbiased, and one of several is not.

        Raises:
            TypeError: The family defines none.
            ValueError: Data outside the support of the model.
        """
        raise TypeError(
            f"the flow must have an evidence lower bound, got a {type(self).__name__}: override "
            "ProbabilityFlow.lower_bound"
        )
