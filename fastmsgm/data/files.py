"""Data from files: arrays, folders of images, and named image sets. Pickles are never read.

Numbers stay as they are. Integers are refused, except for uint8 images, which stay uint8.
"""

from __future__ import annotations

import json
import math
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastmsgm.data.folders import image_folder
from fastmsgm.data.images import cifar10, fashion_mnist, kmnist, mnist
from fastmsgm.data.reading import check_inflated, listed, read_exactly, read_npy, reading, shown
from fastmsgm.data.variables import SUFFIXES, read_variable, split_name

_DTYPES = {  # by their names in .safetensors
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "U8": torch.uint8,
}
_HEADER = 100_000_000  # the most bytes of a .safetensors header, by its specification
BY_NAME = {"fashion-mnist": fashion_mnist, "mnist": mnist, "kmnist": kmnist, "cifar-10": cifar10}
_CHANNELS = (1, 3)  # of images whose channels are the last axis
_BLOCK = 2**24  # numbers of images whose axes are moved at a time
NAMES = tuple(BY_NAME)


def load(name_or_path: str | os.PathLike[str], size: int | None = None) -> Tensor:
    """Load a training set.

    Args:
        name_or_path: One of ``NAMES``; or a file that holds one array (n, ...) of float16,
            bfloat16, float32 or float64, or of uint8 images (n, c, h, w) or (n, h, w, c); or a
            folder of images, see ``image_folder``. Files are ``.npy``, ``.npz``, ``.safetensors``,
            HDF5 (``.h5``, ``.hdf5``) and netCDF (``.nc``). Of several arrays in a ``.npz`` the one
            named ``arr_0`` is taken, as ``sample`` and tools for the Frechet distance write it. Of
            HDF5 and netCDF it is the only one of two or more axes, or the one that is named, as in
            ``flow.nc:vorticity``. uint8 images, and four axes of any dtype in a ``.npz``, are taken
            as (n, h, w, c) where the last axis is 1 or 3 and axis 1 is not.
        size: Height and width of the images of a folder; None is their own, if all have one size.

    Returns:
        (n, ...) float32, contiguous and finite, n >= 1; or (n, c, h, w) uint8, contiguous, which
        ``fit`` and the models divide by 255 batch by batch, so that it stays small.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ImportError: A folder of images without Pillow, of the extra "images"; an HDF5 or netCDF
            file without h5py or SciPy, of the extra "experiments".
        MemoryError: There is not enough memory.
        OSError: The system cannot read the file.
        TypeError: The array is neither of floating point nor uint8.
        ValueError: An unknown name or suffix, a damaged file, a wrong shape, values that are not
            finite in float32, or a size for what is no folder.
    """
    source, variable = split_name(os.fspath(name_or_path))
    path = Path(source)
    # Path("") is the current folder, which nobody means by it.
    if name_or_path not in BY_NAME and os.fspath(name_or_path) and path.is_dir():
        return image_folder(path, size, channels=None)
    if size is not None:
        raise ValueError(f"size is for folders of images, got {str(name_or_path)!r}: leave it out")
    if name_or_path in BY_NAME:
        return BY_NAME[str(name_or_path)]("train")
    if path.suffix not in (*_READERS, *SUFFIXES):
        *suffixes, last = (*_READERS, *SUFFIXES)
        raise ValueError(
            f"data must be one of {', '.join(NAMES)}, the path of a {', '.join(suffixes)} or "
            f"{last} file, or a folder of images, got {str(name_or_path)!r}"
        )
    if not path.is_file():
        raise FileNotFoundError(f"data: there is no file {path}")
    if path.suffix in SUFFIXES:
        return _checked(path, _tensor(path, read_variable(path, variable)))
    return _checked(path, _READERS[path.suffix](path))


def _read_npy(path: Path) -> Tensor:
    with (
        reading(path, ".npy file", "write it with numpy.save, no objects"),
        path.open("rb") as file,
    ):
        return _tensor(path, read_npy(path, file, os.fstat(file.fileno()).st_size))


