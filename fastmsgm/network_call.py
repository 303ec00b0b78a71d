"""The call of a network: what it is given, and errors that say what it was called with."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from fastmsgm.wrappers import is_sharded, unwrap

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def call_network(
    net: nn.Module, x: Tensor, c_noise: Tensor, condition: Mapping[str, Tensor]
) -> Any:
    """Call a network with copies of all tensors, which it may change.

    Args:
        net: Module net(x, c_noise, **condition).
        x: (n, ...) its input.
        c_noise: (n,) what tells it the noise level.
        condition: What else it is conditioned on, each (n, ...).

    Raises:
        TypeError: Its parameters are not float32, and it failed.
        RuntimeError: It failed; the message says what it was called with.
    """
    own = {name: value.clone() for name, value in condition.items()}
    if torch.compiler.is_compiling():
        return net(x.clone(), c_noise.clone(), **own)
    try:
        return net(x.clone(), c_noise.clone(), **own)
    except RuntimeError as error:
        if type(error) is not RuntimeError:  # such as memory that does not suffice
            raise
        dtypes = {p.dtype for p in net.parameters() if p.is_floating_point()} - {x.dtype}
        if dtypes and not torch.is_autocast_enabled(x.device.type):
            raise TypeError(
                f"net failed ({error}), with parameters in {dtypes.pop()} and an input in "
                f"{x.dtype}: convert it with .float(), where it does not convert its input; "
                'precision="bf16" lets it compute in half precision'
            ) from error
        given = {"x": x, "c_noise": c_noise, **condition}
        shapes = ", ".join(f"{k} {tuple(v.shape)} {v.dtype}" for k, v in given.items())
        raise RuntimeError(f"net failed, called with {shapes}: {error}") from error


def check_autocast(precision: str, active: torch.dtype) -> None:
    """Raise ValueError where a model's precision is not that of the active autocast."""
    if precision != "fp32" and PRECISIONS[precision] != active:
        raise ValueError(
            f"precision must be 'fp32' or that of the active torch.autocast, {active}, got "
            f"{precision!r}: leave the precision to autocast, model.precision = 'fp32'"
        )


def check_synchronised(net: nn.Module) -> None:
    """Warn where this rank's gradients will not be averaged with those of the others."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return
    if (
        distributed.get_world_size() == 1
        or getattr(DistributedDataParallel, "_active_ddp_module", None) is not None
        or unwrap(net, compiled=False) is not net
        or is_sharded(net)
    ):
        return
    warnings.warn(
        f"the network is trained outside DistributedDataParallel, on "
        f"{distributed.get_world_size()} ranks: gradients are not averaged. Call the wrapped "
        "module: DistributedDataParallel(fastmsgm.Loss(model))",
        stacklevel=3,
    )
