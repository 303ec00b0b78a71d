"""FunctionNet: a user's function as the network of a model.

Every family has a subclass that gives the function the units and times of the literature and
converts its output (``gbm/function.py``, ``rotation/function.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastmsgm.wrappers import output_of, unwrap

PREDICTIONS = ("score", "hyvarinen", "denoised", "epsilon", "v")
TIMES = ("t", "index", "log_sigma", "sigma")
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)  # no 8-bit storage
INDICES = 1000  # of diffusers' schedulers: time="index" runs from 0 to it


class FunctionNet(nn.Module):
    """Calls a function and checks its output.

    Args:
        f: Function f(x, time, **condition) -> like x. A module becomes a submodule, without
            DistributedDataParallel, DataParallel or AveragedModel around it.
        prediction: What f predicts, one of ``PREDICTIONS``.
        time: How f gets the noise level, one of ``TIMES``.

    Raises:
        TypeError: f is not callable, or is a class.
        ValueError: An unknown prediction or time.
    """

    def __init__(self, f: Callable[..., Any], prediction: str, time: str) -> None:
        super().__init__()
        if isinstance(f, type):
            raise TypeError(
                f"f must be a function or a module, got the class {f.__name__}: give an instance, "
                f"{f.__name__}(...)"
            )
        if not callable(f):
            raise TypeError(
                f"f must be a function f(x, time, **condition) -> like x, got {type(f).__name__}, "
                "which cannot be called: give the network itself"
            )
        for name, value, allowed in (
            ("prediction", prediction, PREDICTIONS),
            ("time", time, TIMES),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
        self.f, self.prediction, self.time = _bare(f), prediction, time

    def call(self, x: Tensor, time: Tensor, condition: dict[str, Tensor]) -> Tensor:
        """Return f's output in float32.

        Args:
            x: (n, ...) float32; f gets copies of all tensors, which it may change. Where f is a
                module whose parameters are not float32, such as ``unet.half()``, all
                floating-point tensors have the dtype of its first. Half precision cannot hold
                values above 65504, which a GBM of large sigma has; bfloat16 can.
            time: (n,) float32.
            condition: Tensors (n, ...) by name.

        Raises:
            TypeError: f returns neither a tensor, nor an object with a tensor ``sample``, nor a
                tuple whose first is a tensor.
            ValueError: Its output has another shape than x.
        """
        dtype = self._dtype()
        copies = {
            name: value.to(dtype if value.is_floating_point() else value.dtype, copy=True)
            for name, value in condition.items()
        }
        returned = self.f(x.to(dtype, copy=True), time.to(dtype, copy=True), **copies)
        return output_of(returned, x, self._name()).float()

    def _dtype(self) -> torch.dtype:
        """Return what f computes in: its first floating-point parameter's dtype, else float32."""
        parameters = self.f.parameters() if isinstance(self.f, nn.Module) else ()
        return next((p.dtype for p in parameters if p.dtype in DTYPES), torch.float32)

    def _name(self) -> str:
        f = unwrap(self.f)
        return f"f ({getattr(f, '__name__', type(f).__name__)})"


def _bare(f: Any) -> Any:
    """Return f without wrappers, whose forward would synchronise processes.

    What ``torch.compile`` returns stays, unless it holds a wrapper.
    """
    f = unwrap(f, compiled=False)
    inside = getattr(f, "_orig_mod", f)
    return f if unwrap(inside) is inside else unwrap(inside)
