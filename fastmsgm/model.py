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
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fastmsgm import nets
from fastmsgm.gbm import GBM, check_multiplicative
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
        ValueError: an unknown prediction or precision, a sigma that overflows float32, or, with a denoiser, a drift, a
            sigma below the smallest noise level, or a log_std that is not positive (data that do not vary).
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
        if prediction == "denoiser" and not 0 < log_std < math.inf:
            raise ValueError(f"log_std must be positive, got {log_std}: a denoiser needs data that vary")
        if prediction == "denoiser" and process.sigma_max <= S_MIN:
            raise ValueError(
                f"sigma sqrt(T) must be above {S_MIN} for a denoiser, got {process.sigma_max:g}: raise sigma"
            )
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

        A denoiser gets the log-mean of every feature; the other two the paper's prior, one log-mean per channel. With
        ``labels`` (n,) the prior of either is the paper's class-average start, every class equally often.

        Raises:
            TypeError, ValueError: data that multiplication cannot reach (integers, zeros after the offset, NaN,
                features of both signs), or what the constructor refuses.
        """
        if isinstance(data, Tensor) and not data.is_floating_point():
            raise TypeError(f"data must be floating point, got {data.dtype}: convert images with .float() / 255")
        x0 = data + offset
        check_multiplicative("data", x0)
        if prediction == "denoiser":
            prior = LogNormalPrior.per_feature(x0)
            scale = prior.centres
        else:
            prior = LogNormalPrior.per_channel(x0)
            scale = torch.ones_like(feature_signs(x0))
        if labels is not None:
            prior = LogNormalPrior.class_average(x0, labels)
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
            TypeError: the network returns something else than a tensor.
            ValueError: its output has another shape than its input.
        """
        dtype = PRECISIONS[self.precision]
        with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
            f = self.net(x, c)
        if not isinstance(f, Tensor):
            raise TypeError(f"net must return a tensor, got {type(f).__name__}: wrap it, so that it returns its output")
        if f.shape != x.shape:
            raise ValueError(
                f"net must return its input's shape {tuple(x.shape)}, got {tuple(f.shape)}: give it that many outputs"
            )
        return f

    def to_state(self, data: Tensor) -> Tensor:
        """Data in their own range (n, ...) -> the process's state: (data + offset) / scale."""
        return ((data + self.offset) / self.scale).contiguous()

    def to_data(self, state: Tensor) -> Tensor:
        """The inverse of ``to_state``, clamped to ``bounds``."""
        data = state * self.scale - self.offset
        return data if self.bounds is None else data.clamp_(*self.bounds)

    def save(self, folder: str | os.PathLike[str], dtype: torch.dtype = torch.float32) -> None:
        """Write ``config.json`` and ``model.safetensors`` (the network in ``dtype``) into ``folder``."""
        net = getattr(self.net, "_orig_mod", self.net)  # what torch.compile wraps
        config = {
            "net": {**_net_config(net), "name": _net_name(net)},
            "process": {"name": "GBM", "sigma": self.process.sigma, "mu": self.process.mu, "T": self.process.T},
            "prior": {"variance": self.variance},
            "prediction": self.prediction, "log_std": self.log_std, "offset": self.offset, "bounds": self.bounds,
            "precision": self.precision, "shape": self.shape,
        }  # fmt: skip
        text = json.dumps(config, indent=2) + "\n"
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        weights = {
            k: v.to("cpu", dtype if k.startswith("net.") and v.is_floating_point() else v.dtype, copy=True).contiguous()
            for k, v in self.state_dict().items()
        }
        weights = {k.replace("net._orig_mod.", "net.", 1): v for k, v in weights.items()}
        write_atomically(path / "model.safetensors", lambda p: save_file(weights, p))
        write_atomically(path / "config.json", lambda p: p.write_text(text))


def load(
    name_or_path: str | os.PathLike[str], device: torch.device | str = "cpu", net: nn.Module | None = None
) -> ScoreModel:
    """Load a model from a shipped name ("fashion-gbm") or a folder with ``config.json`` and ``model.safetensors``.

    Args:
        net: the network, where it is not one of ``fastmsgm.nets``; its weights are loaded into it.

    Raises:
        ValueError: neither a shipped model nor a folder with a checkpoint, or a damaged one.
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
    try:
        config: dict[str, Any] = json.loads((path / "config.json").read_text())
        weights = load_file(path / "model.safetensors")
        return _build(config, weights, net).to(device).eval()
    except (json.JSONDecodeError, SafetensorError, KeyError) as error:
        raise ValueError(f"model: the checkpoint in {path} is damaged ({error!r}): save it again") from error


def _build(config: dict[str, Any], weights: dict[str, Tensor], net: nn.Module | None) -> ScoreModel:
    if net is None:
        kind = config["net"].pop("name")
        if kind not in _NETS:
            raise ValueError(f"net {kind!r} is not one of {', '.join(_NETS)}: build it yourself and give it as net=...")
        net = _NETS[kind](**config["net"])
    if config["process"]["name"] != "GBM":
        raise ValueError(f"process {config['process']['name']!r} is not GBM: this version does not know it")
    process = GBM(**{k: v for k, v in config["process"].items() if k != "name"})
    prior = LogNormalPrior(weights["centres"], config["prior"]["variance"])
    model = ScoreModel(
        net, process, prior, prediction=config["prediction"], scale=weights["scale"], log_std=config["log_std"],
        offset=config["offset"], bounds=config["bounds"] and tuple(config["bounds"]), precision=config["precision"],
    )  # fmt: skip
    model.load_state_dict(weights)
    return model


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call ``write(temporary path)`` and move the result into place, so that a kill never leaves half a file."""
    temporary = path.with_name(path.name + ".tmp")
    write(temporary)
    os.replace(temporary, path)


def _net_name(net: nn.Module) -> str:
    kind = type(net)
    return kind.__name__ if _NETS.get(kind.__name__) is kind else f"{kind.__module__}.{kind.__qualname__}"


def _net_config(net: nn.Module) -> dict[str, Any]:
    config = getattr(net, "config", {})
    return config if isinstance(config, dict) else {}
