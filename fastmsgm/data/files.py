"""Arrays from files: ``.npy`` and ``.safetensors``, never pickles, and named image sets.

Nothing is rescaled silently: integers are refused.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fastmsgm.data.images import cifar10, fashion_mnist, kmnist, mnist

_SUFFIXES = (".npy", ".safetensors")
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_BY_NAME = {"fashion-mnist": fashion_mnist, "mnist": mnist, "kmnist": kmnist, "cifar-10": cifar10}
NAMES = tuple(_BY_NAME)


def load(name_or_path: str | os.PathLike[str]) -> Tensor:
    """Load a training set.

    Args:
        name_or_path: One of ``NAMES``, or a ``.npy`` or ``.safetensors`` file that holds one array
            (n, ...) of float16, bfloat16, float32 or float64. The values stay as they are.

    Returns:
        (n, ...) float32, contiguous and finite, n >= 1.

    Raises:
        FileNotFoundError: There is no such file.
        TypeError: The array is not of floating point.
        ValueError: An unknown name or suffix, a damaged file, a wrong shape, or values that are
            not finite in float32.
    """
    if name_or_path in _BY_NAME:
        return _BY_NAME[str(name_or_path)]("train")
    path = Path(name_or_path)
    if path.suffix not in _SUFFIXES:
        raise ValueError(
            f"data must be one of {', '.join(NAMES)}, or the path of a {' or '.join(_SUFFIXES)} "
            f"file, got {str(name_or_path)!r}"
        )
    if not path.is_file():
        raise FileNotFoundError(f"data: there is no file {path}")
    return _checked(path, _read_npy(path) if path.suffix == ".npy" else _read_safetensors(path))


def _read_npy(path: Path) -> Tensor:
    try:
        with path.open("rb") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(
            f"{path}: not a plain .npy array ({error}): write it with numpy.save, no objects"
        ) from error
    try:
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
    except TypeError as error:
        raise TypeError(
            f"{path}: data must be of floating point, got {array.dtype}: convert it to float32"
        ) from error


def _read_safetensors(path: Path) -> Tensor:
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            if len(names) != 1:
                raise ValueError(
                    f"{path}: data must be a file with one tensor, got {len(names)}: "
                    f"{', '.join(names)}"
                )
            return file.get_tensor(names[0])
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged .safetensors file ({error})") from error


def _checked(path: Path, x: Tensor) -> Tensor:
    if x.dtype == torch.uint8:
        raise TypeError(
            f"{path}: data must be of floating point, got uint8: if these are images, divide them "
            "by 255"
        )
    if x.dtype not in _FLOATS:
        raise TypeError(
            f"{path}: data must be of floating point, got {x.dtype}: convert it to float32"
        )
    if x.ndim < 2 or x.numel() == 0:
        raise ValueError(
            f"{path}: data must have shape (n, ...) with n >= 1 and features, got {tuple(x.shape)}"
        )
    x = x.float().contiguous()
    finite = x.isfinite().flatten(1).all(1)
    if not finite.all():
        wrong = (~finite).nonzero()[:, 0]
        raise ValueError(
            f"{path}: data must be finite in float32, got NaN or infinity in {len(wrong)} of "
            f"{len(x)} samples, the first is sample {int(wrong[0])}: remove them"
        )
    return x
