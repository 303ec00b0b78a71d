"""ScoreModel: a network, its process and its prior, with everything that sampling and training need to know.

The network's raw output f predicts one of three things, all of them the score of y = log|x| in other words:

    "denoiser"    D = E[y_0 | y_t] = c_skip y + c_out f(c_in y, log(s) / 4), preconditioned as EDM (Karras et al., 2022)
    "hyvarinen"   q = x * grad_x log p_t(x) = f(x, t)
    "score"       grad_x log p_t(x) = f(x, t), the Stein score; q = x f          with D = y - shift + s^2 (q + 1).

A denoiser works on the state x / scale, with scale the geometric mean of every feature; the other two see x itself.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fastmsgm import nets
from fastmsgm.gbm import GBM
from fastmsgm.priors import LogNormalPrior, feature_signs

PREDICTIONS = ("denoiser", "hyvarinen", "score")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
S_MIN = 0.002  # of a denoiser; half a grey level of an 8-bit image shifted to [1, 2]
LEVELS = 1000  # N, the paper's number of noise levels, which its score networks are trained at
_NETS: dict[str, Callable[..., nn.Module]] = {"MLP": nets.MLP, "UNet": nets.UNet}


class ScoreModel(nn.Module):
    """A score network with its process and prior. ``ScoreModel.for_data`` builds one from a data set.

    Args:
        net: module f(x, c) -> like x, with c of shape (n,).
        process: the forward process.
        prior: the latent law.
        prediction: what f predicts, "denoiser", "hyvarinen" or "score".
        scale: (1, ...) the geometric mean of every feature with its sign; ones unless a denoiser.
        log_std: standard deviation of log(x / scale) over the data; the denoiser's preconditioning.
        offset: what was added to the data before the process saw them (1.0 for images in [0, 1]); samples have it
        removed. bounds: the data's own range, to which samples are clamped, or None. precision: "fp32", "bf16" or
        "fp16": what the network computes in. The state is always float32.

    Raises:
        ValueError: an unknown prediction or precision, a drift with a denoiser, or a sigma that overflows float32.
    """

    scale: Tensor
    centres: Tensor

    def __init__(
        self, net: nn.Module, process: GBM, prior: LogNormalPrior, *, prediction: str, scale: Tensor, log_std: float,
        offset: float = 0.0, bounds: tuple[float, float] | None = None, precision: str = "fp32",
    ) -> None:  # fmt: skip
        super().__init__()
        if prediction not in PREDICTIONS:
            raise ValueError(f"prediction must be one of {', '.join(PREDICTIONS)}, got {prediction!r}")
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
        if prediction == "denoiser" and process.drift:
            raise ValueError(f"a denoiser needs mu = sigma^2 / 2, got {process}: leave mu out, or predict a score")
        process.check_range(max(prior.variance, log_std**2))
        self.net, self.process, self.prediction = net, process, prediction
        self.log_std, self.variance = log_std, prior.variance
        self.offset, self.bounds, self.precision = offset, bounds, precision
        self.register_buffer("scale", scale)
        self.register_buffer("centres", prior.centres)

    @classmethod
    def for_data(
        cls, net: nn.Module, process: GBM, data: Tensor, *, prediction: str = "denoiser", labels: Tensor | None = None,
        offset: float = 0.0, bounds: tuple[float, float] | None = None, precision: str = "fp32",
    ) -> ScoreModel:  # fmt: skip
        """A model whose prior and scale are fitted to ``data`` (n, ...), given in the data's own range.

        A denoiser gets the log-mean of every feature; the other two the paper's prior, one log-mean per channel, or
        with ``labels`` (n,) the paper's class-average start.

        Raises:
            TypeError, ValueError: data that multiplication cannot reach (integers, zeros after the offset, NaN,
                features of both signs), or what the constructor refuses.
        """
        if not data.is_floating_point():
            raise TypeError(f"data must be floating point, got {data.dtype}: convert images with .float() / 255")
        x0 = data + offset
        scale = feature_signs(x0)
        if labels is not None:
            prior = LogNormalPrior.class_average(x0, labels)
        elif prediction == "denoiser":
            prior = LogNormalPrior.per_feature(x0)
            scale = prior.centres
        else:
            prior = LogNormalPrior.per_channel(x0)
        if prediction != "denoiser":
            scale = torch.ones_like(scale)
        log_std = float(torch.log((x0 / scale).abs()).double().std())
        return cls(
            net, process, prior, prediction=prediction, scale=scale, log_std=log_std, offset=offset, bounds=bounds,
            precision=precision,
        )  # fmt: skip

    @property
    def prior(self) -> LogNormalPrior:
        """The latent law, in units of x."""
        return LogNormalPrior(self.centres, self.variance)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return tuple(self.scale.shape[1:])

    @property
    def s_min(self) -> float:
        """The smallest noise level that the network has been trained for, below which solvers step to 0."""
        return S_MIN if self.prediction == "denoiser" else self.process.sigma_max / math.sqrt(LEVELS)

    @property
    def device(self) -> torch.device:
        return self.scale.device

    @property
    def input_dtype(self) -> torch.dtype:
        """The dtype of the network's input: a denoiser is fed in its own precision, a score network with the state."""
        return PRECISIONS[self.precision] if self.prediction == "denoiser" else torch.float32

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

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """The network's raw output, in its precision. x: (n, ...), c: (n,).

        Raises:
            ValueError: the network's output has another shape than its input.
        """
        dtype = PRECISIONS[self.precision]
        with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
            f = self.net(x, c)
        if f.shape != x.shape:
            raise ValueError(
                f"net must return its input's shape {tuple(x.shape)}, got {tuple(f.shape)}: give it that many outputs"
            )
        return f

    def to_state(self, data: Tensor) -> Tensor:
        """Data in their own range (n, ...) -> the process's state: (data + offset) / scale."""
        return (data + self.offset) / self.scale

    def to_data(self, state: Tensor) -> Tensor:
        """The inverse of ``to_state``, clamped to ``bounds``."""
        data = state * self.scale - self.offset
        return data if self.bounds is None else data.clamp_(*self.bounds)

    def save(self, folder: str | os.PathLike[str], dtype: torch.dtype = torch.float32) -> None:
        """Write ``config.json`` and ``model.safetensors`` (the network in ``dtype``) into ``folder``."""
        config = {
            "net": {"name": type(self.net).__name__, **_net_config(self.net)},
            "process": {"name": "GBM", "sigma": self.process.sigma, "mu": self.process.mu, "T": self.process.T},
            "prior": {"variance": self.variance},
            "prediction": self.prediction, "log_std": self.log_std, "offset": self.offset, "bounds": self.bounds,
            "precision": self.precision, "shape": self.shape,
        }  # fmt: skip
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        weights = {
            k: v.to("cpu", dtype if k.startswith("net.") and v.is_floating_point() else v.dtype, copy=True).contiguous()
            for k, v in self.state_dict().items()
        }
        write_atomically(path / "model.safetensors", lambda p: save_file(weights, p))
        write_atomically(path / "config.json", lambda p: p.write_text(json.dumps(config, indent=2) + "\n"))


