"""The heat kernel of the sphere S^{d-1}: Brownian motion's angle law, its score, and the tables that kernels look up.

After a clock B, that is a time tau = B / (d - 1), Brownian motion from u_0 (generator Laplacian / 2) is at

    u = cos(theta) u_0 + sin(theta) w,   w a uniform unit tangent at u_0,   E[u | u_0] = e^{-B/2} u_0,

with theta of density f = k(theta, tau) sin^{d-2}(theta) Gamma(d/2) / (sqrt(pi) Gamma((d-1)/2)), k the heat kernel
relative to the uniform law. Its score at u is W(theta, tau) P_u u_0, W = -(d log k / d theta) / sin(theta) > 0.
``log_kernel`` evaluates both, at any d, tau and theta; ``AngleLaw`` integrates and inverts f;
``angle_table`` keeps what training and sampling need of them, over (B, z), theta = F^{-1}(Phi(z)).
"""

from __future__ import annotations

import functools
import logging
import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.polynomial.chebyshev import Chebyshev, chebvander
from numpy.typing import ArrayLike, NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

Array = NDArray[np.float64]

CLOCK_MIN, CLOCK_MAX = 1e-4, 30.0  # of a table's rows; beyond them the limits B -> 0 and B -> inf hold to 1e-4
Z_MAX = 6.0  # of a table's columns; the tails beyond weigh 2e-9
TABLE_VERSION = "v1"  # of the cached files: raise it with any change of what a table holds
_COARSE = 4  # every fourth row and column of a table is computed, cubic interpolation fills in the others
_DEGREE = 160  # of the polynomial that stands for a density
_log = logging.getLogger("fastmsgm")


# ---- the clock ----


def alpha(clock: ArrayLike) -> Array:
    """E[cos theta] = e^{-B/2}."""
    return np.exp(-_clocks(clock) / 2)


def sigma(clock: ArrayLike) -> Array:
    """sqrt(1 - e^{-B}), so that alpha^2 + sigma^2 = 1."""
    return np.sqrt(-np.expm1(-_clocks(clock)))


def kappa(clock: ArrayLike, d: int) -> Array:
    """(d - 1) / (2 sinh(B/2)), the scale of W: score = kappa (D - alpha u) for a prediction D of u_0; inf at B = 0."""
    b = _clocks(clock)
    with np.errstate(divide="ignore"):
        return (_dimension(d) - 1) * np.exp(-b / 2) / -np.expm1(-b)


def rho(clock: ArrayLike, d: int) -> Array:
    """(d - 1) / sqrt(e^B - 1) = kappa sigma, the scale of the score's norm; inf at B = 0."""
    b = _clocks(clock)
    with np.errstate(divide="ignore"):
        return (_dimension(d) - 1) * np.exp(-b / 2) / np.sqrt(-np.expm1(-b))


def Lam(clock: ArrayLike) -> Array:
    """artanh(e^{-B/2}) = -log(tanh(B/4)) / 2, in which the probability flow is du = P_u D dLam; inf at B = 0."""
    return _minus_log_tanh(_clocks(clock) / 4) / 2


def inverse_Lam(value: ArrayLike) -> Array:
    """The clock at which ``Lam`` has this value, >= 0; inf at 0."""
    depth = np.asarray(value, dtype=np.float64)
    if not np.all(depth >= 0):
        raise ValueError(f"Lam must be at least 0, got {depth[~(depth >= 0)][0]}")
    return 2 * _minus_log_tanh(depth)


def _minus_log_tanh(x: Array) -> Array:
    with np.errstate(divide="ignore"):
        return np.where(x < 0.5, -np.log(np.tanh(x)), 2 * np.arctanh(np.exp(-2 * x)))


# ---- the heat kernel ----


def log_kernel(theta: ArrayLike, tau: ArrayLike, d: int) -> tuple[Array, Array]:
    """log k(theta, tau) and W(theta, tau) = -(d log k / d theta) / sin(theta).

    For d = 2 by Jacobi's triple product, for d >= 3 by the integral of ``_sphere``. Both are relatively accurate in
    the tails too, where the eigenfunction series cancels.

    Args:
        theta: angles in [0, pi].
        tau: Brownian times > 0, broadcast against theta.

    Raises:
        TypeError, ValueError: d is not an int, d < 2, or an angle or a time is out of range.
    """
    d = _dimension(d)
    angle, time = np.broadcast_arrays(np.asarray(theta, dtype=np.float64), np.asarray(tau, dtype=np.float64))
    if not np.all((angle >= 0) & (angle <= math.pi)):
        raise ValueError(f"theta must be in [0, pi], got {angle[~((angle >= 0) & (angle <= math.pi))][0]}")
    if not np.all((time > 0) & (time < math.inf)):
        raise ValueError(f"tau must be positive and finite, got {time[~((time > 0) & (time < math.inf))][0]}")
    log_k, w = _circle(angle.ravel(), time.ravel()) if d == 2 else _sphere(angle.ravel(), time.ravel(), d / 2 - 1)
    return log_k.reshape(angle.shape), w.reshape(angle.shape)


