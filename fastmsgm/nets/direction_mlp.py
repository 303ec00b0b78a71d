"""DirectionMLP: a perceptron for rotations, whose output can be a fixed direction at any noise."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from fastmsgm.nets.layers import Linear
from fastmsgm.nets.mlp import MLP


class DirectionMLP(MLP):
    """Directions (n, dim) -> (n, dim): an ``MLP`` for rotations of heavy-tailed data.

    It is for ``RotationModel`` alone, since it reads the noise level from c_noise =
    (log B + 3) / 3, with which rotations call their network.

    The largest samples of heavy-tailed data point in few directions. There the denoised direction
    hardly depends on the noised one, which an output in units of the noise can only say through
    differences of large numbers. So the last layer gives a direction M and a residual F, and the
    embedding a width w, the spread of the directions at this norm and noise level:

        f = sqrt(c_skip) F + sqrt(dim) (1 - c_skip) / sigma M,    c_skip = w^2 / (w^2 + sigma^2)

    with sigma^2 = 1 - e^{-B}: the denoised direction is then, in the tangent space, c_skip u +
    (1 - c_skip) M + c_out F, with c_out = sigma sqrt(c_skip / dim). For w = 1 this is EDM's
    preconditioning of data of unit variance (Karras et al., 2022, table 1).

    Args:
        dim: Features of a sample.
        width: Width of the hidden layers.
        depth: Number of hidden layers.
        condition: Name of each condition besides the noise level -> its numbers per sample; None is
            ``{"log_norm": 1}``, which rotations need.
        classes: Number of classes of a class-conditional network, else 0.

    Raises:
        TypeError: A size is not an int, or condition not a mapping.
        ValueError: A size is below 1, or the name of a condition is not allowed.

    Example:
        >>> net = DirectionMLP(4)
        >>> net(torch.zeros(5, 4), torch.zeros(5), log_norm=torch.zeros(5)).shape
        torch.Size([5, 4])
    """

    outputs: ClassVar[int] = 2  # a direction and a residual

    def __init__(
        self,
        dim: int,
        width: int = 128,
        depth: int = 3,
        condition: Mapping[str, int] | None = None,
        classes: int = 0,
    ) -> None:
        condition = {"log_norm": 1} if condition is None else condition
        super().__init__(dim, width, depth, condition, classes)
        self.log_width = Linear(width, 1)
        nn.init.zeros_(self.log_width.weight)
        nn.init.zeros_(self.log_width.bias)

    def forward(
        self, x: Tensor, c_noise: Tensor, label: Tensor | None = None, **condition: Tensor
    ) -> Tensor:
        """Return the output, like x.

        Args:
            x: (n, dim) the noised directions, times sqrt(dim).
            c_noise: (n,) (log B + 3) / 3, B the integrated beta.
            label: (n,) integers from 0 to ``classes``, or None without classes.
            condition: Each (n, k), or (n,) for k = 1, by name; NaN where dropped.

        Raises:
            TypeError: A condition is not a tensor.
            ValueError: x or a condition has another shape, or one is missing or unknown.
        """
        embedded = self.embed(x, c_noise, label, condition)
        residual, direction = self.out(self.hidden(x, embedded)).chunk(2, dim=1)
        variance = -torch.expm1(-torch.exp(3 * c_noise.float() - 3))[:, None]
        width = torch.exp(self.log_width(embedded).float())
        total = width.square() + variance
        gain = math.sqrt(x.shape[1]) * variance.sqrt() / total
        return width / total.sqrt() * residual + gain * direction
