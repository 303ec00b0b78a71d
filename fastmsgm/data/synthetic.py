"""Synthetic data sets of known distribution: heavy tails, a spiral and two chaotic flows.

    correlated_cauchy     x = A c / 50
    gaussian_cauchy       x = c A z / 50
    swiss_roll            x = ((t cos t, t sin t) + noise z) / 5
    lorenz63, lorenz96    an ordinary differential equation after its transient

The samples of a set are independent, and sample i of a seed is the same for every n. The randomness
is the raw words of ``numpy.random.Philox`` (key: the seed and the set's number), which NumPy keeps
from version to version, through the maps below, not through ``numpy.random.Generator``, whose
distributions it may change. A seed therefore means the same data on every machine: bit for bit for
the flows, to the last bit of tan, log, sin and cos for the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import IntEnum
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fastmsgm.checks import check_int, is_number, positive
from fastmsgm.types import Array

_BLOCK = 2**14  # state variables that are integrated together: they fit into the cache


class _Set(IntEnum):
    """The data set's part of the Philox key: equal seeds of two sets are independent."""

    CAUCHY = 0
    GAUSSIAN_CAUCHY = 1
    MIXING = 2
    SWISS_ROLL = 3
    LORENZ63 = 4
    LORENZ96 = 5


def mixing(d: int) -> Tensor:
    """Return the matrix A of the two Cauchy sets: independent standard normals, fixed by d alone.

    Its condition number is 3.2, 3.9 and 9.1 for d = 2, 4 and 8. ``x / mixing(d).norm(dim=1)`` is
    the set with the rows of A normalised, which the MSGM authors give to the additive baseline.

    Args:
        d: Dimensions, >= 2.

    Returns:
        (d, d) float64.

    Raises:
        TypeError: d is not an int.
        ValueError: d < 2.
    """
    d = check_int("d", d, 2)
    return torch.from_numpy(_normals(_uniforms(d, _Set.MIXING, d, d + d % 2))[:, :d].copy())


def correlated_cauchy(n: int, d: int = 4, seed: int = 0) -> Tensor:
    """Sample correlated Cauchy vectors, x = A c / 50.

    c has d independent standard Cauchy variables, A = ``mixing(d)``. Every projection
    u.x is Cauchy with median 0 and scale sum_j |(u A)_j| / 50; no moment of order 1 exists. Far out
    one c_j dominates: P(|x| > r) ~ 2 sum_j |A_j| / (50 pi r), along the columns A_j of A.

    Args:
        n: Number of samples, >= 1.
        d: Dimensions, >= 2.
        seed: 0 .. 2^64 - 1.

    Returns:
        (n, d) float32.

    Raises:
        TypeError: n, d or seed is not an int.
        ValueError: An argument is out of range.

    Example:
        >>> correlated_cauchy(1000, d=4, seed=1).shape
        torch.Size([1000, 4])
    """
    n = check_int("n", n, 1)
    matrix = mixing(d).numpy()
    return _tensor(_mix(_cauchy(_uniforms(seed, _Set.CAUCHY, n, d)), matrix) / 50)


def gaussian_cauchy(n: int, d: int = 2, seed: int = 0) -> Tensor:
    """Sample Gaussian-Cauchy vectors, x = c A z / 50.

    z ~ N(0, I_d), c is one standard Cauchy variable per sample, A = ``mixing(d)``. Directions are
    those of the Gaussian N(0, A A^T), and all coordinates are large together: the extremes of this
    set lie in every direction, those of ``correlated_cauchy`` on d lines. A projection u.x is
    |A^T u| / 50 times the product of a standard normal and a standard Cauchy variable. (The
    authors' code samples one c for a whole batch.)

    Args:
        n: Number of samples, >= 1.
        d: Dimensions, >= 2.
        seed: 0 .. 2^64 - 1.

    Returns:
        (n, d) float32.

    Raises:
        TypeError: n, d or seed is not an int.
        ValueError: An argument is out of range.
    """
    n = check_int("n", n, 1)
    matrix = mixing(d).numpy()
    u = _uniforms(seed, _Set.GAUSSIAN_CAUCHY, n, 1 + d + d % 2)
    return _tensor(_cauchy(u[:, :1]) * _mix(_normals(u[:, 1:])[:, :d], matrix) / 50)


