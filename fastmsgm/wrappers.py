"""Other people's wrappers around a module, and the module inside.

PyTorch's DistributedDataParallel and DataParallel, the AveragedModel of ``torch.optim.swa_utils``,
what ``torch.compile`` returns and what ``Fabric.setup`` of Lightning does all hold a module.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel


def unwrap(module: Any, *, compiled: bool = True) -> Any:
    """Return the module inside any number of wrappers; other objects are returned as they are.

    Args:
        module: A module, wrapped or not.
        compiled: Also take it out of ``torch.compile``.
    """
    while True:
        if isinstance(module, (DistributedDataParallel, DataParallel, AveragedModel)):
            module = module.module
        elif isinstance(module, nn.Module) and hasattr(module, "_original_module"):
            module = module._original_module  # Lightning Fabric's
        elif compiled and isinstance(module, nn.Module) and hasattr(module, "_orig_mod"):
            module = module._orig_mod
        else:
            return module


def is_sharded(module: nn.Module) -> bool:
    """Whether ``fully_shard`` (FSDP2) sharded the module, or what holds it: it syncs by itself."""
    return any(hasattr(parameter, "full_tensor") for parameter in module.parameters())


def plain_state_dict(module: nn.Module) -> dict[str, Tensor]:
    """Return the state dict of a module without the names of wrappers around it or its parts.

    Raises:
        TypeError: It holds something else than tensors.
    """
    state = unwrap(module).state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise TypeError(
                f"net must have a state dict of tensors, got a {type(value).__name__} as {name!r}: "
                "let get_extra_state return a tensor, or register a buffer"
            )
    return {name.replace("_orig_mod.", ""): value for name, value in state.items()}


def output_of(returned: Any, x: Tensor, name: str) -> Tensor:
    """Return the tensor that a network returned, alone or wrapped as diffusers' models do.

    Args:
        returned: A tensor, an object with a tensor as its attribute ``sample``, or a tuple whose
            first is one.
        x: The network's input, whose shape the output has.
        name: Of the network, in messages.

    Raises:
        TypeError: Something else.
        ValueError: Another shape.
    """
    if isinstance(returned, (tuple, list)):
        tensor = returned[0] if returned else None
    else:
        tensor = returned if isinstance(returned, Tensor) else getattr(returned, "sample", None)
    if not isinstance(tensor, Tensor):
        raise TypeError(
            f"{name} must return a tensor, an object with a tensor as its attribute sample, or a "
            f"tuple whose first is a tensor, got {type(returned).__name__}: wrap it, so that it "
            "returns its output"
        )
    if tensor.shape != x.shape:
        raise ValueError(
            f"{name} must return its input's shape {tuple(x.shape)}, got {tuple(tensor.shape)}: "
            "give it that many outputs (without a variance, for one)"
        )
    return tensor
