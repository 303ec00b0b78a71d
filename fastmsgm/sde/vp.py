"""VP: ordinary, additive diffusion with the interface of ``Rotation``, as a baseline.

    dx = -beta(t) x / 2 dt + sqrt(beta(t)) dW,    x_t = e^{-B/2} x_0 + sqrt(1 - e^{-B}) z

(VP-SDE; Song et al., 2021) with B(t) = int_0^t beta, beta linear in t. Its prior is N(0, I), whose
tails are lighter than those of many data. Both papers compare with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fastmsgm import rng
from fastmsgm.checks import check_eta
from fastmsgm.data.blocks import one_pass
from fastmsgm.data.loaders import Data
from fastmsgm.data.moments import Moments
from fastmsgm.sde.beta_schedule import TIME_MIN, LinearBetaSchedule, alpha, sigma
from fastmsgm.sde.flow import VPFlow
from fastmsgm.sde.model import SDEModel, SDEPreconditioning
from fastmsgm.sde.runge_kutta import SOLVERS, StratonovichRK4
from fastmsgm.sde.sliced import SlicedScoreMatching
from fastmsgm.solver import Solver
from fastmsgm.types import Array


@dataclass(frozen=True)
class VP(LinearBetaSchedule):
    """The variance-preserving process for t in [0, 1]; arguments as of ``LinearBetaSchedule``."""

    def g_prod(self, x: Tensor, v: Tensor) -> Tensor:
        """Return v itself: the noise is additive."""
        return v

    def g_transpose_prod(self, x: Tensor, v: Tensor) -> Tensor:
        """Return v itself: the noise is additive."""
        return v

    def reverse_drift(
        self, x: Tensor, score: Tensor, eta: float = 1.0, ito: bool = False
    ) -> Tensor:
        """Return x / 2 + (1 + eta) / 2 score; for additive noise Ito and Stratonovich agree."""
        check_eta(eta)
        return x / 2 + (1 + eta) / 2 * score

    def project(self, x: Tensor) -> Tensor:
        """Return x itself: every point of R^d is reached."""
        return x


@dataclass(frozen=True)
class VPPreconditioning(SDEPreconditioning):
    """The network sees x itself and gives -sigma score, the noise z ("epsilon").

    Args:
        process: The forward process.
        time_min: See ``SDEPreconditioning``.
    """

    process: VP

    @property
    def c_in(self) -> float:
        return 1.0

    def score(self, model_output: Tensor, B: Array) -> Tensor:
        deviation = torch.from_numpy(sigma(B)).to(model_output.device, torch.float32)
        return -model_output / deviation.reshape(-1, 1)


class UnitNorms:
    """Norms of one, for states that have their own norms."""

    def sample(self, n: int, stream: Tensor) -> Tensor:
        """Return (n,) ones."""
        return torch.ones(n, dtype=torch.float32, device=stream.device)


class VPModel(SDEModel):
    """A score network of the variance-preserving process. ``VPModel.for_data`` builds one.

    Args:
        net: Module net(x, c_noise, **condition) -> like x; see ``ScoreModel.forward``.
        process: The forward process.
        mean: (1, ...) of the data; the process sees (data - mean) / scale.
        scale: (1, ...) standard deviation of the data.
        time_min: The smallest time at which the network is trained and called, in (0, 1).
        classes: Number of classes of labelled data, 0 for none.
        precision: See ``ScoreModel``.

    Raises:
        TypeError: net is not a module, or process not a VP.
        ValueError: time_min out of range, or an unknown precision.
    """

    family: ClassVar[str] = "VP"
    solvers: ClassVar[Mapping[str, Any]] = SOLVERS
    preconditioning: VPPreconditioning
    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        net: nn.Module,
        process: VP,
        mean: Tensor,
        scale: Tensor,
        *,
        time_min: float = TIME_MIN,
        classes: int = 0,
        precision: str = "fp32",
    ) -> None:
        super().__init__(net, classes=classes, precision=precision)
        if not isinstance(process, VP):
            raise TypeError(f"process must be a VP, got {type(process).__name__}: give VP()")
        self.preconditioning = VPPreconditioning(process, time_min=time_min)
        self.register_buffer("mean", mean.detach())
        self.register_buffer("scale", scale.detach())

    @classmethod
    def for_data(
        cls,
        net: nn.Module,
        process: VP,
        data: Data,
        *,
        time_min: float = TIME_MIN,
        classes: int = 0,
        precision: str = "fp32",
    ) -> VPModel:
        """Build a model that standardises every feature of the data.

        Args:
            net: Module net(x, c_noise, **condition) -> like x; see ``ScoreModel.forward``.
            process: The forward process.
            data: A tensor (n, ...) of floating point, or of uint8 images, which are divided
                by 255; a data set or a loader, whose items are x, (x, label) or (x, {name: value}).
                It is read once, in small blocks.
            time_min: The smallest time at which the network is trained and called, in (0, 1).
            classes: Number of classes that the network is conditioned on.
            precision: See ``ScoreModel``.

        Raises:
            TypeError: data of the wrong type.
            ValueError: A feature of infinite or no spread, or time_min out of range.
        """
        moments = Moments()
        for x, _ in one_pass(data):
            moments.update(x.detach())
        mean, scale = moments.mean[None].float(), moments.variance.sqrt()[None].float()
        if not bool((torch.isfinite(scale) & (scale > 0)).all()):
            raise ValueError(
                "data must be finite and vary in every feature, since each is divided by its "
                "standard deviation"
            )
        return cls(
            net, process, mean, scale, time_min=time_min, classes=classes, precision=precision
        )

    @property
    def process(self) -> VP:
        """The forward process."""
        return self.preconditioning.process

    @property
    def prediction(self) -> str:
        """The noise, "epsilon"."""
        return "epsilon"

    @property
    def objective(self) -> str:
        """Sliced score matching, "ssm"."""
        return "ssm"

    @property
    def default_solver(self) -> Solver:
        """The classical Runge-Kutta method on the reverse SDE, as in MSGM."""
        return StratonovichRK4()

    @property
    def prior(self) -> UnitNorms:
        """Norms of one: the state, sampled from N(0, I), has its own."""
        return UnitNorms()

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.scale.shape[1:])

    @property
    def input_dtype(self) -> torch.dtype:
        return torch.float32

    @property
    def default_loss(self) -> SlicedScoreMatching:
        return SlicedScoreMatching()

    def perturb_state(self, x0: Tensor, B: Array, stream: Tensor, step: int) -> Tensor:
        signal, noise = (
            torch.from_numpy(part(B)).to(x0.device, torch.float32)[:, None]
            for part in (alpha, sigma)
        )
        n, d = x0.shape
        return signal * x0 + noise * rng.normals(n, d, stream, rng.Purpose.TRAINING_NOISE, step)

    def probability_flow(self) -> VPFlow:
        return VPFlow(self, self.mean, self.scale)

    def to_state(self, data: Tensor) -> Tensor:
        return ((data - self.mean) / self.scale).contiguous()

    def to_data(self, state: Tensor) -> Tensor:
        return state * self.scale + self.mean

    def check_states(self, states: Tensor) -> None:
        if not bool(torch.isfinite(states).all()):
            raise ValueError("data must be finite, got NaN or infinity")

    def config(self) -> dict[str, Any]:
        time_min = self.preconditioning.time_min
        return {
            "process": {"name": self.family, **asdict(self.process)},
            "classes": self.classes,
            "shape": self.shape,
            # The default is left out: models from before there was a choice are the same models.
            **({} if time_min == TIME_MIN else {"time_min": time_min}),
        }

    @classmethod
    def from_config(
        cls, net: nn.Module, config: dict[str, Any], weights: dict[str, Tensor]
    ) -> VPModel:
        process = VP(**{k: v for k, v in config["process"].items() if k != "name"})
        return cls(
            net,
            process,
            weights["mean"],
            weights["scale"],
            time_min=config.get("time_min", TIME_MIN),
            classes=config.get("classes", 0),
            precision=config["precision"],
        )
