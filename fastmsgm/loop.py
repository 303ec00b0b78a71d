"""Loop: a chunk's network calls and steps, one after the other, with nothing of the host between them.

What a step depends on (the seed, the samples, which row of the plan it is) stands in device memory, in ``streams``, so
that one compiled function serves all steps and chunks, and a CUDA graph of the whole loop serves all chunks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastmsgm import rng
from fastmsgm.walks import Walk

VARIANTS = 256  # of the compiled function; beyond so many PyTorch would silently stop to compile


def move(walk: Walk, condition: Tensor, stream: Tensor, bad: Tensor, form: Any) -> None:
    """One network call and one step."""
    walk.step(form, walk.model(walk.net_in, condition), stream, bad)


class Loop:
    """The loop of a walk.

    Args:
        walk: its arrays and its moves.
        compiled: compile the network and the step together; on CUDA capture the loop, too.

    Raises:
        ValueError: compiled, of a walk whose steps are not single operations.
    """

    def __init__(self, walk: Walk, compiled: bool) -> None:
        if compiled and not walk.fused:
            raise ValueError(
                "compile must be False for this solver, whose steps are plain PyTorch: use a fused solver of the model "
                "(solver=None chooses one where there is one)"
            )
        self.walk, device = walk, walk.model.device
        self.bad = torch.empty(walk.size, dtype=torch.int32, device=device)
        self.streams = rng.by_step(rng.stream(0, 0, device), walk.plan.calls)
        self.compiled, self.move = compiled, torch.compile(move, dynamic=False) if compiled else move
        self.captures, self.warm = compiled and device.type == "cuda", False
        self.graph: torch.cuda.CUDAGraph | None = None

    def run(self, stream: Tensor, show: Callable[[int], None] | None = None) -> None:
        """Draw from the prior and go all the way; ``show`` is called with the steps done, 0 .. calls."""
        self.bad.fill_(-1)
        self.streams.copy_(rng.by_step(stream, len(self.streams)))
        self.walk.draw(stream)
        if show is not None or not self.captures:
            self.steps(show)
        elif not self.warm:
            self.steps()  # compiles, and runs once, as a capture needs
            self.warm = True
        else:
            self.graph = self.graph or self._capture()
            self.graph.replay()

    def steps(self, show: Callable[[int], None] | None = None) -> None:
        """The network calls and steps from where the walk stands."""
        # One code object serves every walk: a variant for each shape, network and number of steps that comes by.
        with torch._dynamo.config.patch(recompile_limit=VARIANTS) if self.compiled else contextlib.nullcontext():
            if show is not None:
                show(0)
            rows = zip(self.walk.conditions, self.streams.unbind(0), self.walk.forms, strict=True)
            for k, (condition, stream, form) in enumerate(rows):
                self.move(self.walk, condition, stream, self.bad, form)
                if show is not None:
                    show(k + 1)

    def _capture(self) -> torch.cuda.CUDAGraph:
        """The loop as a graph; nothing runs yet."""
        device, graph = self.walk.model.device, torch.cuda.CUDAGraph()
        with torch.cuda.device(device), torch.cuda.graph(graph, stream=torch.cuda.Stream(device)):
            self.steps()
        return graph
