"""Angle tables: functions of the angle of Brownian motion on the sphere that kernels look up.

The tables are over (B, z), with the angle theta = F^{-1}(Phi(z)) and its cdf F at B
(``angle_distribution.py``). A table is built once per dimension and cached on disk.
"""

from __future__ import annotations

import functools
import logging
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from fastmsgm.constants import Z_MAX
from fastmsgm.files import cache_folder
from fastmsgm.rotation.angle_distribution import AngleDistribution
from fastmsgm.rotation.heat_kernel import check_dimension, kappa, log_kernel
from fastmsgm.sde.beta_schedule import check_integrated_beta
from fastmsgm.tensors import load_tensors, save_tensors
from fastmsgm.types import Array

# The rows of a table range over these B. Beyond, the limits B -> 0 and B -> inf hold to 1e-4.
TABLE_B_MIN, TABLE_B_MAX = 1e-4, 30.0
TABLE_VERSION = "v1"  # of the cached files: increase it whenever the contents of tables change
_COARSE = 4  # every fourth row and column is computed; cubic interpolation gives the others
_log = logging.getLogger("fastmsgm")


@dataclass(frozen=True, eq=False)
class AngleTable:
    """The table of one dimension, with a row for each B and a column for each z ~ N(0, 1).

        table[0] = V(z, B) = (1 - cos theta) / (1 - e^{-B/2}),
        table[1] = g(z, B) = W(theta, tau) / kappa(B),    theta = F^{-1}(Phi(z)).

    So 1 - cos theta = (1 - e^{-B/2}) V, and the norm of the score is kappa g sin theta. Both
    functions are smooth and of order one, with V -> chi^2_{d-1} / (d - 1) and g -> 1 as B -> 0.

    With bilinear float32 interpolation, the score at the interpolated angle is accurate to 1e-3 of
    its root mean square for |z| <= 4, and the distribution of the angle to 1e-4
    (Kolmogorov-Smirnov). For d = 2 the latter is 3e-4, as 1 - cos theta has no digits left in
    float32 near the antipode. For d = 2 the table only gives the noise between a solver's steps;
    ``Rotation.perturb_by_heat_kernel`` does not use it.

    Args:
        d: Dimension.
        table: (2, NB, NZ) float32; columns uniform in z from -6 to 6.
    """

    d: int
    table: Tensor

    def row(self, B: ArrayLike) -> Array:
        """Return the fractional rows of integrated betas, clamped to 0 .. NB - 1.

        Rows are uniform in arccos(e^{-B/4}): dense where the distribution departs from its
        small-time limit, sparse before and after. Between two rows the fraction is linear in
        1 / (1 - e^{-B/2}), which keeps 1 - cos theta = 2 at the antipode.

        Raises:
            ValueError: An integrated beta is NaN, negative or infinite.
        """
        nodes, scale = self._rows
        inside = np.clip(check_integrated_beta(B), nodes[0], nodes[-1])
        return np.asarray(np.interp(-1 / np.expm1(inside / 2), scale, np.arange(float(len(nodes)))))

    def on(self, device: torch.device) -> Tensor:
        """Return ``table`` on a device; it is copied there once."""
        if device not in self._copies:
            self._copies[device] = self.table.to(device)
        return self._copies[device]

    @functools.cached_property
    def _rows(self) -> tuple[Array, Array]:
        """B of every row, and -1 / (e^{B/2} - 1), in which fractions between rows are linear."""
        nodes = _row_betas(self.table.shape[1])
        return nodes, -1 / np.expm1(nodes / 2)

    @functools.cached_property
    def _copies(self) -> dict[torch.device, Tensor]:
        return {}

    def spread(self, B: ArrayLike) -> Tensor:
        """Return V(., B) of each B, (T, NZ) float32, for sampling steps.

        Raises:
            ValueError: An integrated beta is NaN, negative or infinite.
        """
        row = torch.from_numpy(np.atleast_1d(self.row(B)))
        below = row.long().clamp(max=self.table.shape[1] - 2)
        values = self.table[0].double()
        return torch.lerp(values[below], values[below + 1], (row - below)[:, None]).float()


