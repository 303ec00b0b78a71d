"""One step of the optimizer: the gradients of a batch, on one process or on many."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fastmsgm.data.batches import Batches
from fastmsgm.loss import Loss
from fastmsgm.processes import Processes
from fastmsgm.training.validation import loss_arguments
from fastmsgm.wrappers import is_sharded


class OptimizerSteps:
    """Steps of an optimizer on the batches from a given one on.

    Every process has the gradients of its part of a batch; DistributedDataParallel averages them.
    Parts are weighted by their size, and noise belongs to the position in the whole batch, so the
    steps are those of one process, but for rounding.

    Args:
        loss: Of the model.
        optimizer: Of its parameters.
        batches: The data.
        first_step: The step to begin with.
        lr: Learning rate of a step.
        clip: Largest gradient norm.
        accumulate: Batches per step.
        processes: Those that share the batches.

    Attributes:
        condition: Labels and conditions of the last batch.

    Raises:
        ValueError: A sharded network on several processes.
    """

    def __init__(
        self,
        loss: Loss,
        optimizer: torch.optim.Optimizer,
        batches: Batches,
        first_step: int,
        lr: Callable[[int], float],
        clip: float,
        accumulate: int,
        processes: Processes,
    ) -> None:
        self.model, self.optimizer, self.processes = loss.model, optimizer, processes
        self.lr, self.clip, self.accumulate = lr, clip, accumulate
        self.condition: Mapping[str, Tensor] = {}
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._parts = batches.parts(first_step * accumulate, processes)
        self._loss: Loss | DistributedDataParallel = loss
        if processes.size > 1:
            net = self.model.net
            if is_sharded(net):
                raise ValueError(
                    "model.net must not be sharded, got one of fully_shard: fit keeps a whole copy "
                    "on each process; train shards with fastmsgm.Loss in a loop of your own"
                )
            if not any(isinstance(part, DistributedDataParallel) for part in net.modules()):
                self._loss = DistributedDataParallel(loss)

    def step(self, k: int) -> tuple[Tensor, Tensor]:
        """Take step k.

        Returns:
            This process's share of the mean loss, whose mean over processes is that of the batch,
            and the gradient norm before clipping.
        """
        self._loss.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr(k)
        self.model.net.zero_grad()
        total = torch.zeros((), dtype=torch.float32, device=self.model.device)
        first = 0
        for i in range(self.accumulate):
            part = next(self._parts)
            self.condition = part.condition
            with self._synchronised(i == self.accumulate - 1):
                value = self._loss(
                    part.x,
                    step=k,
                    first=first + part.first,
                    **loss_arguments(self.model, part.condition),
                )
                weight = len(part.x) * self.processes.size / part.n / self.accumulate
                value = value * weight
                value.backward()
            total += value.detach()
            first += part.n
        norm = nn.utils.clip_grad_norm_(self._parameters, self.clip)
        self.optimizer.step()
        return total, norm

    def _synchronised(self, last: bool) -> Any:
        """Gradients are averaged over processes with the last batch of a step."""
        if last or not isinstance(self._loss, DistributedDataParallel):
            return nullcontext()
        return self._loss.no_sync()
