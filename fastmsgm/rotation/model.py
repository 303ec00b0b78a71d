"""RotationModel: a score network for norm-preserving diffusion.

The network is called as net(x, c_noise, log_norm=...), with c_noise = (log B + 3) / 3 and the
standardised log-norm, both (n,); ``preconditioning.py`` says what x and its output mean. Norms are
never noised: samples take theirs from the prior, whatever their class or condition.

Heavy tails have norms that are rare and far apart. Their directions converge as the norm grows
(regular variation), so the log-norm that the network sees saturates, and ``fit(tail=...)`` takes a
share of every batch from the largest norms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fastmsgm.checks import check_int, check_offset
from fastmsgm.data.loaders import Data
from fastmsgm.rotation import ring, spherical
from fastmsgm.rotation.directions import check_directions
from fastmsgm.rotation.flow import RotationFlow
from fastmsgm.rotation.log_norm_limit import log_norm_limit, without_limit
from fastmsgm.rotation.loss import SphericalDenoisingLoss
from fastmsgm.rotation.objective import FORWARD_STEPS, chosen_objective, sliced_config
from fastmsgm.rotation.preconditioning import RotationPreconditioning
from fastmsgm.rotation.prior import LogNorms, RadialPrior, check_prior, is_heavy_tailed
from fastmsgm.rotation.process import Rotation
from fastmsgm.sde import runge_kutta
from fastmsgm.sde.beta_schedule import TIME_MIN
from fastmsgm.sde.model import SDEModel
from fastmsgm.sde.sliced import SlicedScoreMatching
from fastmsgm.solver import Solver
from fastmsgm.types import Array


class RotationModel(SDEModel):
    """A network with a rotation process, its preconditioning and prior; see ``for_data``.

    Args:
        net: Module net(x, c_noise, log_norm=..., **condition) -> like x, with c_noise and log_norm
            of shape (n,); see ``ScoreModel.forward``.
        process: The forward process.
        prior: The distribution of the norms.
        shape: Shape of one sample.
        objective: What trains it: "dsm", denoising score matching with the heat kernel of the
            sphere, "ssm", the paper's sliced score matching, or None, "dsm" for isotropic noise.
        probes: Probes of sliced score matching: "rademacher", "gaussian" or "sphere".
        time_min: The smallest time at which sliced score matching and its solvers call the network.
        forward_steps: Of sliced score matching: steps of the simulation of ring and dense noise.
        log_norm_max: The largest log-norm that the network is conditioned on; larger ones count as
            this one, since directions converge as the norm grows. inf is no limit.
        classes: Number of classes of labelled data, 0 for none.
        offset: Added to the data before the process sees them, and removed from samples.
        bounds: The data's own range, to which samples are clamped, or None.
        precision: "fp32", "bf16" or "fp16", what the network computes in. The state is float32.

    Raises:
        TypeError: net is not a module, or process not a Rotation.
        ValueError: An argument out of range, or the objective "dsm" for ring or dense noise, or
            beside time_min or forward_steps.
    """

    family: ClassVar[str] = "Rotation"
    keeps_norms: ClassVar[bool] = True
    solvers: ClassVar[Mapping[str, Any]] = spherical.SOLVERS | ring.SOLVERS | runge_kutta.SOLVERS
    preconditioning: RotationPreconditioning
    log_norms: Tensor
    log_norm_max: Tensor

    def __init__(
        self,
        net: nn.Module,
        process: Rotation,
        prior: RadialPrior,
        *,
        shape: tuple[int, ...],
        objective: str | None,
        probes: str = "rademacher",
        time_min: float = TIME_MIN,
        forward_steps: int = FORWARD_STEPS,
        log_norm_max: float = math.inf,
        classes: int = 0,
        offset: float = 0.0,
        bounds: tuple[float, float] | None = None,
        precision: str = "fp32",
    ) -> None:
        super().__init__(net, classes, offset, bounds, precision)
        check_prior(prior)
        shape = tuple(check_int("shape", side, 1) for side in shape)
        d = math.prod(shape)
        self.preconditioning = RotationPreconditioning(process, d, time_min=time_min)
        self.sliced = SlicedScoreMatching(probes)
        self.forward_steps = check_int("forward_steps", forward_steps, 1)
        sliced = sliced_config(time_min, self.forward_steps)
        if d < 2:
            raise ValueError(f"shape must have at least one axis and 2 features, got {shape}")
        self._shape, self._objective = shape, chosen_objective(objective, process, sliced)
        self.bandwidth, self.tail = prior.bandwidth, prior.tail
        self.register_buffer("log_norms", prior.log_norms.detach())
        self.register_buffer("log_norm_max", log_norm_limit(log_norm_max, self.log_norms.device))
        self._standardise()
        self.register_load_state_dict_pre_hook(without_limit)
        self.register_load_state_dict_post_hook(RotationModel._standardise)

    @classmethod
    def for_data(
        cls,
        net: nn.Module,
        process: Rotation,
        data: Data,
        *,
        prior: RadialPrior | None = None,
        pareto: float = 0.0,
        saturate: float | None = None,
        objective: str | None = None,
        probes: str = "rademacher",
        time_min: float = TIME_MIN,
        forward_steps: int = FORWARD_STEPS,
        classes: int = 0,
        offset: float = 0.0,
        bounds: tuple[float, float] | None = None,
        precision: str = "fp32",
    ) -> RotationModel:
        """Build a model whose prior is fitted to data.

        Args:
            net: Module net(x, c_noise, log_norm=..., **condition) -> like x; see
                ``ScoreModel.forward``.
            process: The forward process.
            data: A tensor (n, ...) of floating point in the data's own range, or of uint8 images,
                which are divided by 255; a data set or a loader, whose items are x, (x, label) or
                (x, {name: value}). It is read once, in small blocks.
            prior: None is the eCDF of the data's norms (``RadialPrior.fit``).
            pareto: Share of the largest norms that a Pareto tail replaces, in [0, 0.5], where no
                prior is given; 0.01 is a usual choice for heavy tails.
            saturate: Share of the largest norms whose condition is the same, in [0, 0.5]; None is
                0.001 where the data are heavy-tailed (Hill's estimate of the tail index of the
                largest 1 % of at least 1,000 norms is below 4), else 0. Above 0.01 it makes
                ``fit(tail=...)`` weigh the larger of these norms more.
            objective: None is "dsm" for isotropic noise, else "ssm".
            probes: See the class.
            time_min: See the class.
            forward_steps: See the class.
            classes: Number of classes that the network is conditioned on (``UNet(classes=...)``);
                ``fit`` then needs labels.
            offset: Number added to the data before the process sees them.
            bounds: Range of the data, to which samples are clamped, or None.
            precision: What the network computes in, "fp32", "bf16" or "fp16".

        Returns:
            An untrained model.

        Raises:
            TypeError: data of the wrong type, or an argument of the class.
            ValueError: data without directions (zero vectors after the offset, NaN), pareto or
                saturate out of range, pareto beside a prior, or an argument of the class.

        Example:
            >>> data = synthetic.correlated_cauchy(1000, d=4)
            >>> net = nets.MLP(4, condition={"log_norm": 1})
            >>> model = RotationModel.for_data(net, Rotation(), data)
            >>> model.objective, model.shape
            ('dsm', (4,))
        """
        if not isinstance(process, Rotation):
            raise TypeError(
                f"process must be a Rotation, got {type(process).__name__}: give Rotation()"
            )
        check_offset(offset)
        if prior is not None and pareto:
            raise ValueError(
                f"pareto must be 0 beside a prior, which has a tail of its own, got {pareto!r}: "
                "leave one out"
            )
        norms = LogNorms(data, offset=offset)
        return cls(
            net,
            process,
            norms.prior(pareto=pareto) if prior is None else prior,
            shape=norms.shape,
            objective=objective,
            probes=probes,
            time_min=time_min,
            forward_steps=forward_steps,
            log_norm_max=norms.saturation(saturate),
            classes=classes,
            offset=offset,
            bounds=bounds,
            precision=precision,
        )

    @property
    def process(self) -> Rotation:
        """The forward process."""
        return self.preconditioning.process

    @property
    def prediction(self) -> str:
        """The tangential score of the direction times sqrt(d) / rho(B): "score"."""
        return "score"

    @property
    def objective(self) -> str:
        """What trains the network, "dsm" or "ssm"."""
        return self._objective

    @property
    def default_solver(self) -> Solver:
        """DPM-Solver++(2M) for isotropic noise, ring splitting, RK4 on the SDE for dense noise.

        DPM-Solver++(2M) is stochastic where the norms are heavy-tailed. Noise corrects extremes
        that the deterministic flow leaves between the few directions of large norms.
        """
        if self.process.noise == "dense":
            return runge_kutta.StratonovichRK4()
        if self.process.noise == "ring":
            return ring.RingSplitting()
        heavy = is_heavy_tailed(self.log_norms)
        return spherical.SphericalMultistep(eta=spherical.ETA if heavy else 0.0)

    @property
    def prior(self) -> RadialPrior:
        """The distribution of the norms."""
        return RadialPrior(self.log_norms, self.bandwidth, self.tail)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape

    @property
    def default_loss(self) -> Callable[..., Tensor]:
        return SphericalDenoisingLoss() if self.objective == "dsm" else self.sliced

    def _standardise(self, *_: object) -> None:
        """Compute what standardises log-norms, now and after loading weights."""
        self._log_norm_mean = float(self.log_norms.mean())
        self._log_norm_std = max(float(self.log_norms.std(correction=0)), 1e-3)

    def condition_of(self, norms: Tensor) -> dict[str, Tensor]:
        """Return the standardised log-norm, (n,) float32, as "log_norm"; it saturates."""
        log_norms = torch.log(norms).clamp(max=self.log_norm_max)
        return {"log_norm": (log_norms - self._log_norm_mean) / self._log_norm_std}

    def perturb_state(self, x0: Tensor, B: Array, stream: Tensor, step: int) -> Tensor:
        """Sample the direction of x_t given x0 (n, d): one shot for isotropic noise."""
        u0 = x0 / x0.norm(dim=1, keepdim=True)
        return self.process.perturb_directions(u0, B, stream, step, self.forward_steps)

    def forward_step(self, x: Tensor, B: Array, stream: Tensor, step: int) -> Tensor:
        """Take one step of a path of directions; its first state may have any norm."""
        u = x / x.norm(dim=1, keepdim=True)
        return self.process.perturb_directions(u, B, stream, step, 1)

    def probability_flow(self) -> RotationFlow:
        return RotationFlow(self, self.prior)

    def to_state(self, data: Tensor) -> Tensor:
        return (data + self.offset).contiguous()

    def check_states(self, states: Tensor) -> None:
        check_directions("data", states)

    def config(self) -> dict[str, Any]:
        return {
            "process": {"name": self.family, **asdict(self.process)},
            "prior": {"bandwidth": self.bandwidth, "tail": self.tail},
            "objective": self.objective,
            "probes": self.sliced.probes,
            "classes": self.classes,
            "offset": self.offset,
            "bounds": self.bounds,
            "shape": self.shape,
            **sliced_config(self.preconditioning.time_min, self.forward_steps),
        }

    @classmethod
    def from_config(
        cls, net: nn.Module, config: dict[str, Any], weights: dict[str, Tensor]
    ) -> RotationModel:
        process = Rotation(**{k: v for k, v in config["process"].items() if k != "name"})
        return cls(
            net,
            process,
            RadialPrior(weights["log_norms"], **config["prior"]),
            shape=tuple(config["shape"]),
            objective=config["objective"],
            probes=config["probes"],
            time_min=config.get("time_min", TIME_MIN),
            forward_steps=config.get("forward_steps", FORWARD_STEPS),
            log_norm_max=float(weights.get("log_norm_max", math.inf)),
            classes=config.get("classes", 0),
            offset=config["offset"],
            bounds=config["bounds"] and tuple(config["bounds"]),
            precision=config["precision"],
        )
