"""UNet: a small U-Net for images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastmsgm.checks import check_int, is_number
from fastmsgm.nets.conditioning import ConditionedNet
from fastmsgm.nets.layers import Conv2d, GroupNorm, Linear

# From this many tokens on fused attention is never slower on a CPU, forwards and backwards, for
# batches of 2 to 64: it needs its input copied. At 49 tokens it is up to 12 % slower.
FUSED_TOKENS = 100
LEVELS_MAX = 8  # whose coarsest pixel is 256 pixels wide


def _zero(layer: nn.Conv2d) -> None:
    """Initialise a layer to zero."""
    assert layer.bias is not None
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)


class Residual(nn.Module):
    """Norm, SiLU, conv, scale and shift by the conditioning, SiLU, dropout, conv, plus the input.

    The last convolution is zero-initialised.
    """

    def __init__(self, inputs: int, outputs: int, cond_width: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = GroupNorm(8, inputs)
        self.conv1 = Conv2d(inputs, outputs, 3, padding=1)
        self.cond = Linear(cond_width, 2 * outputs)
        self.norm2 = GroupNorm(8, outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = Conv2d(outputs, outputs, 3, padding=1)
        self.skip = Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        _zero(self.conv2)

    def forward(self, x: Tensor, embedded: Tensor) -> Tensor:
        """Return (n, outputs, h, w) from x (n, inputs, h, w)."""
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.cond(embedded)[:, :, None, None].chunk(2, dim=1)
        h = self.conv2(self.dropout(F.silu(self.norm2(h) * (1 + scale) + shift)))
        return self.skip(x) + h


class Attention(nn.Module):
    """Self-attention over the pixels, plus the input; the projection is zero-initialised.

    PyTorch's fused attention has gradients, but neither second derivatives nor forward-mode ones
    (``torch.func.jvp``). ``UNet`` writes attention out where its input x requires a gradient. For
    other such derivatives, as second ones by the weights, call it in the context
    ``torch.nn.attention.sdpa_kernel(SDPBackend.MATH)``.
    """

    def __init__(self, channels: int, head_width: int = 32) -> None:
        super().__init__()
        self.heads = math.gcd(channels, max(channels // head_width, 1))
        self.norm = GroupNorm(8, channels)
        self.qkv = Conv2d(channels, 3 * channels, 1)
        self.project = Conv2d(channels, channels, 1)
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
    width: int, below: int, blocks: int, cond_width: int, dropout: float
) -> tuple[nn.ModuleList, nn.Conv2d, nn.Conv2d, nn.ModuleList]:
    """Return what one resolution has: residual blocks, the way to half of it and back, blocks."""
    return (
        nn.ModuleList(Residual(width, width, cond_width, dropout) for _ in range(blocks)),
        Conv2d(width, below, 3, stride=2, padding=1),
        Conv2d(below, 4 * width, 1),
        nn.ModuleList(Residual(2 * width, width, cond_width, dropout) for _ in range(blocks + 1)),
    )


class Level(nn.Module):
    """One resolution between the finest, whose layers are the U-Net's own, and the coarsest."""

    def __init__(
        self, width: int, below: int, blocks: int, cond_width: int, dropout: float
    ) -> None:
        super().__init__()
        layers = _level(width, below, blocks, cond_width, dropout)
        self.down, self.shrink, self.grow, self.up = layers


