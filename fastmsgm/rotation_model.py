"""RotationModel: a network that scores a rotation, what it is fed and what its output means.

The network sees the direction u = x / |x|, scaled to unit variance, and two numbers: the clock, as (log B + 3) / 3, and
the standardised log-norm. Of its raw output f only the tangent part counts, n = P_u f / sqrt(d):

    score of x = rho(B) n / |x|,    D = alpha u + sigma n    with rho = (d - 1) / sqrt(e^B - 1), the score's own scale,

alpha = e^{-B/2}, sigma = sqrt(1 - e^{-B}) (MATH: kappa (D - alpha u) is the same score), so that for isotropic noise f
is of unit variance at every clock; ring and dense noise forget slower, and there f grows with the clock. Norms are
never noised: samples take theirs from the prior.
"""

from __future__ import annotations

import logging
import math
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastmsgm import heat_kernel
from fastmsgm.checks import check_floating_point, check_offset
from fastmsgm.model import ScoreModel
from fastmsgm.priors import RadialPrior
from fastmsgm.rotation import Rotation, check_dense, check_directions

FORWARD_STEPS = 64  # of a simulated forward process in training
CLOCK_MIN = 1e-4  # the smallest clock that a network is trained at, below which solvers step to 0
_log = logging.getLogger("fastmsgm")
OBJECTIVES = ("dsm", "ssm")
PROBES = ("rademacher", "gaussian", "sphere")


