"""sample and sample_iter: the one loop. Per chunk the prior, then per row of the plan a network call and a step.

Sample i of a seed is one sample of an endless stream: chunk c always computes samples [c b, (c + 1) b), whatever n and
start ask for, because a network's arithmetic can depend on its batch. So any part of the stream can be drawn again,
bit for bit, at the same batch size b and number of threads.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from fastmsgm import ops, rng
from fastmsgm.checkpoint import load
from fastmsgm.loop import Loop
from fastmsgm.model import ScoreModel
from fastmsgm.solvers import Plan, Solver, resolve
from fastmsgm.walks import Walk, walk_of

_log = logging.getLogger("fastmsgm")


@dataclass(frozen=True)
class Step:
    """What a callback sees of every chunk: the draw from the prior, and the state after every step.

    Args:
        index: steps done, 0 (the prior) .. calls.    calls: network calls per sample.
        level: the noise level of the state.
        first: index of the chunk's first sample.
        x: (b, ...) the chunk's state in the units of the process (data + offset): a copy.
        denoised: (b, ...) the denoised state, what the network took the state before for, where the solver keeps it.
    """

    index: int
    calls: int
    level: float
    first: int
    x: Tensor
    denoised: Tensor | None


class NonFiniteError(RuntimeError):
    """The network's output or the state left the float32 numbers.

    Attributes:
        step: the first step at which it happened.    indices: the samples it happened to.
        samples: (m, ...) the samples finished before, from the first one asked for.
    """

    def __init__(self, step: int, indices: list[int]) -> None:
        shown = ", ".join(map(str, indices[:8])) + (", ..." if len(indices) > 8 else "")
        super().__init__(
            f"non-finite state at step {step} in {len(indices)} samples ({shown}): the network returned NaN or "
            "inf, or the solver diverged; try precision fp32, more steps or another solver. Earlier chunks are kept"
        )
        self.step, self.indices = step, indices
        self.samples: Tensor | None = None


def sample(
    model: ScoreModel | str | os.PathLike[str], n: int = 50_000, *, steps: int | None = None,
    solver: str | Solver | None = None, seed: int = 0, start: int = 0, label: int | None = None,
    batch_size: int | None = None, device: torch.device | str | None = None,
    out: Tensor | np.ndarray | str | os.PathLike[str] | None = None, compile: bool = False, progress: bool = True,
    callback: Callable[[Step], None] | None = None,
) -> Tensor:  # fmt: skip
    """Draw samples ``start`` .. ``start + n - 1`` of the stream ``seed``.

    Args:
        model: a ScoreModel, the name of a shipped model or the folder of a checkpoint.
        n: how many samples.
        steps: updates on the time grid; None is the solver's ``default_steps``. Network calls per sample are ``steps``
            for multistep solvers, 2 steps - 1 for Heun and the ring's midpoint rule, L steps (and the Tweedie passes)
            for the paper's.
        solver: a name of ``fastmsgm.solvers`` ("dpm++2m", "sde-dpm++2m", "heun", "dale-langevin", ...) or a Solver;
            None is the model's own (``fastmsgm.solvers.resolve``).
        seed: 0 .. 2^64 - 1.    start: index of the first sample.
        label: the class of all samples, for a model with classes; None: sample i is of class i mod classes.
        batch_size: samples per network call; None is the power of two nearest 2^16 / d, between 64 and 8192, and 16
            times that on CUDA. Part of what makes samples bit-equal.
        device: where to run; None is where the model is. A model given elsewhere is moved.
        out: a float32 tensor or array (n, ...) to fill, or the path of a ``.npy`` file to write chunk by chunk (with a
            ``.json`` beside it that says how it was made); None allocates a tensor on the device.
        compile: compile the network and the step together (``torch.compile``), once for all steps and chunks; on CUDA
            the whole loop of a chunk is then captured as a graph and replayed, unless there is a callback. It takes a
            minute at first and pays off for many chunks. Samples differ in rounding from those without.
        progress: show a progress bar.
        callback: called with a ``Step`` for the prior's draw and after every step; it cannot change the result.

    Returns:
        (n, ...) float32 in the data's own range: ``out``, or a tensor on its memory where it is an array or a file.

    Raises:
        TypeError, ValueError: an argument out of range; the message names it.
        NonFiniteError: the network or the state left the float32 numbers; finished samples are in ``error.samples``.
    """
    model = _resolve_model(model, device)
    _check_int("n", n, 1)
    plan = plan_for(model, solver, steps)
    size = _batch_size(model, batch_size)
    chunks = sample_iter(
        model, n, steps=steps, solver=solver, seed=seed, start=start, label=label, batch_size=size, compile=compile,
        progress=progress, callback=callback,
    )  # fmt: skip
    result = _output(out, (n, *model.shape), model.device)
    began = time.monotonic()
    done = 0
    try:
        for chunk in chunks:
            result[done : done + len(chunk)].copy_(chunk)
            done += len(chunk)
    except NonFiniteError as error:
        error.samples = result[:done]
        raise
    backend, rate = ops.backend(model.device.type), n / (time.monotonic() - began)
    _log.info("%d samples, %d calls each, %.1f samples/s; backend %s on %s", n, plan.calls, rate, backend, model.device)
    if isinstance(out, (str, os.PathLike)):
        manifest = {
            "n": n, "start": start, "seed": seed, "label": label, "compile": compile, "stream": rng.STREAM_VERSION,
            "solver": repr(resolve(solver, model)), "calls": plan.calls, "batch_size": size,
            "threads": torch.get_num_threads(), "torch": torch.__version__, "precision": model.precision,
            "backend": backend,
        }  # fmt: skip
        Path(f"{os.fspath(out)}.json").write_text(json.dumps(manifest, indent=2) + "\n")
    return result


def sample_iter(
    model: ScoreModel | str | os.PathLike[str], n: int = 50_000, *, steps: int | None = None,
    solver: str | Solver | None = None, seed: int = 0, start: int = 0, label: int | None = None,
    batch_size: int | None = None, device: torch.device | str | None = None, compile: bool = False,
    progress: bool = True, callback: Callable[[Step], None] | None = None,
) -> Iterator[Tensor]:  # fmt: skip
    """Like ``sample``, but yield the samples chunk by chunk, (<= batch_size, ...) each, in order."""
    model = _resolve_model(model, device)
    _check_int("n", n, 1)
    _check_int("start", start, 0)
    plan = plan_for(model, solver, steps)
    size = _batch_size(model, batch_size)
    rng.stream(seed, start)  # raises before any work is done
    if start + n > rng.MAX_SAMPLES:
        raise ValueError(f"start + n must be at most 2^56, got start={start} and n={n}: the stream ends there")
    _check_label(model, label)
    loop = Loop(walk_of(model, plan, size, label), compile)
    return _chunks(loop, n, seed, start, progress, callback)


def plan_for(model: ScoreModel, solver: str | Solver | None, steps: int | None) -> Plan:
    """The plan that ``sample`` would follow."""
    chosen = resolve(solver, model)
    if steps is not None:
        _check_int("steps", steps, 1)
    return chosen.plan(model, steps or chosen.default_steps)


def _chunks(
    loop: Loop, n: int, seed: int, start: int, progress: bool, callback: Callable[[Step], None] | None
) -> Iterator[Tensor]:
    model, size, calls = loop.walk.model, loop.walk.size, loop.walk.plan.calls
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    bar = tqdm(total=n, disable=not progress, desc=f"sampling, {calls} calls", unit="sample")
    try:
        for first in range(start - start % size, start + n, size):
            rows = slice(max(start - first, 0), min(start + n - first, size))
            with torch.no_grad():
                data = _chunk(loop, seed, first, rows, callback)
            bar.update(len(data))
            yield data
    finally:
        bar.close()
        for module, training in modes:
            module.training = training


def _chunk(loop: Loop, seed: int, first: int, rows: slice, callback: Callable[[Step], None] | None) -> Tensor:
    """The given rows of samples first .. first + size - 1, in the data's own range; only they must be finite."""
    walk = loop.walk
    show = None if callback is None else functools.partial(_show, walk, first=first, callback=callback)
    loop.run(rng.stream(seed, first, walk.model.device), show)
    failed = loop.bad[rows].cpu()
    if bool((failed >= 0).any()):
        indices = (failed >= 0).nonzero().flatten() + first + rows.start
        raise NonFiniteError(int(failed[failed >= 0].min()), indices.tolist())
    return walk.data(rows)