class UNet(ConditionedNet):
    """Images (n, channels, height, width) -> the same shape.

    A pixel-unshuffle stem folds 2 x 2 pixels into channels, so that the finest level works at half
    the resolution. Each further level halves it again, and the coarsest has attention. Images whose
    sides are no multiple of 2^levels are padded with their last row and column, to at most twice a
    side, and cropped at the end.

    Args:
        channels: Channels of the image.
        width: Channels of the fine level, a multiple of 8.
        deep: Channels of the other levels, a multiple of 8; at least 16 where the coarsest level
            is one pixel.
        blocks: Residual blocks of every level but the coarsest on the way down; one more on the way
            up.
        deep_blocks: Residual blocks at the coarsest level, with attention between them.
        levels: Resolutions below the image's, 2 to 8: half, a quarter and so on. 2 is right for
            sides of up to 48 pixels, 3 for 64 to 128, 4 beyond: the cost of attention grows with
            the fourth power of the coarsest side.
        condition: Name of each condition besides the noise level -> its numbers per sample, as
            ``{"log_norm": 1}``, which rotations need; see ``ConditionedNet``.
        classes: Number of classes of a class-conditional network, else 0.
        dropout: Share of the channels' values that each residual block sets to zero in training, in
            [0, 1). It uses torch's generator, so a resumed training does not repeat it exactly.
        periodic: Whether images are periodic in both directions, as fields of a simulation often
            are: convolutions then wrap around. Sides must be multiples of 2^levels.

    Raises:
        TypeError: A size is not an int, or condition not a mapping.
        ValueError: A number is out of range, or the name of a condition is not allowed.

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
        dropout: float = 0.0,
        periodic: bool = False,
    ) -> None:
        channels, blocks = check_int("channels", channels, 1), check_int("blocks", blocks, 0)
        width, deep = check_int("width", width, 8), check_int("deep", deep, 8)
        deep_blocks = check_int("deep_blocks", deep_blocks, 1)
        levels = check_int("levels", levels, 2, LEVELS_MAX)
        if width % 8 or deep % 8:
            raise ValueError(f"width and deep must be multiples of 8, got {width} and {deep}")
        if not is_number(dropout) or not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout!r}")
        cond_width, dropout = 2 * deep, float(dropout)
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
            # Left out where there is none: networks from before there was a choice are the same.
            **({"dropout": dropout} if dropout else {}),
            **({"periodic": True} if periodic else {}),
        }
        self.factor = 2**levels
        self.stem = Conv2d(4 * channels, width, 3, padding=1)
        layers = _level(width, deep, blocks, cond_width, dropout)
        self.down, self.shrink, self.grow, self.up = layers
        self.inner = nn.ModuleList(
            Level(deep, deep, blocks, cond_width, dropout) for _ in range(levels - 2)
        )
        self.middle = nn.ModuleList(
            Residual(deep, deep, cond_width, dropout) for _ in range(deep_blocks)
        )
        self.attention = nn.ModuleList(Attention(deep) for _ in range(deep_blocks - 1))
        self.norm = GroupNorm(8, width)
        self.out = Conv2d(width, 4 * channels, 3, padding=1)
        _zero(self.out)
        self.periodic = periodic
        for layer in self.modules() if periodic else ():
            if isinstance(layer, nn.Conv2d):
                layer.padding_mode = "circular"

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
            ValueError: x or a condition has another shape, or one is missing or unknown; or the
                images are too small for ``levels`` and ``deep``.
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
        self._check_size(height, width)
        if below or right:
            x = F.pad(x, (0, right, 0, below), mode="replicate")
        embedded = self.embed(x, c_noise, label, condition)
        # Channels last: on a CPU a call takes 13 % less time (bench/unet_layout.py).
        h = self.stem(F.pixel_unshuffle(x, 2).contiguous(memory_format=torch.channels_last))
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
        return out[..., :height, :width].contiguous()

    def _check_size(self, height: int, width: int) -> None:
        """Raise ValueError for images too small for the levels, or their coarsest for ``deep``."""
        levels, side = self.config["levels"], min(height, width)
        if self.periodic and (height % self.factor or width % self.factor):
            raise ValueError(
                f"UNet was built with periodic=True, for multiples of {self.factor} as sides, got "
                f"images of {height} x {width}: lower levels, or resample them"
            )
        most = side.bit_length()  # 2^most is the largest power of two up to 2 side
        if levels > most:
            raise ValueError(
                f"UNet was built with levels={levels}, for sides of at least {self.factor // 2}, "
                f"got images of {height} x {width}: "
                + (f"UNet(levels={most})" if most >= 2 else "flatten them and use an MLP")
            )
        # GroupNorm sets each group of one value to 0, and PyTorch refuses it for one sample.
        if self.config["deep"] == 8 and max(height, width) <= self.factor:
            raise ValueError(
                f"UNet was built with deep=8 and levels={levels}, which leaves GroupNorm one value "
                f"of images of {height} x {width}: UNet(deep=16)"
            )
