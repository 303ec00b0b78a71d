"""fingerprint: which model it is, as a hash."""

from __future__ import annotations

import hashlib
import json
from types import CodeType
from typing import Any

import torch

from fastmsgm.model import ScoreModel
from fastmsgm.names import name_of
from fastmsgm.wrappers import plain_state_dict, unwrap


def fingerprint(model: ScoreModel) -> str:
    """Return the SHA-256 of a model's configuration, weights and buffers.

    A module that is sampled as a function is identified by its class and its weights, a plain
    function by its name and its code, but not by what its code refers to.
    """
    f = unwrap(getattr(unwrap(model.net), "f", None))
    code = _described(getattr(f, "__code__", None))
    description = [type(model).__qualname__, model.net_config(), model.config(), name_of(f), code]
    found = hashlib.sha256(json.dumps(description, sort_keys=True, default=float).encode())
    for name, value in sorted(plain_state_dict(model).items()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        found.update(data.numpy().data)
    return found.hexdigest()


def _described(code: Any) -> Any:
    """Return what a function's code does, without the place of its text."""
    if isinstance(code, frozenset):
        return sorted(map(repr, code))
    if not isinstance(code, CodeType):
        return repr(code)
    return [code.co_code.hex(), code.co_names, [_described(value) for value in code.co_consts]]
