"""Networks f(x, cond): a multilayer perceptron for vectors and a small U-Net for images.

Both take the noised data and the conditioning of every sample, cond of shape (n,) or (n, cond_dim),
embedded in sines and cosines, and return a tensor of the shape of the data. The model decides what
cond is (the noise level, the norm) and what the output means.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastmsgm.checks import check_int


class FourierFeatures(nn.Module):
    """c -> (cos 2 pi w c, sin 2 pi w c) with geometric frequencies w from 1/8 to 16, (n, size).

    Of several conditioning numbers only the first is embedded in waves. The others are standardised
    and passed on unchanged, which keeps extreme values close to large ones.

    Args:
        cond_dim: Conditioning numbers of a sample.
        count: Number of frequencies.
    """

    frequencies: Tensor

    def __init__(self, cond_dim: int = 1, count: int = 32) -> None:
        super().__init__()
        self.cond_dim, self.size = cond_dim, 2 * count + cond_dim - 1
        frequencies = 2 * math.pi * torch.logspace(-3, 4, count, base=2.0)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, cond: Tensor) -> Tensor:
        """Return (n, size) features of cond (n,) or (n, cond_dim); ValueError for others."""
        cond = cond.reshape(cond.shape[0], -1)
        if cond.shape[1] != self.cond_dim:
            raise ValueError(
                f"the network is built for {self.cond_dim} conditioning numbers a sample, got "
                f"{cond.shape[1]}: build it with cond_dim={cond.shape[1]} (1 for GBM, 2 for "
                "rotations; class labels, which come last, with classes=...)"
            )
        angle = cond[:, :1] * self.frequencies
        return torch.cat((angle.cos(), angle.sin(), cond[:, 1:]), dim=1)


def _perceptron(inputs: int, width: int) -> nn.Sequential:
    """Return two layers, which embed the features of the conditioning."""
    return nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())


class MLP(nn.Module):
    """Vectors (n, dim) -> (n, dim): hidden layers with SiLU, each conditioned by addition.

    With 3 layers of 128 it is the network of MSGM's experiments on vectors, but for how it is
    conditioned: where the conditioning enters the first layer alone, training is twice as fast and
    plateaus earlier.

    Args:
        dim: Features of a sample.
        width: Width of the hidden layers.
        depth: Number of hidden layers.
        cond_dim: Conditioning numbers of a sample: 1 for GBM, 2 for rotations.

    Raises:
        TypeError: An argument is not an int.
        ValueError: An argument is below 1.

    Example:
        >>> MLP(4, cond_dim=2)(torch.zeros(5, 4), torch.zeros(5, 2)).shape
        torch.Size([5, 4])
    """

    def __init__(self, dim: int, width: int = 128, depth: int = 3, cond_dim: int = 1) -> None:
        super().__init__()
        dim, width = check_int("dim", dim, 1), check_int("width", width, 1)
        depth, cond_dim = check_int("depth", depth, 1), check_int("cond_dim", cond_dim, 1)
        self.config = {"dim": dim, "width": width, "depth": depth, "cond_dim": cond_dim}
        self.features = FourierFeatures(cond_dim)
        self.embedding = _perceptron(self.features.size, width)
        self.layers = nn.ModuleList(
            nn.Linear(dim if i == 0 else width, width) for i in range(depth)
        )
        self.cond_layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.out = nn.Linear(width, dim)

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        """Return f(x, cond), like x (n, dim); ValueError for other shapes."""
        if x.ndim != 2:  # more axes would broadcast against the conditioning of other samples
            raise ValueError(
                f"MLP needs vectors (n, dim), got {tuple(x.shape)}: flatten the data, or use a UNet"
            )
        if x.shape[1] != self.out.out_features:
            raise ValueError(
                f"MLP was built for {self.out.out_features} features, got {x.shape[1]}: "
                f"MLP({x.shape[1]}, ...)"
            )
        embedded = self.embedding(self.features(cond))
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

    def forward(self, x: Tensor) -> Tensor:
        """Return x (n, channels, h, w) with what it attends to added."""
        n, channels, height, width = x.shape
        q, k, v = (
            self.qkv(self.norm(x))
            .view(n, 3, self.heads, channels // self.heads, height * width)
            .unbind(1)
        )
        # Written out: at this size torch's fused attention is several times slower on a CPU,
        # backwards above all.
        weights = (q.transpose(-1, -2) @ k * q.shape[-2] ** -0.5).softmax(-1)
        return x + self.project((v @ weights.transpose(-1, -2)).reshape(n, channels, height, width))


class UNet(nn.Module):
    """Images (n, channels, height, width) -> the same shape.

    A pixel-unshuffle stem folds 2 x 2 pixels into channels, so that the finest level works at half
    the resolution; one further halving with attention below. Height and width must be multiples
    of 4.

    Args:
        channels: Channels of the image.
        width: Channels of the fine level, a multiple of 8.
        deep: Channels of the coarse level, a multiple of 8.
        blocks: Residual blocks at the fine level on the way down; one more on the way up.
        deep_blocks: Residual blocks at the coarse level, with attention between them.
        cond_dim: Conditioning numbers of a sample: 1 for GBM, 2 for rotations.
        classes: Number of classes of a class-conditional network, else 0; a sample's class label
            is one more conditioning number, the last.

    Raises:
        TypeError: An argument is not an int.
        ValueError: An argument is out of range.

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
        cond_dim: int = 1,
        classes: int = 0,
    ) -> None:
        super().__init__()
        channels, blocks = check_int("channels", channels, 1), check_int("blocks", blocks, 0)
        width, deep = check_int("width", width, 8), check_int("deep", deep, 8)
        deep_blocks = check_int("deep_blocks", deep_blocks, 1)
        cond_dim, classes = check_int("cond_dim", cond_dim, 1), check_int("classes", classes, 0)
        if width % 8 or deep % 8:
            raise ValueError(f"width and deep must be multiples of 8, got {width} and {deep}")
        self.config = {
            "channels": channels,
            "width": width,
            "deep": deep,
            "blocks": blocks,
            "deep_blocks": deep_blocks,
            "cond_dim": cond_dim,
            "classes": classes,
        }
        cond_width = 2 * deep
        self.features = FourierFeatures(cond_dim)
        self.embedding = _perceptron(self.features.size, cond_width)
        self.label = nn.Embedding(classes, cond_width) if classes else None
        if self.label is not None:
            nn.init.zeros_(self.label.weight)
        self.stem = nn.Conv2d(4 * channels, width, 3, padding=1)
        self.down = nn.ModuleList(Residual(width, width, cond_width) for _ in range(blocks))
        self.shrink = nn.Conv2d(width, deep, 3, stride=2, padding=1)
        self.middle = nn.ModuleList(Residual(deep, deep, cond_width) for _ in range(deep_blocks))
        self.attention = nn.ModuleList(Attention(deep) for _ in range(deep_blocks - 1))
        self.grow = nn.Conv2d(deep, 4 * width, 1)
        self.up = nn.ModuleList(Residual(2 * width, width, cond_width) for _ in range(blocks + 1))
        self.norm = nn.GroupNorm(8, width)
        self.out = nn.Conv2d(width, 4 * channels, 3, padding=1)
        _zero(self.out)

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        """Return f(x, cond), like x; ValueError where a side is no multiple of 4."""
        if x.shape[-1] % 4 or x.shape[-2] % 4:
            raise ValueError(
                f"UNet needs a height and width that are multiples of 4, got {tuple(x.shape)}: pad "
                "the images"
            )
        embedded = self._embedded(cond)
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

    def _embedded(self, cond: Tensor) -> Tensor:
        if self.label is None:
            return self.embedding(self.features(cond))
        if cond.ndim != 2:
            raise ValueError(
                "a UNet with classes needs cond of shape (n, 2), the class label last, got "
                f"{tuple(cond.shape)}"
            )
        return self.embedding(self.features(cond[:, :-1])) + self.label(cond[:, -1].long())


NETS: dict[str, Callable[..., nn.Module]] = {"MLP": MLP, "UNet": UNet}  # by name in checkpoints
