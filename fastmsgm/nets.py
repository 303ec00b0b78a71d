"""Networks f(x, c): a multilayer perceptron for vectors and a small U-Net for images.

Both take the noised data and the conditioning numbers of every sample, c of shape (n,) or (n, conditions), embedded in
sines and cosines, and return an array of the data's shape. The model decides what c is (the noise level, the norm) and
what the output means.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class FourierFeatures(nn.Module):
    """c -> (cos 2 pi w c, sin 2 pi w c) with geometric frequencies w from 1/8 to 16, (n, size).

    Where there are several ``conditions``, c (n, conditions), the first becomes waves and the others are taken as they
    are: standardised numbers, whose extremes should be close to their neighbours.
    """

    frequencies: Tensor

    def __init__(self, conditions: int = 1, count: int = 32) -> None:
        super().__init__()
        self.conditions, self.size = conditions, 2 * count + conditions - 1
        frequencies = 2 * math.pi * torch.logspace(-3, 4, count, base=2.0)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, c: Tensor) -> Tensor:
        c = c.reshape(c.shape[0], -1)
        if c.shape[1] != self.conditions:
            raise ValueError(
                f"the network is built for {self.conditions} conditions a sample, got {c.shape[1]}: build it with "
                f"conditions={c.shape[1]} (1 for GBM, 2 for rotations; classes, which come last, with classes=...)"
            )
        angle = c[:, :1] * self.frequencies
        return torch.cat((angle.cos(), angle.sin(), c[:, 1:]), dim=1)


def _perceptron(inputs: int, width: int) -> nn.Sequential:
    """The two layers that make an embedding of the features of a condition."""
    return nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())


class MLP(nn.Module):
    """Vectors (n, dim) -> (n, dim): ``depth`` hidden layers of ``width`` with SiLU, conditioned at each by addition.

    With 3 layers of 128 it is the network of MSGM's experiments on vectors, but for how it is conditioned: where the
    conditions only enter the first layer, training is twice as fast and stops to learn sooner.
    """

    def __init__(self, dim: int, width: int = 128, depth: int = 3, conditions: int = 1) -> None:
        super().__init__()
        if min(dim, width, depth) < 1:
            raise ValueError(f"dim, width and depth must be at least 1, got {dim}, {width} and {depth}")
        self.config = {"dim": dim, "width": width, "depth": depth, "conditions": conditions}
        self.features = FourierFeatures(conditions)
        self.embedding = _perceptron(self.features.size, width)
        self.layers = nn.ModuleList(nn.Linear(dim if i == 0 else width, width) for i in range(depth))
        self.conditions = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.out = nn.Linear(width, dim)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        if x.ndim != 2:  # more axes would broadcast against the conditions of other samples
            raise ValueError(f"MLP needs vectors (n, dim), got {tuple(x.shape)}: flatten the data, or use a UNet")
        if x.shape[1] != self.out.out_features:
            raise ValueError(
                f"MLP was built for {self.out.out_features} features, got {x.shape[1]}: MLP({x.shape[1]}, ...)"
            )
        embedded = self.embedding(self.features(c))
        for layer, condition in zip(self.layers, self.conditions, strict=True):
            x = F.silu(layer(x) + condition(embedded))
        return self.out(x)


def _zero(layer: nn.Conv2d) -> None:
    """Make a layer say nothing until it has learned something."""
    assert layer.bias is not None
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)


class Residual(nn.Module):
    """norm, SiLU, conv, scale and shift by the condition, SiLU, conv, plus the input; the last conv starts at zero."""

    def __init__(self, inputs: int, outputs: int, condition: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(8, inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.condition = nn.Linear(condition, 2 * outputs)
        self.norm2 = nn.GroupNorm(8, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        _zero(self.conv2)

    def forward(self, x: Tensor, embedded: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.condition(embedded)[:, :, None, None].chunk(2, dim=1)
        h = self.conv2(F.silu(self.norm2(h) * (1 + scale) + shift))
        return self.skip(x) + h


class Attention(nn.Module):
    """Self-attention over the pixels, plus the input; the projection starts at zero."""

    def __init__(self, channels: int, head_width: int = 32) -> None:
        super().__init__()
        self.heads = math.gcd(channels, max(channels // head_width, 1))
        self.norm = nn.GroupNorm(8, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.project = nn.Conv2d(channels, channels, 1)
        _zero(self.project)

    def forward(self, x: Tensor) -> Tensor:
        n, channels, height, width = x.shape
        q, k, v = self.qkv(self.norm(x)).view(n, 3, self.heads, channels // self.heads, height * width).unbind(1)
        # Written out: at this size torch's fused attention is several times slower on a CPU, backwards above all.
        weights = (q.transpose(-1, -2) @ k * q.shape[-2] ** -0.5).softmax(-1)
        return x + self.project((v @ weights.transpose(-1, -2)).reshape(n, channels, height, width))


class UNet(nn.Module):
    """Images (n, channels, height, width) -> the same shape.

    A pixel-unshuffle stem folds 2 x 2 pixels into channels, so that the finest level works at half the resolution; one
    further halving with attention below. Height and width must be multiples of 4.

    Args:
        channels: of the image.
        width, deep: channels of the fine and of the coarse level, multiples of 8.
        blocks: residual blocks at the fine level on the way down; one more on the way up.
        deep_blocks: residual blocks at the coarse level, with attention between them.
        conditions: numbers that condition every sample, 1 for GBM, 2 for rotations.
        classes: of labelled data, 0 for none; a sample's class is one more condition, the last.
    """

    def __init__(
        self, channels: int = 1, width: int = 48, deep: int = 128, blocks: int = 2, deep_blocks: int = 3,
        conditions: int = 1, classes: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        if width < 8 or deep < 8 or width % 8 or deep % 8:
            raise ValueError(f"width and deep must be multiples of 8, at least 8, got {width} and {deep}")
        self.config = {
            "channels": channels, "width": width, "deep": deep, "blocks": blocks, "deep_blocks": deep_blocks,
            "conditions": conditions, "classes": classes,
        }  # fmt: skip
        condition = 2 * deep
        self.features = FourierFeatures(conditions)
        self.embedding = _perceptron(self.features.size, condition)
        self.label = nn.Embedding(classes, condition) if classes else None
        if self.label is not None:
            nn.init.zeros_(self.label.weight)
        self.stem = nn.Conv2d(4 * channels, width, 3, padding=1)
        self.down = nn.ModuleList(Residual(width, width, condition) for _ in range(blocks))
        self.shrink = nn.Conv2d(width, deep, 3, stride=2, padding=1)
        self.middle = nn.ModuleList(Residual(deep, deep, condition) for _ in range(deep_blocks))
        self.attention = nn.ModuleList(Attention(deep) for _ in range(deep_blocks - 1))
        self.grow = nn.Conv2d(deep, 4 * width, 1)
        self.up = nn.ModuleList(Residual(2 * width, width, condition) for _ in range(blocks + 1))
        self.norm = nn.GroupNorm(8, width)
        self.out = nn.Conv2d(width, 4 * channels, 3, padding=1)
        _zero(self.out)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        if x.shape[-1] % 4 or x.shape[-2] % 4:
            raise ValueError(
                f"UNet needs a height and width that are multiples of 4, got {tuple(x.shape)}: pad the images"
            )
        embedded = self._embedded(c)
        h = self.stem(F.pixel_unshuffle(x, 2))
        skips = [h]
        for block in self.down:
            h = block(h, embedded)
            skips.append(h)
        h = self.shrink(h)
        for i, block in enumerate(self.middle):
            h = block(h, embedded)
            if i < len(self.attention):
                h = self.attention[i](h)
        h = F.pixel_shuffle(self.grow(h), 2)
        for block in self.up:
            h = block(torch.cat((h, skips.pop()), dim=1), embedded)
        return F.pixel_shuffle(self.out(F.silu(self.norm(h))), 2)

    def _embedded(self, c: Tensor) -> Tensor:
        if self.label is None:
            return self.embedding(self.features(c))
        if c.ndim != 2:
            raise ValueError(f"a UNet with classes needs c of shape (n, 2), the class last, got {tuple(c.shape)}")
        return self.embedding(self.features(c[:, :-1])) + self.label(c[:, -1].long())