def swiss_roll(n: int, seed: int = 0, noise: float = 0.5) -> Tensor:
    """Sample a spiral in the plane, x = ((t cos t, t sin t) + noise z) / 5.

    t ~ U(3 pi / 2, 9 pi / 2), z ~ N(0, I_2). This is scikit-learn's Swiss roll seen along its axis,
    in the MSGM authors' units.

    Args:
        n: Number of samples, >= 1.
        seed: 0 .. 2^64 - 1.
        noise: Standard deviation across the spiral, before the division by 5; >= 0.

    Returns:
        (n, 2) float32.

    Raises:
        TypeError: n or seed is not an int.
        ValueError: An argument is out of range.
    """
    n = check_int("n", n, 1)
    if not is_number(noise) or noise < 0:
        raise ValueError(f"noise must be finite and at least 0, got {noise}")
    u = _uniforms(seed, _Set.SWISS_ROLL, n, 3)
    t = 1.5 * math.pi * (1 + 2 * u[:, :1])
    spiral = t * np.concatenate([np.cos(t), np.sin(t)], axis=1)
    return _tensor((spiral + noise * _normals(u[:, 1:])) / 5)


def lorenz63(
    n: int,
    window: int = 16,
    seed: int = 0,
    spacing: float = 0.1,
    coordinate: Literal["x", "y", "z"] = "x",
) -> Tensor:
    """Sample windows of the Lorenz-63 flow (Lorenz, 1963): one coordinate at successive times.

    dx/dt = 10 (y - x), dy/dt = x (28 - z) - y, dz/dt = x y - 8/3 z. Every window is of a trajectory
    of its own. It starts uniformly in a box around the attractor and runs, by Runge-Kutta of order
    4 in steps of at most 0.01, for a time uniform on (25, 50) before the window begins. x and y are
    symmetric about 0, the mean of z is 23.55, and E x^2 = E x y = 8/3 E z. Windows of x, y and z of
    one seed belong together.

    Args:
        n: Number of windows, >= 1.
        window: Times in a window, >= 1: the dimension of the data.
        seed: 0 .. 2^64 - 1.
        spacing: Time between neighbours in a window, > 0.
        coordinate: "x", "y" or "z".

    Returns:
        (n, window) float32, in the flow's own units (x has standard deviation 7.9).

    Raises:
        TypeError: n, window or seed is not an int.
        ValueError: An argument is out of range.
    """
    n, window = check_int("n", n, 1), check_int("window", window, 1)
    spacing = positive("spacing", spacing)
    if coordinate not in ("x", "y", "z"):
        raise ValueError(f'coordinate must be "x", "y" or "z", got {coordinate!r}')
    axis = "xyz".index(coordinate)
    steps = math.ceil(spacing / 0.01)
    windows = np.empty((window, n))
    u = _uniforms(seed, _Set.LORENZ63, n, 4).T
    start = np.array([[-20.0], [-25.0], [5.0]]) + np.array([[40.0], [50.0], [40.0]]) * u[:3]
    # Trajectories circle the fixed points almost in phase for a long time: only unequal times make
    # their phases uniform.
    transient_step = 0.005 * (1 + u[3])
    for part in _parts(n, 3):
        state = _rk4(_lorenz63, start[:, part], transient_step[part], 5000)
        for time in range(window):
            windows[time, part] = state[axis]
            if time < window - 1:
                state = _rk4(_lorenz63, state, spacing / steps, steps)
    return _tensor(windows.T)


