"""FunctionRotation: a rotation model around any function.

The function sees x itself, of norm r, and ``fastmsgm/function.py`` says what it predicts. Only the
part orthogonal to x counts, since norms do not change. The family's network predicts sqrt(d) n,
where rho n is the score of the direction u = x / r, and D = alpha u + sigma n = x_hat / r is the
denoised direction. The score of the direction is r times that of x, and terms along x drop out:

    n = r / rho score = x_hat / (sigma r) = -epsilon / (alpha r) = -v / r

For isotropic noise x_hat is nearly the posterior mean of x_0. For ring and dense noise it is what
these formulas make of the score.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastmsgm.adapter import INDICES, FunctionNet
from fastmsgm.rotation.model import RotationModel
from fastmsgm.rotation.prior import RadialPrior
from fastmsgm.rotation.process import Rotation

LARGEST = torch.finfo(torch.float32).max
# At larger integrated betas alpha x_0 is below the last digit of x_t in float32.
EPSILON_B_MAX = -2 * math.log(torch.finfo(torch.float32).eps)


class RotationFunctionNet(FunctionNet):
    """Gives a function x and its time, and turns what it predicts into the network's output.

    Args:
        f: As of ``FunctionNet``.
        prediction: As of ``FunctionNet``.
        time: As of ``FunctionNet``.
        process: The forward process.
        d: Number of features of a sample.
    """

    def __init__(
        self, f: Callable[..., Any], prediction: str, time: str, process: Rotation, d: int
    ) -> None:
        super().__init__(f, prediction, time)
        self.process, self.d = process, d

    def forward(
        self, x: Tensor, c_noise: Tensor, *, log_norm: Tensor, **condition: Tensor
    ) -> Tensor:
        """Return sqrt(d) n for scaled directions x (n, ...) and natural log-norms (n,)."""
        B = torch.exp(3 * c_noise - 3)
        r, alpha, sigma = torch.exp(log_norm), torch.exp(-B / 2), torch.sqrt(-torch.expm1(-B))
        root = math.sqrt(self.d)
        axes = (-1, *[1] * (x.ndim - 1))
        x = x * (r / root).view(axes)
        predicted = self.call(x, self._time(B, sigma), condition)
        if self.prediction == "hyvarinen":
            predicted = torch.where(x == 0, 0.0, predicted / x)
        if self.prediction == "denoised":
            factor = 1 / (sigma * r)
        elif self.prediction == "epsilon":
            factor = -1 / (alpha * r)
        elif self.prediction == "v":
            factor = -1 / r
        else:
            factor = r * sigma / (alpha * (self.d - 1))
        return predicted * (root * factor).clamp(-LARGEST, LARGEST).view(axes)

    def _time(self, B: Tensor, sigma: Tensor) -> Tensor:
        """Return the noise level as the function gets it; see ``Rotation.time``."""
        if self.time == "sigma":
            return sigma
        if self.time == "log_sigma":
            return torch.log(sigma)
        low, high = self.process.beta_min, self.process.beta_max
        beta = torch.sqrt((low**2 + 2 * (high - low) * B).clamp(min=0))
        t = (2 * B / (low + beta)).clamp(max=1)
        return t if self.time == "t" else INDICES * t


class FunctionRotation(RotationModel):
    """A model whose network is a user's function.

    Args:
        f: Function f(x, time, **condition) -> like x.
        process: The forward process.
        prior: The distribution of the norms; None makes them 1.
        shape: Shape of one sample.
        prediction: What f predicts; see ``fastmsgm.function``.
        time: How f gets the noise level; see ``fastmsgm.function``.

    Raises:
        TypeError: f is not callable, or another argument of the wrong type.
        ValueError: An unknown prediction or time, a shape with fewer than 2 features, or
            "epsilon" for a process that ends where it holds no digit of the data.
    """

    def __init__(
        self,
        f: Callable[..., Any],
        process: Rotation,
        prior: RadialPrior | None,
        *,
        shape: tuple[int, ...],
        prediction: str,
        time: str,
    ) -> None:
        if prediction == "epsilon" and process.B_max > EPSILON_B_MAX:
            raise ValueError(
                'prediction must not be "epsilon" for a process whose integrated beta ends above '
                f"{EPSILON_B_MAX:.1f}, where it holds no digit of the data in float32, got "
                f"{process.B_max:g}: lower beta_max, or let f predict a score or v"
            )
        zero = torch.zeros(1, dtype=torch.float32, device="cpu")
        super().__init__(
            RotationFunctionNet(f, prediction, time, process, math.prod(shape)),
            process,
            RadialPrior(zero) if prior is None else prior,
            shape=shape,
            objective="dsm" if process.noise == "isotropic" else "ssm",
        )

    def condition_of(self, norms: Tensor) -> dict[str, Tensor]:
        """Return the natural log-norm, (n,) float32, as "log_norm"."""
        return {"log_norm": torch.log(norms)}
