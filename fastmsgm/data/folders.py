"""Folders of images, as uint8 tensors."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
from torch import Tensor

from fastmsgm.checks import check_int
from fastmsgm.data.reading import reading

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # of PIL, whatever the file's name says
_GREY = ("1", "L", "LA", "La")  # modes of PIL
_HIGH_DEPTH = ("I", "F")  # first letters of modes with more than 8 bits
_HIGH_DEPTH_IN_FILE = re.compile(r";16[BLN]")  # in PIL's name of the pixels, such as "RGB;16B"


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
    the same as to resize the shorter side and to crop the centre. Images are turned as their EXIF
    orientation says. Of several frames or pages the first is read, transparency is left out. GIF
    and other kinds of files are passed over, and so are names that begin with a dot. Links to
    folders are followed, but not in a circle. An image may have as many pixels as
    ``PIL.Image.MAX_IMAGE_PIXELS`` says, which guards against small files that fill the memory.
    Needs Pillow, of the extra "images".

    Args:
        path: The folder.
        size: Height and width in pixels. None keeps the images as they are, if all have one size.
        labels: Also return the classes, (n,) int64: the folders directly in ``path``, also those
            without images, numbered from 0 in the order of their names.
        channels: 3 for RGB, to which grey images are converted; 1 for grey, to which colours are
            converted; None is 1 if all images are grey, else 3.

    Returns:
        (n, channels, height, width) uint8, 0 .. 255, which ``fit`` and the models divide by 255
        batch by batch.

    Raises:
        FileNotFoundError: There is no such folder.
        ImportError: Pillow is absent.
        MemoryError: There is not enough memory.
        OSError: The system cannot read a file or a folder.
        TypeError: size or channels is not an int.
        ValueError: No images, one that is damaged, too large or of more than 8 bits a channel,
            images of several sizes without ``size``, images in no class folder with ``labels``,
            or an argument out of range.
    """
    folder = Path(path)
    if size is not None:
        size = check_int("size", size, 1)
    if channels is not None and check_int("channels", channels, 1) not in (1, 3):
        raise ValueError(f"channels must be 1, 3 or None, got {channels}")
    if not folder.is_dir():
        raise FileNotFoundError(f"data: there is no folder {folder}")
    paths = sorted(_images(folder))
    if not paths:
        raise ValueError(f"{folder}: data must be images ({', '.join(SUFFIXES)}), found none")
    classes = _classes(folder, paths) if labels else None
    modes = [_read(found) for found in paths]
    if channels is None:
        channels = 1 if all(mode in _GREY for mode in modes) else 3
    images = torch.empty(0, dtype=torch.uint8, device="cpu")
    for index, found in enumerate(paths):
        pixels = torch.from_numpy(_read(found, "RGB" if channels == 3 else "L", size))
        height, width = pixels.shape[:2]
        if not index:
            with reading(folder, "folder of images", "give size=..."):
                shape = (len(paths), channels, height, width)
                images = torch.from_numpy(np.empty(shape, np.uint8))
        elif images.shape[2:] != (height, width):
            raise ValueError(
                f"{found}: images must have one size, got {width} x {height} after "
                f"{images.shape[3]} x {images.shape[2]}: give size=..., to which all are resized"
            )
        images[index] = pixels.view(height, width, channels).movedim(-1, 0)
    return images if classes is None else (images, classes)


def class_folders(folder: Path) -> list[str]:
    """Return the names of the folders directly in a folder, sorted: class k is the k-th."""
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not _is_hidden(p))


def _images(folder: Path) -> Iterator[Path]:
    """Yield the images of a folder and of those in it."""
    pending: list[tuple[Path, tuple[tuple[int, int], ...]]] = [(folder, ())]
    while pending:
        current, above = pending.pop()  # with the numbers of the folders that it is in
        status = current.stat()
        number = status.st_dev, status.st_ino
        if number in above:  # a link back
            continue
        for found in current.iterdir():
            if _is_hidden(found):
                continue
            if found.is_dir():
                pending.append((found, (*above, number)))
            elif found.suffix.lower() in SUFFIXES and found.is_file():
                yield found


def _is_hidden(path: Path) -> bool:
    return path.name.startswith(".")


def _classes(folder: Path, paths: list[Path]) -> Tensor:
    """Return the number of the folder directly in ``folder`` that each image is in."""
    numbers = {name: number for number, name in enumerate(class_folders(folder))}
    for path in paths:
        if path.parent == folder:
            raise ValueError(
                f"{path}: labels=True needs every image in a folder named as its class, got an "
                f"image directly in {folder}"
            )
    numbered = [numbers[path.relative_to(folder).parts[0]] for path in paths]
    return torch.tensor(numbered, dtype=torch.int64, device="cpu")


@overload
def _read(path: Path) -> str: ...
@overload
def _read(path: Path, mode: str, size: int | None) -> np.ndarray[Any, Any]: ...
def _read(path: Path, mode: str = "", size: int | None = None) -> Any:
    """Return the mode of an image, or, as an image of the given ``mode``, its pixels."""
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise ImportError('image_folder needs Pillow: pip install "fastmsgm[images]"') from error
    with (
        reading(path, "or unreadable image", "remove it or write it anew"),
        Image.open(path, formats=_FORMATS) as image,
    ):
        if image.mode.startswith(_HIGH_DEPTH) or _HIGH_DEPTH_IN_FILE.search(str(image.tile)):
            raise ValueError(
                f"{path}: images must have 8 bits a channel, got more: convert it to 8 bits"
            )
        limit = Image.MAX_IMAGE_PIXELS
        if limit and image.width * image.height > limit:
            raise ValueError(
                f"{path}: images must have at most {limit} pixels, got {image.width} x "
                f"{image.height}: make it smaller, or set PIL.Image.MAX_IMAGE_PIXELS"
            )
        if not mode:
            return image.mode
        pixels = None
        with contextlib.suppress(MemoryError):  # which Pillow raises of some damaged data, too
            ImageOps.exif_transpose(image, in_place=True)
            pixels = image if image.mode == mode else image.convert(mode)
            if size is not None and pixels.size != (size, size):
                pixels = ImageOps.fit(pixels, (size, size), Image.Resampling.BICUBIC)
            pixels = np.array(pixels)
        if pixels is None:
            raise ValueError(f"{path}: its pixels cannot be decoded: write it anew")
        return pixels
