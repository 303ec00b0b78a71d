"""Synthetic data sets of known distribution: heavy tails, spirals, and chaotic flows.

    correlated_cauchy     x = A c / 50
    uncorrelated_cauchy   x = c / 50
    gaussian_cauchy       x = c A z / 50
    gaussian              x = z
    swiss_roll            x = ((t cos t, t sin t) + noise z) / 5
    spirals               x = 4 + s (-t cos t, t sin t) / 3 + noise z, positive, s = 1 or -1
    lorenz63, lorenz96    an ordinary differential equation after its transient

The samples of a set are independent, and sample i of a seed is the same for every n. The randomness
is that of ``fastmsgm.data.philox``. A seed therefore means the same data on every machine: bit for
bit for the flows, to the last bit of tan, log, sin and cos for the others.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from fastmsgm.checks import check_int, is_number
from fastmsgm.data.flows import lorenz63, lorenz96
from fastmsgm.data.philox import Set, Words, as_tensor, cauchy, normals
from fastmsgm.types import Array

__all__ = [
    "correlated_cauchy",
    "gaussian",
    "gaussian_cauchy",
    "lorenz63",
    "lorenz96",
    "mixing",
    "spirals",
    "swiss_roll",
    "uncorrelated_cauchy",
]


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
    return torch.from_numpy(normals(Words(d, Set.MIXING).uniforms(d, d + d % 2))[:, :d].copy())


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
    return as_tensor(_mix(cauchy(Words(seed, Set.CAUCHY).uniforms(n, d)), matrix) / 50)


def uncorrelated_cauchy(n: int, d: int = 4, seed: int = 0) -> Tensor:
    """Sample Cauchy vectors without correlation, x = c / 50: ``correlated_cauchy`` with A = I.

    The coordinates are independent and Cauchy with median 0 and scale 1/50. Extremes lie along the
    axes.

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
    n, d = check_int("n", n, 1), check_int("d", d, 2)
    return as_tensor(cauchy(Words(seed, Set.UNCORRELATED_CAUCHY).uniforms(n, d)) / 50)


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
    u = Words(seed, Set.GAUSSIAN_CAUCHY).uniforms(n, 1 + d + d % 2)
    return as_tensor(cauchy(u[:, :1]) * _mix(normals(u[:, 1:])[:, :d], matrix) / 50)


def gaussian(n: int, d: int = 4, seed: int = 0) -> Tensor:
    """Sample standard normal vectors, x ~ N(0, I_d).

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
    n, d = check_int("n", n, 1), check_int("d", d, 2)
    return as_tensor(normals(Words(seed, Set.GAUSSIAN).uniforms(n, d + d % 2))[:, :d])


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
    u = Words(seed, Set.SWISS_ROLL).uniforms(n, 3)
    t = 1.5 * math.pi * (1 + 2 * u[:, :1])
    spiral = t * np.concatenate([np.cos(t), np.sin(t)], axis=1)
    return as_tensor((spiral + noise * normals(u[:, 1:])) / 5)


def spirals(n: int, seed: int = 0, noise: float = 0.1) -> Tensor:
    """Sample two spirals in the positive quadrant, x = 4 + s (-t cos t, t sin t) / 3 + noise z.

    The sign s is 1 or -1 for the two arms, t = 3 pi sqrt(v) with v ~ U(0, 1), z ~ N(0, I_2): the
    two interleaved spirals that are common toy data of generative models (Grathwohl et al., FFJORD,
    2019), shifted so that a geometric Brownian motion can reach them. The normals are below 8.58,
    so all samples are positive.

    Args:
        n: Number of samples, >= 1.
        seed: 0 .. 2^64 - 1.
        noise: Standard deviation across the spirals, 0 .. 0.1.

    Returns:
        (n, 2) float32, positive.

    Raises:
        TypeError: n or seed is not an int.
        ValueError: An argument is out of range.
    """
    n = check_int("n", n, 1)
    if not is_number(noise) or not 0 <= noise <= 0.1:
        raise ValueError(f"noise must be in [0, 0.1], got {noise!r}")
    u = Words(seed, Set.SPIRALS).uniforms(n, 4)
    sign, t = np.where(u[:, :1] < 0.5, -1.0, 1.0), 3 * math.pi * np.sqrt(u[:, 1:2])
    arm = sign * t * np.concatenate([-np.cos(t), np.sin(t)], axis=1) / 3
    return as_tensor(4 + arm + noise * normals(u[:, 2:]))


def _mix(z: Array, matrix: Array) -> Array:
    """Return A z for every sample, summed in one order, unlike a matrix product."""
    x = np.zeros_like(z)
    for column in range(z.shape[1]):
        x += z[:, column, None] * matrix[:, column]
    return x
