"""Rotation: norm-preserving diffusion by skew-symmetric noise (MSGM, "Multiplicative Diffusion Models", ICLR 2026).

    dx = sqrt(beta(t)) G(x) o dW    (Stratonovich),    G(x) = (G^1 x, .., G^m x), every G^k skew, so |x| never changes,

with a clock B(t) = int_0^t beta. In Ito form the drift is beta L x, L = 1/2 sum_k G^k G^k, normalised to tr L = -d/2:

    isotropic   c (E_ij - E_ji), i < j, c^2 = 1 / (d - 1): G G^T = (|x|^2 I - x x^T) / (d - 1), L = -I/2; the direction
                is Brownian motion on the sphere, run for the time B / (d - 1)
    ring        (E_k,k+1 - E_k+1,k) / sqrt 2, k mod d: the authors' sparse tensor; L = -I/2
    dense       independent normals, made skew: the authors' tensor of d^3 numbers

Reversed, with noise level 1 - lambda (lambda 0 the reverse SDE, 1 the probability flow), per unit of the clock:

    dx = (1 - lambda/2) G G^T score + sqrt(1 - lambda) G o dW    (Stratonovich; the Ito drift is (1 - lambda) L x more)
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from fastmsgm import heat_kernel, ops, rng
from fastmsgm.angle_table import CLOCK_MAX, angle_table
from fastmsgm.checks import check_floating_point
from fastmsgm.clock import LinearClock

NOISES = ("isotropic", "ring", "dense")
CLOCK_LIMIT = 700.0  # beyond it e^-B leaves the float64 numbers
DENSE_BYTES = 2**31  # the largest tensor of generators, float32


@dataclass(frozen=True)
class Rotation(LinearClock):
    """Norm-preserving diffusion for t in [0, 1], beta linear in t.

    Args:
        noise: "isotropic", "ring" or "dense".
        seed: of the dense tensor.
        beta_min, beta_max: beta at t = 0 and t = 1. Samplers start from uniform directions, which the data reach at
            clocks of about log d + 5 (isotropic noise) or d^2 / 4 (ring); the default reaches 10.05.

    Raises:
        ValueError: an unknown noise, a beta that is not positive and finite, or a clock beyond 700 at t = 1.
    """

    noise: str = "isotropic"
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.noise not in NOISES:
            raise ValueError(f"noise must be one of {', '.join(NOISES)}, got {self.noise!r}")
        if self.clock_max > CLOCK_LIMIT:
            raise ValueError(
                f"the clock at t = 1 must be at most {CLOCK_LIMIT:g}, got {self.clock_max:g}: lower beta_max"
            )

    # ---- the noise, on x (n, d) and per unit of the clock ----

    def turn(self, x: Tensor, w: Tensor) -> Tensor:
        """G(x) w for w (n, d). Isotropic noise takes d normals instead of d (d - 1) / 2: the same law."""
        if self.noise == "isotropic":
            return self._tangent(x, w) * x.norm(dim=1, keepdim=True) / math.sqrt(x.shape[1] - 1)
        if self.noise == "ring":
            turned = x.roll(-1, 1) * w
            return (turned - (x * w).roll(1, 1)) / math.sqrt(2)
        return torch.einsum("ijk,nj,nk->ni", self._generators(x), x, w)

    def turn_transposed(self, x: Tensor, v: Tensor) -> Tensor:
        """G(x)^T v for v (n, d): what the noise sees of a direction."""
        if self.noise == "isotropic":
            return self.turn(x, v)
        if self.noise == "ring":
            return (x.roll(-1, 1) * v - x * v.roll(-1, 1)) / math.sqrt(2)
        return torch.einsum("ijk,nj,ni->nk", self._generators(x), x, v)

    def covariance(self, x: Tensor, v: Tensor) -> Tensor:
        """G(x) G(x)^T v."""
        return self.turn(x, self.turn_transposed(x, v))

    def ito_drift(self, x: Tensor) -> Tensor:
        """L x, the forward drift in Ito form; the divergence of G G^T is 2 L x."""
        return x @ self._ito_matrix(x) if self.noise == "dense" else -x / 2

    def reverse_drift(self, x: Tensor, score: Tensor, lambda_: float = 0.0, ito: bool = False) -> Tensor:
        """The drift of the reversed process, towards the data, for the score of x (n, d) and 0 <= lambda_ <= 1.

        Raises:
            ValueError: lambda_ is out of range.
        """
        if not 0 <= lambda_ <= 1:
            raise ValueError(f"lambda_ must be in [0, 1] (0 the SDE, 1 the ODE), got {lambda_!r}")
        drift = (1 - lambda_ / 2) * self.covariance(x, score)
        return drift + (1 - lambda_) * self.ito_drift(x) if ito else drift

    # ---- forward ----

    def perturb(self, x0: Tensor, t: Tensor, *, seed: int = 0, start: int = 0, steps: int = 128) -> Tensor:
        """Draw x_t given x_0: in one shot by the heat kernel for isotropic noise, else by ``simulate``.

        Args:
            x0: (n, ...) float32, no zero vectors.
            t: (n,) times in [0, 1].
            seed, start: the noise stream and the global index of the first row.
            steps: of the simulation.

        Returns:
            x_t, like x0, with its norms.

        Raises:
            TypeError, ValueError: x0 holds zero vectors or non-finite values, or t has another shape or range.
        """
        check_directions("x0", x0)
        if x0.dtype != torch.float32:
            raise TypeError(f"x0 must be float32, got {x0.dtype}: convert it with .float()")
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise ValueError(f"steps must be an int, at least 1, got {steps!r}")
        if not isinstance(t, Tensor):
            raise TypeError(f"t must be a tensor of shape ({x0.shape[0]},), got {type(t).__name__}")
        wrong = ~((t >= 0) & (t <= 1))
        if t.shape != x0.shape[:1] or bool(wrong.any()):
            got = tuple(t.shape) if t.shape != x0.shape[:1] else float(t[wrong][0])
            raise ValueError(f"t must have shape ({x0.shape[0]},) and values in [0, 1], got {got}")
        clocks, stream = self.clock(t.detach().double().cpu().numpy()), rng.stream(seed, start, x0.device)
        rows = x0.reshape(x0.shape[0], -1).contiguous()
        norms = rows.norm(dim=1, keepdim=True)
        return (norms * self.noised(rows / norms, clocks, stream, 0, steps)).view_as(x0)

    def noised(self, u0: Tensor, clocks: NDArray[np.float64], stream: Tensor, step: int, steps: int) -> Tensor:
        """Directions u0 (n, d) after a clock each, (n,): in one shot for isotropic noise, else simulated in ``steps``.

        ``stream`` and ``step`` are the noise's address, the stream on the device of u0.
        """
        if self.noise != "isotropic":
            return self.simulate(u0, clocks, stream, step, steps)
        return self.one_shot(u0, clocks, stream, step)

    def one_shot(
        self, x0: Tensor, clocks: NDArray[np.float64], stream: Tensor, step: int, *, net_in: Tensor | None = None,
        c_in: float = 1.0, target: Tensor | None = None, scale: ArrayLike = 1.0,
    ) -> Tensor:  # fmt: skip
        """The direction of x_t given x_0 (n, ...), a clock each, (n,), by the heat kernel: for isotropic noise alone.

        Args:
            net_in: like x0, in the network's dtype, or None; receives c_in times the direction.
            target: like x0, or None; receives the score of the direction times scale / kappa, scale one or (n,).
        """
        if math.prod(x0.shape[1:]) == 2:
            u_t, score = _turn_in_the_plane(x0, clocks, stream, step)
            if net_in is not None:
                net_in.copy_(c_in * u_t)
            if target is not None:
                factor = torch.from_numpy(np.broadcast_to(scale, clocks.shape).copy()).to(x0.device, x0.dtype)
                target.copy_(factor.view(-1, *[1] * (x0.ndim - 1)) * score)
            return u_t
        u_t, angles = torch.empty_like(x0), angle_table(math.prod(x0.shape[1:]))
        columns = np.broadcast_arrays(angles.row(clocks), -np.expm1(-clocks / 2), scale, c_in)
        coefficients = torch.from_numpy(np.stack(columns, axis=1)).to(x0.device, torch.float32)
        table = angles.on(x0.device)
        ops.rotation_perturb_(x0, coefficients, table, stream, step, u_t=u_t, net_in=net_in, target=target)
        return u_t

    def simulate(self, x0: Tensor, clocks: NDArray[np.float64], stream: Tensor, step: int, steps: int) -> Tensor:
        """Run the noise forwards from x0 (n, d) for a clock each, (n,), norms kept, by the classical Runge-Kutta method
        (Stratonovich). With Heun's the mean decays 3 to 9 % too fast at 64 steps; with this by less than 1 %.

        Step k has its normals at the noise address ``step * steps + k``.
        """
        n, d = x0.shape
        width = torch.from_numpy(np.sqrt(clocks / steps)).to(x0.device, x0.dtype)[:, None]
        norms, x, xi = x0.norm(dim=1, keepdim=True), x0, torch.empty(n, d, device=x0.device)
        for k in range(steps):
            ops.fill_normal_(xi, stream, rng.Kind.TRAINING_NOISE, step * steps + k)
            w = width * xi
            first = self.turn(x, w)
            second = self.turn(x + first / 2, w)
            third = self.turn(x + second / 2, w)
            x = x + (first + 2 * (second + third) + self.turn(x + third, w)) / 6
            x = x * (norms / x.norm(dim=1, keepdim=True))
        return x

    # ---- the dense tensor ----

    def _tangent(self, x: Tensor, v: Tensor) -> Tensor:
        return v - (v * x).sum(1, keepdim=True) / (x * x).sum(1, keepdim=True) * x

    def _generators(self, x: Tensor) -> Tensor:
        return _dense_generators(x.shape[1], self.seed, x.dtype, x.device)

    def _ito_matrix(self, x: Tensor) -> Tensor:
        g = self._generators(x)
        return torch.einsum("ijk,jlk->il", g, g) / 2


def check_dense(d: int) -> None:
    """Raise where the d^3 numbers of the dense tensor would not fit."""
    if 4 * d**3 > DENSE_BYTES:
        raise ValueError(
            f'noise="dense" keeps d^3 numbers, {4 * d**3 / 2**30:.1f} GiB for d = {d} (at most '
            f'{DENSE_BYTES / 2**30:g} GiB): use "isotropic" or "ring"'
        )


@functools.lru_cache(maxsize=4)
def _dense_generators(d: int, seed: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(d, d, d): G^k = [:, :, k], skew, of squared norm d in all, so that tr L = -d/2."""
    check_dense(d)
    g, square = torch.empty(d, d, d, dtype=dtype), 0.0
    for i in range(d):  # row by row: the normals' own memory is many times theirs
        g[i] = rng.normals(1, d * d, rng.stream(seed, i), rng.Kind.PRIOR, 2**32 - 1, torch.float64).view(d, d)
    for i in range(d):
        g[i, i] = 0
        g[i, i + 1 :] -= g[i + 1 :, i]
        g[i + 1 :, i] = -g[i, i + 1 :]
        square += 2 * float(g[i, i + 1 :].double().square().sum())
    return g.mul_(math.sqrt(d / square)).to(device)