def angle_table(d: int) -> AngleTable:
    """Return the table of S^{d-1}, built once (in a few seconds), cached in memory and on disk.

    The file is in ``fastmsgm.files.cache_folder()`` and has a checksum. A damaged file is built
    again, and if no file can be written, every process builds the table itself: a line in the log
    says so.

    Args:
        d: Dimension, at least 2.

    Raises:
        TypeError: d is not an int.
        ValueError: d < 2.
    """
    return _angle_table(check_dimension(d))


@functools.lru_cache(maxsize=8)
def _angle_table(d: int) -> AngleTable:
    path = None
    try:
        path = cache_folder() / f"angle-table-{TABLE_VERSION}-d{d}.safetensors"
        return AngleTable(d, _read(path, d))
    except FileNotFoundError:
        pass
    # RuntimeError: there is no home folder.
    except (OSError, RuntimeError, ValueError) as error:
        _log.warning("building the angle table of d = %d, which takes seconds: %s", d, error)
    table = _build(d)
    if path is not None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_tensors(path, {"table": table})
        except OSError as error:
            _log.warning("cannot keep the angle table of d = %d: %s", d, error)
    return AngleTable(d, table)


def _shape(d: int) -> tuple[int, int]:
    """Return the numbers of rows and columns.

    Low dimensions need more: there the angle reaches the antipode while W still has a peak there.
    """
    if d < 4:
        return (2049, 1281) if d == 2 else (1025, 513)
    return (513, 513) if d < 16 else (257, 257)


def _row_betas(rows: int) -> Array:
    first, last = math.acos(math.exp(-TABLE_B_MIN / 4)), math.acos(math.exp(-TABLE_B_MAX / 4))
    return -4 * np.log(np.cos(np.linspace(first, last, rows)))


def _build(d: int) -> Tensor:
    """Compute V and g.

    They are interpolated from log(tan^2(theta/2) / (1 - e^{-B/2})) and log g at the coarse nodes,
    which are smooth up to all ends.
    """
    rows, columns = _shape(d)
    betas = _row_betas(rows)
    spread = -np.expm1(-betas / 2)
    z = np.linspace(-Z_MAX, Z_MAX, (columns - 1) // _COARSE + 1)
    coarse = np.empty((2, (rows - 1) // _COARSE + 1, len(z)))
    for i, B in enumerate(betas[::_COARSE]):
        distribution = AngleDistribution(d, float(B))
        theta = distribution.quantile(z)
        _, w = log_kernel(theta, distribution.tau, d)
        coarse[0, i] = 2 * np.log(np.tan(theta / 2)) - np.log(spread[_COARSE * i])
        coarse[1, i] = np.log(w / kappa(B, d))
    ratio, g = np.exp(_refine(_refine(coarse).swapaxes(1, 2)).swapaxes(1, 2))
    return torch.from_numpy(np.stack((2 * ratio / (1 + spread[:, None] * ratio), g))).float()


def _refine(values: Array) -> Array:
    """Refine the last axis ``_COARSE`` times by cubic interpolation from the four nearest nodes."""
    n = values.shape[-1]
    position = np.arange((n - 1) * _COARSE + 1) / _COARSE
    first = np.clip(position.astype(np.int64) - 1, 0, n - 4)
    t = position - first
    weights = (
        (1 - t) * (t - 2) * (t - 3) / 6,
        t * (t - 2) * (t - 3) / 2,
        t * (1 - t) * (t - 3) / 2,
        t * (t - 1) * (t - 2) / 6,
    )
    return sum((w * values[..., first + k] for k, w in enumerate(weights)), np.zeros(()))


def _read(path: Path, d: int) -> Tensor:
    if not path.is_file():
        raise FileNotFoundError(path)
    table = load_tensors(path)[0].get("table")
    if table is None or table.shape != (2, *_shape(d)) or table.dtype != torch.float32:
        raise ValueError(f"{path} holds no angle table of d = {d}")
    return table
