"""SampleGrid: pictures of samples during training."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from fastmsgm.checks import check_conditions, check_int, check_mapping
from fastmsgm.evaluation.plots.canvas import load_matplotlib
from fastmsgm.evaluation.plots.images import check, grid
from fastmsgm.wrappers import unwrap

if TYPE_CHECKING:
    from fastmsgm.training.report import TrainStep


class SampleGrid:
    """A callback of ``fit`` that writes a picture of samples of the averaged model.

    For example ``fit(model, images, steps=20_000, callback=SampleGrid("grids"), every=1000)``. The
    picture of step 500 is ``step_000500.png``. All pictures show the same samples of the noise
    stream. Black to white are the model's bounds, or 0 to 1 where it has none that are finite.

    Args:
        folder: Of the pictures; made if absent.
        n: Number of samples.
        steps: Noise levels on the time grid, as of ``sample``; None is the solver's own.
        seed: Of the noise stream.
        label: Of a class-conditional model, as of ``sample``: one class, or n; None takes the
            classes in turn.
        condition: What else the network is conditioned on, as of ``sample``: (n, ...) by name.

    Raises:
        TypeError: n, steps or seed is not an integer, or a condition not a tensor.
        ValueError: One of them is out of range, or a condition not of n samples.
        ImportError: matplotlib is missing.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        n: int = 36,
        steps: int | None = None,
        seed: int = 0,
        label: int | Sequence[int] | Tensor | None = None,
        condition: Mapping[str, Tensor] | None = None,
    ) -> None:
        load_matplotlib()  # is missed now, not after hundreds of steps
        self.folder, self.n = Path(folder), check_int("n", n, 1)
        self.steps = None if steps is None else check_int("steps", steps, 1)
        self.seed, self.label = check_int("seed", seed, 0, 2**64 - 1), label
        self.condition = check_conditions(None, check_mapping(condition), self.n)

    def __call__(self, step: TrainStep) -> None:
        """Sample the model and write the picture.

        Args:
            step: What ``fit`` passes to its callback.

        Raises:
            TypeError: The label is no integer.
            ValueError: The model's samples are no images, it needs another condition, or the label
                is none of its classes.
        """
        from fastmsgm.sampling import sample

        model, path = step.model, self.folder / f"step_{step.step:06d}.png"
        check(model.shape, path)
        needed = getattr(unwrap(model.net), "condition", None)  # as fastmsgm.nets have it
        missing = [
            name
            for name in (needed if isinstance(needed, Mapping) else ())
            if name != "log_norm" and name not in self.condition
        ]
        if missing:
            raise ValueError(
                f"SampleGrid needs the conditions of its {self.n} samples: the network has "
                f"condition={needed}, but {', '.join(map(repr, missing))} is missing: give "
                f"SampleGrid(..., condition={{{missing[0]!r}: tensor}})"
            )
        images = sample(
            model,
            self.n,
            steps=self.steps,
            seed=self.seed,
            label=self.label,
            condition=self.condition,
            progress=False,
        )
        low, high = model.bounds or (0.0, 1.0)
        if not (math.isfinite(low) and math.isfinite(high)):
            low, high = 0.0, 1.0
        grid((images - low) / (high - low), path)
