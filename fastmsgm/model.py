"""ScoreModel: what every score network is known by, whatever process it scores; and how it is saved.

What the network is fed and what its raw output means is the business of the process's own model: ``GBMModel`` in
``gbm_model.py``, ``RotationModel`` in ``rotation_model.py``.
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from fastmsgm import nets
from fastmsgm.checks import check_offset, interval

# Without it PyTorch has convolutions in 16 bits on a CPU only by a way that takes 25 times as long as float32.
_AVX512 = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# What reading a checkpoint may raise that is damaged, or whose weights are another network's.
DAMAGED = (
    json.JSONDecodeError, SafetensorError, KeyError, TypeError, AttributeError, FileNotFoundError, RuntimeError,
)  # fmt: skip
NETS: dict[str, Callable[..., nn.Module]] = {"MLP": nets.MLP, "UNet": nets.UNet}


class ScoreModel(nn.Module, ABC):
    """A score network; a subclass adds its process and its prior.

    Args:
        net: module f(x, c) -> like x, with c one or several conditioning numbers per sample.
        offset: what was added to the data before the process saw them (1.0 for images in [0, 1]); samples have it
            removed.
        bounds: the data's own range, to which samples are clamped, or None.
        precision: "fp32", "bf16" or "fp16": what the network computes in, but on a CPU without AVX-512, where it is
            "fp32". The state is always float32.

    Raises:
        TypeError: net is not a module.
        ValueError: an unknown precision, an offset that is not finite, or bounds that are not two numbers in order.
    """

    net: Any  # any module: its own attributes are its user's business
    classes: int = 0  # of labelled data, where the network is told each sample's

    def __init__(self, net: nn.Module, offset: float, bounds: tuple[float, float] | None, precision: str) -> None:
        super().__init__()
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
        if not isinstance(net, nn.Module):
            raise TypeError(f"net must be a torch.nn.Module, got {type(net).__name__}: build one, as in fastmsgm.nets")
        check_offset(offset)
        if bounds is not None:
            bounds = interval(bounds)
        self.net, self.offset, self.bounds, self.precision = net, float(offset), bounds, precision

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample."""

    @property
    @abstractmethod
    def input_dtype(self) -> torch.dtype:
        """The dtype of the network's input."""

    @abstractmethod
    def to_state(self, data: Tensor) -> Tensor:
        """Data in their own range (n, ...) -> what the training loss takes."""

    @abstractmethod
    def to_data(self, state: Tensor) -> Tensor:
        """The inverse of ``to_state``, clamped to ``bounds``."""

    @abstractmethod
    def check_states(self, states: Tensor) -> None:
        """Raise ValueError where training data cannot be noised or contradict what the model was built for."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """All but the network, as JSON can hold it: what a checkpoint needs to build the model again."""

    @property
    def device(self) -> torch.device:
        return next(self.buffers()).device

    @property
    def network_dtype(self) -> torch.dtype:
        """What the network computes in where the model is: its precision, or float32 on a CPU without AVX-512."""
        return torch.float32 if self.device.type == "cpu" and not _AVX512 else PRECISIONS[self.precision]

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """The network's raw output, in ``network_dtype``. x: (n, ...), c: (n,) or (n, conditions).

        Raises:
            TypeError: the network returns something else than a tensor.
            ValueError: its output has another shape than its input.
        """
        dtype = self.network_dtype
        with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
            f = self.net(x, c)
        if not isinstance(f, Tensor):
            raise TypeError(f"net must return a tensor, got {type(f).__name__}: wrap it, so that it returns its output")
        if f.shape != x.shape:
            raise ValueError(
                f"net must return its input's shape {tuple(x.shape)}, got {tuple(f.shape)}: give it that many outputs"
            )
        return f

    def net_config(self) -> dict[str, Any]:
        """The network's name and arguments, which are enough to build those of ``fastmsgm.nets`` again."""
        net = getattr(self.net, "_orig_mod", self.net)  # what torch.compile wraps
        return {**_net_config(net), "name": _net_name(net)}

    def save(self, folder: str | os.PathLike[str], dtype: torch.dtype = torch.float32) -> None:
        """Write ``config.json`` and ``model.safetensors`` (the network in ``dtype``) into ``folder``."""
        config = {"net": self.net_config(), "precision": self.precision, **self.config()}
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


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call ``write(temporary path)`` and move the result into place, so that a kill never leaves half a file."""
    temporary = path.with_name(path.name + ".tmp")
    write(temporary)
    os.replace(temporary, path)


def _net_name(net: nn.Module) -> str:
    kind = type(net)
    return kind.__name__ if NETS.get(kind.__name__) is kind else f"{kind.__module__}.{kind.__qualname__}"


def _net_config(net: nn.Module) -> dict[str, Any]:
    config = getattr(net, "config", {})
    return config if isinstance(config, dict) else {}
