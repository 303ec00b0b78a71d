"""Image data sets: float32 tensors (n, channels, height, width) in [0, 1].

Fashion-MNIST is read from Debian's package ``dataset-fashion-mnist`` where it is installed.
Otherwise, and for the other sets, torchvision downloads it, once, into
``fastmsgm.files.cache_folder()``.
"""

from __future__ import annotations

import gzip
import hashlib
import math
from pathlib import Path
from typing import Literal, overload

import numpy as np
import torch
from torch import Tensor

from fastmsgm.data.reading import check_inflated, read_exactly, reading, shown
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
        ValueError: Another split, or a damaged file.
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
        ValueError: Another split, or a damaged file.
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
        ValueError: Another split, or a damaged file.
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
    compressed = path.stat().st_size
    with reading(path, "gzipped IDX file", "install it again"), gzip.open(path) as file:
        start = file.read(4)
        sizes = file.read(4 * start[3]) if len(start) == 4 else b""
        if start[:3] != b"\0\0\x08" or len(sizes) < 4 * start[3]:
            raise ValueError(
                f"{path}: not an IDX file of unsigned bytes (it begins with {start.hex(' ')})"
            )
        shape = tuple(int(size) for size in np.frombuffer(sizes, dtype=">u4"))
        check_inflated(path, math.prod(shape), compressed)
        images = np.empty(shape, np.uint8)
        read_exactly(file, images)
    return torch.from_numpy(images)


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
    folder, dataset = cache_folder(), getattr(datasets, name)
    try:
        data = dataset(folder, train=split == "train", download=True)
    except (RuntimeError, OSError) as error:
        raise RuntimeError(
            f"{name}: {tried}torchvision could neither find it in {folder} nor download it "
            f"({error}): run once with network access, or set FASTMSGM_CACHE to a folder that "
            f"holds it{debian}"
        ) from error
    except Exception as error:  # what damaged files make torchvision raise
        raise ValueError(
            f"{folder}: the files of {name} are damaged ({shown(repr(error))}): remove them, and "
            "they are downloaded again"
        ) from error
    start = "train" if split == "train" else "t10k"
    archives = {
        folder / name / "raw" / archive: md5
        for archive, md5 in getattr(dataset, "resources", ())
        if archive.startswith(start)
    }
    # torchvision compares checksums when it downloads, later only those of CIFAR-10.
    if archives and all(path.is_file() for path in archives):
        images, classes = (_read_checked(path, md5) for path, md5 in archives.items())
        return images[:, None], classes
    images = torch.as_tensor(data.data, device="cpu")  # (n, h, w), or (n, h, w, 3) in colour
    images = images.movedim(-1, 1) if images.ndim == 4 else images[:, None]
    return images.contiguous(), torch.as_tensor(data.targets, device="cpu")


def _read_checked(path: Path, md5: str) -> Tensor:
    """Read a gzipped IDX file of known checksum."""
    if hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() != md5:
        raise ValueError(
            f"{path}: damaged file (its checksum is not that of the original): remove its folder, "
            "and it is downloaded again"
        )
    return read_idx(path)