def _circle(theta: Array, tau: Array) -> tuple[Array, Array]:
    """d = 2, the wrapped normal: with q = e^{-tau/2}, every factor below is a sum of positive terms.

    k = prod_{n >= 1} (1 - q^{2n}) ((1 - q^{2n-1})^2 + 4 q^{2n-1} cos^2(theta/2)),
    W = sum_{n >= 1} 1 / (cos theta + cosh((2n-1) tau / 2)).
    For tau <= 0.3 the images at theta and theta - 2 pi are all that float64 sees.
    """
    rest = math.pi - theta
    log_k = 0.5 * np.log(2 * math.pi / tau) + np.logaddexp(
        -(theta**2) / (2 * tau), -((math.pi + rest) ** 2) / (2 * tau)
    )
    gap = np.maximum(rest, 1e-300)
    reflected = (math.pi * np.tanh(math.pi * gap / tau) / gap - 1) / np.sinc(gap / math.pi)
    w = np.where(theta < 1.5, 1 / np.sinc(np.minimum(theta, 1.5) / math.pi), reflected) / tau
    wide = tau > 0.3
    if wide.any():
        t, square = tau[wide, None], np.cos(theta[wide, None] / 2) ** 2
        odd = np.arange(1, 2 * math.ceil(40 / t.min()), 2)
        q = np.exp(-odd * t / 2)
        factors = np.log1p(-np.exp(-(odd + 1) * t / 2)) + np.log((1 - q) ** 2 + 4 * q * square)
        log_k[wide] = factors.sum(1)
        w[wide] = (0.5 / (square + np.sinh(np.minimum(odd * t / 4, 300)) ** 2)).sum(1)
    return log_k, w


def _sphere(theta: Array, tau: Array, lam: float) -> tuple[Array, Array]:
    """d >= 3, lam = (d - 2) / 2: an inverse Laplace transform over the generating function of Gegenbauer polynomials.

    k = e^{lam^2 tau/2 - theta^2/(2 tau)} / (lam tau sqrt(2 pi tau))
        * 2 mu Re int_0^inf e^{q/(2 tau)} S(q)^{-lam} (1 - iy) dy,   q = mu (1 - iy)^2,
    S = 2 cos(zeta) - 2 cos(theta),  zeta = sqrt(theta^2 - q) with Im zeta >= 0,  W = 2 lam <1/S> under the integrand.
    The contour passes through the saddle point mu, where the integrand is a bell: the trapezoidal rule converges
    geometrically. No difference of near-equal numbers is formed: zeta - theta = -q / (zeta + theta).
    """
    rate = 0.5 / tau
    mu = np.maximum(_saddle(theta, rate, lam), 12 * tau)
    step = np.minimum(0.45 / np.sqrt(mu * rate + lam), 0.16)
    end = 6.4 / np.sqrt(mu * rate)
    if lam > 3:
        end = np.minimum(end, math.sqrt(math.expm1(40 / lam)))
    nodes = np.arange(math.ceil((end / step).max()) + 1)
    p = 1 - 1j * step[:, None] * nodes
    q = mu[:, None] * p * p
    zeta = np.sqrt(theta[:, None] ** 2 - q)
    zeta = np.where(zeta.imag < 0, -zeta, zeta)
    total = zeta + theta[:, None]
    # S = e^{-i zeta} (1 - e^{i (zeta + theta)}) (1 - e^{i (zeta - theta)}); both brackets have a positive real part,
    # so the logarithm of their product stays on its principal branch.
    brackets = np.expm1(1j * total) * np.expm1(-1j * q / total)
    exponent = rate[:, None] * q - lam * (np.log(brackets) - 1j * zeta)
    largest = exponent.real.max(axis=1)
    integrand = np.exp(exponent - largest[:, None]) * p
    integrand[:, 0] *= 0.5
    integral = integrand.real.sum(axis=1)
    w = 2 * lam * (integrand * np.exp(1j * zeta) / brackets).real.sum(axis=1) / integral
    scale = 0.5 * lam**2 * tau - theta * theta * rate - np.log(lam * tau) - 0.5 * np.log(2 * math.pi * tau)
    return scale + largest + np.log(2 * mu * step * integral), w


