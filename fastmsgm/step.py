"""Step, what a callback of ``sample`` sees, and NonFiniteError."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor


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
    """The network's output, the state or a sample left the float32 numbers.

    It can be pickled and copied with its attributes, as a ``ProcessPoolExecutor`` does.

    Args:
        step: The first step at which it happened; the number of steps where only the samples, in
            the data's own range, are not finite.
        indices: The samples it happened to.
        guided: Whether the network was also called with dropped conditions.
        finished: Whether all steps were taken.

    Attributes:
        step: The first step at which it happened.
        indices: The samples it happened to.
        samples: (m, ...) the finished samples, from the first one asked for; None where they are in
            a file or folder.
    """

    def __init__(
        self, step: int, indices: list[int], guided: bool = False, finished: bool = False
    ) -> None:
        shown = ", ".join(map(str, indices[:8])) + (", ..." if len(indices) > 8 else "")
        where = f"at step {step} in {len(indices)} samples ({shown})"
        if finished:
            super().__init__(
                f"non-finite samples {where}: all steps were finite, but not the samples in the "
                "data's own range, whose scale may be too large for float32, or not finite; scale "
                "the data. Finished chunks are kept"
            )
        else:
            super().__init__(
                f"non-finite state {where}: the network returned NaN or inf, or the solver "
                "diverged; try precision fp32, more steps or another solver. Finished chunks are "
                "kept"
                + (". With guidance a network must take dropped conditions, NaN" if guided else "")
            )
        self.step, self.indices = step, indices
        self.samples: Tensor | None = None
        self._arguments = (step, indices, guided, finished)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._arguments, self.__dict__
