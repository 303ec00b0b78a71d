"""Data sets as float32 tensors: images in [0, 1], shape (n, channels, height, width), and arrays from files.

Fashion-MNIST is read from Debian's package ``dataset-fashion-mnist`` where it is installed. Otherwise, and for the
other sets, torchvision downloads it, once, into ``$FASTMSGM_DATA`` or, without that variable, ``~/.cache/fastmsgm``.
Files are ``.npy`` or ``.safetensors``, never pickles. Nothing is rescaled behind the user's back: integers are refused.
"""

from __future__ import annotations

import gzip
import math
import os
import zlib
from pathlib import Path
from typing import Literal, overload

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
_SPLITS = ("train", "test")
_SUFFIXES = (".npy", ".safetensors")
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@overload
def fashion_mnist(split: str = ..., labels: Literal[False] = ...) -> Tensor: ...
@overload
def fashion_mnist(split: str = ..., *, labels: Literal[True]) -> tuple[Tensor, Tensor]: ...
def fashion_mnist(split: str = "train", labels: bool = False) -> Tensor | tuple[Tensor, Tensor]:
    """Fashion-MNIST (Xiao et al., 2017): 60,000 ("train") or 10,000 ("test") images (n, 1, 28, 28) float32 in [0, 1].

    Args:
        split: "train" or "test".
        labels: also return the classes, (n,) int64, 0 .. 9.

    Raises:
        ValueError: another split, or a damaged file.
        ImportError: the Debian package and torchvision are both absent.
        RuntimeError: the download failed.
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
    """MNIST (LeCun et al., 1998), in the format of ``fashion_mnist``; needs torchvision."""
    return _finish(*_torchvision("MNIST", split), labels)


@overload
def kmnist(split: str = ..., labels: Literal[False] = ...) -> Tensor: ...
@overload
def kmnist(split: str = ..., *, labels: Literal[True]) -> tuple[Tensor, Tensor]: ...
def kmnist(split: str = "train", labels: bool = False) -> Tensor | tuple[Tensor, Tensor]:
    """Kuzushiji-MNIST (Clanuwat et al., 2018), in the format of ``fashion_mnist``; needs torchvision."""
    return _finish(*_torchvision("KMNIST", split), labels)


@overload
def cifar10(split: str = ..., labels: Literal[False] = ...) -> Tensor: ...
@overload
def cifar10(split: str = ..., *, labels: Literal[True]) -> tuple[Tensor, Tensor]: ...
def cifar10(split: str = "train", labels: bool = False) -> Tensor | tuple[Tensor, Tensor]:
    """CIFAR-10 (Krizhevsky, 2009): 50,000 or 10,000 images (n, 3, 32, 32), else as ``mnist``; needs torchvision."""
    return _finish(*_torchvision("CIFAR10", split), labels)


_BY_NAME = {"fashion-mnist": fashion_mnist, "mnist": mnist, "kmnist": kmnist, "cifar-10": cifar10}
NAMES = tuple(_BY_NAME)


def load(name_or_path: str | os.PathLike[str]) -> Tensor:
    """A training set: one of ``NAMES``, or a ``.npy`` or ``.safetensors`` file that holds one array of shape (n, ...).

    Files may be float16, bfloat16, float32 or float64; the values stay as they are.

    Returns:
        (n, ...) float32, contiguous and finite, n >= 1.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: the array is not of floating point.
        ValueError: an unknown name or suffix, a damaged file, a wrong shape, or values that are not finite in float32.
    """
    if name_or_path in _BY_NAME:
        return _BY_NAME[str(name_or_path)]("train")
    path = Path(name_or_path)
    if path.suffix not in _SUFFIXES:
        raise ValueError(
            f"data must be one of {', '.join(NAMES)}, or the path of a {' or '.join(_SUFFIXES)} file, "
            f"got {str(name_or_path)!r}"
        )
    if not path.is_file():
        raise FileNotFoundError(f"data: there is no file {path}")
    return _checked(path, _read_npy(path) if path.suffix == ".npy" else _read_safetensors(path))


def read_idx(path: Path) -> Tensor:
    """A gzipped IDX file of unsigned bytes, MNIST's format: 0, 0, 8, ndim, ndim big-endian uint32 sizes, the bytes."""
    try:
        raw = gzip.decompress(path.read_bytes())
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: damaged gzip file ({error}): install it again") from error
    if len(raw) < 4 or raw[:3] != b"\0\0\x08" or len(raw) < 4 + 4 * raw[3]:
        raise ValueError(f"{path}: not an IDX file of unsigned bytes (it begins with {raw[:4].hex(' ')})")
    header = 4 + 4 * raw[3]
    shape = tuple(int(size) for size in np.frombuffer(raw[4:header], dtype=">u4"))
    if len(raw) - header != math.prod(shape):
        raise ValueError(f"{path}: the header promises {shape}, {math.prod(shape)} bytes, got {len(raw) - header}")
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=header).reshape(shape).copy())


