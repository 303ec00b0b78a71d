"""Loop: the network calls and steps of a chunk, with no wait for the host between them.

What a step depends on (the seed, the samples, the row of the table) is in device memory, in
``streams``. So one compiled function serves all steps and chunks, and one CUDA graph of the whole
loop serves all chunks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fastmsgm import rng
from fastmsgm.condition import dropped
from fastmsgm.model import ScoreModel, check_float32
from fastmsgm.modes import evaluation, outside_autocast
from fastmsgm.solver import Plan
from fastmsgm.state import SamplerState

VARIANTS = 256  # of the compiled function; beyond that PyTorch would stop compiling, silently


def call_and_step(
    model: ScoreModel,
    state: SamplerState,
    c_noise: Tensor,
    condition: Mapping[str, Tensor],
    null: Mapping[str, Tensor] | None,
    guidance: float,
    stream: Tensor,
    first_nonfinite_step: Tensor,
    flags: Any,
) -> None:
    """One network call, or two with guidance, and one step."""
    model_output = model(state.model_input, c_noise, **state.condition, **condition)
    unconditional = None
    if null is not None:
        unconditional = model(state.model_input, c_noise, **state.condition, **null)
    with outside_autocast(model_output.device):
        if unconditional is not None:
            model_output = torch.lerp(unconditional.float(), model_output.float(), guidance)
        state.step(flags, model_output, stream, first_nonfinite_step)


class Loop:
    """The loop over the steps of a plan.

    Args:
        model: What is called.
        plan: Its steps.
        state: The arrays of a chunk, made by the plan.
        compiled: Compile the network and the step together; on CUDA capture the loop, too.
        condition: What else the network is conditioned on, each (size, ...); "label" are classes.
        guidance: Weight w of classifier-free guidance (Ho and Salimans, 2022): the network's output
            becomes f(null) + w (f(condition) - f(null)).

    Attributes:
        first_nonfinite_step: (size,) int32; the first step at which a sample was not finite, or -1.

    Raises:
        TypeError: The model is not in float32.
        ValueError: compiled, with a state whose steps are not single operations.
    """

    def __init__(
        self,
        model: ScoreModel,
        plan: Plan,
        state: SamplerState,
        compiled: bool,
        condition: Mapping[str, Tensor],
        guidance: float = 1.0,
    ) -> None:
        if compiled and not state.fused:
            raise ValueError(
                "compile must be False for this solver, whose steps are plain PyTorch: use a fused "
                "solver of the model (solver=None chooses one where there is one)"
            )
        check_float32(model)
        self.model, self.plan, self.state = model, plan, state
        self.modules = tuple(model.modules())
        device = model.device
        self.condition, self.guidance = dict(condition), guidance
        self.null = dropped(condition, model.classes) if guidance != 1 else None
        self.first_nonfinite_step = torch.empty(state.size, dtype=torch.int32, device=device)
        self.streams = rng.by_step(rng.stream(0, 0, device), plan.nfe)
        self.stream_of_step = self.streams.unbind(0)
        self.compiled = compiled
        self.call_and_step = (
            torch.compile(call_and_step, dynamic=False) if compiled else call_and_step
        )
        self.captures, self.warm = compiled and device.type == "cuda", False
        self.graph: torch.cuda.CUDAGraph | None = None

    def run(
        self,
        stream: Tensor,
        condition: Mapping[str, Tensor],
        show: Callable[[int], None] | None = None,
    ) -> None:
        """Sample the prior and take all steps.

        Args:
            stream: The noise stream, at the first sample of the chunk.
            condition: Of the chunk, with the names and shapes of the loop's.
            show: Called with the number of steps done, 0 .. nfe.
        """
        self.start(stream, condition)
        if show is not None or not self.captures:
            self.steps(show)
        elif not self.warm:
            self.steps()  # compiles, and runs once, as a capture needs
            self.warm = True
        else:
            self.graph = self.graph or self._capture()
            self.graph.replay()

    def start(self, stream: Tensor, condition: Mapping[str, Tensor]) -> None:
        """Sample the prior; arguments as of ``run``."""
        self.first_nonfinite_step.fill_(-1)
        self.streams.copy_(rng.by_step(stream, len(self.streams)))
        for name, value in condition.items():
            self.condition[name].copy_(value)
        with outside_autocast(stream.device):
            self.state.sample_prior(stream, self.condition.get("label"))

    def steps(self, show: Callable[[int], None] | None = None) -> None:
        """Take all steps from the current state."""
        # One code object serves every state: a variant for each shape, network and plan.
        config = torch._dynamo.config.patch(recompile_limit=VARIANTS)
        with config if self.compiled else contextlib.nullcontext():
            if show is None:
                with evaluation(self.modules):
                    for k in range(len(self.streams)):
                        self.step(k)
                return
            show(0)
            for k in range(len(self.streams)):
                with evaluation(self.modules):  # not longer, since a callback may change the modes
                    self.step(k)
                show(k + 1)

    def step(self, k: int) -> None:
        """Take step k, in the modes that the modules have."""
        self.call_and_step(
            self.model,
            self.state,
            self.state.c_noise[k],
            self.condition,
            self.null,
            self.guidance,
            self.stream_of_step[k],
            self.first_nonfinite_step,
            self.state.flags[k],
        )

    def _capture(self) -> torch.cuda.CUDAGraph:
        """Return the loop as a graph; nothing runs yet."""
        device, graph = self.model.device, torch.cuda.CUDAGraph()
        with torch.cuda.device(device), torch.cuda.graph(graph, stream=torch.cuda.Stream(device)):
            self.steps()
        return graph
