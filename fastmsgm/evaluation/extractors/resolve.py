"""resolve: an extractor by its name, the path of its weights, or ``module:function``."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from fastmsgm.evaluation.extractors import efficientnet, inception
from fastmsgm.evaluation.extractors.extractor import Extractor
from fastmsgm.fingerprint import fingerprint_of_function
from fastmsgm.names import name_of

RAW = "raw"
NAMES = (RAW, efficientnet.NAME, inception.NAME)
_ALLOWED = (
    f"one of {', '.join(NAMES)}, the path of a .pth file of torch-fidelity's Inception, "
    "'module:function', or a function"
)


def resolve(extractor: str | Extractor | Callable[[Tensor], Any]) -> Extractor:
    """Return an extractor.

    Args:
        extractor: "raw", the values themselves, flattened; "efficientnet-lite0"; "inception", whose
            weights are downloaded once; the path of a ``.pth`` file of its weights;
            "module:function"; or a function or module, which maps a batch (n, ...) float32, images
            in [0, 1], to features (n, k).

    Raises:
        FileNotFoundError: There is no such file.
        ImportError: The module, or a package of the extra "eval", is missing, or the module
            cannot be imported.
        RuntimeError: The download failed.
        TypeError: Neither a text nor callable.
        ValueError: Another text, or a damaged file.
    """
    if isinstance(extractor, Extractor):
        return extractor
    if not isinstance(extractor, str):
        return _of_function(extractor)
    if extractor == RAW:
        return Extractor(RAW, _flattened, sha256="", input="as it is, flattened", images=False)
    if extractor == efficientnet.NAME:
        return efficientnet.extractor()
    if extractor == inception.NAME:
        return inception.extractor()
    if extractor.endswith(".pth"):
        return inception.extractor(extractor)
    module, _, name = extractor.partition(":")
    if not module or not name:
        raise ValueError(f"extractor must be {_ALLOWED}, got {extractor!r}")
    try:
        found = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"extractor {extractor!r}: there is no module {error.name}: set PYTHONPATH to its "
            "folder, or install it"
        ) from error
    except AttributeError as error:
        raise ValueError(f"extractor {extractor!r}: {error}") from error
    except Exception as error:  # whatever the user's module raises
        raise ImportError(
            f"extractor {extractor!r} raised {type(error).__name__}: {error}"
        ) from error
    return _of_function(found, extractor)


def _of_function(f: Any, name: str | None = None) -> Extractor:
    if not callable(f) or isinstance(f, type):
        raise TypeError(
            f"extractor must be {_ALLOWED}, got {type(f).__name__}"
            + (f" behind {name!r}" if name else "")
        )
    if isinstance(f, nn.Module):
        f = f.eval()
    return Extractor(
        name or name_of(f) or "", f, fingerprint_of_function(f), input="as it is", images=False
    )


def _flattened(x: Tensor) -> Tensor:
    return x.flatten(1)
