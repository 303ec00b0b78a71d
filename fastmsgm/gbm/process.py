"""GBM: geometric Brownian motion, dX = mu X dt + sigma X dW (Ito), feature by feature.

In logarithms it is Brownian motion with a constant drift: for y = log|x|,

    x_t = x_0 exp(shift(t) + s(t) z),   s(t) = sigma sqrt(t),   shift(t) = (mu - sigma^2 / 2) t,

with z ~ N(0, I), so signs are kept and s, the standard deviation of the log-noise, is the noise
level. The paper ("Dale meets Langevin", arXiv 2510.02730) takes sigma = 0.8 and mu = sigma^2 / 2,
which makes the shift zero. A large sigma (10 to 12 for 28 x 28 images) reaches a noise level at
which the noised data are nearly log-normal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastmsgm import ops, rng
from fastmsgm.checks import check_floating_point, check_times, is_number, positive
from fastmsgm.constants import TINY

LARGEST_NORMAL = 6.77  # |z| of the noise stream never exceeds it
LARGEST_LOG = 86.0  # its exponential is still a float32


@dataclass(frozen=True)
class GBM:
    """Geometric Brownian motion up to time T.

    Args:
        sigma: Volatility, > 0. With T = 1 it is the largest noise level.
        mu: Drift; None means sigma^2 / 2, which leaves log x without drift.
        T: Final time, > 0.

    Raises:
        ValueError: sigma or T is not a positive number, or the noise at level sigma sqrt(T) or the
            drift overflows float32.
    """

    sigma: float
    mu: float | None = None
    T: float = 1.0

    def __post_init__(self) -> None:
        for name in ("sigma", "T"):
            object.__setattr__(self, name, positive(name, getattr(self, name)))
        if self.mu is not None:
            if not is_number(self.mu):
                raise ValueError(
                    f"mu must be a finite number or None (sigma^2 / 2), got {self.mu!r}"
                )
            object.__setattr__(self, "mu", float(self.mu))
        self.check_range(variance=0.0)
        largest = LARGEST_LOG - LARGEST_NORMAL * self.sigma_max
        if abs(self.log_drift) * self.T >= largest:
            raise ValueError(
                f"mu must keep |mu - sigma^2 / 2| T below {largest:.3g}, or states overflow "
                f"float32, got mu={self.mu!r}"
            )

    @property
    def sigma_max(self) -> float:
        """The noise level at time T."""
        return self.sigma * math.sqrt(self.T)

    @property
    def log_drift(self) -> float:
        """mu - sigma^2 / 2, the drift of log|x|."""
        driftless = self.sigma**2 / 2
        if self.mu is None or math.isclose(self.mu, driftless, rel_tol=1e-9):
            return 0.0
        return self.mu - driftless

    def marginal_std(self, t: Tensor) -> Tensor:
        """Return the noise level s at times t: the standard deviation of log x_t given x_0."""
        return self.sigma * torch.sqrt(t)

    def time(self, s: Tensor) -> Tensor:
        """Return the times at which the noise level is s."""
        return (s / self.sigma) ** 2

    def check_range(self, variance: float) -> None:
        """Raise ValueError where noise on data of this log-variance would overflow float32."""
        largest = (LARGEST_LOG / LARGEST_NORMAL) ** 2 - variance
        root = math.sqrt(max(largest, 0.0))
        if self.sigma_max >= root:
            allowed = math.floor(1000 * root) / 1000  # rounded down, so that it passes itself
            remedy = (
                "lower sigma" if allowed else "compress the data, whose spread alone is too wide"
            )
            raise ValueError(
                f"sigma sqrt(T) must be below {allowed:g} for data of log-variance "
                f"{variance:.3g}, or states overflow float32; got {self.sigma_max:.6g}: {remedy}"
            )

    def perturb(self, x0: Tensor, t: Tensor, *, seed: int = 0, start: int = 0) -> Tensor:
        """Sample x_t given x_0; the same seed and start give the same noise.

        Args:
            x0: (n, ...) float32, no zeros.
            t: (n,) times in [0, T].
            seed: Seed of the noise stream.
            start: Global index of the first sample.

        Returns:
            x_t, like x0; differentiable in x0 and t, at the same noise.

        Raises:
            TypeError: x0 is not a float32 tensor, or t not a tensor.
            ValueError: x0 holds zeros or non-finite values, or t has another shape or range.

        Example:
            >>> x0 = torch.ones(2, 3)
            >>> x_t = GBM(sigma=0.8).perturb(x0, torch.tensor([0.0, 1.0]), seed=1)
            >>> x_t[0].tolist(), bool((x_t > 0).all())
            ([1.0, 1.0, 1.0], True)
        """
        check_multiplicative("x0", x0)
        t = check_times(t, x0.shape[0], self.T).to(device=x0.device, dtype=torch.float32)
        stream = rng.stream(seed, start, x0.device)
        if torch.is_grad_enabled() and (x0.requires_grad or t.requires_grad):
            return _Perturb.apply(x0, t, self, stream)[0]
        x_t = torch.empty_like(x0)
        self._perturb(x0, t, stream, x_t, None)
        return x_t

    def _perturb(
        self, x0: Tensor, t: Tensor, stream: Tensor, x_t: Tensor, z: Tensor | None
    ) -> None:
        """Fill x_t and z, the normals."""
        columns = (self.log_drift * t, self.marginal_std(t), torch.ones_like(t))
        ops.gbm_perturb_(
            x0,
            torch.stack(columns, dim=1),
            stream,
            rng.Purpose.TRAINING_NOISE,
            0,
            x_t=x_t,
            model_input=None,
            z=z,
        )


class _Perturb(torch.autograd.Function):
    """``GBM.perturb`` with its gradient; also returns the normals.

    With x_t = x_0 exp(log_drift t + sigma sqrt(t) z), dx_t / dx_0 = x_t / x_0 and
    dx_t / dt = x_t (log_drift + sigma z / (2 sqrt(t))).
    """

    @staticmethod
    def forward(x0: Tensor, t: Tensor, process: GBM, stream: Tensor) -> tuple[Tensor, Tensor]:
        x_t, z = torch.empty_like(x0), torch.empty_like(x0)
        process._perturb(x0, t, stream, x_t, z)
        return x_t, z

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x0, t, ctx.process, _ = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(x0, t, *output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x0, t, x_t, z = ctx.saved_tensors
        gradient = gradients[0] * x_t
        rate = ctx.process.log_drift + ctx.process.sigma * z / (
            2 * torch.sqrt(t).view(-1, *[1] * (x0.ndim - 1))
        )
        return (
            gradient / x0 if ctx.needs_input_grad[0] else None,
            (gradient * rate).flatten(1).sum(1) if ctx.needs_input_grad[1] else None,
            None,
            None,
        )


def check_multiplicative(name: str, x: Tensor) -> None:
    """Raise where x cannot be noised by multiplication.

    Raises:
        TypeError: x is not a tensor of floating point.
        ValueError: It has no features, or holds NaN, infinity, zeros or subnormal numbers.
    """
    check_floating_point(name, x)
    if x.ndim < 2 or x.numel() == 0:
        raise ValueError(
            f"{name} must have shape (n, ...) with n >= 1 and features, got {tuple(x.shape)}"
        )
    x = x.float()
    if not bool(torch.isfinite(x).all()):
        wrong = int((~torch.isfinite(x)).sum())
        raise ValueError(
            f"{name} must be finite, got NaN or infinity in {wrong} entries, taken as float32"
        )
    zero = x.abs() < TINY
    if bool(zero.any()):
        share = float(zero.float().mean())
        raise ValueError(
            f"{name} must have no zeros, got {share:.2%}: multiplication never leaves zero "
            "(numbers below 1.2e-38 count as zeros). Shift the data, as offset=1.0 does for "
            "images in [0, 1]; for data of both signs use a Rotation model"
        )