def _check_split(split: str) -> None:
    if split not in _SPLITS:
        raise ValueError(f"split must be one of {', '.join(_SPLITS)}, got {split!r}")


def _finish(images: Tensor, classes: Tensor, labels: bool) -> Tensor | tuple[Tensor, Tensor]:
    scaled = images.float().div_(255)
    return (scaled, classes.long()) if labels else scaled


def _torchvision(name: str, split: str) -> tuple[Tensor, Tensor]:
    """Images (n, channels, height, width) uint8 and classes (n,) of a set of torchvision, downloaded when absent."""
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
    folder = Path(os.environ.get("FASTMSGM_DATA") or Path.home() / ".cache" / "fastmsgm")
    try:
        data = getattr(datasets, name)(folder, train=split == "train", download=True)
    except (RuntimeError, OSError) as error:
        raise RuntimeError(
            f"{name}: {tried}torchvision could neither find it in {folder} nor download it ({error}): "
            f"run once with network access, or set FASTMSGM_DATA to a folder that holds it{debian}"
        ) from error
    images = torch.as_tensor(data.data)  # (n, h, w), or (n, h, w, 3) in colour
    images = images.movedim(-1, 1) if images.ndim == 4 else images[:, None]
    return images.contiguous(), torch.as_tensor(data.targets)


def _read_npy(path: Path) -> Tensor:
    try:
        with path.open("rb") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: not a plain .npy array ({error}): write it with numpy.save, no objects") from error
    try:
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
    except TypeError as error:
        raise TypeError(f"{path}: data must be of floating point, got {array.dtype}: convert it to float32") from error


def _read_safetensors(path: Path) -> Tensor:
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            if len(names) != 1:
                raise ValueError(f"{path}: data must be a file with one tensor, got {len(names)}: {', '.join(names)}")
            return file.get_tensor(names[0])
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged .safetensors file ({error})") from error


def _checked(path: Path, x: Tensor) -> Tensor:
    if x.dtype == torch.uint8:
        raise TypeError(f"{path}: data must be of floating point, got uint8: if these are images, divide them by 255")
    if x.dtype not in _FLOATS:
        raise TypeError(f"{path}: data must be of floating point, got {x.dtype}: convert it to float32")
    if x.ndim < 2 or x.numel() == 0:
        raise ValueError(f"{path}: data must have shape (n, ...) with n >= 1 and features, got {tuple(x.shape)}")
    x = x.float().contiguous()
    finite = x.isfinite().flatten(1).all(1)
    if not finite.all():
        bad = (~finite).nonzero()[:, 0]
        raise ValueError(
            f"{path}: data must be finite in float32, got NaN or infinity in {len(bad)} of {len(x)} rows, "
            f"the first is row {int(bad[0])}: remove them"
        )
    return x
