"""GBM: the geometric-Brownian-motion process, dX = mu X dt + sigma X dW (Ito), feature by feature.

In logarithms it is Brownian motion with a constant drift: for y = log|x|,

    x_t = x_0 exp(shift(t) + s(t) z),   s(t) = sigma sqrt(t),   shift(t) = (mu - sigma^2 / 2) t,   z ~ N(0, I),

so the noise level s, the standard deviation of the log-noise, is the natural clock, and signs are kept. The paper
("Dale meets Langevin", arXiv 2510.02730) takes sigma = 0.8 and mu = sigma^2 / 2, which makes the shift zero; a large
sigma (10 to 12 for 28 x 28 images) reaches a level at which the noised data truly are log-normal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastmsgm import ops, rng
from fastmsgm.checks import check_floating_point, is_number, positive

LARGEST_NORMAL = 6.77  # |z| of the stream never exceeds it
LARGEST_LOG = 86.0  # exp of it is still a float32


@dataclass(frozen=True)
class GBM:
    """Geometric Brownian motion up to time T.

    Args:
        sigma: volatility, > 0. With T = 1 it is the largest noise level.
        mu: drift; None means sigma^2 / 2, the driftless choice in logarithms.
        T: final time, > 0.

    Raises:
        ValueError: sigma or T is not a positive number, or the noise at level sigma sqrt(T) or the drift overflows
            float32.
    """

    sigma: float
    mu: float | None = None
    T: float = 1.0

    def __post_init__(self) -> None:
        for name in ("sigma", "T"):
            object.__setattr__(self, name, positive(name, getattr(self, name)))
        if self.mu is not None:
            if not is_number(self.mu):
                raise ValueError(f"mu must be a finite number or None (sigma^2 / 2), got {self.mu!r}")
            object.__setattr__(self, "mu", float(self.mu))
        self.check_range(variance=0.0)
        room = LARGEST_LOG - LARGEST_NORMAL * self.sigma_max
        if abs(self.drift) * self.T >= room:
            raise ValueError(
                f"mu must keep |mu - sigma^2 / 2| T below {room:.3g}, or states overflow float32, got mu={self.mu!r}"
            )

    @property
    def sigma_max(self) -> float:
        """The noise level at time T."""
        return self.sigma * math.sqrt(self.T)

    @property
    def drift(self) -> float:
        """mu - sigma^2 / 2, the drift of log|x|."""
        driftless = self.sigma**2 / 2
        return 0.0 if self.mu is None or math.isclose(self.mu, driftless, rel_tol=1e-9) else self.mu - driftless

    def s(self, t: Tensor) -> Tensor:
        """Noise level at time t."""
        return self.sigma * torch.sqrt(t)

    def t(self, s: Tensor) -> Tensor:
        """Time at which the noise level is s."""
        return (s / self.sigma) ** 2

    def check_range(self, variance: float) -> None:
        """Raise ValueError where noise on data of this largest log-variance would leave float32."""
        largest = (LARGEST_LOG / LARGEST_NORMAL) ** 2 - variance
        root = math.sqrt(max(largest, 0.0))
        if self.sigma_max >= root:
            allowed = math.floor(1000 * root) / 1000  # rounded down: what is named passes
            remedy = "lower sigma" if allowed else "compress the data, whose spread alone is too wide"
            raise ValueError(
                f"sigma sqrt(T) must be below {allowed:g} for data of log-variance {variance:.3g}, or states "
                f"overflow float32; got {self.sigma_max:.6g}: {remedy}"
            )

    def perturb(self, x0: Tensor, t: Tensor, *, seed: int = 0, start: int = 0) -> Tensor:
        """Draw x_t given x_0.

        Args:
            x0: (n, ...) float32, no zeros.
            t: (n,) times in [0, T].
            seed, start: the noise stream and the global index of the first row.

        Returns:
            x_t, like x0.

        Raises:
            TypeError, ValueError: x0 is not float32, holds zeros or non-finite values, or t has another shape or range.
        """
        check_multiplicative("x0", x0)
        if not isinstance(t, Tensor):
            raise TypeError(f"t must be a tensor of shape ({x0.shape[0]},), got {type(t).__name__}")
        wrong = ~((t >= 0) & (t <= self.T))
        if t.shape != x0.shape[:1] or bool(wrong.any()):
            got = tuple(t.shape) if t.shape != x0.shape[:1] else float(t[wrong][0])
            raise ValueError(f"t must have shape ({x0.shape[0]},) and values in [0, {self.T}], got {got}")
        t = t.to(device=x0.device, dtype=torch.float32)
        coefficients = torch.stack((self.drift * t, self.s(t), torch.ones_like(t)), dim=1)
        x_t = torch.empty_like(x0)
        noise = rng.stream(seed, start, x0.device)
        ops.gbm_perturb_(x0, coefficients, noise, rng.Kind.TRAINING_NOISE, 0, x_t=x_t, net_in=None, z=None)
        return x_t


def check_multiplicative(name: str, x: Tensor) -> None:
    """Raise where x cannot be noised by multiplication: integers, NaN or infinity, zeros (or subnormal numbers)."""
    check_floating_point(name, x)
    if x.ndim < 2 or x.numel() == 0:
        raise ValueError(f"{name} must have shape (n, ...) with n >= 1 and features, got {tuple(x.shape)}")
    x = x.float()
    if not bool(torch.isfinite(x).all()):
        wrong = int((~torch.isfinite(x)).sum())
        raise ValueError(f"{name} must be finite, got NaN or infinity in {wrong} entries, taken as float32")
    zero = x.abs() < torch.finfo(torch.float32).tiny
    if bool(zero.any()):
        share = float(zero.float().mean())
        raise ValueError(
            f"{name} must have no zeros, got {share:.2%}: multiplication never leaves zero (numbers below "
            "1.2e-38 count as such). Shift the data away from it, as offset=1.0 does for images in [0, 1]"
        )
