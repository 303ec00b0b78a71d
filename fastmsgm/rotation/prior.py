"""RadialPrior: the distribution of the norms of the data, which rotations keep.

Sampling starts from a norm of this distribution times a uniform direction. ``LogNorms`` is what it
is fitted to. ``is_heavy_tailed`` is the one definition of heavy tails.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastmsgm import rng
from fastmsgm.checks import check_int, is_number
from fastmsgm.data.blocks import located, one_pass
from fastmsgm.data.loaders import Data
from fastmsgm.rotation.directions import check_directions
from fastmsgm.rotation.norm_density import hill, log_norm_density, silverman

LARGEST_LOG_NORM = 88.0  # of a sampled norm: its exponential is a float32
TOP_SHARE = 0.01  # of the norms, the largest ones: what Hill's estimate and ``fit(tail=...)`` take
FEWEST_TOP = 10  # norms that Hill's estimate takes; its relative error is then 32 %
# Of the largest norms. Where half of every batch is out of fewer, the network memorises them: for
# 4-D Cauchy data the held-out loss of the largest 1 % goes from 0.78 to 0.56 for 100 of them, but
# to 1.5 for 20 and to 16 for 10 (2,500 steps).
FEWEST_OVERSAMPLED = 100
HEAVY_TAIL_INDEX = 4.0  # the fourth moment is infinite at or below it
HEAVY_TAIL_SATURATION = 0.001  # share of the largest norms whose condition is the same


@dataclass(frozen=True, repr=False)
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

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RadialPrior):
            return NotImplemented
        same = (self.bandwidth, self.tail) == (other.bandwidth, other.tail)
        return same and torch.equal(self.log_norms.cpu(), other.log_norms.cpu())

    def __hash__(self) -> int:
        return hash((len(self.log_norms), self.bandwidth, self.tail))

    def __repr__(self) -> str:
        return (
            f"RadialPrior({len(self.log_norms)} norms, bandwidth={self.bandwidth:g}, "
            f"tail={self.tail})"
        )

    @classmethod
    def fit(cls, x: Data, *, smooth: bool = False, pareto: float = 0.0) -> RadialPrior:
        """Fit the prior of data.

        Args:
            x: A tensor (n, ...), a data set or a loader, in the units of the process: after the
                offset has been added.
            smooth: KDE with Silverman's bandwidth instead of the ECDF.
            pareto: Share of the largest norms that is replaced by a Pareto tail, in [0, 0.5]; 0.01
                is a usual choice.

        Raises:
            TypeError: x is of the wrong type.
            ValueError: x has no directions, or pareto is out of range or less than one norm.

        Example:
            >>> x = synthetic.correlated_cauchy(10_000, d=2)
            >>> prior = RadialPrior.fit(x, pareto=0.01)
            >>> prior.tail, 0.5 < prior.tail_index < 2
            (100, True)
        """
        return LogNorms(x, name="x").prior(smooth=smooth, pareto=pareto)

    @property
    def tail_index(self) -> float:
        """Hill's estimate of alpha in P(|x| > r) ~ r^-alpha; inf where all of the tail is equal.

        Raises:
            ValueError: The prior has no Pareto tail.
        """
        if not self.tail:
            raise ValueError("tail_index needs a Pareto tail: fit the prior with pareto=...")
        return hill(self.log_norms, self.tail)

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

    def log_density(self, norms: Tensor) -> Tensor:
        """Return the log-density of norms: that of log r by the KDE, minus log r.

        The ECDF (bandwidth 0) has no density. Its density is that of the KDE with Silverman's
        bandwidth, as of ``fit(smooth=True)``, which both approach as the norms become many.

        Args:
            norms: (n,) positive.

        Returns:
            (n,) float64.

        Raises:
            ValueError: The bandwidth is 0 and the norms do not vary.
        """
        logs = torch.log(norms.double())
        return log_norm_density(logs, self.log_norms, self.density_bandwidth, self.tail) - logs

    @property
    def density_bandwidth(self) -> float:
        """The bandwidth of ``log_density``: ``bandwidth``, or Silverman's where that is 0."""
        return self.bandwidth or silverman(self.log_norms.double())


