"""Networks net(x, c_noise, label, **condition): a multilayer perceptron and a small U-Net.

Both take the noised data x, the number c_noise that tells the noise level of each sample, and what
else a sample is conditioned on. They return a tensor of the shape of x. The model decides what
c_noise is and what the output means.
"""

from __future__ import annotations

import keyword
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastmsgm.checks import check_int, check_tensor

# From this many tokens on fused attention is never slower on a CPU, forwards and backwards, for
# batches of 2 to 64: it needs its input copied. At 49 tokens it is up to 12 % slower.
FUSED_TOKENS = 100


class FourierFeatures(nn.Module):
    """c -> (cos 2 pi w c, sin 2 pi w c) with geometric frequencies w from 1/8 to 16, (n, size).

    Args:
        count: Number of frequencies.
    """

    frequencies: Tensor

    def __init__(self, count: int = 32) -> None:
        super().__init__()
        self.size = 2 * count
        frequencies = 2 * math.pi * torch.logspace(-3, 4, count, base=2.0)
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
            nn.Linear(inputs, cond_width), nn.SiLU(), nn.Linear(cond_width, cond_width), nn.SiLU()
        )
        self.null = nn.Parameter(torch.zeros(conditions, cond_width)) if conditions else None
        self.label = nn.Embedding(self.classes + 1, cond_width) if self.classes else None
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
                raise ValueError(
                    f"{built} condition={self.condition}, which has no {name!r}: leave it out, or "
                    f"build the network with condition={more}"
                )
        for name, count in self.condition.items():
            shapes = f"({n}, {count})" + (f" or ({n},)" if count == 1 else "")
            if name not in condition:
                raise ValueError(
                    f"{built} condition={self.condition}, but {name!r} is missing: pass {name}=, "
                    f"of shape {shapes}, with NaN where it is unknown"
                )
            shape = tuple(condition[name].shape)
            if shape != (n, count) and (count > 1 or shape != (n,)):
                raise ValueError(
                    f"{built} condition={self.condition}: {name} must have shape {shapes}, got "
                    f"{shape}"
                )
        if label is None and self.classes:
            raise ValueError(
                f"{built} classes={self.classes}, but the label is missing: pass label=, ({n},) "
                f"integers, {self.classes} where it is unknown"
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
        self.layers = nn.ModuleList(
            nn.Linear(dim if i == 0 else width, width) for i in range(depth)
        )
        self.cond_layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.out = nn.Linear(width, dim)

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
        if x.ndim != 2:  # more axes would broadcast against the conditioning of other samples
            raise ValueError(
                f"MLP needs vectors (n, dim), got {tuple(x.shape)}: flatten the data, or use a UNet"
            )
        if x.shape[1] != self.out.out_features:
            raise ValueError(
                f"MLP was built for {self.out.out_features} features, got {x.shape[1]}: "
                f"MLP({x.shape[1]}, ...)"
            )
        embedded = self.embed(x, c_noise, label, condition)
        for layer, cond_layer in zip(self.layers, self.cond_layers, strict=True):
            x = F.silu(layer(x) + cond_layer(embedded))
        return self.out(x)


def _zero(layer: nn.Conv2d) -> None:
    """Initialise a layer to zero."""
    assert layer.bias is not None
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)


