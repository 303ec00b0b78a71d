"""fingerprint: which model it is, as a hash."""

from __future__ import annotations

import hashlib
import json

import torch

from fastmsgm.model import ScoreModel
from fastmsgm.names import name_of
from fastmsgm.wrappers import plain_state_dict, unwrap


def fingerprint(model: ScoreModel) -> str:
    """Return the SHA-256 of a model's configuration, weights and buffers.

    A function that is sampled is identified by its qualified name, a module by its weights, too.
    """
    f = unwrap(getattr(unwrap(model.net), "f", None))
    description = [type(model).__qualname__, model.net_config(), model.config(), name_of(f)]
    found = hashlib.sha256(json.dumps(description, sort_keys=True, default=float).encode())
    for name, value in sorted(plain_state_dict(model).items()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        found.update(data.numpy().data)
    return found.hexdigest()
