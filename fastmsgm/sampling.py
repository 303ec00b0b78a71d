"""sample and sample_iter: samples of a model, or of any function, in memory or in a file."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from time import monotonic
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastmsgm import ops
from fastmsgm.gbm import GBM, LogNormalPrior
from fastmsgm.job import check_job, check_shard, plan_of
from fastmsgm.model import ScoreModel, check_model
from fastmsgm.output.found import batch_size_of
from fastmsgm.output.targets import DTYPES, open_output, open_store
from fastmsgm.processes import Processes, joined
from fastmsgm.rotation import RadialPrior, Rotation
from fastmsgm.solver import Plan, Solver
from fastmsgm.solvers import resolve
from fastmsgm.step import NonFiniteError, Step

_log = logging.getLogger("fastmsgm")


def sample(
    model: ScoreModel | str | os.PathLike[str] | Callable[..., Any],
    n: int = 50_000,
    *,
    steps: int | None = None,
    solver: str | Solver | None = None,
    seed: int = 0,
    generator: torch.Generator | None = None,
    start: int = 0,
    label: int | Sequence[int] | Tensor | None = None,
    condition: Mapping[str, Any] | None = None,
    guidance: float = 1.0,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    out: Tensor | np.ndarray | str | os.PathLike[str] | None = None,
    dtype: str = "float32",
    shard: str | None = None,
    distributed: bool = False,
    compile: bool = False,
    progress: bool = True,
    callback: Callable[[Step], object] | None = None,
    process: GBM | Rotation | None = None,
    shape: Sequence[int] | None = None,
    prediction: str | None = None,
    time: str | None = None,
    prior: LogNormalPrior | RadialPrior | None = None,
    **unknown: Any,
) -> Tensor:
    """Sample a model: samples ``start`` .. ``start + n - 1`` of the stream ``seed``.

    Args:
        model: A ScoreModel, also wrapped (DistributedDataParallel, AveragedModel); the name of a
            shipped model; the folder of a checkpoint; or any function or module
            f(x, time, **condition), which ``process`` and the arguments after it describe.
        n: Number of samples.
        steps: Noise levels on the time grid; None is the solver's ``default_steps``. Network calls
            per sample (NFE) are ``steps`` for multistep solvers, 2 steps - 1 for Heun and the
            ring's midpoint rule, L steps plus the Tweedie passes for the paper's samplers.
        solver: A name in ``model.solvers`` ("dpm++2m", "heun", "dale-langevin", ...) or a Solver;
            None is the model's table for so many steps (``fit_solver``), where it has one, or
            ``model.default_solver``.
        seed: 0 .. 2^64 - 1. The same seed gives the same samples.
        generator: Draws the seed, so that it advances with every call. ``seed`` is better where
            samples must be made again: a part of them, on another device or from another start.
        start: Index of the first sample.
        label: Of a class-conditional model: one class for all samples, or n classes; None: sample
            i is of class i mod classes.
        condition: What else the network is conditioned on: tensors (n, ...) by name, for samples
            ``start`` .. ``start + n - 1``.
        guidance: Weight w of classifier-free guidance: the network's output becomes
            f(null) + w (f(condition) - f(null)), at two calls a step. 1 is none, 0 ignores the
            condition. The model must have been trained with ``drop``.
        batch_size: Samples per network call. With it, any part of a stream is bit-equal to the
            same part of a longer call. None cuts the n samples into chunks of equal size, of at
            most the power of two nearest 2^16 / d, between 64 and 8192; on CUDA of at most 16
            times that, and of what half of the free memory holds. Samples at other batch sizes
            differ by rounding.
        device: Where to run; None is where the model is. A model given elsewhere is moved.
        out: A tensor or array (n, ...) to fill, or a path to write chunk by chunk, in memory that
            does not grow with n: a ``.npy`` file, an ``.npz`` file (``arr_0``, images as
            (n, height, width, channels)), or a folder of PNG files named by the sample's index.
            Space is reserved before the first chunk. Until all samples are there a file is called
            ``<out>.partial``; a ``.json`` beside it then says how it was made, with the checksum
            of every chunk. The same call resumes a run that was stopped or killed; a file of other
            samples is never overwritten. A plain function is identified by its name, its code,
            and the numbers and tensors that it holds. None allocates a tensor on the device.
        dtype: "float32", or "uint8" for 0 .. 255 over the model's ``bounds``.
        shard: "i/K" computes part i = 0 .. K - 1 of the chunks of a file or folder, where K jobs
            are started one by one, as in a Slurm array; ``fastmsgm merge`` completes it.
        distributed: Share the chunks of a file or folder among the processes of
            ``torch.distributed``, as torchrun starts them. All must make the same call.
        compile: Compile the network and the step together (``torch.compile``), once for all steps
            and chunks; on CUDA the loop of a chunk is then captured as a graph and replayed,
            unless there is a callback. It takes a minute at first and pays off for many chunks.
            Samples differ from those without it by rounding.
        progress: Show a progress bar.
        callback: Called with a ``Step`` for the prior's sample and after every step; it cannot
            change the result.
        process: Of a function: ``GBM(...)`` or ``Rotation(...)``.
        shape: Of a function: the shape of one sample.
        prediction: Of a function, what it returns: "score", "hyvarinen", "denoised", "epsilon" or
            "v"; ``fastmsgm.function`` defines them.
        time: Of a function, its second argument: "t", "index", "sigma" or "log_sigma".
        prior: Of a function: where sampling starts; None is noise around 1 for GBM, and norms of 1
            for a rotation.
        unknown: Nothing; other libraries' names of an argument raise with a hint.

    Returns:
        (n, ...) in the data's own range: ``out``, or a tensor on its memory where it is an array.
        Of a file, a map of it, whose changes stay in memory; of a folder, or a part of a run, an
        empty tensor.

    Raises:
        TypeError: An argument of the wrong type; the message names it.
        ValueError: An argument out of range; the message names it. Or ``out`` holds other samples,
            or is in use.
        OSError: ``out`` cannot be written, or there is not enough space; finished chunks stay.
        NonFiniteError: The network or the state left the float32 numbers; finished samples are in
            ``error.samples``, or in the file or folder.
        RuntimeError: Another thread put the network into training mode during a call.

    Example:
        >>> x = fastmsgm.sample("cauchy-rotation", n=1000, seed=3, batch_size=500, progress=False)
        >>> x.shape
        torch.Size([1000, 4])
        >>> again = fastmsgm.sample(
        ...     "cauchy-rotation", n=20, seed=3, start=40, batch_size=500, progress=False
        ... )
        >>> torch.equal(x[40:60], again)
        True
        >>> noise = fastmsgm.sample(
        ...     lambda x, s: torch.zeros_like(x), n=5, process=fastmsgm.GBM(1.0), shape=(3,),
        ...     prediction="epsilon", time="sigma", progress=False,
        ... )
        >>> noise.shape
        torch.Size([5, 3])
    """
    job = check_job(
        model,
        n,
        steps=steps,
        solver=solver,
        seed=seed,
        generator=generator,
        start=start,
        label=label,
        condition=condition,
        guidance=guidance,
        batch_size=batch_size,
        device=device,
        compiled=compile,
        callback=callback,
        function={
            "process": process,
            "shape": shape,
            "prediction": prediction,
            "time": time,
            "prior": prior,
        },
        unknown=unknown,
    )
    if shard is not None and distributed:
        raise ValueError(
            f"shard must be None where processes share a run, got {shard!r}: leave it out under "
            "torchrun"
        )
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    part = None if shard is None else check_shard(shard)
    target: Any = out
    model = job.model
    if isinstance(out, (str, os.PathLike)):
        target, dtype = open_store(
            out, job.n, model.shape, start=job.start, dtype=dtype, bounds=model.bounds
        )
        if batch_size is None:  # on CUDA it depends on free memory: that of the run goes on
            job = replace(job, size=batch_size_of(target) or job.size)
    elif part is not None or distributed:
        raise ValueError(
            f"{'shard' if part else 'distributed'} needs a file or folder that all processes write "
            f"to, got out={out if out is None else type(out).__name__}: give a path, as "
            'out="samples.npy"'
        )
    with joined(model.device) if distributed else nullcontext(Processes()) as processes:
        job = replace(job, size=processes.agree(job.size))
        loop = job.loop()  # before anything is made: it raises where it cannot be compiled
        output = open_output(
            target,
            job.chunks,
            model.shape,
            device=model.device,
            dtype=dtype,
            bounds=model.bounds,
            settings=lambda: job.manifest(dtype),
            processes=processes,
            shard=part,
        )
        began, leads = monotonic(), processes.rank == 0
        try:
            todo = output.target.todo
            for chunk, samples in job.samples(loop, progress and leads, callback, todo):
                output.write(chunk, samples)
        except BaseException as error:  # also of the keyboard: finished samples can be read
            finished = output.target.stopped()
            if isinstance(error, NonFiniteError) and not isinstance(out, (str, os.PathLike)):
                error.samples = finished
            raise
        if count := sum(part.stop - part.start for part in map(job.chunks.rows, todo)):
            _log.info(
                "%d samples, %d network calls each, %.1f samples/s; backend %s on %s",
                count,
                job.plan.nfe,
                count / (monotonic() - began),
                ops.backend(model.device.type),
                model.device,
            )
        return output.target.finished()


def sample_iter(
    model: ScoreModel | str | os.PathLike[str] | Callable[..., Any],
    n: int = 50_000,
    *,
    steps: int | None = None,
    solver: str | Solver | None = None,
    seed: int = 0,
    generator: torch.Generator | None = None,
    start: int = 0,
    label: int | Sequence[int] | Tensor | None = None,
    condition: Mapping[str, Any] | None = None,
    guidance: float = 1.0,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    compile: bool = False,
    progress: bool = True,
    callback: Callable[[Step], object] | None = None,
    process: GBM | Rotation | None = None,
    shape: Sequence[int] | None = None,
    prediction: str | None = None,
    time: str | None = None,
    prior: LogNormalPrior | RadialPrior | None = None,
    **unknown: Any,
) -> Iterator[Tensor]:
    """Sample a model chunk by chunk.

    Args:
        model: As of ``sample``, like all other arguments.
        n: Number of samples.
        steps: Noise levels on the time grid.
        solver: A name or a Solver.
        seed: 0 .. 2^64 - 1.
        generator: Draws the seed.
        start: Index of the first sample.
        label: One class, or n classes.
        condition: Tensors (n, ...) by name.
        guidance: Weight of classifier-free guidance.
        batch_size: Samples per network call.
        device: Where to run.
        compile: Compile the network and the step together.
        progress: Show a progress bar.
        callback: Called with a ``Step`` after every step.
        process: Of a function.
        shape: Of a function, the shape of one sample.
        prediction: Of a function, what it returns.
        time: Of a function, its second argument.
        prior: Of a function, where sampling starts.
        unknown: Nothing.

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
    job = check_job(
        model,
        n,
        steps=steps,
        solver=solver,
        seed=seed,
        generator=generator,
        start=start,
        label=label,
        condition=condition,
        guidance=guidance,
        batch_size=batch_size,
        device=device,
        compiled=compile,
        callback=callback,
        function={
            "process": process,
            "shape": shape,
            "prediction": prediction,
            "time": time,
            "prior": prior,
        },
        unknown=unknown,
    )
    return (samples for _, samples in job.samples(job.loop(), progress, callback))


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
    model = check_model(model)
    return plan_of(model, resolve(solver, model, steps), steps)
