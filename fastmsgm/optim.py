"""Exponentiated gradient: an optimizer that keeps the signs of weights (Dale's law).

    w <- w exp(-lr sign(w) g)

It is gradient descent in log|w|, and its noise is geometric Brownian motion. So trained weights
tend to log-normal distributions (Cornford et al., "Brain-like learning with exponentiated
gradients", 2024).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from fastmsgm import ops
from fastmsgm.checks import is_number
from fastmsgm.constants import HUGE, TINY
from fastmsgm.ops.checks import check_dtype

_log = logging.getLogger("fastmsgm")


class ExponentiatedGradient(torch.optim.Optimizer):
    """Exponentiated gradient of float32 parameters, in place: w <- w exp(-lr sign(w) g).

    A step multiplies a weight by a positive factor. So weights keep the signs that they were
    initialised with, and a zero weight stays zero. PyTorch initialises some parameters to zero,
    such as the biases of normalisation layers. Initialise them away from zero, or leave them to
    another optimizer. At its first step the optimizer counts the zero weights and logs one warning
    if there are any.

    Args:
        params: Parameters or parameter groups, as for every optimizer. A group may have its own
            ``lr``.
        lr: Learning rate of log|w|, at least 0. To first order a step equals a step of SGD with the
            rate lr |w|. So for weights near 0.1, use ten times the lr of SGD. Give a tensor if a
            CUDA graph must see lr change.

    Raises:
        TypeError: A parameter is not float32.
        ValueError: lr is negative or not finite; in ``step``, a parameter is not dense in memory.
        RuntimeError: In ``step``, a gradient is sparse. No parameter has been changed then.
    """

    _counted_zeros = False  # a class attribute: copies and state_dicts do not carry it

    def __init__(self, params: ParamsT, lr: float | Tensor = 0.1) -> None:
        super().__init__(params, {"lr": lr})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        try:
            _check_lr(param_group["lr"])
            for w in param_group["params"]:
                check_dtype(f"a parameter {tuple(w.shape)} of ExponentiatedGradient", w)
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient.

        Args:
            closure: Recomputes the loss and its gradients, or None.

        Returns:
            The loss that ``closure`` returns, or None without a closure.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = [
            (g["lr"], [w for w in g["params"] if w.grad is not None]) for g in self.param_groups
        ]
        weights = [w for _, group in groups for w in group]
        if any(w.grad.layout != torch.strided for w in weights):
            raise RuntimeError(
                "ExponentiatedGradient needs dense gradients: give embeddings sparse=False"
            )
        if weights and not self._counted_zeros:
            self._counted_zeros = True
            _report_zeros(weights)
        for lr, group in groups:
            rates = {device: _on(device, lr) for device in {w.device for w in group}}
            for w in group:
                ops.egd_step_(w, w.grad, rates[w.device])
        return loss


def _check_lr(lr: float | Tensor) -> None:
    number = lr.item() if isinstance(lr, Tensor) and lr.numel() == 1 else lr
    if not is_number(number) or not 0 <= number <= HUGE:
        raise ValueError(
            f"lr must be a finite number of 0 or more, or a tensor of one, got {lr!r}: a usual "
            "value is 0.1"
        )


def _on(device: torch.device, lr: float | Tensor) -> Tensor:
    if isinstance(lr, Tensor):
        return lr.to(device, torch.float32)
    # Filled on the device: a copy from the host would synchronize.
    return torch.full((), lr, dtype=torch.float32, device=device)


def _report_zeros(weights: list[Tensor]) -> None:
    zeros = sum(int((w.abs() < TINY).sum()) for w in weights)
    if zeros:
        _log.warning(
            "%d of %d weights are zero and will stay so, since ExponentiatedGradient multiplies "
            "weights: initialise them away from zero, or leave them to another optimizer",
            zeros,
            sum(w.numel() for w in weights),
        )