def lorenz96(n: int, d: int = 16, seed: int = 0, forcing: float = 8.0) -> Tensor:
    """Sample states of the Lorenz-96 flow (Lorenz, 1996), a ring of d sites.

    dx_i/dt = (x_{i+1} - x_{i-2}) x_{i-1} - x_i + F. Every state is of a trajectory of its own,
    which starts at F times a uniform variable on (-1, 1) at every site and runs for 1000
    Runge-Kutta steps of order 4 and length 0.4 / max(F, 8). All sites have one distribution, for
    which, at every F, E x_i^2 = F E x_i and E x_i x_{i+1} - E x_i x_{i+2} = F - E x_i. At F = 8 the
    flow is chaotic for most d from 5 on; where it is not, this is the distribution over the initial
    states.

    Args:
        n: Number of states, >= 1.
        d: Number of sites, >= 4.
        seed: 0 .. 2^64 - 1.
        forcing: F > 8/9; below that every trajectory ends at the fixed point x_i = F.

    Returns:
        (n, d) float32.

    Raises:
        TypeError: n, d or seed is not an int.
        ValueError: An argument is out of range.
    """
    n, d = check_int("n", n, 1), check_int("d", d, 4)
    if not is_number(forcing) or forcing <= 8 / 9:
        raise ValueError(f"forcing must be finite and above 8/9, got {forcing}")

    def field(x: Array) -> Array:
        ring = np.concatenate([x[-2:], x, x[:1]])
        return (ring[3:] - ring[:-3]) * ring[1:-2] - x + forcing

    states = np.empty((d, n))
    start = forcing * (2 * _uniforms(seed, _Set.LORENZ96, n, d).T - 1)
    for part in _parts(n, d):
        states[:, part] = _rk4(field, start[:, part], 0.4 / max(forcing, 8.0), 1000)
    return _tensor(states.T)


def _lorenz63(state: Array) -> Array:
    x, y, z = state
    return np.stack([10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z])


def _rk4(field: Callable[[Array], Array], state: Array, step: float | Array, steps: int) -> Array:
    """Return the state (d, trajectories) after classical Runge-Kutta steps.

    Args:
        field: The right-hand side.
        state: (d, trajectories) at the start.
        step: Length of a step, one or (trajectories,).
        steps: Number of steps.
    """
    for _ in range(steps):
        k1 = field(state)
        k2 = field(state + step / 2 * k1)
        k3 = field(state + step / 2 * k2)
        k4 = field(state + step * k3)
        state = state + step / 6 * (k1 + 2 * (k2 + k3) + k4)
    return state


def _parts(n: int, d: int) -> list[slice]:
    size = max(1, _BLOCK // d)
    return [slice(first, min(first + size, n)) for first in range(0, n, size)]


def _uniforms(seed: int, which: _Set, n: int, columns: int) -> Array:
    """Return (n, columns) uniform on (0, 1), both ends excluded: odd multiples of 2^-53."""
    seed = check_int("seed", seed, 0, 2**64 - 1)
    words = (
        np.random.Philox(key=(int(which) << 64) + seed).random_raw(n * columns).reshape(n, columns)
    )
    return ((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def _normals(u: Array) -> Array:
    """Return standard normals from uniforms of an even number of columns (Box and Muller, 1958)."""
    radius, angle = np.sqrt(-2 * np.log(u[:, 0::2])), 2 * math.pi * u[:, 1::2]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=2).reshape(u.shape)


def _cauchy(u: Array) -> Array:
    """Return tan(pi (u - 1/2)), standard Cauchy, with full precision in the tails."""
    v = 2 * u - 1
    return np.sign(v) / np.tan(math.pi / 2 * (1 - np.abs(v)))


def _mix(z: Array, matrix: Array) -> Array:
    """Return A z for every sample, summed in one order, unlike a matrix product."""
    x = np.zeros_like(z)
    for column in range(z.shape[1]):
        x += z[:, column, None] * matrix[:, column]
    return x


def _tensor(x: Array) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))
