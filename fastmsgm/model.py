"""ScoreModel: what sampling and training need of any family, and how a model is saved.

A family (``gbm``, ``rotation``, ``sde``) subclasses it. The model owns what depends on the family:
its preconditioning, solvers, loss and prior, and how data become states. ``families.py`` lists
the families.
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from fastmsgm.checks import check_offset, interval
from fastmsgm.files import write_atomically
from fastmsgm.nets import NETS
from fastmsgm.solver import Solver

# Without it PyTorch's 16-bit convolutions on a CPU are 25x slower than float32.
_AVX512 = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FORMAT_VERSION = 1  # of a checkpoint's config.json
# What reading a damaged checkpoint, or one of another network, may raise.
DAMAGED = (
    json.JSONDecodeError,
    SafetensorError,
    KeyError,
    TypeError,
    AttributeError,
    FileNotFoundError,
    RuntimeError,
    UnicodeDecodeError,
)


class ScoreModel(nn.Module, ABC):
    """A score network; a subclass adds its process and its prior.

    Args:
        net: Module f(x, cond) -> like x, with cond one or several numbers per sample.
        offset: Added to the data before the process sees them (1.0 for images in [0, 1]), and
            removed from samples.
        bounds: The data's own range, to which samples are clamped, or None.
        precision: "fp32", "bf16" or "fp16", what the network computes in; on a CPU without AVX-512
            it computes in "fp32". The state is always float32.

    Attributes:
        family: Name of the family in checkpoints.
        solvers: The family's solvers by name.
        preconditioning: What solvers and losses need to know of the model besides the network.
        classes: Number of classes of a class-conditional model, else 0.

    Raises:
        TypeError: net is not a module.
        ValueError: An unknown precision, an offset that is not finite, or bounds that are not two
            numbers in order.
    """

    net: Any  # any module: its attributes are the user's
    family: ClassVar[str]
    solvers: ClassVar[Mapping[str, Callable[[], Solver]]]
    preconditioning: Any
    classes: int

    def __init__(
        self,
        net: nn.Module,
        offset: float = 0.0,
        bounds: tuple[float, float] | None = None,
        precision: str = "fp32",
    ) -> None:
        super().__init__()
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
        if not isinstance(net, nn.Module):
            raise TypeError(
                f"net must be a torch.nn.Module, got {type(net).__name__}: build one, as in "
                "fastmsgm.nets"
            )
        check_offset(offset)
        self.net, self.offset, self.precision = net, float(offset), precision
        self.bounds = None if bounds is None else interval(bounds)
        self.classes = 0

    # ---- what a family defines ----

    @property
    @abstractmethod
    def prediction(self) -> str:
        """What the network predicts."""

    @property
    @abstractmethod
    def objective(self) -> str:
        """What trains the network."""

    @property
    @abstractmethod
    def default_solver(self) -> Solver:
        """The solver that ``sample`` uses where none is given."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample."""

    @property
    def input_dtype(self) -> torch.dtype:
        """The dtype of the network's input."""
        return self.network_dtype

    @abstractmethod
    def loss(self, x0: Tensor, stream: Tensor, step: int, labels: Tensor | None = None) -> Tensor:
        """Return the model's own training loss on one batch.

        Args:
            x0: (n, ...) float32 states (``to_state(data)``).
            stream: The noise stream, on the CPU; row i is sample ``stream[1] + i``, its position
                in the global batch.
            step: The optimizer step, part of the noise counter.
            labels: (n,) class labels of x0, for a class-conditional model.

        Returns:
            A scalar.
        """

    @abstractmethod
    def to_state(self, data: Tensor) -> Tensor:
        """Return data (n, ...) in their own range as states, which the loss takes."""

    def to_process(self, state: Tensor) -> Tensor:
        """Return states (n, ...) in the units of the process, data + offset."""
        return state

    def to_data(self, state: Tensor) -> Tensor:
        """Return states (n, ...) in the data's own range, clamped to ``bounds``."""
        data = self.to_process(state) - self.offset
        return data if self.bounds is None else data.clamp_(*self.bounds)

    @abstractmethod
    def check_states(self, states: Tensor) -> None:
        """Raise ValueError where training data cannot be noised or do not fit the model."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Return all but the network as JSON can hold it; ``from_config`` reads it."""

    @classmethod
    @abstractmethod
    def from_config(
        cls, net: nn.Module, config: dict[str, Any], weights: dict[str, Tensor]
    ) -> ScoreModel:
        """Build the model of a checkpoint; its network gets its weights afterwards."""

    # ---- what all families share ----

    @property
    def device(self) -> torch.device:
        """Where the model is: the device of its first buffer or parameter.

        Raises:
            RuntimeError: It has neither.
        """
        for tensor in (*self.buffers(), *self.parameters()):
            return tensor.device
        raise RuntimeError(
            f"{type(self).__name__} must have a buffer or a parameter, which says where it is: "
            "register one"
        )

    @property
    def network_dtype(self) -> torch.dtype:
        """What the network computes in: its precision, or float32 on a CPU without AVX-512."""
        slow = self.device.type == "cpu" and not _AVX512
        return torch.float32 if slow else PRECISIONS[self.precision]

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        """Return the network's raw output in ``network_dtype``.

        Args:
            x: (n, ...) the network's input.
            cond: (n,) or (n, numbers), what it is conditioned on.

        Raises:
            TypeError: The network returns something else than a tensor.
            ValueError: Its output has another shape than its input.
        """
        dtype = self.network_dtype
        with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
            model_output = self.net(x, cond)
        if not isinstance(model_output, Tensor):
            raise TypeError(
                f"net must return a tensor, got {type(model_output).__name__}: wrap it, so that it "
                "returns its output"
            )
        if model_output.shape != x.shape:
            raise ValueError(
                f"net must return its input's shape {tuple(x.shape)}, got "
                f"{tuple(model_output.shape)}: give it that many outputs"
            )
        return model_output

    def net_config(self) -> dict[str, Any]:
        """Return the network's name and arguments, which rebuild those of ``fastmsgm.nets``."""
        net = getattr(self.net, "_orig_mod", self.net)  # what torch.compile wraps
        config = getattr(net, "config", {})
        return {**(config if isinstance(config, dict) else {}), "name": _net_name(net)}

    def save(self, folder: str | os.PathLike[str], dtype: torch.dtype = torch.float32) -> None:
        """Write ``config.json`` and ``model.safetensors`` into a folder.

        Args:
            folder: Made if absent.
            dtype: What the network's weights are stored in.

        Raises:
            OSError: The folder cannot be written.
        """
        config = {
            "format_version": FORMAT_VERSION,
            "net": self.net_config(),
            "precision": self.precision,
            **self.config(),
        }
        text = json.dumps(config, indent=2) + "\n"
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        weights = {
            k.replace("net._orig_mod.", "net.", 1): _stored(k, v, dtype)
            for k, v in self.state_dict().items()
        }
        write_atomically(path / "model.safetensors", lambda p: save_file(weights, p))
        write_atomically(path / "config.json", lambda p: p.write_text(text))


def _stored(name: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    rounded = name.startswith("net.") and value.is_floating_point()
    return value.to("cpu", dtype if rounded else value.dtype, copy=True).contiguous()


def _net_name(net: nn.Module) -> str:
    cls = type(net)
    known = NETS.get(cls.__name__) is cls
    return cls.__name__ if known else f"{cls.__module__}.{cls.__qualname__}"
