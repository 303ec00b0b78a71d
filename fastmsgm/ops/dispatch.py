"""Which backend runs: the only dispatch by device.

``FASTMSGM_BACKEND=reference|cpu|triton`` names a backend, which then works or raises; without it a CUDA tensor goes to
the Triton kernels, a CPU tensor to the numba kernels, anything else (or where they fail to import) to ``reference``.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
from types import ModuleType

from torch import Tensor

_log = logging.getLogger("fastmsgm")
_PACKAGES = {"reference": "fastmsgm.reference", "cpu": "fastmsgm.kernels.cpu", "triton": "fastmsgm.kernels"}


def backend(device_type: str) -> str:
    """The name of the backend that runs on a device type ("cpu", "cuda", ...)."""
    named = os.environ.get("FASTMSGM_BACKEND")
    if named:
        if named not in _PACKAGES:
            raise ValueError(f"FASTMSGM_BACKEND must be one of {', '.join(_PACKAGES)}, got {named!r}")
        return named
    automatic = {"cpu": "cpu", "cuda": "triton"}.get(device_type, "reference")
    return automatic if _import_error(automatic) is None else "reference"


@functools.cache
def _import_error(name: str) -> Exception | None:
    try:
        _module(name, "gbm")
    except (ImportError, RuntimeError) as error:  # RuntimeError: numba finds no folder that it may cache in
        _log.warning("the %s kernels cannot be used (%s): the plain reference runs instead, slower", name, error)
        return error
    return None


def kernels(tensor: Tensor, family: str) -> ModuleType:
    """The module of an operation's family ("gbm", "rotation", "ring", "optim") in the backend of a tensor's device."""
    return _module(backend(tensor.device.type), family)


def _module(name: str, family: str) -> ModuleType:
    return importlib.import_module(f"{_PACKAGES[name]}.{family}")
