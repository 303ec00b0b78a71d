"""DensityJob: the checked arguments of a likelihood, and the loop over its batches."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from fastmsgm import rng
from fastmsgm.checkpoint import load
from fastmsgm.checks import check_int, check_tensor
from fastmsgm.condition import Conditions
from fastmsgm.data.items import as_float
from fastmsgm.flow import ProbabilityFlow
from fastmsgm.model import ScoreModel, check_float32, check_model
from fastmsgm.modes import evaluation, outside_autocast
from fastmsgm.wrappers import unwrap


class Batch(NamedTuple):
    """Some of the samples.

    Args:
        data: (n, ...) float, on the model's device.
        condition: What the network is conditioned on.
        stream: The noise stream on the CPU, from the batch's first sample on.
    """

    data: Tensor
    condition: dict[str, Tensor]
    stream: Tensor


class DensityJob:
    """The checked arguments of a likelihood, and the loop over batches.

    Args:
        model: As of ``log_likelihood``, like all others.
        x: The samples.
        label: Their classes.
        condition: What else the network is conditioned on.
        seed: Of the noise.
        batch_size: Samples at a time.

    Attributes:
        model: The model with its network in float32, without wrappers.
        x: (n, ...) float.

    Raises:
        TypeError: As ``log_likelihood``.
        ValueError: As ``log_likelihood``.
    """

    def __init__(
        self,
        model: ScoreModel | str | os.PathLike[str],
        x: Tensor,
        label: int | Sequence[int] | Tensor | None,
        condition: Mapping[str, Any] | None,
        seed: int,
        batch_size: int | None,
    ) -> None:
        given = check_model(load(model) if isinstance(model, (str, os.PathLike)) else model)
        check_float32(given)
        if any(parameter.is_inference() for parameter in given.net.parameters()):
            raise ValueError(
                "model must be built outside torch.inference_mode for likelihoods, got inference "
                "tensors as parameters: build or load it again outside"
            )
        self.model = given.with_net(unwrap(given.net, compiled=False))
        self.model.precision = "fp32"
        self.x, self.seed = _samples(self.model, x), check_int("seed", seed, 0, 2**64 - 1)
        if self.model.classes and label is None:
            raise ValueError(
                "label must be given for a class-conditional model, whose density is that given "
                f"the class: give one of 0 .. {self.model.classes - 1}, or one for each sample"
            )
        self.conditions = Conditions(self.model, 0, len(self.x), label, condition)
        size = min(max(2**16 // math.prod(self.model.shape), 16), 4096)
        self.size = size if batch_size is None else check_int("batch_size", batch_size, 1)

    def run(
        self,
        density: Callable[[ProbabilityFlow, Batch], tuple[Tensor, Tensor]],
        progress: bool,
        title: str,
    ) -> tuple[Tensor, Tensor]:
        """Return two numbers of every sample, (n,) each on the CPU.

        Args:
            density: Called for every batch.
            progress: Show a progress bar.
            title: Of the bar.

        Raises:
            ValueError: A number of the first kind is not finite.
        """
        parts: list[tuple[Tensor, Tensor]] = []
        bar = tqdm(total=len(self.x), disable=not progress, desc=title, unit="sample")
        derivatives = torch.inference_mode(False)  # which velocities need, whatever mode is active
        with bar, derivatives, evaluation(self.model), outside_autocast(self.model.device):
            flow = self.model.probability_flow()
            for batch in self._batches():
                values, others = density(flow, batch)
                parts.append((values.cpu(), others.cpu()))
                bar.update(len(values))
        values, others = (torch.cat(part) for part in zip(*parts, strict=True))
        wrong = ~torch.isfinite(values)
        if bool(wrong.any()):
            raise ValueError(
                f"the log-density is not finite for {int(wrong.sum())} of {len(values)} samples, "
                f"the first of which is sample {int(wrong.nonzero()[0])}: the network returned NaN "
                "or infinity, or x is far outside the model's data"
            )
        return values, others

    def settings(self) -> dict[str, Any]:
        """Return what all likelihoods have been computed with."""
        return {
            "n": len(self.x),
            "seed": self.seed,
            "smallest_noise_level": self.model.probability_flow().noise_levels[0],
            **self.conditions.manifest(),
        }

    def _batches(self) -> Iterator[Batch]:
        for first in range(0, len(self.x), self.size):
            data = self.x[first : first + self.size].to(self.model.device)
            condition = self.conditions.chunk(first, len(data))
            yield Batch(data, condition, rng.stream(self.seed, first))


def _samples(model: ScoreModel, x: Tensor) -> Tensor:
    """Return the samples as float32, or float64 as they are."""
    check_tensor("x", x)
    if tuple(x.shape[1:]) != model.shape or len(x) == 0:
        expected = ", ".join(map(str, ("n", *model.shape)))
        raise ValueError(f"x must have shape ({expected}), n >= 1, got {tuple(x.shape)}")
    x = x if x.dtype == torch.float64 else as_float(x, "x")
    if not bool(torch.isfinite(x).all()):
        wrong = int((~torch.isfinite(x)).flatten(1).any(1).sum())
        raise ValueError(f"x must be finite, got NaN or infinity in {wrong} of {len(x)} samples")
    x = x.detach()
    if x.is_inference():  # which no derivative can be taken with
        with torch.inference_mode(False):
            x = x.clone()
    return x
