"""GBMModel: a network for geometric Brownian motion, with its preconditioning and its prior.

What the network's raw output means is in ``preconditioning.py``. A denoiser works on the state
x / scale, with scale the geometric mean of every channel of images, else of every feature; score
networks see x itself. With ``classes`` the network is class-conditional: it sees the class label
of each sample, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fastmsgm.checks import check_int, check_labels, check_offset
from fastmsgm.data.loaders import Data
from fastmsgm.gbm.fitted import FittedSolver
from fastmsgm.gbm.flow import GBMFlow
from fastmsgm.gbm.loss import DenoisingLoss, MDSMLoss
from fastmsgm.gbm.paper_solvers import DaleLangevin, SignAgnostic
from fastmsgm.gbm.preconditioning import GBMPreconditioning
from fastmsgm.gbm.prior import LogMoments, LogNormalPrior, check_prior
from fastmsgm.gbm.process import GBM, check_multiplicative
from fastmsgm.gbm.solvers import ERSDE2, DPMSolverPP2M, Euler, Heun
from fastmsgm.model import ScoreModel
from fastmsgm.solver import Solver

SOLVERS: dict[str, Callable[[], Solver]] = {
    "euler": Euler,
    "heun": Heun,
    "dpm++2m": DPMSolverPP2M,
    "sde-dpm++2m": lambda: DPMSolverPP2M(eta=1.0),
    "er-sde-2": ERSDE2,
    "dale-langevin": DaleLangevin,
    "sign-agnostic": SignAgnostic,
    "dls": DaleLangevin,
    "ums": SignAgnostic,
}


class GBMModel(ScoreModel):
    """A network with a GBM process, its preconditioning and prior; see ``GBMModel.for_data``.

    Args:
        net: Module net(x, c_noise, **condition) -> like x, with c_noise (n,): log(s) / 4 for a
            denoiser, else the time. See ``ScoreModel.forward``.
        process: The forward process.
        prior: Where sampling starts, in the units of the process.
        prediction: What f predicts, "denoiser", "hyvarinen" or "score".
        scale: (1, ...) geometric means of the data with their signs; ones unless a denoiser.
        log_std: Standard deviation of log(x / scale) over the data; a denoiser's preconditioning.
        classes: Number of classes of labelled data, 0 for none.
        offset: Added to the data before the process sees them (1.0 for images in [0, 1]), and
            removed from samples.
        bounds: The data's own range, to which samples are clamped, or None.
        precision: "fp32", "bf16" or "fp16", what the network computes in. The state is float32.

    Attributes:
        fitted: Solvers that ``fit_solver`` fitted to the network, by their number of steps, which
            ``sample`` uses for so many steps. Training removes them.
        default_steps: Number of steps of the fitted solver that ``sample`` uses where none is asked
            for; None is ``default_solver``.

    Raises:
        TypeError: net is not a module, process not a GBM, or classes not an int.
        ValueError: An argument out of range, a number of classes that is not the network's, a prior
            without a mean for each class, or a sigma that overflows float32.
    """

    family: ClassVar[str] = "GBM"
    solvers = SOLVERS
    preconditioning: GBMPreconditioning
    default_steps: int | None
    scale: Tensor
    means: Tensor

    def __init__(
        self,
        net: nn.Module,
        process: GBM,
        prior: LogNormalPrior,
        *,
        prediction: str,
        scale: Tensor,
        log_std: float,
        classes: int = 0,
        offset: float = 0.0,
        bounds: tuple[float, float] | None = None,
        precision: str = "fp32",
    ) -> None:
        super().__init__(net, classes, offset, bounds, precision)
        self.preconditioning = GBMPreconditioning(process, prediction, log_std)
        check_prior(prior, scale, self.preconditioning.denoiser)
        if classes and len(prior.means) not in (1, classes):
            raise ValueError(
                f"classes must match the prior, which has {len(prior.means)} means; got {classes}: "
                "give labels that hold every class"
            )
        process.check_range(max(prior.variance, log_std**2))
        self.variance, self.default_steps = prior.variance, None
        self.fitted: dict[int, FittedSolver] = {}
        self.register_buffer("scale", scale.detach())
        self.register_buffer("means", prior.means.detach().clone())  # not the scale's memory

    @classmethod
    def for_data(
        cls,
        net: nn.Module,
        process: GBM,
        data: Data,
        *,
        prior: LogNormalPrior | None = None,
        prediction: str = "denoiser",
        labels: Tensor | bool | None = None,
        classes: int = 0,
        offset: float = 0.0,
        bounds: tuple[float, float] | None = None,
        precision: str = "fp32",
    ) -> GBMModel:
        """Build a model whose prior and scale are fitted to data.

        Args:
            net: Module net(x, c_noise, **condition) -> like x; see ``ScoreModel.forward``.
            process: The forward process.
            data: A tensor (n, ...) of floating point in the data's own range, or of uint8 images,
                which are divided by 255; a data set or a loader, whose items are x, (x, label) or
                (x, {name: value}). It is read once, in small blocks.
            prior: None fits one: for a denoiser the log-mean of every feature, else the paper's
                one log-mean per channel; with ``labels`` the paper's class-average start.
            prediction: What f predicts, "denoiser", "hyvarinen" or "score".
            labels: (n,) class labels, or True for those of the items of a data set. With them,
                samples start from the class means, and every class is sampled equally often.
            classes: Number of classes that the network is conditioned on (``UNet(classes=...)``);
                ``fit`` then needs labels.
            offset: Number added to the data before the process sees them.
            bounds: Range of the data, to which samples are clamped, or None.
            precision: What the network computes in, "fp32", "bf16" or "fp16".

        Returns:
            An untrained model.

        Raises:
            TypeError: data or labels of the wrong type, or an argument of the class.
            ValueError: data with zeros after the offset, NaN, or features of both signs; labels
                that do not fit; or an argument of the class.

        Example:
            >>> data = torch.exp(torch.randn(100, 3, generator=torch.Generator().manual_seed(0)))
            >>> model = GBMModel.for_data(nets.MLP(3), GBM(sigma=8.0), data)
            >>> model.prediction, model.shape
            ('denoiser', (3,))
        """
        check_offset(offset)
        classes = check_int("classes", classes, 0)
        if prior is not None and labels is not None:
            raise ValueError(
                "prior and labels must not be given together, since labels fit a prior: leave one "
                "out, or give prior=LogNormalPrior.class_average(...)"
            )
        moments = LogMoments(data, labels, offset=offset)
        per_channel = moments.per_channel()
        if prediction == "denoiser":
            fitted = moments.per_feature()
            scale = per_channel.means if fitted.means.ndim == 4 else fitted.means
        else:
            fitted, scale = per_channel, torch.ones_like(per_channel.means)
        if labels is not None:
            found = moments.classes.labels
            check_labels(found, len(found), classes if classes > 0 else None)
            fitted = moments.class_average()
        return cls(
            net,
            process,
            fitted if prior is None else prior,
            prediction=prediction,
            scale=scale,
            log_std=moments.log_std(scale),
            classes=classes,
            offset=offset,
            bounds=bounds,
            precision=precision,
        )

    @property
    def process(self) -> GBM:
        """The forward process."""
        return self.preconditioning.process

    @property
    def prediction(self) -> str:
        """What the network predicts, "denoiser", "hyvarinen" or "score"."""
        return self.preconditioning.prediction

    @property
    def log_std(self) -> float:
        """Standard deviation of log(x / scale) over the data."""
        return self.preconditioning.log_std

    @property
    def objective(self) -> str:
        """What trains the network: "dsm" in log space for a denoiser, else the paper's "m-dsm"."""
        return "dsm" if self.preconditioning.denoiser else "m-dsm"

    @property
    def default_solver(self) -> Solver:
        """DPM-Solver++(2M) for a denoiser, else Dale-Langevin.

        As an SDE, whose noise corrects errors of the network, or, for a class-conditional model, as
        the ODE: docs/solvers.md and the README have the figures of one model each.
        """
        if not self.preconditioning.denoiser:
            return DaleLangevin()
        return DPMSolverPP2M(eta=0.0 if self.classes else 1.0)

    def solver_of(self, steps: int | None, guided: bool = False) -> Solver:
        steps = self.default_steps if steps is None else steps
        fitted = None if steps is None or guided else self.fitted.get(steps)
        return self.default_solver if fitted is None else fitted

    def weights_changed(self) -> None:
        self.fitted, self.default_steps = {}, None  # not cleared: a copy may share it

    @property
    def prior(self) -> LogNormalPrior:
        """Where sampling starts, in the units of the process."""
        return LogNormalPrior(self.means, self.variance)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.scale.shape[1:])

    @property
    def input_dtype(self) -> torch.dtype:
        # A denoiser is fed in its own precision, a score network with the state.
        return self.network_dtype if self.preconditioning.denoiser else torch.float32

    @property
    def default_loss(self) -> DenoisingLoss | MDSMLoss:
        return DenoisingLoss() if self.preconditioning.denoiser else MDSMLoss()

    def probability_flow(self) -> GBMFlow:
        return GBMFlow(self, self.prior, self.scale)

    def to_state(self, data: Tensor) -> Tensor:
        return ((data + self.offset) / self.scale).contiguous()

    def to_process(self, state: Tensor) -> Tensor:
        return state * self.scale

    def check_states(self, states: Tensor) -> None:
        check_multiplicative("data", states)
        if self.preconditioning.denoiser and not bool((states > 0).all()):
            raise ValueError(
                "data must keep, in every feature, the sign of the data that the model was built "
                "for"
            )

    def config(self) -> dict[str, Any]:
        return {
            "process": {"name": self.family, **asdict(self.process)},
            "prior": {"variance": self.variance},
            "prediction": self.prediction,
            "log_std": self.log_std,
            "classes": self.classes,
            "offset": self.offset,
            "bounds": self.bounds,
            "shape": self.shape,
        }

    def solver_config(self) -> dict[str, Any]:
        tables = {str(steps): solver.config() for steps, solver in self.fitted.items()}
        return {"default_steps": self.default_steps, "fitted": tables}

    @classmethod
    def from_config(
        cls, net: nn.Module, config: dict[str, Any], weights: dict[str, Tensor]
    ) -> GBMModel:
        process = GBM(**{k: v for k, v in config["process"].items() if k != "name"})
        model = cls(
            net,
            process,
            LogNormalPrior(weights["means"], config["prior"]["variance"]),
            prediction=config["prediction"],
            scale=weights["scale"],
            log_std=config["log_std"],
            classes=config["classes"],
            offset=config["offset"],
            bounds=config["bounds"] and tuple(config["bounds"]),
            precision=config["precision"],
        )
        tables = map(FittedSolver.from_config, config.get("fitted", {}).values())
        model.fitted = {solver.default_steps: solver for solver in tables}
        model.default_steps = config.get("default_steps")
        return model