def _saddle(theta: Array, rate: Array, lam: float) -> Array:
    """The q > 0 with rate = lam (sin z / z) / (2 cos z - 2 cos theta), z = sqrt(theta^2 - q): the contour's saddle.

    The right-hand side falls with q, nearly as 1/q, so q <- q * right / rate converges fast; bisection guards it.
    """
    tau = 0.5 / rate
    log_q = np.log(2 * lam * tau + (lam * tau) ** 2)
    low, high = log_q - 8, log_q + 8
    for _ in range(18):
        q = np.exp(log_q)
        v = theta * theta - q
        z = np.minimum(np.sqrt(np.abs(v)), 300.0)
        total = np.maximum(theta + z, 1e-300)
        half = np.minimum(q / total, 2 * math.pi) / 2
        inside = np.sinc(z / math.pi) / np.maximum(4 * np.sin(total / 2) * np.sin(half), 1e-300)
        sinhc = np.where(z > 1e-3, np.sinh(z) / np.maximum(z, 1e-300), 1 + z * z / 6)
        outside = sinhc / (4 * np.sinh(z / 2) ** 2 + 4 * np.sin(theta / 2) ** 2 + 1e-300)
        right = lam * np.where(v >= 0, inside, outside)
        low, high = np.where(right > rate, log_q, low), np.where(right > rate, high, log_q)
        guess = log_q + np.log(np.maximum(right / rate, 1e-12))
        # Inclusive: once converged the guess is an end of the bracket, and bisection would leave the root.
        guess = np.where((guess >= low) & (guess <= high), guess, (low + high) / 2)
        log_q, moved = guess, np.abs(guess - log_q).max()
        if moved < 1e-4:  # near the saddle is as good as through it
            break
    return np.exp(log_q)


# ---- the angle law ----


class AngleLaw:
    """The law of the angle theta between u and u_0 after a clock B > 0.

    A Chebyshev interpolant of the density on [low, high], which leaves out a mass below 1e-12: theta is a
    1-Lipschitz function on a sphere of Ricci curvature d - 2, hence sub-Gaussian with variance
    (1 - e^{-(d-2) tau}) / (d - 2), and its mean is within about one such deviation of arccos(e^{-B/2}).

    Raises:
        TypeError, ValueError: d is not an int, d < 2, or the clock is not positive and finite.
    """

    def __init__(self, d: int, clock: float) -> None:
        self.d = _dimension(d)
        if not 0 < clock < math.inf:
            raise ValueError(f"clock must be positive and finite, got {clock}: at clock 0 the angle is 0")
        self.tau = clock / (d - 1)
        deviation = math.sqrt(self.tau if d == 2 else -math.expm1(-(d - 2) * self.tau) / (d - 2))
        centre = 2 * math.asin(math.sqrt(-math.expm1(-clock / 2) / 2))
        self.low, self.high = max(centre - 8.5 * deviation, 0.0), min(centre + 8.5 * deviation, math.pi)
        self._density = Chebyshev.interpolate(self.density, _DEGREE, domain=[self.low, self.high])
        self._cdf = self._density.integ(lbnd=self.low)
        self.mass = float(self._cdf(self.high))  # 1 up to the error of log_kernel

    def density(self, theta: ArrayLike) -> Array:
        """f(theta), theta in [0, pi]."""
        log_k, _ = log_kernel(theta, self.tau, self.d)
        sphere = math.lgamma(self.d / 2) - math.lgamma((self.d - 1) / 2) - 0.5 * math.log(math.pi)
        if self.d == 2:
            return np.exp(log_k + sphere)
        with np.errstate(divide="ignore"):
            return np.exp(log_k + sphere + (self.d - 2) * np.log(np.sin(theta)))

    def cdf(self, theta: ArrayLike) -> Array:
        """P(angle <= theta)."""
        return np.clip(self._cdf(np.clip(theta, self.low, self.high)) / self.mass, 0.0, 1.0)

    def quantile(self, z: ArrayLike) -> Array:
        """The angle below which the probability is Phi(z), for |z| <= 6.

        Newton's iteration on the logarithm of the nearer tail over the logarithm of the distance to its end, 0 or pi:
        a straight line where the density vanishes there like a power.
        """
        z = np.asarray(z, dtype=np.float64)
        if not np.all(np.abs(z) <= Z_MAX):
            raise ValueError(f"z must be in [-{Z_MAX:g}, {Z_MAX:g}], got {z[~(np.abs(z) <= Z_MAX)][0]}")
        shape, z = z.shape, np.atleast_1d(z)
        goal = torch.special.ndtr(torch.from_numpy(-np.abs(z))).numpy()
        upper = z > 0
        end = np.where(upper, math.pi, 0.0)
        grid = np.linspace(self.low, self.high, 402)[1:-1]
        below = np.clip(self._evaluate(grid)[0], 1e-13, 1 - 1e-13)
        theta = np.interp(z, torch.special.ndtri(torch.from_numpy(below)).numpy(), grid)
        for _ in range(5):
            cdf, density = self._evaluate(theta)
            tail = np.maximum(np.where(upper, 1 - cdf, cdf), 1e-14)
            distance = np.abs(theta - end)
            theta = np.abs(end - distance * (goal / tail) ** (tail / (density * distance)))
        return theta.reshape(shape)

    def _evaluate(self, theta: Array) -> tuple[Array, Array]:
        """Distribution function and density, from one matrix of Chebyshev polynomials."""
        basis = chebvander((2 * theta - self.low - self.high) / (self.high - self.low), _DEGREE + 1)
        return basis @ self._cdf.coef / self.mass, basis[:, :-1] @ self._density.coef / self.mass