def check_prior(prior: object) -> None:
    """Raise TypeError where a prior is not a ``RadialPrior``."""
    if not isinstance(prior, RadialPrior):
        raise TypeError(
            f"prior must be a RadialPrior, got {type(prior).__name__}: use RadialPrior.fit"
        )


def is_heavy_tailed(log_norms: Tensor) -> bool:
    """Whether Hill's estimate of the tail index of the largest 1 % of the norms is below 4.

    The fourth moment is then infinite. Financial returns have an index of about 3, images a far
    larger one. Fewer than about 1,000 norms, whose largest 1 % are fewer than 10, are too few for
    an estimate, and count as light-tailed.

    Args:
        log_norms: (n,) ascending.
    """
    k = round(TOP_SHARE * len(log_norms))
    return k >= FEWEST_TOP and hill(log_norms, k) < HEAVY_TAIL_INDEX


class LogNorms:
    """The logarithms of the norms of all samples, from one pass over the data.

    Args:
        data: A tensor (n, ...), a data set or a loader.
        offset: Number added to the data before the process sees them.
        name: Of the data, in messages.

    Attributes:
        shape: Shape of one sample.
        values: (n,) float64.

    Raises:
        TypeError: Data of the wrong type.
        ValueError: Data without directions: zero vectors after the offset, or non-finite values.
    """

    @torch.no_grad()
    def __init__(self, data: Data, *, offset: float = 0.0, name: str = "data") -> None:
        self.shape: tuple[int, ...] = ()
        values, n = torch.empty(0, dtype=torch.float64, device="cpu"), 0
        for block, _ in one_pass(data, name=name):
            x = block + offset
            with located(n, len(x)):
                check_directions(name, x)
            if n + len(x) > len(values):
                # Twice as long: many short tensors between the blocks would scatter the heap, so
                # that the blocks' memory could not be used again.
                more = x.new_empty(n + len(x), dtype=torch.float64)
                values = torch.cat((values.to(x.device), more))
            values[n : n + len(x)] = x.reshape(len(x), -1).double().norm(dim=1).log_()
            self.shape, n = tuple(x.shape[1:]), n + len(x)
        self.values = values[:n]

    @functools.cached_property
    def ascending(self) -> Tensor:
        """The values in ascending order."""
        return self.values.sort().values

    def top(self) -> Tensor:
        """Return the indices of the largest 1 % of the norms, at least one, ascending, int64."""
        k = max(round(TOP_SHARE * len(self.values)), 1)
        return self.values.topk(k).indices.sort().values.cpu()

    def saturation(self, share: float | None = None) -> float:
        """Return the log-norm that a share of the norms exceeds, at least one of them.

        Args:
            share: In [0, 0.5]; 0 is no limit. None is 0.001 where the norms are heavy-tailed
                (``is_heavy_tailed``), else 0.

        Returns:
            The largest log-norm that is distinguished from larger ones; inf where all are.

        Raises:
            ValueError: share is out of range.
        """
        if share is None:
            share = HEAVY_TAIL_SATURATION if is_heavy_tailed(self.ascending) else 0.0
        if not is_number(share) or not 0 <= share <= 0.5:
            raise ValueError(
                "saturate must be a share of the norms in [0, 0.5] (0.001 is usual for heavy "
                f"tails), got {share!r}: leave it out to choose by the data"
            )
        if not share:
            return math.inf
        n = len(self.values)
        k = max(round(share * n), 1)
        return float(self.ascending[max(n - k - 1, 0)])

    def prior(self, *, smooth: bool = False, pareto: float = 0.0) -> RadialPrior:
        """Return the prior with these norms; arguments as of ``RadialPrior.fit``.

        Raises:
            ValueError: pareto is out of range or less than one norm.
        """
        n = len(self.values)
        if not is_number(pareto) or not 0 <= pareto <= 0.5:
            raise ValueError(
                f"pareto must be a share in [0, 0.5] (0.01 is a usual choice), got {pareto!r}"
            )
        tail = round(pareto * n)
        if pareto and not tail:
            raise ValueError(
                f"pareto must be a share of at least one of the {n} norms, got {pareto!r}, "
                f"which rounds to none: give at least {1 / n:.2g}, or 0 for no tail"
            )
        bandwidth = silverman(self.ascending) if smooth else 0.0
        return RadialPrior(self.ascending.float(), bandwidth, tail)
