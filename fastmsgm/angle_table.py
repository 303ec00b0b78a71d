"""Angle tables: what kernels look up of Brownian motion on the sphere, over (B, z), theta = F^{-1}(Phi(z)).

F is the law of the angle (``angle_law.py``); a table is built once per dimension and kept on disk.
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
from numpy.typing import ArrayLike
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from fastmsgm.angle_law import Z_MAX, AngleLaw
from fastmsgm.heat_kernel import Array, check_clocks, check_dimension, kappa, log_kernel

CLOCK_MIN, CLOCK_MAX = 1e-4, 30.0  # of a table's rows; beyond them the limits B -> 0 and B -> inf hold to 1e-4
TABLE_VERSION = "v1"  # of the cached files: raise it with any change of what a table holds
_COARSE = 4  # every fourth row and column of a table is computed, cubic interpolation fills in the others
_log = logging.getLogger("fastmsgm")


@dataclass(frozen=True, eq=False)
class AngleTable:
    """What kernels look up instead of the angle law of one d: at a row of the clock and a column of z ~ N(0, 1),

        table[0]: V(z, B) = (1 - cos theta) / (1 - e^{-B/2}),   table[1]: g(z, B) = W(theta, tau) / kappa(B),

    theta = F^{-1}(Phi(z)), so that 1 - cos theta = (1 - e^{-B/2}) V and the score has the length kappa g sin theta.
    Both are smooth and of order one, V -> chi^2_{d-1} / (d - 1) and g -> 1 as B -> 0. With bilinear float32 look-up
    the score is right at the looked-up angle to 1e-3 of its root mean square for |z| <= 4, and the law of the angle to
    1e-4 (Kolmogorov-Smirnov); for d = 2 to 3e-4, as float32 has no digits left in 1 - cos theta near the antipode:
    there only the noise between a solver's steps is looked up (``Rotation.one_shot`` needs no table).

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
        nodes, scale = self._rows
        inside = np.clip(check_clocks(clock), nodes[0], nodes[-1])
        return np.asarray(np.interp(-1 / np.expm1(inside / 2), scale, np.arange(float(len(nodes)))))

    def on(self, device: torch.device) -> Tensor:
        """``table`` on a device, copied there once."""
        if device not in self._copies:
            self._copies[device] = self.table.to(device)
        return self._copies[device]

    @functools.cached_property
    def _rows(self) -> tuple[Array, Array]:
        """The clock of every row, and -1 / (e^{B/2} - 1) there, in which the fraction between two rows is linear."""
        nodes = _row_clocks(self.table.shape[1])
        return nodes, -1 / np.expm1(nodes / 2)

    @functools.cached_property
    def _copies(self) -> dict[torch.device, Tensor]:
        return {}

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
    return _angle_table(check_dimension(d))


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
