"""Image data sets: float32 tensors (n, channels, height, width) in [0, 1].

Fashion-MNIST is read from Debian's package ``dataset-fashion-mnist`` where it is installed.
Otherwise, and for the other sets, torchvision downloads it, once, into
``fastmsgm.files.cache_folder()``.
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import Literal, overload

import numpy as np
import torch
from torch import Tensor

from fastmsgm.files import cache_folder

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
_SPLITS = ("train", "test")


@overload
def fashion_mnist(split: str = ..., labels: Literal[False] = ...) -> Tensor: ...
@overload
def fashion_mnist(split: str = ..., *, labels: Literal[True]) -> tuple[Tensor, Tensor]: ...
def fashion_mnist(split: str = "train", labels: bool = False) -> Tensor | tuple[Tensor, Tensor]:
    """Fashion-MNIST (Xiao et al., 2017).

    Args:
        split: "train" (60,000 images) or "test" (10,000).
        labels: Also return the classes, (n,) int64, 0 .. 9.

    Returns:
        (n, 1, 28, 28) float32 in [0, 1].

    Raises:
        ValueError: Another split, or a damaged file.
        ImportError: The Debian package and torchvision are both absent.
        RuntimeError: The download failed.
    """
    _check_split(split)
    if DEBIAN_FASHION_MNIST.is_dir():
        prefix = "train" if split == "train" else "t10k"
        images = read_idx(DEBIAN_FASHION_MNIST / f"{prefix}-images-idx3-ubyte.gz")
        classes = read_idx(DEBIAN_FASHION_MNIST / f"{prefix}-labels-idx1-ubyte.gz")
        return _finish(images[:, None], classes, labels)
    return _finish(*_torchvision("FashionMNIST", split), labels)


@overload
def mnist(split: str = ..., labels: Literal[False] = ...) -> Tensor: ...
@overload
def mnist(split: str = ..., *, labels: Literal[True]) -> tuple[Tensor, Tensor]: ...
def mnist(split: str = "train", labels: bool = False) -> Tensor | tuple[Tensor, Tensor]:
    """MNIST (LeCun et al., 1998); needs torchvision.

    Args:
        split: "train" or "test".
        labels: Also return the classes, (n,) int64, 0 .. 9.

    Returns:
        (n, 1, 28, 28) float32 in [0, 1].

    Raises:
        ValueError: Another split.
        ImportError: torchvision is absent.
        RuntimeError: The download failed.
    """
    return _finish(*_torchvision("MNIST", split), labels)


@overload
def kmnist(split: str = ..., labels: Literal[False] = ...) -> Tensor: ...
@overload
def kmnist(split: str = ..., *, labels: Literal[True]) -> tuple[Tensor, Tensor]: ...
def kmnist(split: str = "train", labels: bool = False) -> Tensor | tuple[Tensor, Tensor]:
    """Kuzushiji-MNIST (Clanuwat et al., 2018); needs torchvision.

    Args:
        split: "train" or "test".
        labels: Also return the classes, (n,) int64, 0 .. 9.

    Returns:
        (n, 1, 28, 28) float32 in [0, 1].

    Raises:
        ValueError: Another split.
        ImportError: torchvision is absent.
        RuntimeError: The download failed.
    """
    return _finish(*_torchvision("KMNIST", split), labels)


@overload
def cifar10(split: str = ..., labels: Literal[False] = ...) -> Tensor: ...
@overload
def cifar10(split: str = ..., *, labels: Literal[True]) -> tuple[Tensor, Tensor]: ...
def cifar10(split: str = "train", labels: bool = False) -> Tensor | tuple[Tensor, Tensor]:
    """CIFAR-10 (Krizhevsky, 2009); needs torchvision.

    Args:
        split: "train" or "test".
        labels: Also return the classes, (n,) int64, 0 .. 9.

    Returns:
        (n, 3, 32, 32) float32 in [0, 1].

    Raises:
        ValueError: Another split.
        ImportError: torchvision is absent.
        RuntimeError: The download failed.
    """
    return _finish(*_torchvision("CIFAR10", split), labels)


def read_idx(path: Path) -> Tensor:
    """Read a gzipped IDX file of unsigned bytes, MNIST's format.

    It holds 0, 0, 8, ndim, then ndim big-endian uint32 sizes, then the bytes.

    Args:
        path: Path of the file.

    Returns:
        A uint8 tensor.

    Raises:
        ValueError: A damaged file, or one of another format.
    """
    try:
        raw = gzip.decompress(path.read_bytes())
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: damaged gzip file ({error}): install it again") from error
    if len(raw) < 4 or raw[:3] != b"\0\0\x08" or len(raw) < 4 + 4 * raw[3]:
        raise ValueError(
            f"{path}: not an IDX file of unsigned bytes (it begins with {raw[:4].hex(' ')})"
        )
    header = 4 + 4 * raw[3]
    shape = tuple(int(size) for size in np.frombuffer(raw[4:header], dtype=">u4"))
    if len(raw) - header != math.prod(shape):
        raise ValueError(
            f"{path}: the header promises {shape}, {math.prod(shape)} bytes, got "
            f"{len(raw) - header}"
        )
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=header).reshape(shape).copy())


def _check_split(split: str) -> None:
    if split not in _SPLITS:
        raise ValueError(f"split must be one of {', '.join(_SPLITS)}, got {split!r}")


def _finish(images: Tensor, classes: Tensor, labels: bool) -> Tensor | tuple[Tensor, Tensor]:
    scaled = images.float().div_(255)
    return (scaled, classes.long()) if labels else scaled


def _torchvision(name: str, split: str) -> tuple[Tensor, Tensor]:
    """Return images (n, channels, height, width) uint8 and classes (n,), downloaded when absent."""
    _check_split(split)
    tried, debian = "", ""
    if name == "FashionMNIST":
        tried = f"{DEBIAN_FASHION_MNIST} does not exist, and "
        debian = ', or on Debian and Ubuntu "apt install dataset-fashion-mnist"'
    try:
        from torchvision import datasets
    except ImportError as error:
        raise ImportError(
            f'{name}: {tried}torchvision is not installed: pip install "fastmsgm[images]"{debian}'
        ) from error
    folder = cache_folder()
    try:
        data = getattr(datasets, name)(folder, train=split == "train", download=True)
    except (RuntimeError, OSError) as error:
        raise RuntimeError(
            f"{name}: {tried}torchvision could neither find it in {folder} nor download it "
            f"({error}): run once with network access, or set FASTMSGM_CACHE to a folder that "
            f"holds it{debian}"
        ) from error
    images = torch.as_tensor(data.data)  # (n, h, w), or (n, h, w, 3) in colour
    images = images.movedim(-1, 1) if images.ndim == 4 else images[:, None]
    return images.contiguous(), torch.as_tensor(data.targets)
