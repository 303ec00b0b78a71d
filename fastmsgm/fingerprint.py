"""fingerprint: which model it is, as a hash."""

from __future__ import annotations

import dis
import hashlib
import json
from collections.abc import Mapping
from types import CodeType
from typing import Any

from torch import Tensor, nn

from fastmsgm.model import ScoreModel
from fastmsgm.names import name_of
from fastmsgm.tensors import raw_bytes
from fastmsgm.wrappers import plain_state_dict, unwrap


def fingerprint(model: ScoreModel) -> str:
    """Return the SHA-256 of a model's configuration, weights and buffers.

    A module that is sampled as a function is identified by its class and its weights. A plain
    function is identified by its name and code, and by the numbers, texts and tensors among its
    defaults, the variables that it encloses and the attributes of its object.
    """
    f = unwrap(getattr(unwrap(model.net), "f", None))
    held = [] if isinstance(f, nn.Module) else _held(f)
    description = [type(model).__qualname__, model.net_config(), model.config(), name_of(f), held]
    return _sha256(description, plain_state_dict(model))


def fingerprint_of_function(f: Any) -> str:
    """Return the SHA-256 of a module's class and weights, or of a function's name and code.

    A function is identified as in ``fingerprint``.
    """
    if isinstance(f, nn.Module):
        return _sha256([name_of(type(f))], plain_state_dict(f))
    return _sha256([name_of(f), _held(f)], {})


def _sha256(description: list[Any], weights: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256(json.dumps(description, sort_keys=True, default=float).encode())
    for name, value in sorted(weights.items()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(raw_bytes(value))
    return found.hexdigest()


def _held(f: Any) -> list[Any]:
    """Return what a function is made of, as JSON can hold it."""
    code = getattr(f, "__code__", None)
    names = getattr(code, "co_freevars", ())
    # Not what the function itself changes, such as a count of its calls.
    changed = (
        {i.argval for i in dis.get_instructions(f) if i.opname == "STORE_DEREF"} if code else ()
    )
    cells = zip(names, getattr(f, "__closure__", None) or (), strict=False)
    enclosed = [cell.cell_contents for name, cell in cells if name not in changed]
    attributes = getattr(getattr(f, "__self__", f), "__dict__", {})
    values = [
        *(getattr(f, "__defaults__", None) or ()),
        *(getattr(f, "__kwdefaults__", None) or {}).values(),
        *enclosed,
        *attributes.values(),
    ]
    return [_described(code), *map(_described, values)]


def _described(value: Any) -> Any:
    """Return a value as JSON can hold it; of code what it does, without the place of its text."""
    if isinstance(value, CodeType):
        constants = [_described(constant) for constant in value.co_consts]
        return [value.co_code.hex(), value.co_names, constants]
    if isinstance(value, Tensor):
        return hashlib.sha256(raw_bytes(value)).hexdigest()
    if isinstance(value, (frozenset, set)):
        return sorted(map(repr, value))
    if isinstance(value, (tuple, list)):
        return [_described(item) for item in value]
    if isinstance(value, (bool, int, float, complex, str, bytes, type(None))):
        return repr(value)
    return type(value).__qualname__
