"""MLP: a multilayer perceptron for vectors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from fastmsgm.checks import check_int
from fastmsgm.nets.conditioning import ConditionedNet
from fastmsgm.nets.layers import Linear


class MLP(ConditionedNet):
    """Vectors (n, dim) -> (n, dim): hidden layers with SiLU, each conditioned by addition.

    With 3 layers of 128 it is the network of MSGM's experiments on vectors, but for how it is
    conditioned: where the conditioning enters the first layer alone, training is twice as fast and
    plateaus earlier.

    Args:
        dim: Features of a sample.
        width: Width of the hidden layers.
        depth: Number of hidden layers.
        condition: Name of each condition besides the noise level -> its numbers per sample, as
            ``{"log_norm": 1}``, which rotations need; see ``ConditionedNet``.
        classes: Number of classes of a class-conditional network, else 0.

    Raises:
        TypeError: A size is not an int, or condition not a mapping.
        ValueError: A size is below 1, or the name of a condition is not allowed.

    Example:
        >>> net = MLP(4, condition={"log_norm": 1})
        >>> net(torch.zeros(5, 4), torch.zeros(5), log_norm=torch.zeros(5)).shape
        torch.Size([5, 4])
    """

    outputs: ClassVar[int] = 1  # of the last layer, for each feature

    def __init__(
        self,
        dim: int,
        width: int = 128,
        depth: int = 3,
        condition: Mapping[str, int] | None = None,
        classes: int = 0,
    ) -> None:
        dim, width = check_int("dim", dim, 1), check_int("width", width, 1)
        depth = check_int("depth", depth, 1)
        super().__init__(width, condition, classes)
        self.config: dict[str, Any] = {
            "dim": dim,
            "width": width,
            "depth": depth,
            "condition": self.condition,
            "classes": self.classes,
        }
        self.layers = nn.ModuleList(Linear(dim if i == 0 else width, width) for i in range(depth))
        self.cond_layers = nn.ModuleList(Linear(width, width) for _ in range(depth))
        self.out = Linear(width, self.outputs * dim)

    def forward(
        self, x: Tensor, c_noise: Tensor, label: Tensor | None = None, **condition: Tensor
    ) -> Tensor:
        """Return the output, like x.

        Args:
            x: (n, dim) the noised vectors.
            c_noise: (n,) the number that tells the noise level.
            label: (n,) integers from 0 to ``classes``, or None without classes.
            condition: Each (n, k), or (n,) for k = 1, by name; NaN where dropped.

        Raises:
            TypeError: A condition is not a tensor.
            ValueError: x or a condition has another shape, or one is missing or unknown.
        """
        return self.out(self.hidden(x, self.embed(x, c_noise, label, condition)))

    def hidden(self, x: Tensor, embedded: Tensor) -> Tensor:
        """Return the last hidden layer, (n, width).

        Args:
            x: (n, dim) the noised vectors.
            embedded: (n, width) what they are conditioned on (``embed``).

        Raises:
            ValueError: x has another shape.
        """
        name, dim = type(self).__name__, self.out.out_features // self.outputs
        if x.ndim != 2:  # more axes would broadcast against the conditioning of other samples
            raise ValueError(
                f"{name} needs vectors (n, dim), got {tuple(x.shape)}: flatten the data, or use a "
                "UNet"
            )
        if x.shape[1] != dim:
            raise ValueError(
                f"{name} was built for {dim} features, got {x.shape[1]}: {name}({x.shape[1]}, ...)"
            )
        for layer, cond_layer in zip(self.layers, self.cond_layers, strict=True):
            x = F.silu(layer(x) + cond_layer(embedded))
        return x
