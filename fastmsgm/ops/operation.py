"""``operation``: a custom operation that refuses to drop a gradient."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, get_type_hints

import torch
from torch import Tensor
from torch.autograd import forward_ad

Function = TypeVar("Function", bound=Callable[..., Any])


def operation(name: str, mutates_args: tuple[str, ...]) -> Callable[[Function], Function]:
    """Register a function as the operation ``torch.ops.fastmsgm.<name>``.

    An operation without output gives None to PyTorch's tracers, others an array like their first
    argument.

    Args:
        name: Of the operation.
        mutates_args: The arguments that it writes to.

    Returns:
        What makes of the function one that calls the operation. It raises RuntimeError where a
        gradient is recorded for an argument, since operations have none.
    """

    def decorate(function: Function) -> Function:
        op = torch.library.custom_op(f"fastmsgm::{name}", function, mutates_args=mutates_args)
        returns = get_type_hints(function)["return"] is Tensor
        op.register_fake(lambda x, *_, **__: torch.empty_like(x) if returns else None)

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if torch.is_grad_enabled() or _forward_mode():
                for value in (*args, *kwargs.values()):
                    if isinstance(value, Tensor) and _is_recorded(value):
                        raise RuntimeError(
                            f"{name} has no gradient, got an argument {tuple(value.shape)} that "
                            "requires one: give value.detach(), or call it under torch.no_grad()"
                        )
            return op(*args, **kwargs)

        return call  # pyright: ignore[reportReturnType]

    return decorate


def _forward_mode() -> bool:
    """Whether PyTorch computes derivatives forwards, as ``torch.func.jvp`` does."""
    return forward_ad._current_level >= 0


def _is_recorded(x: Tensor) -> bool:
    if torch.is_grad_enabled() and x.requires_grad:
        return True
    return _forward_mode() and forward_ad.unpack_dual(x).tangent is not None
