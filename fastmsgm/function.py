"""function_model: the model that ``sample`` makes of a function f(x, time, **condition).

What f predicts, and how it gets the noise level, with p_t the distribution of the noised
data x, y = log|x| = y_0 + shift + s z for a GBM, and for a Rotation the integrated beta B,
alpha = e^{-B/2}, sigma = sqrt(1 - e^{-B}) and an estimate x_hat of the clean x_0:

                   GBM                                   Rotation
    prediction
      "score"      grad_x log p_t(x)                     grad_x log p_t(x)
      "hyvarinen"  x grad_x log p_t(x), elementwise      x grad_x log p_t(x), elementwise
      "denoised"   exp(E[y_0 | y]), with the sign of x   x_hat
      "epsilon"    E[z | y]                              (x - alpha x_hat) / sigma
      "v"          E[(z - s y_0) / sqrt(1 + s^2) | y]    (alpha x - x_hat) / sigma
    time
      "t"          t, in [0, T]                          t, in [0, 1]
      "index"      1000 t / T                            1000 t
      "sigma"      s                                     sigma
      "log_sigma"  log s                                 log sigma

``gbm/function.py`` and ``rotation/function.py`` have the formulas that turn one into another.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from fastmsgm.checks import check_int
from fastmsgm.gbm.function import FunctionGBM
from fastmsgm.gbm.process import GBM
from fastmsgm.model import ScoreModel
from fastmsgm.rotation.function import FunctionRotation
from fastmsgm.rotation.process import Rotation


def function_model(
    f: Callable[..., Any],
    process: Any,
    shape: Any,
    prediction: str,
    time: str,
    prior: Any,
    device: torch.device | str | None,
) -> ScoreModel:
    """Return a model whose network is a function.

    f is called as f(x, time, **condition), without gradients. x is (n, *shape), the noised data x_t
    as they are, neither scaled nor shifted, and time (n,), both in float32 or, for a module, in the
    dtype of its parameters. Its output, in any
    floating-point dtype, is a tensor like x, an object with such a tensor as ``sample``, or a tuple
    whose first is one. f may be a function, a module, or a module that is compiled or wrapped in
    DistributedDataParallel, DataParallel or AveragedModel, which are taken off. A module is
    sampled in eval mode and gets its mode back; modules that a function only calls keep theirs.

    Args:
        f: The function.
        process: A ``GBM`` or a ``Rotation``.
        shape: Shape of one sample.
        prediction: What f predicts: "score", "hyvarinen", "denoised", "epsilon" or "v".
        time: How f gets the noise level: "t", "index", "sigma" or "log_sigma". The index is
            not rounded: a network with a table of 1000 embeddings rounds it, to 999 at most.
        prior: Where sampling starts. For a GBM a ``LogNormalPrior``, whose means' signs the
            samples keep; None is log-normal noise around 1. For a Rotation a ``RadialPrior``;
            None gives all samples the norm 1.
        device: Where to run, and where a module is moved; None is where f's parameters are, or
            the default device.

    Raises:
        TypeError: An argument of the wrong type; the message names it.
        ValueError: An argument out of range; the message names it.
    """
    family = _family(process)
    if not isinstance(shape, (tuple, list)):
        raise TypeError(
            f"shape must be a tuple of ints, the shape of one sample, got {shape!r}: give one such "
            "as shape=(1, 28, 28)"
        )
    sides = tuple(check_int("shape", side, 1) for side in shape)
    if not sides:
        raise ValueError("shape must have at least one axis, got (): give shape=(1,) for numbers")
    model = family(f, process, prior, shape=sides, prediction=prediction, time=time)
    if device is not None:
        return model.to(device)
    # A module stays as it is: its parts may be on several devices.
    for name, buffer in model.named_buffers(recurse=False):
        setattr(model, name, buffer.to(_device_of(f)))
    return model


def _family(process: Any) -> Callable[..., ScoreModel]:
    if isinstance(process, GBM):
        return FunctionGBM
    if isinstance(process, Rotation):
        return FunctionRotation
    got = process.__name__ if isinstance(process, type) else repr(process)
    raise TypeError(
        f"process must be a GBM or a Rotation for a function, got {got}: give an instance of the "
        "one that f was trained for, such as process=GBM(10.0) or process=Rotation()"
    )


def _device_of(f: Any) -> torch.device:
    if isinstance(f, nn.Module):
        for tensor in itertools.chain(f.parameters(), f.buffers()):
            return tensor.device
    return torch.get_default_device()
