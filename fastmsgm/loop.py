"""Loop: the network calls and steps of a chunk, with no wait for the host between them.

What a step depends on (the seed, the samples, the row of the table) is in device memory, in
``streams``. So one compiled function serves all steps and chunks, and one CUDA graph of the whole
loop serves all chunks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastmsgm import rng
from fastmsgm.model import ScoreModel
from fastmsgm.solver import Plan
from fastmsgm.state import SamplerState

VARIANTS = 256  # of the compiled function; beyond that PyTorch would stop compiling, silently


def call_and_step(
    model: ScoreModel,
    state: SamplerState,
    cond: Tensor,
    stream: Tensor,
    first_nonfinite_step: Tensor,
    flags: Any,
) -> None:
    """One network call and one step."""
    state.step(flags, model(state.model_input, cond), stream, first_nonfinite_step)


class Loop:
    """The loop over the steps of a plan.

    Args:
        model: What is called.
        plan: Its steps.
        state: The arrays of a chunk, made by the plan.
        compiled: Compile the network and the step together; on CUDA capture the loop, too.

    Attributes:
        first_nonfinite_step: (size,) int32; the first step at which a sample was not finite, or -1.

    Raises:
        ValueError: compiled, with a state whose steps are not single operations.
    """

    def __init__(self, model: ScoreModel, plan: Plan, state: SamplerState, compiled: bool) -> None:
        if compiled and not state.fused:
            raise ValueError(
                "compile must be False for this solver, whose steps are plain PyTorch: use a fused "
                "solver of the model (solver=None chooses one where there is one)"
            )
        self.model, self.plan, self.state = model, plan, state
        device = model.device
        self.first_nonfinite_step = torch.empty(state.size, dtype=torch.int32, device=device)
        self.streams = rng.by_step(rng.stream(0, 0, device), plan.nfe)
        self.compiled = compiled
        self.call_and_step = (
            torch.compile(call_and_step, dynamic=False) if compiled else call_and_step
        )
        self.captures, self.warm = compiled and device.type == "cuda", False
        self.graph: torch.cuda.CUDAGraph | None = None

    def run(self, stream: Tensor, show: Callable[[int], None] | None = None) -> None:
        """Sample the prior and take all steps.

        Args:
            stream: The noise stream, at the first sample of the chunk.
            show: Called with the number of steps done, 0 .. nfe.
        """
        self.first_nonfinite_step.fill_(-1)
        self.streams.copy_(rng.by_step(stream, len(self.streams)))
        self.state.sample_prior(stream)
        if show is not None or not self.captures:
            self.steps(show)
        elif not self.warm:
            self.steps()  # compiles, and runs once, as a capture needs
            self.warm = True
        else:
            self.graph = self.graph or self._capture()
            self.graph.replay()

    def steps(self, show: Callable[[int], None] | None = None) -> None:
        """Take all steps from the current state."""
        # One code object serves every state: a variant for each shape, network and plan.
        config = torch._dynamo.config.patch(recompile_limit=VARIANTS)
        with config if self.compiled else contextlib.nullcontext():
            if show is not None:
                show(0)
            steps = zip(self.state.cond, self.streams.unbind(0), self.state.flags, strict=True)
            for k, (cond, stream, flags) in enumerate(steps):
                self.call_and_step(
                    self.model, self.state, cond, stream, self.first_nonfinite_step, flags
                )
                if show is not None:
                    show(k + 1)

    def _capture(self) -> torch.cuda.CUDAGraph:
        """Return the loop as a graph; nothing runs yet."""
        device, graph = self.model.device, torch.cuda.CUDAGraph()
        with torch.cuda.device(device), torch.cuda.graph(graph, stream=torch.cuda.Stream(device)):
            self.steps()
        return graph