# ---- the tables ----


@dataclass(frozen=True, eq=False)
class AngleTable:
    """What kernels look up instead of the angle law of one d: at a row of the clock and a column of z ~ N(0, 1),

        table[0]: V(z, B) = (1 - cos theta) / (1 - e^{-B/2}),   table[1]: g(z, B) = W(theta, tau) / kappa(B),

    theta = F^{-1}(Phi(z)), so that 1 - cos theta = (1 - e^{-B/2}) V and the score has the length kappa g sin theta.
    Both are smooth and of order one, V -> chi^2_{d-1} / (d - 1) and g -> 1 as B -> 0. With bilinear float32 look-up
    the score is right at the looked-up angle to 1e-3 of its root mean square for |z| <= 4, and the law of the angle to
    1e-4 (Kolmogorov-Smirnov); for d = 2 to 3e-4, as float32 has no digits left in 1 - cos theta near the antipode.

    Args:
        d: dimension.
        table: (2, NB, NZ) float32; columns uniform in z from -6 to 6.
    """

    d: int
    table: Tensor

    def row(self, clock: ArrayLike) -> Array:
        """The fractional row of clocks, 0 .. NB - 1, clamped to the table.

        Rows are uniform in arccos(e^{-B/4}): dense where the law leaves its small-time limit, sparse before and after.
        Between two rows the fraction is linear in 1 / (1 - e^{-B/2}), which keeps 1 - cos theta = 2 at the antipode.

        Raises:
            ValueError: a clock is NaN, negative or infinite.
        """
        nodes = _row_clocks(self.table.shape[1])
        inside = np.clip(_clocks(clock), nodes[0], nodes[-1])
        return np.asarray(np.interp(-1 / np.expm1(inside / 2), -1 / np.expm1(nodes / 2), np.arange(float(len(nodes)))))

    def spread(self, clocks: ArrayLike) -> Tensor:
        """V(., B) of each clock, (T, NZ) float32: what a sampling step needs of the table.

        Raises:
            ValueError: a clock is NaN, negative or infinite.
        """
        row = torch.from_numpy(np.atleast_1d(self.row(clocks)))
        below = row.long().clamp(max=self.table.shape[1] - 2)
        values = self.table[0].double()
        return torch.lerp(values[below], values[below + 1], (row - below)[:, None]).float()


def angle_table(d: int) -> AngleTable:
    """The table of S^{d-1}, built once (a second or a few) and kept in memory and on disk.

    The file lies in ``$FASTMSGM_DATA`` or, without that variable, ``~/.cache/fastmsgm``. A damaged one is built anew;
    where none can be written every process builds its own.

    Raises:
        TypeError, ValueError: d is not an int, or d < 2.
    """
    return _angle_table(_dimension(d))


