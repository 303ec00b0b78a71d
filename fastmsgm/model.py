"""ScoreModel: what sampling and training need of any family, and how a model is saved.

A family (``gbm``, ``rotation``, ``sde``) subclasses it. The model owns what depends on the family:
its preconditioning, solvers, loss and prior, and how data become states. ``families.py`` lists
the families.
"""

from __future__ import annotations

import copy
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from fastmsgm.checks import check_int, check_offset, interval
from fastmsgm.files import write_atomically
from fastmsgm.flow import ProbabilityFlow
from fastmsgm.modes import once_released
from fastmsgm.nets import NETS
from fastmsgm.network_call import PRECISIONS, call_network, check_autocast, check_synchronised
from fastmsgm.solver import Solver
from fastmsgm.tensors import save_tensors
from fastmsgm.wrappers import output_of, plain_state_dict, unwrap

Model = TypeVar("Model", bound="ScoreModel")
# Without it PyTorch's 16-bit convolutions on a CPU are 25x slower than float32.
_AVX512 = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
FORMAT_VERSION = 1  # of a checkpoint's config.json


class ScoreModel(nn.Module, ABC):
    """A score network; a subclass adds its process and its prior.

    Args:
        net: Module net(x, c_noise, **condition) -> like x, with c_noise (n,) the number that tells
            it the noise level; see ``forward``.
        classes: Number of classes of a class-conditional model, else 0.
        offset: Added to the data before the process sees them (1.0 for images in [0, 1]), and
            removed from samples.
        bounds: The data's own range, to which samples are clamped, or None.
        precision: "fp32", "bf16" or "fp16", what the network computes in; on a CPU without AVX-512
            it computes in "fp32". The state is always float32. Inside ``torch.autocast`` the
            network computes as that says.

    Attributes:
        family: Name of the family in checkpoints.
        solvers: The family's solvers by name.
        keeps_norms: Whether noise never changes the norm of a sample, on which the network is
            conditioned. ``fit(tail=...)`` is then unbiased.
        preconditioning: What solvers and losses need to know of the model besides the network.
        classes: Number of classes.
        dropped: ``drop`` as a buffer, so that it travels with the weights.

    Raises:
        TypeError: net is not a module, or classes not an int.
        ValueError: A number of classes that is not the network's, an unknown precision, an offset
            that is not finite, or bounds that are not two numbers in order.
    """

    net: Any  # any module: its attributes are the user's
    family: ClassVar[str]
    solvers: ClassVar[Mapping[str, Callable[[], Solver]]]
    keeps_norms: ClassVar[bool] = False
    preconditioning: Any
    classes: int
    dropped: Tensor

    def __init__(
        self,
        net: nn.Module,
        classes: int = 0,
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
        self.classes = _check_classes(net, classes)
        self.register_buffer("dropped", torch.zeros((), dtype=torch.float32, device="cpu"))

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

    def solver_of(self, steps: int | None, guided: bool = False) -> Solver:
        """Return the solver that ``sample`` uses where none is named.

        Args:
            steps: Number of steps asked for, or None.
            guided: Whether with guidance, with which the network is another one.
        """
        return self.default_solver

    def weights_changed(self) -> None:
        """Forget what was computed from the network's weights, as its training starts."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample."""

    @property
    def input_dtype(self) -> torch.dtype:
        """The dtype of the network's input."""
        return self.network_dtype

    @property
    @abstractmethod
    def default_loss(self) -> Callable[..., Tensor]:
        """The training loss where none is given.

        A loss is called as ``loss(model, x0, stream, step, **condition)`` and returns (n,) losses:

            x0         (n, ...) float32 states (``to_state(data)``)
            stream     the noise stream, on the CPU; row i is sample ``stream[1] + i``, its
                       position in the global batch
            step       the step of training, part of the noise counter
            condition  what the network is conditioned on, by name
        """

    @abstractmethod
    def to_state(self, data: Tensor) -> Tensor:
        """Return data (n, ...) in their own range as states, which a loss takes."""

    def probability_flow(self) -> ProbabilityFlow:
        """Return the probability flow, which likelihoods are computed by.

        Raises:
            TypeError: The family defines none.
        """
        raise TypeError(
            f"model must have a probability flow for likelihoods, got a {type(self).__name__}: "
            "its class defines none (override ScoreModel.probability_flow)"
        )

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

    def solver_config(self) -> dict[str, Any]:
        """Return what ``save`` stores of fitted solvers, which neither training nor noise see."""
        return {}

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
    def drop(self) -> float:
        """Share of the training samples whose condition was dropped; above 0 guidance works."""
        return float(self.dropped)

    @drop.setter
    def drop(self, share: float) -> None:
        self.dropped.fill_(share)

    @property
    def network_dtype(self) -> torch.dtype:
        """What the network computes in: its precision, or float32 on a CPU without AVX-512."""
        slow = self.device.type == "cpu" and not _AVX512
        return torch.float32 if slow else PRECISIONS[self.precision]

    def forward(self, x: Tensor, c_noise: Tensor, **condition: Tensor) -> Tensor:
        """Return the network's raw output.

        The network gets copies of all tensors, which it may change.

        Args:
            x: (n, ...) the network's input.
            c_noise: (n,) float32, what tells it the noise level.
            condition: What else it is conditioned on, each (n, ...): ``label`` (n,) int64 of a
                class-conditional model, where ``classes`` is the dropped label; ``log_norm`` (n,)
                of rotations; the user's own, which are NaN where dropped.

        Raises:
            TypeError: The network returns no tensor; the ``sample`` of diffusers' outputs and the
                first of a tuple are taken. Or its parameters are not float32, and it fails.
            ValueError: Its output has another shape than its input, or the model's precision is
                not that of the active ``torch.autocast``.
            RuntimeError: The network failed.
        """
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            check_synchronised(self.net)
        # Without gradients there is nothing to synchronise, and a rank may sample alone.
        net = self.net if torch.is_grad_enabled() else unwrap(self.net, compiled=False)
        device = x.device.type
        if torch.is_autocast_enabled(device):
            check_autocast(self.precision, torch.get_autocast_dtype(device))
            returned = call_network(net, x, c_noise, condition)
        else:
            dtype = self.network_dtype
            with torch.autocast(device, dtype, enabled=dtype != torch.float32):
                returned = call_network(net, x, c_noise, condition)
        return output_of(returned, x, "net")

    def train(self: Model, mode: bool = True) -> Model:
        """Set the mode, as of any module; during an evaluation, at its end."""
        once_released(self, lambda: super(ScoreModel, self).train(mode))
        return self

    def with_net(self: Model, net: nn.Module) -> Model:
        """Return this model with another network; all else is shared."""
        twin = copy.copy(self)
        twin.weights_changed()
        if "forward" in twin.__dict__:  # Accelerate's, which is bound to this model
            del twin.forward
        twin._modules = {**self._modules, "net": net}
        return twin

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Load what ``save`` wrote; the network may be wrapped.

        Args:
            weights: Tensors by name.

        Raises:
            RuntimeError: A name or a shape is not the model's.
        """
        net = unwrap(self.net)
        names = dict(zip(plain_state_dict(net), net.state_dict(), strict=True))
        inside = {k[4:]: v for k, v in weights.items() if k.startswith("net.")}
        net.load_state_dict({names.get(k, k): v for k, v in inside.items()})
        loaded = {f"net.{k}": v for k, v in self.net.state_dict().items()}
        own = {k: v for k, v in weights.items() if not k.startswith("net.")}
        self.load_state_dict(loaded | own)

    def extra_repr(self) -> str:
        """Return what a reader needs to know of the model, without the network's layers."""
        shown = {
            "process": getattr(self, "process", self.family),
            "prediction": self.prediction,
            "objective": self.objective,
            "shape": self.shape,
            "classes": self.classes or None,
            "offset": self.offset or None,
            "bounds": self.bounds,
            "precision": self.precision,
        }
        return ", ".join(f"{name}={value!r}" for name, value in shown.items() if value is not None)

    def __repr__(self) -> str:
        parameters = sum(p.numel() for p in self.net.parameters())
        net = f"{_net_class(unwrap(self.net)).__name__} with {parameters:,} parameters"
        return f"{type(self).__name__}({self.extra_repr()}, net={net})"

    def net_config(self) -> dict[str, Any]:
        """Return the network's name and arguments, which rebuild those of ``fastmsgm.nets``."""
        net = unwrap(self.net)
        config = getattr(net, "config", {})
        return {**(config if isinstance(config, dict) else {}), "name": _net_name(net)}

    def save(self, folder: str | os.PathLike[str], dtype: torch.dtype = torch.float32) -> None:
        """Write ``model.safetensors`` into a folder, and its configuration as ``config.json``, too.

        The file of the weights holds the configuration and a checksum; ``config.json`` is a copy
        for people and other programs. Each is replaced in one step, so that after a kill the folder
        holds the old model or the new one. Wrappers of the network (DistributedDataParallel,
        AveragedModel, ``torch.compile``) are not stored. Where it is sharded by ``fully_shard``,
        call ``save`` on every rank.

        Args:
            folder: Made if absent.
            dtype: What the network's weights are stored in.

        Raises:
            OSError: The folder cannot be written.
            TypeError: The network's state dict holds something else than tensors.
        """
        config = {
            "format_version": FORMAT_VERSION,
            "net": self.net_config(),
            "precision": self.precision,
            **self.config(),
            **self.solver_config(),
        }
        text = json.dumps(config, indent=2) + "\n"
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        weights = {k: v for k, v in self.state_dict().items() if not k.startswith("net.")}
        weights |= {f"net.{k}": v for k, v in plain_state_dict(self.net).items()}
        weights = {k: _stored(k, v, dtype) for k, v in weights.items()}
        save_tensors(path / "model.safetensors", weights, {"config": text})
        write_atomically(path / "config.json", lambda p: p.write_text(text, "utf-8"))


def is_model(x: object) -> bool:
    """Whether x is a ScoreModel, wrapped or not."""
    return isinstance(unwrap(x), ScoreModel)


def check_model(model: Any) -> ScoreModel:
    """Return a ScoreModel out of its wrappers; TypeError for anything else."""
    if not is_model(model):
        raise TypeError(
            f"model must be a ScoreModel, a name, a path or a function, got {type(model).__name__}"
        )
    return unwrap(model)


def check_float32(model: ScoreModel) -> None:
    """Raise TypeError where the model as a whole was converted to another dtype."""
    if model.dropped.dtype != torch.float32:
        raise TypeError(
            f"model must be in float32, got {model.dropped.dtype}: convert it back with .float(); "
            'model.precision = "bf16" lets the network compute in half precision'
        )


def check_bare_model(model: object, remedy: str) -> None:
    """Raise TypeError unless ``model`` is a ScoreModel without wrappers.

    Args:
        model: What was given.
        remedy: What to do where it is wrapped.
    """
    if is_model(model) and unwrap(model) is model:
        return
    remedy = remedy if is_model(model) else "build one with GBMModel.for_data, or load one"
    raise TypeError(f"model must be a ScoreModel, got {type(model).__name__}: {remedy}")


def _check_classes(net: nn.Module, classes: int) -> int:
    classes = check_int("classes", classes, 0)
    config = getattr(unwrap(net), "config", {})
    known = config.get("classes", classes) if isinstance(config, dict) else classes
    if known != classes:
        raise ValueError(
            f"classes must be the network's, {known}, got {classes}: build the network with "
            f"classes={classes}, or give the model classes={known}"
        )
    return classes


def _stored(name: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    value = getattr(value, "full_tensor", lambda: value)()  # gathers the shards of FSDP2
    rounded = name.startswith("net.") and value.is_floating_point()
    return value.to(dtype) if rounded else value


def _net_class(net: nn.Module) -> type:
    """Return the network's class; ``fully_shard`` makes one of its own."""
    return next(c for c in type(net).__mro__ if not c.__name__.startswith("FSDP"))


def _net_name(net: nn.Module) -> str:
    cls = _net_class(net)
    known = NETS.get(cls.__name__) is cls
    return cls.__name__ if known else f"{cls.__module__}.{cls.__qualname__}"
