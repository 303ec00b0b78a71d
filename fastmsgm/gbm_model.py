"""GBMModel: a network that scores geometric Brownian motion, its preconditioning and its prior.

The network's raw output f predicts one of three things, all of them the score of y = log|x| in other words:

    "denoiser"    D = E[y_0 | y_t] = c_skip y + c_out f(c_in y, log(s) / 4), preconditioned as EDM (Karras et al., 2022)
    "hyvarinen"   q = x * grad_x log p_t(x) = f(x, t)
    "score"       grad_x log p_t(x) = f(x, t), the Stein score; q = x f          with D = y - shift + s^2 (q + 1).

A denoiser works on the state x / scale, with scale the geometric mean of every channel of images, else of every
feature; the other two see x itself. With ``classes`` the network is told each sample's class, beside the noise level.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastmsgm.checks import check_floating_point, check_offset
from fastmsgm.gbm import GBM, check_multiplicative
from fastmsgm.model import ScoreModel
from fastmsgm.priors import LogNormalPrior, check_labels, feature_signs

PREDICTIONS = ("denoiser", "hyvarinen", "score")
S_MIN = 0.002  # of a denoiser; half a grey level of an 8-bit image shifted to [1, 2]
LEVELS = 1000  # N, the paper's number of noise levels, which its score networks are trained at


class GBMModel(ScoreModel):
    """A score network of geometric Brownian motion. ``GBMModel.for_data`` builds one from a data set.

    Args:
        net: module f(x, c) -> like x, with c of shape (n,), or (n, 2) with ``classes``: the second is the class.
        process: the forward process.
        prior: the latent law.
        prediction: what f predicts, "denoiser", "hyvarinen" or "score".
        scale: (1, ...) geometric means of the data with their signs; ones unless a denoiser.
        log_std: standard deviation of log(x / scale) over the data; the denoiser's preconditioning.
        classes: of labelled data, 0 for none. Where no class is asked for, sample i is of class i mod ``classes``.
        offset: what was added to the data before the process saw them (1.0 for images in [0, 1]); samples have it
        removed. bounds: the data's own range, to which samples are clamped, or None. precision: "fp32", "bf16" or
        "fp16": what the network computes in. The state is always float32.

    Raises:
        TypeError: net is not a module, or process not a GBM.
        ValueError: an unknown prediction or precision, an offset that is not finite, bounds that are not two numbers in
            order, other classes than the network's, a prior without a centre for each class, a sigma that overflows
            float32, or, with a denoiser, a drift, a sigma below the smallest noise level, or a log_std that is not
            positive (data that do not vary).
    """

    scale: Tensor
    centres: Tensor

    def __init__(
        self, net: nn.Module, process: GBM, prior: LogNormalPrior, *, prediction: str, scale: Tensor, log_std: float,
        classes: int = 0, offset: float = 0.0, bounds: tuple[float, float] | None = None, precision: str = "fp32",
    ) -> None:  # fmt: skip
        super().__init__(net, offset, bounds, precision)
        if not isinstance(process, GBM):
            raise TypeError(f"process must be a GBM, got {type(process).__name__}: give GBM(sigma=...)")
        if prediction not in PREDICTIONS:
            raise ValueError(f"prediction must be one of {', '.join(PREDICTIONS)}, got {prediction!r}")
        if prediction == "denoiser" and process.drift:
            raise ValueError(f"a denoiser needs mu = sigma^2 / 2, got {process}: leave mu out, or predict a score")
        if prediction == "denoiser" and not 0 < log_std < math.inf:
            raise ValueError(f"log_std must be positive, got {log_std}: a denoiser needs data that vary")
        if prediction == "denoiser" and process.sigma_max <= S_MIN:
            raise ValueError(
                f"sigma sqrt(T) must be above {S_MIN} for a denoiser, got {process.sigma_max:g}: raise sigma"
            )
        if isinstance(classes, bool) or not isinstance(classes, int) or classes < 0:
            raise ValueError(f"classes must be an int, 0 for unlabelled data, got {classes!r}")
        config = getattr(net, "config", {})
        known = config.get("classes", classes) if isinstance(config, dict) else classes
        if known != classes:
            raise ValueError(
                f"classes must be the network's, {known}, got {classes}: build the network with classes={classes}, or "
                f"give the model classes={known}"
            )
        if classes and len(prior.centres) not in (1, classes):
            raise ValueError(
                f"classes must match the prior, which has {len(prior.centres)} centres; got {classes}: give labels "
                "that hold every class"
            )
        process.check_range(max(prior.variance, log_std**2))
        self.process, self.prediction = process, prediction
        self.log_std, self.variance, self.classes = log_std, prior.variance, classes
        self.register_buffer("scale", scale)
        self.register_buffer("centres", prior.centres)

    @classmethod
    def for_data(
        cls, net: nn.Module, process: GBM, data: Tensor, *, prediction: str = "denoiser", labels: Tensor | None = None,
        classes: int = 0, offset: float = 0.0, bounds: tuple[float, float] | None = None, precision: str = "fp32",
    ) -> GBMModel:  # fmt: skip
        """A model whose prior and scale are fitted to ``data`` (n, ...), given in the data's own range.

        A denoiser's prior has the log-mean of every feature; that of the other two is the paper's, one log-mean per
        channel. With ``labels`` (n,) the prior of either is the paper's class-average start, every class equally often.
        ``classes``: the network is told the class (built with as many, ``UNet(classes=...)``); ``fit`` needs labels.

        Raises:
            TypeError, ValueError: data that multiplication cannot reach (integers, zeros after the offset, NaN,
                features of both signs), or what the constructor refuses.
        """
        check_floating_point("data", data)
        check_offset(offset)
        x0 = data + offset
        check_multiplicative("data", x0)
        if prediction == "denoiser":
            prior = LogNormalPrior.per_feature(x0)
            scale = LogNormalPrior.per_channel(x0).centres if x0.ndim == 4 else prior.centres
        else:
            prior = LogNormalPrior.per_channel(x0)
            scale = torch.ones_like(feature_signs(x0))
        if labels is not None:
            check_labels(labels, len(x0), classes if classes > 0 else None)
            prior = LogNormalPrior.class_average(x0, labels)
        log_std = float(torch.log((x0 / scale).abs()).double().std())
        return cls(
            net, process, prior, prediction=prediction, scale=scale, log_std=log_std, classes=classes, offset=offset,
            bounds=bounds, precision=precision,
        )  # fmt: skip

    @property
    def prior(self) -> LogNormalPrior:
        """The latent law, in units of x."""
        return LogNormalPrior(self.centres, self.variance)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.scale.shape[1:])

    @property
    def s_min(self) -> float:
        """The smallest noise level that the network has been trained for, below which solvers step to 0."""
        return S_MIN if self.prediction == "denoiser" else self.process.sigma_max / math.sqrt(LEVELS)

    @property
    def input_dtype(self) -> torch.dtype:
        # A denoiser is fed in its own precision, a score network with the state.
        return self.network_dtype if self.prediction == "denoiser" else torch.float32

    def condition(self, s: np.ndarray) -> np.ndarray:
        """The network's conditioning number at noise levels s: log(s) / 4 for a denoiser, else the time."""
        return np.log(s) / 4 if self.prediction == "denoiser" else (s / self.process.sigma) ** 2

    def preconditioning(self, s: np.ndarray) -> np.ndarray:
        """k0, k1, k2, c_in at noise levels s, shape (len(s), 4), float64: D = k0 y + k1 g + k2, input c_in y.

        At s = 0 a score network has no denoiser to speak of: its row is 1, 1, 1, 1 (the score itself, plus one).
        """
        one = np.ones_like(s)
        if self.prediction == "denoiser":
            total = np.sqrt(s**2 + self.log_std**2)
            return np.stack((self.log_std**2 / total**2, s * self.log_std / total, 0 * one, 1 / total), axis=1)
        square = np.where(s > 0, s**2, 1.0)
        shift = self.process.drift * (s / self.process.sigma) ** 2
        return np.stack((one, square, square - shift, one), axis=1)

    def to_state(self, data: Tensor) -> Tensor:
        return ((data + self.offset) / self.scale).contiguous()

    def to_data(self, state: Tensor) -> Tensor:
        data = state * self.scale - self.offset
        return data if self.bounds is None else data.clamp_(*self.bounds)

    def check_states(self, states: Tensor) -> None:
        check_multiplicative("data", states)
        if self.prediction == "denoiser" and not bool((states > 0).all()):
            raise ValueError("data must keep, in every feature, the sign of the data that the model was built for")

    def config(self) -> dict[str, Any]:
        return {
            "process": {"name": "GBM", **asdict(self.process)}, "prior": {"variance": self.variance},
            "prediction": self.prediction, "log_std": self.log_std, "classes": self.classes,
            "offset": self.offset, "bounds": self.bounds, "shape": self.shape,
        }  # fmt: skip

    @classmethod
    def from_config(cls, net: nn.Module, config: dict[str, Any], weights: dict[str, Tensor]) -> GBMModel:
        """The model of a checkpoint, before its network has its weights."""
        process = GBM(**{k: v for k, v in config["process"].items() if k != "name"})
        prior = LogNormalPrior(weights["centres"], config["prior"]["variance"])
        return cls(
            net, process, prior, prediction=config["prediction"], scale=weights["scale"], log_std=config["log_std"],
            classes=config["classes"], offset=config["offset"], bounds=config["bounds"] and tuple(config["bounds"]),
            precision=config["precision"],
        )  # fmt: skip
