"""Operator dispatch: which backend runs an operation.

``FASTMSGM_BACKEND=reference|cpu|triton`` selects a backend, which then works or raises. Without it,
CUDA tensors go to the Triton kernels, CPU tensors to the numba kernels, and all others to
``reference``. If a backend lacks a family, or its kernels cannot be imported, ``reference`` runs
instead, with one warning.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
import traceback
from types import ModuleType

from torch import Tensor

_log = logging.getLogger("fastmsgm")
_PACKAGES = {
    "reference": "fastmsgm.reference",
    "cpu": "fastmsgm.kernels.cpu",
    "triton": "fastmsgm.kernels",
}


def backend(device_type: str, family: str = "gbm") -> str:
    """Return the name of the backend that runs on a device type ("cpu", "cuda", ...).

    Args:
        device_type: ``tensor.device.type``.
        family: The operation's module: "gbm", "rotation", "ring" or "optim".

    Raises:
        ValueError: ``FASTMSGM_BACKEND`` names no backend.
    """
    named = os.environ.get("FASTMSGM_BACKEND")
    if named:
        if named not in _PACKAGES:
            raise ValueError(
                f"FASTMSGM_BACKEND must be one of {', '.join(_PACKAGES)}, got {named!r}"
            )
        return named
    automatic = {"cpu": "cpu", "cuda": "triton"}.get(device_type, "reference")
    return automatic if _works(automatic, family) else "reference"


def kernels(tensor: Tensor, family: str) -> ModuleType:
    """Return the module of a family's operations in the backend of a tensor's device.

    Args:
        tensor: On the device of the work.
        family: The operation's module: "gbm", "rotation", "ring" or "optim".

    Raises:
        ImportError: ``FASTMSGM_BACKEND`` names a backend that cannot be imported.
    """
    name = backend(tensor.device.type, family)
    try:
        return _module(name, family)
    except Exception as error:  # as in _works
        if not os.environ.get("FASTMSGM_BACKEND"):
            raise
        raise ImportError(
            f"the {name} backend, which FASTMSGM_BACKEND names, has no usable kernels for {family} "
            f"({_reason(error)}): unset FASTMSGM_BACKEND, or name another of {', '.join(_PACKAGES)}"
        ) from error


@functools.cache
def _works(name: str, family: str) -> bool:
    """Return whether a backend has usable kernels for a family; log one warning if not."""
    try:
        _module(name, family)
    except ModuleNotFoundError as error:
        if error.name == f"{_PACKAGES[name]}.{family}":
            _log.warning(
                "the %s backend has no kernels for %s: the plain reference runs instead, slower",
                name,
                family,
            )
            return False
        return _unusable(name, error)
    # Not only ImportError: numba also imports what only looks like a package that it knows, such as
    # a folder "coverage" in the working directory, and fails on what that lacks.
    except Exception as error:
        return _unusable(name, error)
    return True


def _unusable(name: str, error: Exception) -> bool:
    _warn_once(name, _reason(error))
    return False


def _reason(error: Exception) -> str:
    """Return what an import failed of; where, if it is not what import itself raises."""
    if isinstance(error, ImportError):
        return str(error)
    where = traceback.extract_tb(error.__traceback__)[-1].filename
    return f"{type(error).__name__} in {where}: {error}"


@functools.cache
def _warn_once(name: str, reason: str) -> None:
    _log.warning(
        "the %s kernels cannot be used (%s): the plain reference runs instead, slower",
        name,
        reason,
    )


def _module(name: str, family: str) -> ModuleType:
    return importlib.import_module(f"{_PACKAGES[name]}.{family}")
