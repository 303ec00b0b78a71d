"""VP: ordinary, additive diffusion in the same clothes as ``Rotation``, the baseline that both papers compare with.

    dx = -beta(t) x / 2 dt + sqrt(beta(t)) dW,    x_t = e^{-B/2} x_0 + sqrt(1 - e^{-B}) z    (Song et al., 2021, VP-SDE)

with the clock B(t) = int_0^t beta, beta linear in t. Its latent is N(0, I), whose tails are lighter than those of many
data: that is what it is here to show.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastmsgm import heat_kernel, rng
from fastmsgm.clock import LinearClock
from fastmsgm.model import ScoreModel


@dataclass(frozen=True)
class VP(LinearClock):
    """The variance-preserving process for t in [0, 1]; arguments and methods as those of ``Rotation``."""

    def turn(self, x: Tensor, w: Tensor) -> Tensor:
        """The noise at x (n, d): w itself."""
        return w

    def turn_transposed(self, x: Tensor, v: Tensor) -> Tensor:
        """What the noise sees of a direction: all of it."""
        return v

    def reverse_drift(self, x: Tensor, score: Tensor, lambda_: float = 0.0, ito: bool = False) -> Tensor:
        """x / 2 + (1 - lambda / 2) score, per unit of the clock; for additive noise Ito and Stratonovich are one."""
        return x / 2 + (1 - lambda_ / 2) * score


class VPModel(ScoreModel):
    """A score network of the variance-preserving process: it sees x and (log B + 3) / 3, and gives -sigma score.

    Args:
        net: module f(x, c) -> like x, with c of shape (n,).
        process: the forward process.
        centre, scale: (1, ...) mean and standard deviation of the data; the process sees (data - centre) / scale.
        precision: see ``ScoreModel``.
    """

    centre: Tensor
    scale: Tensor

    def __init__(self, net: nn.Module, process: VP, centre: Tensor, scale: Tensor, precision: str = "fp32") -> None:
        super().__init__(net, 0.0, None, precision)
        self.process = process
        self.register_buffer("centre", centre)
        self.register_buffer("scale", scale)

    @classmethod
    def for_data(cls, net: nn.Module, process: VP, data: Tensor, *, precision: str = "fp32") -> VPModel:
        """A model that standardises every feature of ``data`` (n, ...).

        Raises:
            ValueError: data of infinite or no spread.
        """
        centre, scale = data.mean(0, keepdim=True), data.std(0, correction=0, keepdim=True)
        if not bool((torch.isfinite(scale) & (scale > 0)).all()):
            raise ValueError("data must be finite and vary in every feature, since each is divided by its deviation")
        return cls(net, process, centre, scale, precision)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.scale.shape[1:])

    @property
    def input_dtype(self) -> torch.dtype:
        return torch.float32

    @property
    def input_scale(self) -> float:
        """The network sees this times the state."""
        return 1.0

    def condition(self, clocks: NDArray[np.float64], norms: Tensor) -> Tensor:
        """The network's conditioning number, (n,), of clocks (n,) or of one for all; the norms do not count."""
        level = np.broadcast_to((np.log(clocks) + 3) / 3, len(norms)).astype(np.float32)
        return torch.from_numpy(level).to(norms.device)

    def score(self, f: Tensor, clocks: NDArray[np.float64]) -> Tensor:
        """The score of the state from the network's output, both (n, d)."""
        return -f / torch.from_numpy(heat_kernel.sigma(clocks)).to(f.device, torch.float32).reshape(-1, 1)

    def noised(self, x0: Tensor, clocks: NDArray[np.float64], stream: Tensor, step: int) -> Tensor:
        """x_t of x0 (n, d), a clock each."""
        alpha, sigma = (
            torch.from_numpy(part(clocks)).to(x0.device, torch.float32)[:, None]
            for part in (heat_kernel.alpha, heat_kernel.sigma)
        )
        n, d = x0.shape
        return alpha * x0 + sigma * rng.normals(n, d, stream, rng.Kind.TRAINING_NOISE, step)

    def to_state(self, data: Tensor) -> Tensor:
        return ((data - self.centre) / self.scale).contiguous()

    def to_data(self, state: Tensor) -> Tensor:
        return state * self.scale + self.centre

    def check_states(self, states: Tensor) -> None:
        if not bool(torch.isfinite(states).all()):
            raise ValueError("data must be finite, got NaN or infinity")

    def config(self) -> dict[str, Any]:
        return {"process": {"name": "VP", **asdict(self.process)}, "shape": self.shape}

    @classmethod
    def from_config(cls, net: nn.Module, config: dict[str, Any], weights: dict[str, Tensor]) -> VPModel:
        """The model of a checkpoint, before its network has its weights."""
        process = VP(**{k: v for k, v in config["process"].items() if k != "name"})
        return cls(net, process, weights["centre"], weights["scale"], config["precision"])
