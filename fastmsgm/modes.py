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
from dataclasses import dataclass, field

import torch
from torch import nn


@dataclass
class _Held:
    """A module in evaluation mode.

    Args:
        module: The module.
        training: Its mode afterwards.
        threads: Those of the evaluations that it is part of.
        disturbed: Whether it was put into training mode meanwhile.
    """

    module: nn.Module
    training: bool
    threads: list[int] = field(default_factory=list)
    disturbed: bool = False


_lock = threading.Condition(threading.RLock())
_held: dict[int, _Held] = {}  # by id of the module
_trained: list[tuple[int, int]] = []  # thread, and id of the network that it trains
_postponed: list[tuple[nn.Module, Callable[[], object]]] = []


@contextmanager
def evaluation(model: nn.Module | Sequence[nn.Module]) -> Iterator[None]:
    """Evaluate modules: in evaluation mode, without gradients, and back in their modes afterwards.

    Args:
        model: A module with all of its parts; or modules, each of them alone.

    A module may set the modes of its parts when it is called, as dropout at sampling does.

    Raises:
        RuntimeError: Another thread put the model or its network into training mode meanwhile, so
            that results may be wrong.
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
            "the network was put into training mode during its evaluation: call train() of the "
            "model instead of the network's, which takes effect afterwards, or give every thread a "
            "model of its own, copy.deepcopy(model)"
        )


@contextmanager
def trained(net: nn.Module) -> Iterator[None]:
    """Call a network for training: not while another thread evaluates it, which waits in turn.

    Args:
        net: The network, without wrappers.
    """
    entry = (threading.get_ident(), id(net))
    with _lock:
        while _is_held(net, by_others=True):
            _lock.wait()
        _trained.append(entry)
    try:
        yield
    finally:
        with _lock:
            _trained.remove(entry)
            _lock.notify_all()


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
    thread = threading.get_ident()
    with _lock:
        if _trained:
            ids = set(map(id, modules))
            while any(t != thread and net in ids for t, net in _trained):
                _lock.wait()
        parts = []
        for module in modules:
            held = _held.get(id(module))
            if held is None:
                held = _held[id(module)] = _Held(module, module.training)
            held.threads.append(thread)
            parts.append(held)
        for held in parts:
            if held.module.training:
                held.disturbed |= len(held.threads) > 1
                held.module.training = False


def _release(modules: Sequence[nn.Module]) -> bool:
    """Release modules; return whether the model or its network was put into training mode."""
    with _lock:
        parts = [_held[id(module)] for module in modules]
        top = [modules[0], *modules[0].children()]
        for held in parts:  # all before the first gets its mode back, which may be another's too
            held.threads.remove(threading.get_ident())
            held.disturbed |= held.module.training and any(held.module is m for m in top)
        for held in parts:
            if not held.threads:
                del _held[id(held.module)]
                held.module.training = held.training or held.disturbed
            elif held.module.training:
                held.training, held.module.training = held.disturbed, False
        if _postponed:
            waiting, _postponed[:] = _postponed[:], []
            for model, change in waiting:
                once_released(model, change)
        _lock.notify_all()
    return any(held.disturbed for held in parts)


def _is_held(model: nn.Module, by_others: bool = False) -> bool:
    """Whether a part of a module is being evaluated, by any thread or by another than this."""
    if not _held:
        return False
    thread = threading.get_ident()
    held = (_held.get(id(module)) for module in model.modules())
    return any(h and (not by_others or any(t != thread for t in h.threads)) for h in held)
