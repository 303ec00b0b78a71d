"""RadialPrior: the distribution of the norms of the data, which rotations keep.

Sampling starts from a norm of this distribution times a uniform direction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastmsgm import rng
from fastmsgm.checks import check_int, is_number
from fastmsgm.rotation.process import check_directions

LARGEST_LOG_NORM = 88.0  # of a sampled norm: its exponential is a float32


@dataclass(frozen=True)
class RadialPrior:
    """The distribution of log|x|: empirical (ECDF) or a KDE, with or without a Pareto tail.

    Args:
        log_norms: (m,) float32, ascending.
        bandwidth: Standard deviation of the Gaussian kernel on log|x|; 0 is the ECDF.
        tail: How many of the largest norms are replaced by the Pareto distribution fitted to them
            (Hill's estimator), so that norms beyond the largest of the data can occur; 0 is none.

    Raises:
        TypeError: tail is not an int.
        ValueError: log_norms is not an ascending tensor of finite numbers, or another argument is
            out of range.
    """

    log_norms: Tensor
    bandwidth: float = 0.0
    tail: int = 0

    def __post_init__(self) -> None:
        logs = self.log_norms
        if (
            not isinstance(logs, Tensor)
            or logs.ndim != 1
            or len(logs) < 1
            or not bool(torch.isfinite(logs).all())
        ):
            raise ValueError(
                "log_norms must be a tensor of shape (m,), m >= 1, of finite numbers: use "
                "RadialPrior.fit"
            )
        if bool((logs.diff() < 0).any()):
            raise ValueError(
                "log_norms must be in ascending order: sort them, or use RadialPrior.fit"
            )
        if not is_number(self.bandwidth) or self.bandwidth < 0:
            raise ValueError(f"bandwidth must be at least 0 and finite, got {self.bandwidth!r}")
        object.__setattr__(self, "bandwidth", float(self.bandwidth))
        tail = check_int("tail", self.tail, 0)
        if tail >= len(logs):
            raise ValueError(
                f"tail must be from 0 to {len(logs) - 1}, fewer than there are norms, got {tail}"
            )
        object.__setattr__(self, "tail", tail)

    @classmethod
    def fit(cls, x: Tensor, *, smooth: bool = False, pareto: float = 0.0) -> RadialPrior:
        """Fit the prior of data.

        Args:
            x: (n, ...) data in the units of the process: after the offset has been added.
            smooth: KDE with Silverman's bandwidth instead of the ECDF.
            pareto: Share of the largest norms that is replaced by a Pareto tail, in [0, 0.5]; 0.01
                is a usual choice.

        Raises:
            TypeError: x is not a tensor of floating point.
            ValueError: x has no directions, or pareto is out of range or less than one norm.

        Example:
            >>> x = synthetic.correlated_cauchy(10_000, d=2)
            >>> prior = RadialPrior.fit(x, pareto=0.01)
            >>> prior.tail, 0.5 < prior.tail_index < 2
            (100, True)
        """
        check_directions("x", x)
        if not is_number(pareto) or not 0 <= pareto <= 0.5:
            raise ValueError(
                f"pareto must be a share in [0, 0.5] (0.01 is a usual choice), got {pareto!r}"
            )
        tail = round(pareto * len(x))
        if pareto and not tail:
            raise ValueError(
                f"pareto must be a share of at least one of the {len(x)} norms, got {pareto!r}, "
                f"which rounds to none: give at least {1 / len(x):.2g}, or 0 for no tail"
            )
        log_norms = torch.log(x.reshape(len(x), -1).double().norm(dim=1)).sort().values
        thinned = log_norms[:: max(1, len(log_norms) // 2**20)]
        low, high = torch.quantile(thinned, log_norms.new_tensor([0.25, 0.75]))
        spread = min(float(log_norms.std(correction=0)), float(high - low) / 1.34)
        bandwidth = 0.9 * spread * len(log_norms) ** -0.2 if smooth else 0.0
        return cls(log_norms.float(), bandwidth, tail)

    @property
    def tail_index(self) -> float:
        """Hill's estimate of alpha in P(|x| > r) ~ r^-alpha; inf where all of the tail is equal.

        Raises:
            ValueError: The prior has no Pareto tail.
        """
        if not self.tail:
            raise ValueError("tail_index needs a Pareto tail: fit the prior with pareto=...")
        top = self.log_norms[-self.tail - 1 :].double()
        excess = float((top[1:] - top[0]).mean())
        return 1 / excess if excess else math.inf

    def sample(self, n: int, stream: Tensor) -> Tensor:
        """Return (n,) float32 norms of samples ``stream[1]`` .. ``stream[1] + n - 1``."""
        m = len(self.log_norms)
        rank = rng.uniforms(n, 1, stream, rng.Purpose.RADIUS, 0)[:, 0] * m
        logs = self.log_norms.double()[rank.long().clamp(max=m - 1)]
        if self.bandwidth:
            z = rng.normals(n, 1, stream, rng.Purpose.RADIUS, 1, torch.float64)[:, 0]
            logs = logs + self.bandwidth * z
        if self.tail:
            threshold = float(self.log_norms[-self.tail - 1])
            beyond = threshold - torch.log((m - rank) / self.tail) / self.tail_index
            logs = torch.where(rank > m - self.tail, beyond, logs)
        return torch.exp(logs.clamp(max=LARGEST_LOG_NORM)).float()
