"""A sampling job: the checked arguments of ``sample``, its chunks, and the loop over them.

Sample i of a seed is one sample of an endless stream, whatever n and start ask for. A network's
arithmetic can depend on its batch, so bits depend on how the stream is cut into chunks. With a
batch size b given, chunk c is always [c b, (c + 1) b), and any part of the stream can be sampled
again, bit for bit, at the same b and number of threads. Without it, the n samples are cut into
chunks of about equal size, so that hardly any sample is computed in vain.
"""

from __future__ import annotations

import functools
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from fastmsgm import ops, rng
from fastmsgm.batch_size import default_batch_size
from fastmsgm.checkpoint import load
from fastmsgm.checks import check_int
from fastmsgm.condition import Conditions
from fastmsgm.fingerprint import fingerprint
from fastmsgm.function import function_model
from fastmsgm.habits import check_guidance, drawn_seed, refuse_unknown
from fastmsgm.loop import Loop
from fastmsgm.model import ScoreModel, check_model, is_model
from fastmsgm.modes import outside_autocast
from fastmsgm.output.chunks import Chunks
from fastmsgm.solver import Plan, Solver
from fastmsgm.solvers import resolve
from fastmsgm.step import NonFiniteError, Step

_log = logging.getLogger("fastmsgm")


@dataclass(frozen=True)
class Job:
    """The checked arguments of ``sample``; they are described there.

    Args:
        model: In evaluation mode while a chunk is computed.
        solver: Makes the plan.
        plan: The steps.
        n: Number of samples.
        seed: Of the noise stream.
        start: Index of the first sample.
        conditions: Of the samples.
        guidance: Weight of classifier-free guidance.
        size: Samples of a chunk.
        first: First sample of the first chunk, at most start.
        compiled: Compile the network and the step together.
    """

    model: ScoreModel
    solver: Solver
    plan: Plan
    n: int
    seed: int
    start: int
    conditions: Conditions
    guidance: float
    size: int
    first: int
    compiled: bool

    def loop(self, size: int | None = None) -> Loop:
        """Allocate the arrays of a chunk and return the loop over them."""
        size = self.size if size is None else size
        state, condition = self.plan.state(self.model, size), self.conditions.chunk(0, size)
        return Loop(self.model, self.plan, state, self.compiled, condition, self.guidance)

    @property
    def chunks(self) -> Chunks:
        """How the samples are cut."""
        return Chunks(self.start, self.n, self.size, self.first)

    def samples(
        self,
        loop: Loop,
        progress: bool,
        callback: Callable[[Step], object] | None,
        todo: Sequence[int] | None = None,
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield chunks: the number of each, and its samples in the data's own range.

        Args:
            loop: The loop over a chunk's arrays.
            progress: Show a progress bar.
            callback: The callback of ``sample``.
            todo: Numbers of the chunks; None is all of them.
        """
        chunks = self.chunks
        todo = range(len(chunks)) if todo is None else todo
        wanted = [chunks.wanted(chunk) for chunk in todo]
        nfe = self.plan.nfe * (1 if loop.null is None else 2)
        bar = tqdm(
            total=sum(part.stop - part.start for part in wanted),
            disable=not progress,
            desc=f"sampling, {nfe} network calls",
            unit="sample",
        )
        try:
            for chunk, part in zip(todo, wanted, strict=True):
                data = self._chunk(loop, chunks.first_sample(chunk), part, callback)
                bar.update(len(data))
                yield chunk, data
        finally:
            bar.close()

    @torch.no_grad()
    def _chunk(
        self, loop: Loop, first: int, wanted: slice, callback: Callable[[Step], object] | None
    ) -> Tensor:
        """Return the wanted samples of a chunk; only they must be finite.

        Args:
            loop: The loop over the chunk's arrays.
            first: Index of the chunk's first sample.
            wanted: Samples of the chunk, counted from its first.
            callback: The callback of ``sample``.
        """
        show = None
        if callback is not None:
            show = functools.partial(_show, loop, first=first, callback=callback)
        stream = rng.stream(self.seed, first, self.model.device)
        loop.run(stream, self.conditions.chunk(first, self.size), show)
        data, finite = self._data(loop.state.x(wanted))
        step_of = loop.first_nonfinite_step[wanted]
        nonfinite_steps = torch.where((step_of < 0) & ~finite, self.plan.nfe, step_of).cpu()
        nonfinite = nonfinite_steps >= 0
        if bool(nonfinite.any()):
            indices = nonfinite.nonzero().flatten() + first + wanted.start
            step = int(nonfinite_steps[nonfinite].min())
            raise NonFiniteError(
                step,
                indices.tolist(),
                guided=loop.null is not None,
                finished=step == self.plan.nfe,
            )
        return data

    def _data(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return states in the data's own range, not on their memory, and (n,) which are finite."""
        model = self.model
        with outside_autocast(x.device):
            data = model.to_data(x)
            finite = torch.isfinite(data).flatten(1).all(1)
            if model.bounds is not None:  # infinity becomes a bound
                finite &= torch.isfinite(model.to_process(x) - model.offset).flatten(1).all(1)
        if data.untyped_storage().data_ptr() == x.untyped_storage().data_ptr():
            data = data.clone()  # the next chunk overwrites the state
        return data, finite

    def manifest(self, dtype: str) -> dict[str, Any]:
        """Return what makes the samples what they are, as JSON can hold it.

        Args:
            dtype: What they are written in.
        """
        model = self.model
        return {
            "n": self.n,
            "start": self.start,
            "seed": self.seed,
            "shape": list(model.shape),
            "dtype": dtype,
            "bounds": model.bounds and list(model.bounds),
            **self.conditions.manifest(),
            "guidance": self.guidance,
            "model": fingerprint(model),
            "stream": rng.STREAM_VERSION,
            "solver": repr(self.solver),
            "nfe": self.plan.nfe,
            "plan": self.plan.checksum(),
            "batch_size": self.size,
            "first": self.first,
            "compile": self.compiled,
            "precision": model.precision,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "backend": ops.backend(model.device.type),
            "device": model.device.type,
            "fastmsgm": version("fastmsgm"),
        }


def check_job(
    model: Any,
    n: int,
    *,
    steps: int | None,
    solver: str | Solver | None,
    seed: int,
    generator: torch.Generator | None,
    start: int,
    label: int | Sequence[int] | Tensor | None,
    condition: Mapping[str, Any] | None,
    guidance: float,
    batch_size: int | None,
    device: torch.device | str | None,
    compiled: bool,
    callback: Callable[[Step], object] | None,
    function: Mapping[str, Any],
    unknown: Mapping[str, Any],
) -> Job:
    """Check the arguments of ``sample``, which describes them, before any work is done.

    ``function`` holds those that describe a model that is a function, ``unknown`` those that
    ``sample`` does not have.
    """
    refuse_unknown(unknown)
    model = _model(model, function, device)
    n, start = check_int("n", n, 1), check_int("start", start, 0)
    if isinstance(seed, (list, tuple)):
        raise TypeError(
            f"seed must be one int, got a {type(seed).__name__}: sample i of a seed is independent "
            "of the others, so one seed serves all samples"
        )
    seed = check_int("seed", seed, 0, 2**64 - 1)
    if generator is not None:
        seed = drawn_seed(generator, seed)
    if start + n > rng.MAX_SAMPLES:
        raise ValueError(
            f"start + n must be at most 2^56, got start={start} and n={n}: the stream ends there"
        )
    if callback is not None and not callable(callback):
        raise TypeError(
            f"callback must be a function of a Step or None, got {type(callback).__name__}"
        )
    steps = None if steps is None else check_int("steps", steps, 1)
    conditions = Conditions(model, start, n, label, condition)
    guidance = check_guidance(model, guidance, conditions)
    chosen = resolve(solver, model, steps, guided=guidance != 1)
    plan = plan_of(model, chosen, steps)
    size = n if batch_size is None else check_int("batch_size", batch_size, 1)
    job = Job(
        model, chosen, plan, n, seed, start, conditions, guidance, size, start, bool(compiled)
    )
    if batch_size is not None:
        if size > n and start == 0:
            _log.warning(
                "batch_size=%d computes %d samples, of which n=%d are kept: leave it out where "
                "slices of the stream need not be bit-equal",
                size,
                size,
                n,
            )
        return replace(job, first=start - start % size)
    loop = replace(job, compiled=False).loop
    chunks = math.ceil(n / default_batch_size(model.shape, n, model.device, loop))
    return replace(job, size=math.ceil(n / chunks))


def check_shard(shard: object) -> tuple[int, int]:
    """Return (i, K) of "i/K"; ValueError for anything else."""
    parts = shard.split("/") if isinstance(shard, str) else []
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        raise ValueError(f'shard must be "i/K", as "0/8" for the first of 8 parts, got {shard!r}')
    i, of = map(int, parts)
    if not 0 <= i < of:
        raise ValueError(f'shard must be "i/K" with i = 0 .. K - 1, got {shard!r}')
    return i, of


def plan_of(model: ScoreModel, solver: Solver, steps: int | None) -> Plan:
    """Return a solver's plan; steps None takes the solver's default."""
    steps = solver.default_steps if steps is None else check_int("steps", steps, 1)
    return solver.plan(model.preconditioning, steps)


def _model(
    model: Any, function: Mapping[str, Any], device: torch.device | str | None
) -> ScoreModel:
    given = [name for name, value in function.items() if value is not None]
    if isinstance(model, (str, os.PathLike)):
        model = load(model)
    if callable(model) and not is_model(model):
        if function["process"] is None:
            raise TypeError(
                "model must be a ScoreModel, a name, a path, or a function with process=..., "
                f"shape=..., prediction=... and time=..., got {type(model).__name__} alone: of a "
                "module that holds a model, such as a Loss, give the model"
            )
        return function_model(model, **function, device=device)
    model = check_model(model)
    if given:
        raise TypeError(
            f"{given[0]} is for a model that is a function, got a {type(model).__name__}, which "
            "has its own: leave it out"
        )
    return model if device is None else model.to(device)


def _show(loop: Loop, index: int, first: int, callback: Callable[[Step], object]) -> None:
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
