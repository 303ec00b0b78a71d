"""Folders of images, as uint8 tensors."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
from torch import Tensor

from fastmsgm.checks import check_int

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_GREY = ("1", "L", "LA", "La")  # modes of PIL
_HIGH_DEPTH = ("I", "F")  # first letters of modes with more than 8 bits


@overload
def image_folder(
    path: str | os.PathLike[str],
    size: int | None = ...,
    labels: Literal[False] = ...,
    channels: int | None = ...,
) -> Tensor: ...
@overload
def image_folder(
    path: str | os.PathLike[str],
    size: int | None = ...,
    *,
    labels: Literal[True],
    channels: int | None = ...,
) -> tuple[Tensor, Tensor]: ...
def image_folder(
    path: str | os.PathLike[str],
    size: int | None = None,
    labels: bool = False,
    channels: int | None = 3,
) -> Tensor | tuple[Tensor, Tensor]:
    """Read all images of a folder and of the folders in it, in the order of their paths.

    The largest square in the middle of each image is resized to ``size``, bicubic and antialiased:
    the same as to resize the shorter side and to crop the centre. Names that begin with a dot are
    left out, and so is transparency. Needs Pillow, of the extra "images".

    Args:
        path: The folder.
        size: Height and width in pixels. None keeps the images as they are, if all have one size.
        labels: Also return the classes, (n,) int64: the folders directly in ``path``, numbered
            from 0 in the order of their names.
        channels: 3 for RGB, to which grey images are converted; 1 for grey, to which colours are
            converted; None is 1 if all images are grey, else 3.

    Returns:
        (n, channels, height, width) uint8, 0 .. 255, which ``fit`` and the models divide by 255
        batch by batch.

    Raises:
        FileNotFoundError: There is no such folder.
        ImportError: Pillow is absent.
        TypeError: size or channels is not an int.
        ValueError: No images, a damaged one or one of more than 8 bits a channel, images of
            several sizes without ``size``, images in no class folder with ``labels``, or an
            argument out of range.
    """
    folder = Path(path)
    if size is not None:
        size = check_int("size", size, 1)
    if channels is not None and check_int("channels", channels, 1) not in (1, 3):
        raise ValueError(f"channels must be 1, 3 or None, got {channels}")
    if not folder.is_dir():
        raise FileNotFoundError(f"data: there is no folder {folder}")
    paths = sorted(found for found in folder.rglob("*") if _is_image(found, folder))
    if not paths:
        raise ValueError(f"{folder}: data must be images ({', '.join(SUFFIXES)}), found none")
    headers = [_read(found) for found in paths]
    if channels is None:
        channels = 1 if all(mode in _GREY for mode, _ in headers) else 3
    if size is None:
        width, height = headers[0][1]
        for found, (_, other) in zip(paths, headers, strict=True):
            if other != (width, height):
                raise ValueError(
                    f"{found}: images must have one size, got {other[0]} x {other[1]} after "
                    f"{width} x {height}: give size=..., to which all are resized"
                )
    else:
        width = height = size
    classes = _classes(folder, paths) if labels else None
    images = torch.empty(len(paths), channels, height, width, dtype=torch.uint8)
    for image, found in zip(images, paths, strict=True):
        pixels = _read(found, (width, height), "RGB" if channels == 3 else "L")
        image.copy_(torch.from_numpy(pixels).view(height, width, channels).movedim(-1, 0))
    return images if classes is None else (images, classes)


def _is_image(path: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return path.suffix.lower() in SUFFIXES and not hidden and path.is_file()


def _classes(folder: Path, paths: list[Path]) -> Tensor:
    """Return the number of the folder directly in ``folder`` that each image is in."""
    names = []
    for path in paths:
        first, *below = path.relative_to(folder).parts
        if not below:
            raise ValueError(
                f"{path}: labels=True needs every image in a folder named as its class, got an "
                f"image directly in {folder}"
            )
        names.append(first)
    numbers = {name: number for number, name in enumerate(sorted(set(names)))}
    return torch.tensor([numbers[name] for name in names])


@overload
def _read(path: Path) -> tuple[str, tuple[int, int]]: ...
@overload
def _read(path: Path, size: tuple[int, int], mode: str) -> np.ndarray[Any, Any]: ...
def _read(path: Path, size: tuple[int, int] | None = None, mode: str = "") -> Any:
    """Return the mode and (width, height) of an image, or, with ``size``, its pixels."""
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise ImportError('image_folder needs Pillow: pip install "fastmsgm[images]"') from error
    try:
        with Image.open(path) as image:
            if image.mode.startswith(_HIGH_DEPTH):
                raise ValueError(f"more than 8 bits a channel, mode {image.mode}")
            if size is None:
                return image.mode, image.size
            pixels = image.convert(mode)
            if pixels.size != size:
                pixels = ImageOps.fit(pixels, size, Image.Resampling.BICUBIC)
            return np.array(pixels)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{path}: damaged or unreadable image ({error}): remove it or write it anew"
        ) from error