class RotationModel(ScoreModel):
    """A score network of a rotation. ``RotationModel.for_data`` builds one from a data set.

    Args:
        net: module f(x, c) -> like x, with c of shape (n, 2).
        process: the forward process.
        prior: the law of the norms.
        shape: of one sample.
        objective: what trains it: "dsm", denoising score matching with the heat kernel of the sphere (isotropic noise),
            or "ssm", the paper's sliced score matching.
        probes: of sliced score matching: "rademacher", "gaussian" or "sphere".
        offset, bounds, precision: see ``ScoreModel``.

    Raises:
        ValueError: an unknown objective or law of the probes, one that the noise has no conditional score for, or a
            process whose clock hardly moves.
    """

    log_norms: Tensor

    def __init__(
        self, net: nn.Module, process: Rotation, prior: RadialPrior, *, shape: tuple[int, ...], objective: str,
        probes: str = "rademacher", offset: float = 0.0, bounds: tuple[float, float] | None = None,
        precision: str = "fp32",
    ) -> None:  # fmt: skip
        super().__init__(net, offset, bounds, precision)
        if not isinstance(process, Rotation):
            raise TypeError(f"process must be a Rotation, got {type(process).__name__}: give Rotation()")
        if objective not in OBJECTIVES:
            raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}, got {objective!r}")
        if probes not in PROBES:
            raise ValueError(f"probes must be one of {', '.join(PROBES)}, got {probes!r}")
        if objective == "dsm" and process.noise != "isotropic":
            raise ValueError(
                f'objective "dsm" needs isotropic noise, whose conditional score is known, got {process}: use "ssm"'
            )
        if process.clock_max <= CLOCK_MIN:
            raise ValueError(
                f"the process's largest clock must be above {CLOCK_MIN}, got {process.clock_max:g}: raise beta_max"
            )
        d = math.prod(shape)
        if len(shape) < 1 or d < 2:
            raise ValueError(f"shape must have at least one axis and 2 features, got {tuple(shape)}")
        if process.noise == "dense":
            check_dense(d)
        if process.noise == "ring" and process.clock_max < d * d / 4:
            _log.warning(
                "ring noise reaches uniform directions at a clock of about d^2 / 4 = %g, the process ends at %g: "
                "samples start from another law than the data end in; raise beta_max",
                d * d / 4, process.clock_max,
            )  # fmt: skip
        self.process, self._shape, self.objective, self.probes = process, tuple(shape), objective, probes
        self.bandwidth, self.tail = prior.bandwidth, prior.tail
        self.register_buffer("log_norms", prior.log_norms)
        self._standardise()
        self.register_load_state_dict_post_hook(lambda *_: self._standardise())

    @classmethod
    def for_data(
        cls, net: nn.Module, process: Rotation, data: Tensor, *, prior: RadialPrior | None = None,
        objective: str | None = None, probes: str = "rademacher", offset: float = 0.0,
        bounds: tuple[float, float] | None = None, precision: str = "fp32",
    ) -> RotationModel:  # fmt: skip
        """A model whose prior is fitted to ``data`` (n, ...), given in the data's own range.

        Args:
            prior: None is the eCDF of the data's norms (``RadialPrior.fit``).
            objective: None is "dsm" for isotropic noise, else "ssm".

        Raises:
            TypeError, ValueError: data without directions (integers, zero vectors after the offset, NaN), or what the
                constructor refuses.
        """
        check_floating_point("data", data)
        check_offset(offset)
        x0 = data + offset
        check_directions("data", x0)
        return cls(
            net, process, RadialPrior.fit(x0) if prior is None else prior, shape=tuple(data.shape[1:]),
            objective=objective or ("dsm" if process.noise == "isotropic" else "ssm"), probes=probes, offset=offset,
            bounds=bounds, precision=precision,
        )  # fmt: skip

    def _standardise(self) -> None:
        """The centre and spread of the log-norms, by which the network sees them."""
        self._centre = float(self.log_norms.mean())
        self._spread = max(float(self.log_norms.std(correction=0)), 1e-3)

    @property
    def prior(self) -> RadialPrior:
        """The law of the norms."""
        return RadialPrior(self.log_norms, self.bandwidth, self.tail)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape

    @property
    def dimension(self) -> int:
        """d, the number of features of a sample."""
        return math.prod(self.shape)

    @property
    def input_dtype(self) -> torch.dtype:
        return self.network_dtype

    def condition(self, clocks: NDArray[np.float64], norms: Tensor) -> Tensor:
        """The network's conditioning numbers, (n, 2) float32, of clocks (n,) or one for all and norms (n,)."""
        level = torch.from_numpy(np.broadcast_to((np.log(clocks) + 3) / 3, len(norms)).astype(np.float32))
        return torch.stack((level.to(norms.device), (torch.log(norms) - self._centre) / self._spread), dim=1)

    @property
    def input_scale(self) -> float:
        """The network sees this times the direction."""
        return math.sqrt(self.dimension)

    def score(self, f: Tensor, clocks: NDArray[np.float64]) -> Tensor:
        """The score of the direction from the network's output, both (n, d); its radial part is left in."""
        return f * torch.from_numpy(self.coefficients(clocks)[:, 2:]).to(f.device, torch.float32)

    def noised(self, x0: Tensor, clocks: NDArray[np.float64], stream: Tensor, step: int) -> Tensor:
        """The direction of x_t of x0 (n, d), a clock each: one shot for isotropic noise, else simulated."""
        u0 = x0 / x0.norm(dim=1, keepdim=True)
        return self.process.noised(u0, clocks, stream, step, FORWARD_STEPS)

    def coefficients(self, clocks: NDArray[np.float64]) -> NDArray[np.float64]:
        """alpha, sigma / sqrt(d), rho / sqrt(d) at clocks (R,), shape (R, 3): D and the score of f's tangent part."""
        root = math.sqrt(self.dimension)
        rho = heat_kernel.rho(clocks, self.dimension)
        return np.stack((heat_kernel.alpha(clocks), heat_kernel.sigma(clocks) / root, rho / root), axis=1)

    def to_state(self, data: Tensor) -> Tensor:
        return (data + self.offset).contiguous()

    def to_data(self, state: Tensor) -> Tensor:
        data = state - self.offset
        return data if self.bounds is None else data.clamp_(*self.bounds)

    def check_states(self, states: Tensor) -> None:
        check_directions("data", states)

    def config(self) -> dict[str, Any]:
        return {
            "process": {"name": "Rotation", **asdict(self.process)},
            "prior": {"bandwidth": self.bandwidth, "tail": self.tail},
            "objective": self.objective, "probes": self.probes, "offset": self.offset, "bounds": self.bounds,
            "shape": self.shape,
        }  # fmt: skip

    @classmethod
    def from_config(cls, net: nn.Module, config: dict[str, Any], weights: dict[str, Tensor]) -> RotationModel:
        """The model of a checkpoint, before its network has its weights."""
        process = Rotation(**{k: v for k, v in config["process"].items() if k != "name"})
        return cls(
            net, process, RadialPrior(weights["log_norms"], **config["prior"]), shape=tuple(config["shape"]),
            objective=config["objective"], probes=config["probes"], offset=config["offset"],
            bounds=config["bounds"] and tuple(config["bounds"]), precision=config["precision"],
        )  # fmt: skip
