"""The backends, as parameters of the tests that every one of them has to pass."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

_FAMILIES = {
    "fill_normal": "gbm",
    "gbm_perturb": "gbm",
    "gbm_step": "gbm",
    "rotation_perturb": "rotation",
    "rotation_step": "rotation",
    "ring_step": "ring",
    "egd_step": "optim",
}


@dataclass(frozen=True)
class Backend:
    """The kernels of one backend; a family's module is imported where it is first used."""

    name: str
    package: str

    def module(self, operation: str) -> Any:
        return importlib.import_module(f"{self.package}.{_FAMILIES[operation]}")

    def kernel(self, operation: str) -> Callable[..., None]:
        return getattr(self.module(operation), operation)


REFERENCE = Backend("reference", "fastmsgm.reference")
CPU = Backend("cpu", "fastmsgm.kernels.cpu")
TRITON = Backend("triton", "fastmsgm.kernels")  # in its interpreter, see conftest.py

TRITON_MARKS = (
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton"),
    # The interpreter computes masked lanes and nonfinite states with NumPy, which warns where a GPU
    # is silent.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
)
KERNELS = [
    pytest.param(CPU, id="cpu"),
    pytest.param(TRITON, id="triton", marks=TRITON_MARKS),
]
BACKENDS = [pytest.param(REFERENCE, id="reference"), *KERNELS]


def samples(backend: Backend, operation: str, d: int, programs: int = 2) -> int:
    """Return so many samples that one or two Triton programs run and the last is not full."""
    if backend is not TRITON:
        return 19
    module = backend.module(operation)
    if _FAMILIES[operation] == "gbm":
        n = ((module.QUADS + 100) if programs == 2 else (module.QUADS - 1)) // -(-d // 4)
        n += programs == 2
        assert module._grid(n, d) == (programs,)
        return n
    rows = module.launch_shape(d)[0]
    return rows + 1 if programs == 2 else max(1, rows - 1)
