"""Evaluation mode for the time of network calls, among threads and callbacks; no autocast.

A module has one attribute ``training``, which all threads share. Here it is False while at least
one thread evaluates the module, and what it was before as soon as none does. A copy of the modules
with flags of its own would need no such count, but what a network keeps for its user (counts,
activations) would end in the copy, and modules that are kept in lists or closures would be missed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn


@dataclass
class _Held:
    """A module in evaluation mode.

    Args:
        module: The module.
        training: Its mode afterwards.
        users: How many evaluations it is part of.
        disturbed: Whether it was put into training mode meanwhile.
    """

    module: nn.Module
    training: bool
    users: int = 0
    disturbed: bool = False


_lock = threading.RLock()
_held: dict[int, _Held] = {}  # by id of the module
_postponed: list[tuple[nn.Module, Callable[[], object]]] = []


@contextmanager
def evaluation(model: nn.Module | Sequence[nn.Module]) -> Iterator[None]:
    """Evaluate modules: in evaluation mode, without gradients, and back in their modes afterwards.

    Args:
        model: A module with all of its parts; or modules, each of them alone.

    Raises:
        RuntimeError: Another thread put one of them into training mode meanwhile, so that results
            may be wrong.
    """
    modules = list(model.modules()) if isinstance(model, nn.Module) else model
    _hold(modules)
    disturbed = False
    try:
        with torch.no_grad():
            yield
    finally:
        disturbed = _release(modules)
    if disturbed:
        raise RuntimeError(
            "the network was put into training mode by another thread during its evaluation: call "
            "train() of the model, which waits, instead of the network's, or give every thread a "
            "model of its own, copy.deepcopy(model)"
        )


def outside_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Compute in float32 what the package itself computes, whatever autocast the user is in."""
    active = torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if active else nullcontext()


def once_released(model: nn.Module, change: Callable[[], object]) -> None:
    """Change the modes of a module and its parts: now, or as soon as no evaluation needs them.

    Args:
        model: The module.
        change: What changes them.
    """
    with _lock:
        if _is_held(model):
            _postponed.append((model, change))
        else:
            change()


def _hold(modules: Sequence[nn.Module]) -> None:
    with _lock:
        parts = []
        for module in modules:
            held = _held.get(id(module))
            if held is None:
                held = _held[id(module)] = _Held(module, module.training)
            held.users += 1
            parts.append(held)
        for held in parts:
            if held.module.training:
                held.disturbed |= held.users > 1
                held.module.training = False


def _release(modules: Sequence[nn.Module]) -> bool:
    """Release modules; return whether one was put into training mode."""
    with _lock:
        parts = [_held[id(module)] for module in modules]
        for held in parts:  # all before the first gets its mode back, which may be another's too
            held.users -= 1
            held.disturbed |= held.module.training
        for held in parts:
            if held.users == 0:
                del _held[id(held.module)]
                if held.training or held.disturbed:
                    held.module.training = True
            elif held.module.training:
                held.training, held.module.training = True, False
        if _postponed:
            waiting, _postponed[:] = _postponed[:], []
            for model, change in waiting:
                once_released(model, change)
    return any(held.disturbed for held in parts)


def _is_held(model: nn.Module) -> bool:
    return bool(_held) and any(id(module) in _held for module in model.modules())
