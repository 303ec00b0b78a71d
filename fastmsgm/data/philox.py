"""Random numbers of the synthetic sets, from the raw words of ``numpy.random.Philox``.

NumPy keeps the raw words from version to version, but may change the distributions of its
``Generator``. So the maps from words to variables are here. The key of a set is the user's seed and
the set's number, so equal seeds of two sets are independent.
"""

from __future__ import annotations

import math
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

from fastmsgm.checks import check_int
from fastmsgm.types import Array


class Set(IntEnum):
    """The data set's part of the Philox key. The values are frozen."""

    CAUCHY = 0
    GAUSSIAN_CAUCHY = 1
    MIXING = 2
    SWISS_ROLL = 3
    LORENZ63 = 4
    LORENZ96 = 5
    TURBULENCE = 6
    SPIRALS = 7
    GAUSSIAN = 8
    UNCORRELATED_CAUCHY = 9


class Words:
    """The words of one set and seed, read in order.

    Args:
        seed: 0 .. 2^64 - 1.
        which: The set.

    Raises:
        TypeError: seed is not an int.
        ValueError: seed is out of range.
    """

    def __init__(self, seed: int, which: Set) -> None:
        seed = check_int("seed", seed, 0, 2**64 - 1)
        self._philox = np.random.Philox(key=(int(which) << 64) + seed)

    def uniforms(self, rows: int, columns: int) -> Array:
        """Return the next (rows, columns) uniforms, odd multiples of 2^-53 inside (0, 1)."""
        words = self._philox.random_raw(rows * columns).reshape(rows, columns)
        return ((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def normals(u: Array) -> Array:
    """Return standard normals from uniforms of an even number of columns (Box and Muller, 1958)."""
    radius, angle = np.sqrt(-2 * np.log(u[:, 0::2])), 2 * math.pi * u[:, 1::2]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=2).reshape(u.shape)


def cauchy(u: Array) -> Array:
    """Return tan(pi (u - 1/2)), standard Cauchy, with full precision in the tails."""
    v = 2 * u - 1
    return np.sign(v) / np.tan(math.pi / 2 * (1 - np.abs(v)))


def as_tensor(x: Array) -> Tensor:
    """Return an array as a float32 tensor, contiguous."""
    return torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))
