"""Two chaotic flows: windows of Lorenz-63 and states of Lorenz-96, after a transient.

Every sample is of a trajectory of its own. The sums and products of the integration have the same
bits on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
from torch import Tensor

from fastmsgm.checks import check_int, is_number, positive
from fastmsgm.data.philox import Set, Words, as_tensor
from fastmsgm.types import Array

_BLOCK = 2**14  # state variables that are integrated together: they fit into the cache


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
    u = Words(seed, Set.LORENZ63).uniforms(n, 4).T
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
    return as_tensor(windows.T)


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
    start = forcing * (2 * Words(seed, Set.LORENZ96).uniforms(n, d).T - 1)
    for part in _parts(n, d):
        states[:, part] = _rk4(field, start[:, part], 0.4 / max(forcing, 8.0), 1000)
    return as_tensor(states.T)


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