class Residual(nn.Module):
    """Norm, SiLU, conv, scale and shift by the conditioning, SiLU, conv, plus the input.

    The last convolution is zero-initialised.
    """

    def __init__(self, inputs: int, outputs: int, cond_width: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(8, inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.cond = nn.Linear(cond_width, 2 * outputs)
        self.norm2 = nn.GroupNorm(8, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        _zero(self.conv2)

    def forward(self, x: Tensor, embedded: Tensor) -> Tensor:
        """Return (n, outputs, h, w) from x (n, inputs, h, w)."""
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.cond(embedded)[:, :, None, None].chunk(2, dim=1)
        h = self.conv2(F.silu(self.norm2(h) * (1 + scale) + shift))
        return self.skip(x) + h


class Attention(nn.Module):
    """Self-attention over the pixels, plus the input; the projection is zero-initialised."""

    def __init__(self, channels: int, head_width: int = 32) -> None:
        super().__init__()
        self.heads = math.gcd(channels, max(channels // head_width, 1))
        self.norm = nn.GroupNorm(8, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.project = nn.Conv2d(channels, channels, 1)
        _zero(self.project)

    def forward(self, x: Tensor, twice_differentiable: bool = False) -> Tensor:
        """Return x with what it attends to added.

        Args:
            x: (n, channels, h, w).
            twice_differentiable: Whether second derivatives are needed, which PyTorch's fused
                attention does not have.
        """
        n, channels, height, width = x.shape
        tokens = height * width
        qkv = self.qkv(self.norm(x)).view(n, 3, self.heads, channels // self.heads, tokens)
        if twice_differentiable or (x.device.type == "cpu" and tokens < FUSED_TOKENS):
            q, k, v = qkv.unbind(1)
            weights = (q.transpose(-1, -2) @ k * q.shape[-2] ** -0.5).softmax(-1)
            h = v @ weights.transpose(-1, -2)
        else:  # contiguous: without the copy PyTorch does not take the fused kernel
            q, k, v = qkv.transpose(-1, -2).contiguous().unbind(1)
            h = F.scaled_dot_product_attention(q, k, v).transpose(-1, -2)
        return x + self.project(h.reshape(n, channels, height, width))


def _level(
    width: int, below: int, blocks: int, cond_width: int
) -> tuple[nn.ModuleList, nn.Conv2d, nn.Conv2d, nn.ModuleList]:
    """Return what one resolution has: residual blocks, the way to half of it and back, blocks."""
    return (
        nn.ModuleList(Residual(width, width, cond_width) for _ in range(blocks)),
        nn.Conv2d(width, below, 3, stride=2, padding=1),
        nn.Conv2d(below, 4 * width, 1),
        nn.ModuleList(Residual(2 * width, width, cond_width) for _ in range(blocks + 1)),
    )


class Level(nn.Module):
    """One resolution between the finest, whose layers are the U-Net's own, and the coarsest."""

    def __init__(self, width: int, below: int, blocks: int, cond_width: int) -> None:
        super().__init__()
        self.down, self.shrink, self.grow, self.up = _level(width, below, blocks, cond_width)


class UNet(ConditionedNet):
    """Images (n, channels, height, width) -> the same shape.

    A pixel-unshuffle stem folds 2 x 2 pixels into channels, so that the finest level works at half
    the resolution. Each further level halves it again, and the coarsest has attention. Images whose
    sides are no multiple of 2^levels are padded with their last row and column, and cropped at the
    end.

    Args:
        channels: Channels of the image.
        width: Channels of the fine level, a multiple of 8.
        deep: Channels of the other levels, a multiple of 8.
        blocks: Residual blocks of every level but the coarsest on the way down; one more on the way
            up.
        deep_blocks: Residual blocks at the coarsest level, with attention between them.
        levels: Resolutions below the image's, at least 2: half, a quarter and so on. 2 is right for
            sides of up to 48 pixels, 3 for 64 to 128, 4 beyond: the cost of attention grows with
            the fourth power of the coarsest side.
        condition: Name of each condition besides the noise level -> its numbers per sample, as
            ``{"log_norm": 1}``, which rotations need; see ``ConditionedNet``.
        classes: Number of classes of a class-conditional network, else 0.

    Raises:
        TypeError: A size is not an int, or condition not a mapping.
        ValueError: A size is out of range, or the name of a condition is not allowed.

    Example:
        >>> net = UNet(channels=1, width=16, deep=32, blocks=1, deep_blocks=2)
        >>> net(torch.zeros(5, 1, 8, 8), torch.zeros(5)).shape
        torch.Size([5, 1, 8, 8])
    """

    def __init__(
        self,
        channels: int = 1,
        width: int = 48,
        deep: int = 128,
        blocks: int = 2,
        deep_blocks: int = 3,
        levels: int = 2,
        condition: Mapping[str, int] | None = None,
        classes: int = 0,
    ) -> None:
        channels, blocks = check_int("channels", channels, 1), check_int("blocks", blocks, 0)
        width, deep = check_int("width", width, 8), check_int("deep", deep, 8)
        deep_blocks = check_int("deep_blocks", deep_blocks, 1)
        levels = check_int("levels", levels, 2)
        if width % 8 or deep % 8:
            raise ValueError(f"width and deep must be multiples of 8, got {width} and {deep}")
        cond_width = 2 * deep
        super().__init__(cond_width, condition, classes)
        self.config: dict[str, Any] = {
            "channels": channels,
            "width": width,
            "deep": deep,
            "blocks": blocks,
            "deep_blocks": deep_blocks,
            "levels": levels,
            "condition": self.condition,
            "classes": self.classes,
        }
        self.factor = 2**levels
        self.stem = nn.Conv2d(4 * channels, width, 3, padding=1)
        self.down, self.shrink, self.grow, self.up = _level(width, deep, blocks, cond_width)
        self.inner = nn.ModuleList(Level(deep, deep, blocks, cond_width) for _ in range(levels - 2))
        self.middle = nn.ModuleList(Residual(deep, deep, cond_width) for _ in range(deep_blocks))
        self.attention = nn.ModuleList(Attention(deep) for _ in range(deep_blocks - 1))
        self.norm = nn.GroupNorm(8, width)
        self.out = nn.Conv2d(width, 4 * channels, 3, padding=1)
        _zero(self.out)

    def forward(
        self, x: Tensor, c_noise: Tensor, label: Tensor | None = None, **condition: Tensor
    ) -> Tensor:
        """Return the output, like x.

        Args:
            x: (n, channels, height, width) the noised images.
            c_noise: (n,) the number that tells the noise level.
            label: (n,) integers from 0 to ``classes``, or None without classes.
            condition: Each (n, k), or (n,) for k = 1, by name; NaN where dropped.

        Raises:
            TypeError: A condition is not a tensor.
            ValueError: x or a condition has another shape, or one is missing or unknown.
        """
        channels = self.config["channels"]
        if x.ndim != 4 or x.shape[1] != channels:
            raise ValueError(
                f"UNet was built for images (n, {channels}, height, width), got {tuple(x.shape)}: "
                "UNet(channels=...) for others"
            )
        # A loss that differentiates the output by the input, as sliced score matching does, is
        # differentiated a second time.
        twice_differentiable = x.requires_grad
        height, width = x.shape[2:]
        below, right = -height % self.factor, -width % self.factor
        if below or right:
            x = F.pad(x, (0, right, 0, below), mode="replicate")
        embedded = self.embed(x, c_noise, label, condition)
        h = self.stem(F.pixel_unshuffle(x, 2))
        levels: list[Any] = [self, *self.inner]  # the layers of the finest are the network's own
        skips: list[Tensor] = []
        for level in levels:
            skips.append(h)
            for block in level.down:
                h = block(h, embedded)
                skips.append(h)
            h = level.shrink(h)
        for i, block in enumerate(self.middle):
            h = block(h, embedded)
            if i < len(self.attention):
                h = self.attention[i](h, twice_differentiable)
        for level in reversed(levels):
            h = F.pixel_shuffle(level.grow(h), 2)
            for block in level.up:
                h = block(torch.cat((h, skips.pop()), dim=1), embedded)
        out = F.pixel_shuffle(self.out(F.silu(self.norm(h))), 2)
        return out[..., :height, :width].contiguous() if below or right else out


NETS: dict[str, Callable[..., nn.Module]] = {"MLP": MLP, "UNet": UNet}  # by name in checkpoints
