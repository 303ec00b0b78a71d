"""Extractor: a function from samples to features, and what identifies it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from fastmsgm.data.items import as_float


@dataclass(frozen=True)
class Extractor:
    """A function from samples to features.

    Args:
        name: In reports.
        function: Maps a batch (n, ...) float32, images in [0, 1], to features (n, k).
        sha256: Of its weights, or of its code where it has none; "" for none of both.
        input: What it does to its input, in words.
        images: Whether it takes images alone.
    """

    name: str
    function: Callable[[Tensor], Any]
    sha256: str
    input: str
    images: bool = True

    def __str__(self) -> str:
        return f"{self.name} ({self.sha256[:12]})" if self.sha256 else self.name


@torch.no_grad()
def features(
    extractor: Extractor,
    x: Tensor,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    progress: bool = True,
    name: str = "samples",
) -> Tensor:
    """Return the features of samples, batch by batch.

    Args:
        extractor: Whose features.
        x: (n, ...) floating point, or uint8 images, which are divided by 255.
        batch_size: Samples at a time.
        device: Where a network runs.
        progress: Show a progress bar.
        name: Of the samples, in the progress bar and in messages.

    Returns:
        (n, k) float32 on the CPU.

    Raises:
        RuntimeError: The extractor raised an error.
        TypeError: It returned something else than a tensor of floating point.
        ValueError: It returned another shape than (n, k), or values that are not finite.
    """
    f = extractor.function
    if isinstance(f, nn.Module):
        f.to(device)
    found = torch.empty(0, dtype=torch.float32, device="cpu")
    title = f"features of {name}"
    with tqdm(total=len(x), disable=not progress, desc=title, unit="sample") as bar:
        for first in range(0, len(x), batch_size):
            batch = as_float(x[first : first + batch_size], name).to(device)
            values = _checked(extractor, _called(extractor, batch), len(batch), found.shape[1:])
            if not first:
                found = found.new_empty((len(x), values.shape[1]))
            found[first : first + len(batch)] = values
            bar.update(len(batch))
    return found


def _called(extractor: Extractor, batch: Tensor) -> object:
    """Return what the extractor makes of a batch; its errors name it."""
    try:
        return extractor.function(batch)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever the user's code raises
        raise RuntimeError(
            f"extractor {extractor.name!r} raised {type(error).__name__}: {error}"
        ) from error


def _checked(extractor: Extractor, values: object, n: int, shape: tuple[int, ...]) -> Tensor:
    """Return the features of a batch of n; ``shape`` is that of the batch before, () at first."""
    if not isinstance(values, Tensor) or not values.is_floating_point():
        got = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise TypeError(
            f"extractor {extractor.name} must return a tensor of floating point, got {got}"
        )
    if values.ndim != 2 or len(values) != n or (shape and values.shape[1:] != shape):
        wanted = f"({n}, {shape[0]})" if shape else f"({n}, k)"
        raise ValueError(
            f"extractor {extractor.name} must return features of shape {wanted}, one row for each "
            f"sample, got {tuple(values.shape)}: flatten them"
        )
    if not bool(values.isfinite().all()):
        raise ValueError(
            f"extractor {extractor.name} must return finite features, got NaN or infinity"
        )
    return values
