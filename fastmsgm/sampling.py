"""sample and sample_iter: check the arguments, run the loop chunk by chunk, fill the output.

Sample i of a seed is one sample of an endless stream: chunk c always computes samples
[c b, (c + 1) b), whatever n and start ask for, because a network's arithmetic can depend on its
batch. So any part of the stream can be sampled again, bit for bit, at the same batch size b and
number of threads.
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
from fastmsgm.checks import check_int
from fastmsgm.files import write_atomically
from fastmsgm.loop import Loop
from fastmsgm.model import ScoreModel
from fastmsgm.solver import Plan, Solver
from fastmsgm.solvers import resolve

_log = logging.getLogger("fastmsgm")


@dataclass(frozen=True)
class Step:
    """What a callback sees of every chunk: the sample of the prior, and the state after each step.

    Args:
        index: Steps done, 0 (the prior) .. nfe.
        nfe: Network calls per sample.
        noise_level: Noise level of the state: sigma for GBM, integrated beta for other families.
        first: Index of the chunk's first sample.
        x: (b, ...) a copy of the chunk's state in the units of the process: data + offset,
            standardised for VP.
        denoised: (b, ...) the denoised estimate from the previous state, where the solver keeps it.
    """

    index: int
    nfe: int
    noise_level: float
    first: int
    x: Tensor
    denoised: Tensor | None


class NonFiniteError(RuntimeError):
    """The network's output or the state left the float32 numbers.

    Attributes:
        step: The first step at which it happened.
        indices: The samples it happened to.
        samples: (m, ...) the finished samples, from the first one asked for.
    """

    def __init__(self, step: int, indices: list[int]) -> None:
        shown = ", ".join(map(str, indices[:8])) + (", ..." if len(indices) > 8 else "")
        super().__init__(
            f"non-finite state at step {step} in {len(indices)} samples ({shown}): the network "
            "returned NaN or inf, or the solver diverged; try precision fp32, more steps or "
            "another solver. Finished chunks are kept"
        )
        self.step, self.indices = step, indices
        self.samples: Tensor | None = None


def sample(
    model: ScoreModel | str | os.PathLike[str],
    n: int = 50_000,
    *,
    steps: int | None = None,
    solver: str | Solver | None = None,
    seed: int = 0,
    start: int = 0,
    label: int | None = None,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    out: Tensor | np.ndarray | str | os.PathLike[str] | None = None,
    compile: bool = False,
    progress: bool = True,
    callback: Callable[[Step], None] | None = None,
) -> Tensor:
    """Sample a model: samples ``start`` .. ``start + n - 1`` of the stream ``seed``.

    Args:
        model: A ScoreModel, the name of a shipped model or the folder of a checkpoint.
        n: Number of samples.
        steps: Noise levels on the time grid; None is the solver's ``default_steps``. Network calls
            per sample (NFE) are ``steps`` for multistep solvers, 2 steps - 1 for Heun and the
            ring's midpoint rule, L steps plus the Tweedie passes for the paper's samplers.
        solver: A name in ``model.solvers`` ("dpm++2m", "heun", "dale-langevin", ...) or a Solver;
            None is ``model.default_solver``.
        seed: 0 .. 2^64 - 1.
        start: Index of the first sample.
        label: The class of all samples, for a class-conditional model; None: sample i is of class
            i mod classes.
        batch_size: Samples per network call; None is the power of two nearest 2^16 / d, between 64
            and 8192, and 16 times that on CUDA. Samples are bit-equal at the same batch size.
        device: Where to run; None is where the model is. A model given elsewhere is moved.
        out: A float32 tensor or array (n, ...) to fill, or the path of a ``.npy`` file to write
            chunk by chunk, with a ``.json`` beside it that says how it was made; None allocates a
            tensor on the device.
        compile: Compile the network and the step together (``torch.compile``), once for all steps
            and chunks; on CUDA the loop of a chunk is then captured as a graph and replayed,
            unless there is a callback. It takes a minute at first and pays off for many chunks.
            Samples differ from those without it by rounding.
        progress: Show a progress bar.
        callback: Called with a ``Step`` for the prior's sample and after every step; it cannot
            change the result.

    Returns:
        (n, ...) float32 in the data's own range: ``out``, or a tensor on its memory where it is an
        array or a file.

    Raises:
        TypeError: An argument of the wrong type; the message names it.
        ValueError: An argument out of range; the message names it.
        NonFiniteError: The network or the state left the float32 numbers; finished samples are in
            ``error.samples``.

    Example:
        >>> x = fastmsgm.sample("cauchy-rotation", n=1000, seed=3, progress=False)
        >>> x.shape
        torch.Size([1000, 4])
        >>> again = fastmsgm.sample("cauchy-rotation", n=20, seed=3, start=40, progress=False)
        >>> torch.equal(x[40:60], again)
        True
    """
    job = _check(model, n, steps, solver, seed, start, label, batch_size, device, callback)
    loop = job.loop(compile)
    result = _output(out, (job.n, *job.model.shape), job.model.device)
    began, done = time.monotonic(), 0
    try:
        for chunk in _chunks(job, loop, progress, callback):
            result[done : done + len(chunk)].copy_(chunk)
            done += len(chunk)
    except NonFiniteError as error:
        error.samples = result[:done]
        raise
    _log.info(
        "%d samples, %d network calls each, %.1f samples/s; backend %s on %s",
        job.n,
        job.plan.nfe,
        job.n / (time.monotonic() - began),
        ops.backend(job.model.device.type),
        job.model.device,
    )
    if isinstance(out, (str, os.PathLike)):
        text = json.dumps(job.manifest(compile), indent=2) + "\n"
        write_atomically(_manifest_path(out), lambda p: p.write_text(text))
    return result


def sample_iter(
    model: ScoreModel | str | os.PathLike[str],
    n: int = 50_000,
    *,
    steps: int | None = None,
    solver: str | Solver | None = None,
    seed: int = 0,
    start: int = 0,
    label: int | None = None,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    compile: bool = False,
    progress: bool = True,
    callback: Callable[[Step], None] | None = None,
) -> Iterator[Tensor]:
    """Sample a model chunk by chunk.

    Args:
        model: As of ``sample``, like all other arguments.
        n: Number of samples.
        steps: Noise levels on the time grid.
        solver: A name or a Solver.
        seed: 0 .. 2^64 - 1.
        start: Index of the first sample.
        label: The class of all samples.
        batch_size: Samples per network call.
        device: Where to run.
        compile: Compile the network and the step together.
        progress: Show a progress bar.
        callback: Called with a ``Step`` after every step.

    Returns:
        An iterator over tensors (<= batch_size, ...), in order.

    Raises:
        TypeError: As ``sample``, at the call.
        ValueError: As ``sample``, at the call.
        NonFiniteError: As ``sample``, from the iterator.

    Example:
        >>> chunks = fastmsgm.sample_iter("cauchy-rotation", n=100, batch_size=64, progress=False)
        >>> [len(chunk) for chunk in chunks]
        [64, 36]
    """
    job = _check(model, n, steps, solver, seed, start, label, batch_size, device, callback)
    return _chunks(job, job.loop(compile), progress, callback)


def plan_for(
    model: ScoreModel, solver: str | Solver | None = None, steps: int | None = None
) -> Plan:
    """Return the plan that ``sample`` would follow; ``plan.nfe`` is its network calls per sample.

    Args:
        model: To be sampled.
        solver: As of ``sample``.
        steps: As of ``sample``.

    Raises:
        TypeError: As ``sample``.
        ValueError: As ``sample``.
    """
    return _plan(_check_model(model), resolve(solver, model), steps)


def _plan(model: ScoreModel, solver: Solver, steps: int | None) -> Plan:
    steps = solver.default_steps if steps is None else check_int("steps", steps, 1)
    return solver.plan(model.preconditioning, steps)


@dataclass(frozen=True)
class _Job:
    """The checked arguments of ``sample``."""

    model: ScoreModel
    solver: Solver
    plan: Plan
    n: int
    seed: int
    start: int
    label: int | None
    size: int  # of a chunk

    def loop(self, compiled: bool) -> Loop:
        """Allocate the arrays of a chunk and return the loop over them."""
        state = self.plan.state(self.model, self.size, self.label)
        return Loop(self.model, self.plan, state, compiled)

    def manifest(self, compiled: bool) -> dict[str, object]:
        """Return how the samples were made, as JSON can hold it."""
        return {
            "n": self.n,
            "start": self.start,
            "seed": self.seed,
            "label": self.label,
            "compile": compiled,
            "stream": rng.STREAM_VERSION,
            "solver": repr(self.solver),
            "nfe": self.plan.nfe,
            "batch_size": self.size,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "precision": self.model.precision,
            "backend": ops.backend(self.model.device.type),
        }


def _check(
    model: ScoreModel | str | os.PathLike[str],
    n: int,
    steps: int | None,
    solver: str | Solver | None,
    seed: int,
    start: int,
    label: int | None,
    batch_size: int | None,
    device: torch.device | str | None,
    callback: Callable[[Step], None] | None,
) -> _Job:
    """Check every argument before any work is done."""
    if isinstance(model, (str, os.PathLike)):
        model = load(model)
    model = _check_model(model)
    model = model if device is None else model.to(device)
    n, start = check_int("n", n, 1), check_int("start", start, 0)
    seed = check_int("seed", seed, 0, 2**64 - 1)
    if start + n > rng.MAX_SAMPLES:
        raise ValueError(
            f"start + n must be at most 2^56, got start={start} and n={n}: the stream ends there"
        )
    if callback is not None and not callable(callback):
        raise TypeError(
            f"callback must be a function of a Step or None, got {type(callback).__name__}"
        )
    chosen = resolve(solver, model)
    if label is not None:
        label = _check_label(model, label)
    plan = _plan(model, chosen, steps)
    if batch_size is None:
        batch_size = _default_batch_size(model)
    size = check_int("batch_size", batch_size, 1)
    return _Job(model, chosen, plan, n, seed, start, label, size)


def _check_model(model: object) -> ScoreModel:
    if not isinstance(model, ScoreModel):
        raise TypeError(f"model must be a ScoreModel, a name or a path, got {type(model).__name__}")
    return model


def _check_label(model: ScoreModel, label: int) -> int:
    label = check_int("label", label, 0)
    if label >= model.classes:
        allowed = (
            f"a class, 0 to {model.classes - 1}"
            if model.classes
            else "None for a model without classes"
        )
        raise ValueError(f"label must be {allowed}, got {label}")
    return label


def _default_batch_size(model: ScoreModel) -> int:
    exponent = round(math.log2(2**16 / math.prod(model.shape)))
    return min(max(2**exponent, 64), 8192) * (16 if model.device.type == "cuda" else 1)


def _chunks(
    job: _Job, loop: Loop, progress: bool, callback: Callable[[Step], None] | None
) -> Iterator[Tensor]:
    model, size, start, end = job.model, job.size, job.start, job.start + job.n
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    bar = tqdm(
        total=job.n,
        disable=not progress,
        desc=f"sampling, {job.plan.nfe} network calls",
        unit="sample",
    )
    try:
        for first in range(start - start % size, end, size):
            wanted = slice(max(start - first, 0), min(end - first, size))
            with torch.no_grad():
                data = _chunk(loop, job.seed, first, wanted, callback)
            bar.update(len(data))
            yield data
    finally:
        bar.close()
        for module, training in modes:
            module.training = training


def _chunk(
    loop: Loop, seed: int, first: int, wanted: slice, callback: Callable[[Step], None] | None
) -> Tensor:
    """Return the wanted samples of a chunk in the data's own range; only they must be finite.

    Args:
        loop: The loop over the chunk's arrays.
        seed: Seed of the noise stream.
        first: Index of the chunk's first sample.
        wanted: Samples of the chunk, counted from its first.
        callback: The callback of ``sample``.
    """
    model, state = loop.model, loop.state
    show = None
    if callback is not None:
        show = functools.partial(_show, loop, first=first, callback=callback)
    loop.run(rng.stream(seed, first, model.device), show)
    nonfinite_steps = loop.first_nonfinite_step[wanted].cpu()
    nonfinite = nonfinite_steps >= 0
    if bool(nonfinite.any()):
        indices = nonfinite.nonzero().flatten() + first + wanted.start
        raise NonFiniteError(int(nonfinite_steps[nonfinite].min()), indices.tolist())
    return model.to_data(state.x(wanted))


def _show(loop: Loop, index: int, first: int, callback: Callable[[Step], None]) -> None:
    plan, state, to_process = loop.plan, loop.state, loop.model.to_process
    noise_level = float(plan.noise_levels[index]) if index < plan.nfe else 0.0
    denoised = state.denoised() if index else None
    callback(
        Step(
            index,
            plan.nfe,
            noise_level,
            first,
            to_process(state.x(slice(None)).clone()),
            None if denoised is None else to_process(denoised),
        )
    )


def _manifest_path(out: str | os.PathLike[str]) -> Path:
    return Path(f"{os.fspath(out)}.json")


def _output(
    out: Tensor | np.ndarray | str | os.PathLike[str] | None,
    shape: tuple[int, ...],
    device: torch.device,
) -> Tensor:
    if out is None:
        return torch.empty(shape, dtype=torch.float32, device=device)
    if isinstance(out, (str, os.PathLike)):
        path = Path(out)
        if path.suffix != ".npy":
            raise ValueError(f"out must be a path that ends in .npy, got {os.fspath(out)!r}")
        path.parent.mkdir(parents=True, exist_ok=True)
        _manifest_path(out).unlink(missing_ok=True)  # an older file's: written again at the end
        array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
        return torch.from_numpy(array)
    if not isinstance(out, (Tensor, np.ndarray)):
        raise TypeError(f"out must be a tensor, an array or a path, got {type(out).__name__}")
    if isinstance(out, np.ndarray) and not out.flags.writeable:
        raise ValueError(
            "out must be writable, got a read-only array: open a memmap with mode 'r+'"
        )
    tensor = torch.from_numpy(out) if isinstance(out, np.ndarray) else out
    if tuple(tensor.shape) != shape or tensor.dtype != torch.float32:
        raise ValueError(
            f"out must be float32 of shape {shape}, got {tensor.dtype} {tuple(tensor.shape)}"
        )
    return tensor
