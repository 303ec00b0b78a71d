"""ConditionedNet: the embedding of noise level, conditions and class label of every sample."""

from __future__ import annotations

import keyword
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fastmsgm.checks import check_int, check_tensor
from fastmsgm.nets.layers import Embedding, Linear


class FourierFeatures(nn.Module):
    """c -> (cos 2 pi w c, sin 2 pi w c) with geometric frequencies w from 1/8 to 16, (n, size).

    Args:
        count: Number of frequencies.
    """

    frequencies: Tensor

    def __init__(self, count: int = 32) -> None:
        super().__init__()
        self.size = 2 * count
        frequencies = 2 * math.pi * torch.logspace(-3, 4, count, base=2.0, dtype=torch.float32)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, c: Tensor) -> Tensor:
        """Return (n, size) features of c (n,)."""
        angle = c[:, None] * self.frequencies
        return torch.cat((angle.cos(), angle.sin()), dim=1)


class ConditionedNet(nn.Module):
    """A network with an embedding of all that it is conditioned on, (n, cond_width).

    The Fourier features of c_noise and, behind them, the numbers of the conditions as they are pass
    through a perceptron: numbers should be standardised. A condition that is NaN in all its numbers
    is dropped: they count as zeros, and a learned vector is added. NaN in some of its numbers is
    passed on, so that the output is NaN. A class label adds a learned vector. All learned vectors
    start at zero.

    Args:
        cond_width: Size of the embedding.
        condition: Name of each condition -> its numbers per sample.
        classes: Number of classes. The label ``classes`` is the null class, a dropped label.

    Raises:
        TypeError: condition is not a mapping of integers, or classes not an int.
        ValueError: The name of a condition is not a Python name or is taken by another argument, or
            a number is out of range.
    """

    def __init__(self, cond_width: int, condition: Mapping[str, int] | None, classes: int) -> None:
        super().__init__()
        self.condition, self.classes = _conditions(condition), check_int("classes", classes, 0)
        self.features = FourierFeatures()
        inputs, conditions = self.features.size + sum(self.condition.values()), len(self.condition)
        self.embedding = nn.Sequential(
            Linear(inputs, cond_width), nn.SiLU(), Linear(cond_width, cond_width), nn.SiLU()
        )
        null = torch.zeros(conditions, cond_width, dtype=torch.float32)
        self.null = nn.Parameter(null) if conditions else None
        self.label = Embedding(self.classes + 1, cond_width) if self.classes else None
        if self.label is not None:
            nn.init.zeros_(self.label.weight)

    def embed(
        self, x: Tensor, c_noise: Tensor, label: Tensor | None, condition: dict[str, Tensor]
    ) -> Tensor:
        """Return (n, cond_width) of what the n samples x are conditioned on.

        Args:
            x: (n, ...) the network's input.
            c_noise: (n,) the number that tells the noise level.
            label: (n,) integers from 0 to ``classes``, or None without classes.
            condition: Each (n, k), or (n,) for k = 1, by name; NaN where dropped.

        Raises:
            TypeError: A condition is not a tensor.
            ValueError: One is missing, unknown or of another shape.
        """
        self._check(x.shape[0], c_noise, label, condition)
        features = self.features(c_noise)
        numbers, dropped = [features], []
        for name, count in self.condition.items():
            value = condition[name].reshape(len(x), count).to(features.dtype)
            dropped.append(value.isnan().all(dim=1, keepdim=True))
            numbers.append(value.masked_fill(dropped[-1], 0.0))
        embedded = self.embedding(torch.cat(numbers, dim=1))
        if self.null is not None:
            embedded = embedded + torch.cat(dropped, dim=1).to(self.null.dtype) @ self.null
        if self.label is not None and label is not None:
            embedded = embedded + self.label(label.long())
        return embedded

    def _check(
        self, n: int, c_noise: Tensor, label: Tensor | None, condition: dict[str, Tensor]
    ) -> None:
        """Raise where an argument of ``embed`` does not fit; looks at shapes only."""
        built = f"{type(self).__name__} was built with"
        if c_noise.shape != (n,):
            raise ValueError(
                f"c_noise must have shape ({n},), one number a sample, got {tuple(c_noise.shape)}: "
                "give other conditions by name"
            )
        for name, value in condition.items():
            check_tensor(name, value)
            if name not in self.condition:
                more = {**self.condition, name: value.shape[1:].numel()}
                choice = "" if name == "log_norm" else "leave it out, or "  # rotations give it
                raise ValueError(
                    f"{built} condition={self.condition}, which has no {name!r}: {choice}build the "
                    f"network with condition={more}"
                )
        for name, count in self.condition.items():
            shapes = f"({n}, {count})" + (f" or ({n},)" if count == 1 else "")
            if name not in condition:
                remedy = (
                    "only rotations have it: build the network of another model without it"
                    if name == "log_norm"
                    else f"give condition={{{name!r}: tensor}} to sample and fit, or {name}=tensor "
                    f"to Loss, of shape {shapes}"
                )
                raise ValueError(
                    f"{built} condition={self.condition}, but {name!r} is missing: {remedy}"
                )
            shape = tuple(condition[name].shape)
            if shape != (n, count) and (count > 1 or shape != (n,)):
                raise ValueError(
                    f"{built} condition={self.condition}: {name} must have shape {shapes}, got "
                    f"{shape}"
                )
        if label is None and self.classes:
            raise ValueError(
                f"{built} classes={self.classes}, but the label is missing: build the model with "
                f"classes={self.classes}, and give label= to sample, labels= to fit and Loss"
            )
        if label is not None and not self.classes:
            raise ValueError(
                f"{built} classes=0, but got a label: leave it out, or build the network with "
                "classes=, the number of classes"
            )
        if label is not None and (label.shape != (n,) or label.is_floating_point()):
            raise ValueError(
                f"{built} classes={self.classes}: label must be ({n},) integers, got "
                f"{tuple(label.shape)} {label.dtype}: convert with .long()"
            )


def _conditions(condition: Mapping[str, int] | None) -> dict[str, int]:
    """Return the numbers per sample of every condition by name, checked."""
    if condition is not None and not isinstance(condition, Mapping):
        raise TypeError(
            "condition must map the name of each condition to its numbers per sample, as "
            f"{{'log_norm': 1}}, got {condition!r}"
        )
    for name in condition or {}:
        valid = isinstance(name, str) and name.isidentifier() and not keyword.iskeyword(name)
        if not valid or name in ("self", "x", "c_noise", "label"):
            raise ValueError(
                "condition must have names that can be given as name=value and are not self, x, "
                f"c_noise or label (classes have classes=), got {name!r}"
            )
    return {k: check_int(f"condition[{k!r}]", v, 1) for k, v in (condition or {}).items()}