@functools.lru_cache(maxsize=8)
def _angle_table(d: int) -> AngleTable:
    path = None
    try:
        folder = Path(os.environ.get("FASTMSGM_DATA") or Path.home() / ".cache" / "fastmsgm")
        path = folder / f"angle-table-{TABLE_VERSION}-d{d}.safetensors"
        return AngleTable(d, _read(path, d))
    except FileNotFoundError:
        pass
    except (OSError, RuntimeError, SafetensorError, ValueError) as error:  # RuntimeError: there is no home folder
        _log.info("the angle table of d = %d is built anew: %s", d, error)
    table = _build(d)
    if path is not None:
        try:
            _write(path, table)
        except OSError as error:
            _log.info("the angle table of d = %d cannot be kept in %s: %s", d, path.parent, error)
    return AngleTable(d, table)


def _shape(d: int) -> tuple[int, int]:
    """Rows and columns. In low dimensions the angle reaches the antipode while W still peaks there."""
    if d < 4:
        return (2049, 1281) if d == 2 else (1025, 513)
    return (513, 513) if d < 16 else (257, 257)


def _row_clocks(rows: int) -> Array:
    first, last = math.acos(math.exp(-CLOCK_MIN / 4)), math.acos(math.exp(-CLOCK_MAX / 4))
    return -4 * np.log(np.cos(np.linspace(first, last, rows)))


def _build(d: int) -> Tensor:
    """V and g, from log(tan^2(theta/2) / (1 - e^{-B/2})) and log g at the coarse nodes: both smooth at every end."""
    rows, columns = _shape(d)
    clocks = _row_clocks(rows)
    spread = -np.expm1(-clocks / 2)
    z = np.linspace(-Z_MAX, Z_MAX, (columns - 1) // _COARSE + 1)
    coarse = np.empty((2, (rows - 1) // _COARSE + 1, len(z)))
    for i, clock in enumerate(clocks[::_COARSE]):
        law = AngleLaw(d, float(clock))
        theta = law.quantile(z)
        _, w = log_kernel(theta, law.tau, d)
        coarse[0, i] = 2 * np.log(np.tan(theta / 2)) - np.log(spread[_COARSE * i])
        coarse[1, i] = np.log(w / kappa(clock, d))
    ratio, g = np.exp(_refine(_refine(coarse).swapaxes(1, 2)).swapaxes(1, 2))
    return torch.from_numpy(np.stack((2 * ratio / (1 + spread[:, None] * ratio), g))).float()


def _refine(values: Array) -> Array:
    """``_COARSE`` times as many nodes along the last axis, by cubic interpolation from the four nodes around."""
    n = values.shape[-1]
    position = np.arange((n - 1) * _COARSE + 1) / _COARSE
    first = np.clip(position.astype(np.int64) - 1, 0, n - 4)
    t = position - first
    weights = (
        (1 - t) * (t - 2) * (t - 3) / 6, t * (t - 2) * (t - 3) / 2, t * (1 - t) * (t - 3) / 2, t * (t - 1) * (t - 2) / 6
    )  # fmt: skip
    return sum((w * values[..., first + k] for k, w in enumerate(weights)), np.zeros(()))


def _read(path: Path, d: int) -> Tensor:
    if not path.is_file():
        raise FileNotFoundError(path)
    table = load_file(path).get("table")
    if table is None or table.shape != (2, *_shape(d)) or table.dtype != torch.float32:
        raise ValueError(f"{path} holds no angle table of d = {d}")
    if not bool(((table > 0) & table.isfinite()).all()):
        raise ValueError(f"{path} holds values that are not positive and finite")
    return table


def _write(path: Path, table: Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # one per process: two may build at once
    temporary.write_bytes(save({"table": table.contiguous()}))
    os.replace(temporary, path)


# ---- arguments ----


def _dimension(d: int) -> int:
    if isinstance(d, bool) or not isinstance(d, int):
        raise TypeError(f"d must be an int, got {d!r} ({type(d).__name__})")
    if d < 2:
        raise ValueError(f"d must be at least 2, got {d}: directions in one dimension do not rotate")
    return d


def _clocks(clock: ArrayLike) -> Array:
    b = np.asarray(clock, dtype=np.float64)
    wrong = ~((b >= 0) & (b < math.inf))
    if wrong.any():
        raise ValueError(f"clock must be in [0, inf), got {b[wrong][0]}")
    return b