def _turn_in_the_plane(x0: Tensor, clocks: NDArray[np.float64], stream: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """d = 2, where the angle is a normal of variance B, wrapped: u_t, and its score over kappa, both like x0 (n, ..).

    No table: float32 has no digits left in 1 - cos(angle) near the antipode, which here is as likely as other places.
    The score is the mean of the angle's images, given the place, over B.
    """
    normal = rng.normals(len(x0), 1, stream.cpu(), rng.Kind.TRAINING_ANGLE, step, torch.float64).numpy()
    angle = np.sqrt(clocks)[:, None] * normal
    variance = np.clip(clocks, 1e-300, CLOCK_MAX)[:, None]  # beyond, the score is that of the last row
    nearest = np.remainder(angle + math.pi, 2 * math.pi) - math.pi
    images = nearest + 2 * math.pi * np.arange(-8, 9)
    weights = np.exp((nearest**2 - images**2) / (2 * variance))
    pull = (weights * images).sum(1, keepdims=True) / weights.sum(1, keepdims=True) / variance
    numbers = np.stack((np.cos(angle), np.sin(angle), pull / heat_kernel.kappa(variance, 2)))
    cos, sin, back = torch.from_numpy(numbers).to(x0.device, x0.dtype).unbind()
    u0 = x0.reshape(-1, 2) / x0.reshape(-1, 2).norm(dim=1, keepdim=True)
    side = torch.stack((-u0[:, 1], u0[:, 0]), dim=1)
    return (cos * u0 + sin * side).view_as(x0), (back * (sin * u0 - cos * side)).view_as(x0)


def check_directions(name: str, x: Tensor) -> None:
    """Raise where x has no directions to rotate: integers, NaN or infinity, one feature, zero vectors."""
    check_floating_point(name, x)
    if x.ndim < 2 or x.shape[0] < 1 or math.prod(x.shape[1:]) < 2:
        raise ValueError(f"{name} must have shape (n, ...) with n >= 1 and at least 2 features, got {tuple(x.shape)}")
    if not bool(torch.isfinite(x).all()):
        raise ValueError(f"{name} must be finite, got NaN or infinity in {int((~torch.isfinite(x)).sum())} entries")
    norms = x.reshape(x.shape[0], -1).norm(dim=1)
    if not bool(torch.isfinite(norms).all()):
        raise ValueError(
            f"{name} must have norms whose squares {x.dtype} can hold, got entries of up to {float(x.abs().max()):g}: "
            "scale the data"
        )
    zero = norms < torch.finfo(torch.float32).tiny ** 0.5
    if bool(zero.any()):
        raise ValueError(
            f"{name} must have no zero vectors, got {int(zero.sum())}: they have no direction. Leave them out, or "
            "shift the data with offset=..."
        )
