"""EDMModel: a denoiser of additive noise, on data that are standardised or compressed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fastmsgm.data.blocks import one_pass
from fastmsgm.data.items import as_float
from fastmsgm.data.loaders import Data
from fastmsgm.data.moments import Moments
from fastmsgm.edm.flow import EDMFlow
from fastmsgm.edm.loss import EDMLoss
from fastmsgm.edm.process import EDM, EDMPreconditioning
from fastmsgm.edm.solver import EDMHeun
from fastmsgm.model import ScoreModel
from fastmsgm.solver import Solver

TRANSFORMS = ("standard", "median", "asinh")


class EDMModel(ScoreModel):
    """A network that denoises y_s = y_0 + s n; ``EDMModel.for_data`` builds one.

    Args:
        net: Module net(x, c_noise, **condition) -> like x; see ``ScoreModel.forward``.
        process: The forward process.
        centre: (1, ...) subtracted from the data.
        scale: (1, ...) that divides them.
        data_std: Standard deviation of the transformed data y_0.
        transform: "standard" or "median", y = (x - centre) / scale; or "asinh", the inverse
            hyperbolic sine of that, which is linear in the bulk and a logarithm in the tails.
        classes: Number of classes of labelled data, 0 for none.
        bounds: The data's own range, to which samples are clamped, or None.
        precision: See ``ScoreModel``.

    Raises:
        TypeError: net is not a module, or process not an EDM.
        ValueError: An unknown transform, or an argument out of range.
    """

    family: ClassVar[str] = "EDM"
    solvers: ClassVar[Mapping[str, Callable[[], Solver]]] = {"edm-heun": EDMHeun}
    preconditioning: EDMPreconditioning
    centre: Tensor
    scale: Tensor

    def __init__(
        self,
        net: nn.Module,
        process: EDM,
        centre: Tensor,
        scale: Tensor,
        *,
        data_std: float = 1.0,
        transform: str = "standard",
        classes: int = 0,
        bounds: tuple[float, float] | None = None,
        precision: str = "fp32",
    ) -> None:
        super().__init__(net, classes=classes, bounds=bounds, precision=precision)
        _check_transform(transform)
        self.transform = transform
        self.preconditioning = EDMPreconditioning(process, data_std)
        self.register_buffer("centre", centre.detach())
        self.register_buffer("scale", scale.detach())

    @classmethod
    def for_data(
        cls,
        net: nn.Module,
        process: EDM,
        data: Data,
        *,
        transform: str = "standard",
        classes: int = 0,
        bounds: tuple[float, float] | None = None,
        precision: str = "fp32",
    ) -> EDMModel:
        """Build a model with the location and scale of the data.

        Args:
            net: Module net(x, c_noise, **condition) -> like x; see ``ScoreModel.forward``.
            process: The forward process.
            data: A tensor (n, ...) of floating point, or of uint8 images, which are divided
                by 255; a data set or a loader, whose items are x, (x, label) or (x, {name: value}).
                "median" and "asinh" need a tensor.
            transform: "standard", mean and standard deviation of each channel of images or of each
                feature; "median", 0 and the median of |x| of each feature, for heavy tails, which
                have no standard deviation; "asinh", the inverse hyperbolic sine of that.
            classes: Number of classes that the network is conditioned on.
            bounds: Range of the data, to which samples are clamped, or None.
            precision: See ``ScoreModel``.

        Raises:
            TypeError: data of the wrong type.
            ValueError: An unknown transform, or data of infinite or no spread.

        Example:
            >>> model = EDMModel.for_data(nets.MLP(4), EDM(), torch.randn(100, 4))
            >>> model.shape
            (4,)
        """
        _check_transform(transform)
        if transform == "standard":
            (centre, scale), data_std = _moments(data), 1.0
        else:
            if not isinstance(data, Tensor):
                raise TypeError(
                    f'data must be a tensor for transform="{transform}", got '
                    f"{type(data).__name__}: give a tensor, of a part of the data"
                )
            x = as_float(data)
            scale = x.abs().median(0).values[None].float()
            centre = torch.zeros_like(scale)
            data_std = float(torch.asinh(x / scale).std()) if transform == "asinh" else 1.0
            if not bool(torch.isfinite(x).all()):
                raise ValueError("data must be finite, got NaN or infinity: remove these samples")
        if not bool((torch.isfinite(scale) & (scale > 0)).all()):
            raise ValueError(
                "data must be finite and vary in every feature, since each is divided by its scale"
            )
        return cls(
            net,
            process,
            centre,
            scale,
            data_std=data_std,
            transform=transform,
            classes=classes,
            bounds=bounds,
            precision=precision,
        )

    @property
    def process(self) -> EDM:
        """The forward process."""
        return self.preconditioning.process

    @property
    def prediction(self) -> str:
        """EDM's raw output F, of a "denoiser"."""
        return "denoiser"

    @property
    def objective(self) -> str:
        """Denoising score matching, "dsm"."""
        return "dsm"

    @property
    def default_solver(self) -> Solver:
        """EDM's Heun method, without churn."""
        return EDMHeun()

    @property
    def default_loss(self) -> EDMLoss:
        """EDM's noise levels for standardised data, else log-uniform ones."""
        return EDMLoss() if self.transform == "standard" else EDMLoss(p_mean=None)

    def probability_flow(self) -> EDMFlow:
        return EDMFlow(self, self.centre, self.scale, self.transform == "asinh")

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.scale.shape[1:])

    def to_state(self, data: Tensor) -> Tensor:
        y = ((data - self.centre) / self.scale).contiguous()
        return torch.asinh(y) if self.transform == "asinh" else y

    def to_process(self, state: Tensor) -> Tensor:
        y = torch.sinh(state) if self.transform == "asinh" else state
        return y * self.scale + self.centre

    def check_states(self, states: Tensor) -> None:
        if not bool(torch.isfinite(states).all()):
            raise ValueError("data must be finite, got NaN or infinity")

    def config(self) -> dict[str, Any]:
        return {
            "process": {"name": self.family, **asdict(self.process)},
            "transform": self.transform,
            "data_std": self.preconditioning.data_std,
            "classes": self.classes,
            "bounds": self.bounds,
            "shape": self.shape,
        }

    @classmethod
    def from_config(
        cls, net: nn.Module, config: dict[str, Any], weights: dict[str, Tensor]
    ) -> EDMModel:
        return cls(
            net,
            EDM(**{k: v for k, v in config["process"].items() if k != "name"}),
            weights["centre"],
            weights["scale"],
            data_std=config["data_std"],
            transform=config["transform"],
            classes=config["classes"],
            bounds=config["bounds"] and tuple(config["bounds"]),
            precision=config["precision"],
        )


def _moments(data: Data) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation, (1, ...) float32: one a channel of images."""
    moments = Moments()
    for x, _ in one_pass(data):
        moments.update(x.detach())
    mean, variance = moments.mean, moments.variance
    if mean.ndim == 3:
        centre = mean.mean((1, 2), keepdim=True)
        variance = (variance + (mean - centre).square()).mean((1, 2), keepdim=True)
        mean, variance = centre.expand_as(mean), variance.expand_as(mean)
    return mean[None].float().contiguous(), variance.sqrt()[None].float().contiguous()


def _check_transform(transform: object) -> None:
    if transform not in TRANSFORMS:
        raise ValueError(f"transform must be one of {', '.join(TRANSFORMS)}, got {transform!r}")