def _show(walk: Walk, index: int, first: int, callback: Callable[[Step], None]) -> None:
    calls = walk.plan.calls
    level = float(walk.plan.levels[index]) if index < calls else 0.0
    callback(Step(index, calls, level, first, walk.state(), walk.denoised() if index else None))


def _resolve_model(model: ScoreModel | str | os.PathLike[str], device: torch.device | str | None) -> ScoreModel:
    if isinstance(model, (str, os.PathLike)):
        model = load(model)
    if not isinstance(model, ScoreModel):
        raise TypeError(f"model must be a ScoreModel, a name or a path, got {type(model).__name__}")
    return model if device is None else model.to(device)


def _batch_size(model: ScoreModel, batch_size: int | None) -> int:
    if batch_size is not None:
        _check_int("batch_size", batch_size, 1)
        return batch_size
    exponent = round(math.log2(2**16 / math.prod(model.shape)))
    return min(max(2**exponent, 64), 8192) * (16 if model.device.type == "cuda" else 1)


def _output(
    out: Tensor | np.ndarray | str | os.PathLike[str] | None, shape: tuple[int, ...], device: torch.device
) -> Tensor:
    if out is None:
        return torch.empty(shape, dtype=torch.float32, device=device)
    if isinstance(out, (str, os.PathLike)):
        if Path(out).suffix != ".npy":
            raise ValueError(f"out must be a path that ends in .npy, got {os.fspath(out)!r}")
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        Path(f"{os.fspath(out)}.json").unlink(missing_ok=True)  # an older file's: written again when all is done
        return torch.from_numpy(np.lib.format.open_memmap(out, mode="w+", dtype=np.float32, shape=shape))
    if not isinstance(out, (Tensor, np.ndarray)):
        raise TypeError(f"out must be a tensor, an array or a path, got {type(out).__name__}")
    if isinstance(out, np.ndarray) and not out.flags.writeable:
        raise ValueError("out must be writable, got a read-only array: open a memmap with mode 'r+'")
    tensor = torch.from_numpy(out) if isinstance(out, np.ndarray) else out
    if tuple(tensor.shape) != shape or tensor.dtype != torch.float32:
        raise ValueError(f"out must be float32 of shape {shape}, got {tensor.dtype} {tuple(tensor.shape)}")
    return tensor


def _check_label(model: ScoreModel, label: int | None) -> None:
    if label is None:
        return
    _check_int("label", label, 0)
    if label >= model.classes:
        allowed = f"a class, 0 to {model.classes - 1}" if model.classes else "None for a model without classes"
        raise ValueError(f"label must be {allowed}, got {label}")


def _check_int(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {value!r} ({type(value).__name__})")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