def _read_npz(path: Path) -> Tensor:
    with (
        reading(path, ".npz file", "write it with numpy.savez or numpy.savez_compressed"),
        zipfile.ZipFile(path) as archive,
    ):
        names = archive.namelist()
        if len(names) != 1 and "arr_0.npy" not in names:
            raise ValueError(
                f"{path}: data must be a file with one array, or with one named arr_0, got "
                f"{len(names)}: {listed(names)}"
            )
        entry = archive.getinfo(names[0] if len(names) == 1 else "arr_0.npy")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError("it is compressed in another way than numpy does")
        check_inflated(path, entry.file_size, min(entry.compress_size, path.stat().st_size))
        with archive.open(entry) as file:
            return _tensor(path, read_npy(path, file, entry.file_size))


def _tensor(path: Path, array: np.ndarray[Any, Any]) -> Tensor:
    try:
        return torch.from_numpy(array)
    except TypeError as error:  # PyTorch does not have all dtypes
        raise TypeError(
            f"{path}: data must be of floating point, got {array.dtype}: convert it to float32"
        ) from error


def _read_safetensors(path: Path) -> Tensor:
    """Read the one tensor of a file; the library of that name would map it, and not copy it."""
    with (
        reading(path, ".safetensors file", "write it with safetensors.torch.save_file"),
        path.open("rb") as file,
    ):
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if length > min(size - 8, _HEADER):
            raise ValueError(f"its header has {length} bytes")
        entries = json.loads(file.read(length))
        names = [name for name in entries if name != "__metadata__"]
        if len(names) != 1:
            raise ValueError(
                f"{path}: data must be a file with one tensor, got {len(names)}: {listed(names)}"
            )
        dtype, shape, place = (entries[names[0]][k] for k in ("dtype", "shape", "data_offsets"))
        if dtype not in _DTYPES:
            raise TypeError(
                f"{path}: data must be of floating point, or uint8 images, got "
                f"{shown(str(dtype))}: convert it to float32"
            )
        end = size - 8 - length
        if not all(type(n) is int and 0 <= n <= end for n in shape):
            raise ValueError(f"its header has shape {shown(str(shape))}")
        promised = math.prod(shape) * _DTYPES[dtype].itemsize
        if place != [0, end] or promised != end:
            raise ValueError(
                f"its header promises {dtype} {shown(str(shape))}, {shown(str(promised))} bytes, "
                f"got {end}"
            )
        numbers = np.empty(end, np.uint8)
        read_exactly(file, numbers)
        return torch.from_numpy(numbers).view(_DTYPES[dtype]).view(shape)


_READERS = {".npy": _read_npy, ".npz": _read_npz, ".safetensors": _read_safetensors}


def _checked(path: Path, x: Tensor) -> Tensor:
    if x.dtype not in _DTYPES.values():
        raise TypeError(
            f"{path}: data must be of floating point, or uint8 images, got {x.dtype}: convert it "
            "to float32"
        )
    if x.ndim < 2 or x.numel() == 0:
        raise ValueError(
            f"{path}: data must have shape (n, ...) with n >= 1 and features, got {tuple(x.shape)}"
        )
    if x.dtype == torch.uint8 and x.ndim != 4:
        raise ValueError(
            f"{path}: data of uint8 must be images (n, c, h, w) or (n, h, w, c), got "
            f"{tuple(x.shape)}: add the axis of channels, or convert other data to float32"
        )
    if x.dtype == torch.uint8:
        return _channels_first(x.contiguous())
    x = x.float().contiguous()
    finite = x.isfinite().flatten(1).all(1)
    if not finite.all():
        wrong = (~finite).nonzero()[:, 0]
        raise ValueError(
            f"{path}: data must be finite in float32, got NaN or infinity in {len(wrong)} of "
            f"{len(x)} samples, the first is sample {int(wrong[0])}: remove them"
        )
    return _channels_first(x) if path.suffix == ".npz" and x.ndim == 4 else x


def _channels_first(x: Tensor) -> Tensor:
    """Return images as (n, c, h, w); their memory is used again, since they may be large."""
    n, height, width, channels = x.shape
    if channels not in _CHANNELS or height in _CHANNELS:
        return x
    for block in x.split(max(1, _BLOCK // x[0].numel())):
        block.view(len(block), -1).copy_(block.movedim(-1, 1).reshape(len(block), -1))
    return x.view(n, channels, height, width)