def load(
    name_or_path: str | os.PathLike[str], device: torch.device | str = "cpu", net: nn.Module | None = None
) -> ScoreModel:
    """Load a model from a shipped name ("fashion-gbm") or a folder with ``config.json`` and ``model.safetensors``.

    Args:
        net: the network, where it is not one of ``fastmsgm.nets``; its weights are loaded into it.

    Raises:
        ValueError: neither a shipped model nor a folder with a checkpoint.
    """
    shipped = Path(str(resources.files("fastmsgm.models")))
    path = Path(name_or_path)
    if not (path / "config.json").is_file():
        path = shipped / str(name_or_path)
    if not (path / "config.json").is_file():
        names = sorted(p.parent.name for p in shipped.glob("*/config.json"))
        raise ValueError(
            f"model must be one of {', '.join(names) or '(none shipped)'} or a folder with config.json, "
            f"got {str(name_or_path)!r}"
        )
    config: dict[str, Any] = json.loads((path / "config.json").read_text())
    weights = load_file(path / "model.safetensors")
    if net is None:
        kind = config["net"].pop("name")
        if kind not in _NETS:
            raise ValueError(f"net {kind!r} is not one of {', '.join(_NETS)}: build it yourself and give it as net=...")
        net = _NETS[kind](**config["net"])
    process = GBM(**{k: v for k, v in config["process"].items() if k != "name"})
    prior = LogNormalPrior(weights["centres"], config["prior"]["variance"])
    model = ScoreModel(
        net, process, prior, prediction=config["prediction"], scale=weights["scale"], log_std=config["log_std"],
        offset=config["offset"], bounds=config["bounds"] and tuple(config["bounds"]), precision=config["precision"],
    )  # fmt: skip
    model.load_state_dict(weights)
    return model.to(device).eval()


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call ``write(temporary path)`` and move the result into place, so that a kill never leaves half a file."""
    temporary = path.with_name(path.name + ".tmp")
    write(temporary)
    os.replace(temporary, path)


def _net_config(net: nn.Module) -> dict[str, Any]:
    config = getattr(net, "config", {})
    return config if isinstance(config, dict) else {}
