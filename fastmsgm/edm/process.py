"""EDM: y_s = y_0 + s n, with n normal or Student-t noise of unit scale, and its preconditioning.

    D = c_skip y + c_out f(c_in y, log(s) / 4),    c_skip = sd^2 / t^2,  c_out = v s sd / t,
    c_in = 1 / t,    t^2 = (v s)^2 + sd^2

(Karras et al., 2022, table 1; sd is the data's standard deviation), where v^2 is the variance of
the noise: 1, or nu / (nu - 2) for nu degrees of freedom (t-EDM; Pandey et al., 2025).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastmsgm import rng
from fastmsgm.checks import check_int, positive
from fastmsgm.types import Array


@dataclass(frozen=True)
class EDM:
    """Additive noise of standard scale s, from ``sigma_min`` to ``sigma_max``.

    Args:
        sigma_min: The smallest noise level, > 0, in units of the data's standard deviation.
        sigma_max: The largest.
        freedom: Degrees of freedom of Student-t noise, >= 3; None is normal noise.

    Raises:
        TypeError: freedom is not an int.
        ValueError: A level that is not positive and finite, levels out of order, or freedom < 3.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    freedom: int | None = None

    def __post_init__(self) -> None:
        for name in ("sigma_min", "sigma_max"):
            object.__setattr__(self, name, positive(name, getattr(self, name)))
        if self.sigma_min >= self.sigma_max:
            raise ValueError(
                f"sigma_max must be above sigma_min, {self.sigma_min:g}, got {self.sigma_max:g}"
            )
        if self.freedom is not None:
            object.__setattr__(self, "freedom", check_int("freedom", self.freedom, 3))

    @property
    def noise_std(self) -> float:
        """v, the standard deviation of the noise of unit scale."""
        return 1.0 if self.freedom is None else math.sqrt(self.freedom / (self.freedom - 2))

    def noise(self, n: int, d: int, stream: Tensor, normal: int, radius: int, step: int) -> Tensor:
        """Sample noise of unit scale.

        Student-t noise is multivariate: a normal vector times sqrt(nu / chi^2), one chi^2 of nu
        degrees of freedom for all features of a sample.

        Args:
            n: Number of samples.
            d: Number of features.
            stream: The noise stream.
            normal: Purpose of the normals.
            radius: Purpose of the chi^2 variables.
            step: Step of the noise counter.

        Returns:
            (n, d) float32.
        """
        z = rng.normals(n, d, stream, normal, step)
        if self.freedom is None:
            return z
        chi2 = rng.normals(n, self.freedom, stream, radius, step).square().sum(1, keepdim=True)
        return z * torch.sqrt(self.freedom / chi2)


@dataclass(frozen=True)
class EDMPreconditioning:
    """What solvers and losses need to know of an EDM model.

    Args:
        process: The forward process.
        data_std: Standard deviation of the transformed data, sigma_data of Karras et al.

    Raises:
        TypeError: process is not an EDM.
        ValueError: data_std is not positive.
    """

    process: EDM
    data_std: float

    def __post_init__(self) -> None:
        if not isinstance(self.process, EDM):
            raise TypeError(
                f"process must be an EDM, got {type(self.process).__name__}: give EDM()"
            )
        object.__setattr__(self, "data_std", positive("data_std", self.data_std))

    @property
    def noise_levels(self) -> tuple[float, float]:
        """The smallest and the largest noise level, in the units of the transformed data."""
        return self.process.sigma_min * self.data_std, self.process.sigma_max * self.data_std

    def coefficients(self, s: Array) -> Array:
        """Return c_skip, c_out and c_in at noise levels s: (R, 3) float64."""
        noise = self.process.noise_std * np.asarray(s, np.float64)
        total = np.hypot(noise, self.data_std)
        columns = (self.data_std**2 / total**2, noise * self.data_std / total, 1 / total)
        return np.stack(columns, axis=-1)

    def c_noise(self, s: Array) -> Array:
        """Return what tells the network the noise level: log(s) / 4."""
        return np.log(s) / 4
