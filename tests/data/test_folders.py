"""Folders of images: order, sizes, channels, classes, damaged files."""

from __future__ import annotations

import os
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastmsgm import data
from fastmsgm.data import image_folder

Image = pytest.importorskip("PIL.Image")


def pixels(seed: int, *shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(256, size=shape, dtype=np.uint8)


def write(path: Path, array: np.ndarray[Any, Any]) -> Tensor:
    """Write an image (height, width) or (height, width, 3), and return it with channels first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return torch.from_numpy(array).reshape(*array.shape[:2], -1).movedim(-1, 0)


def png(width: int, height: int, bits: int, colour: int, rows: bytes) -> bytes:
    """Return a PNG file with any header."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + crc

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def test_images_come_in_the_order_of_their_paths(tmp_path: Path) -> None:
    names = ("b/2.png", "a/10.png", "c.PNG", "a/deep/1.bmp", "a/9.png")
    written = {name: write(tmp_path / name, pixels(k, 4, 5, 3)) for k, name in enumerate(names)}
    images = image_folder(tmp_path)
    assert images.dtype == torch.uint8
    order = ("a/10.png", "a/9.png", "a/deep/1.bmp", "b/2.png", "c.PNG")
    assert torch.equal(images, torch.stack([written[name] for name in order]))


def test_other_and_hidden_files_are_left_out(tmp_path: Path) -> None:
    image = write(tmp_path / "x.png", pixels(0, 4, 5, 3))
    for name in ("readme.txt", ".hidden.png", ".folder/x.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"no image")
    assert torch.equal(image_folder(str(tmp_path)), image[None])


def test_classes_are_the_folders_in_the_order_of_their_names(tmp_path: Path) -> None:
    for k, name in enumerate(("dog/1.png", "cat/young/1.png", "cat/2.png", "eel/1.png")):
        write(tmp_path / name, pixels(k, 4, 4, 3))
    images, labels = image_folder(tmp_path, labels=True)
    assert labels.dtype == torch.int64
    assert labels.tolist() == [0, 0, 1, 2]
    assert torch.equal(images, image_folder(tmp_path))


def test_a_class_without_images_keeps_its_number(tmp_path: Path) -> None:
    (tmp_path / "ant").mkdir()
    (tmp_path / ".cache").mkdir()
    for name in ("bee/1.png", "cow/1.png"):
        write(tmp_path / name, pixels(0, 4, 4, 3))
    assert image_folder(tmp_path, labels=True)[1].tolist() == [1, 2]


def test_links_to_class_folders_are_followed(tmp_path: Path) -> None:
    image = write(tmp_path / "far" / "1.png", pixels(0, 4, 4, 3))
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "cat").symlink_to(tmp_path / "far", target_is_directory=True)
    assert torch.equal(image_folder(folder, labels=True)[0], image[None])


def test_links_in_a_circle_are_not_followed(tmp_path: Path) -> None:
    write(tmp_path / "cat" / "1.png", pixels(0, 4, 4, 3))
    (tmp_path / "cat" / "again").symlink_to(tmp_path, target_is_directory=True)
    assert len(image_folder(tmp_path)) == 1


@pytest.mark.parametrize("size", [None, 3])
def test_images_are_turned_as_exif_says(size: int | None, tmp_path: Path) -> None:
    array = pixels(0, 4, 6, 3)
    turned = Image.fromarray(array).transpose(Image.Transpose.ROTATE_270)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    for name, image, options in (("a", Image.fromarray(array), {"exif": exif}), ("b", turned, {})):
        (tmp_path / name).mkdir()
        image.save(tmp_path / name / "x.png", **options)
    assert torch.equal(image_folder(tmp_path / "a", size), image_folder(tmp_path / "b", size))


def test_of_several_pages_the_first_is_read(tmp_path: Path) -> None:
    pages = [Image.fromarray(pixels(k, 4, 5, 3)) for k in range(2)]
    pages[0].save(tmp_path / "x.tiff", save_all=True, append_images=pages[1:])
    first = torch.from_numpy(np.array(pages[0])).movedim(-1, 0)
    assert torch.equal(image_folder(tmp_path), first[None])


@pytest.mark.parametrize(("height", "width"), [(12, 20), (20, 12), (12, 12)])
def test_the_shorter_side_is_resized_and_the_centre_cropped(
    height: int, width: int, tmp_path: Path
) -> None:
    array = pixels(0, height, width, 3)
    write(tmp_path / "x" / "x.png", array)
    small = Image.fromarray(array).resize((width // 2, height // 2), Image.Resampling.BICUBIC)
    top, left = (height // 2 - 6) // 2, (width // 2 - 6) // 2
    expected = write(tmp_path / "y.png", np.array(small)[top : top + 6, left : left + 6]).int()
    found = image_folder(tmp_path / "x", 6)[0].int()
    assert int((found - expected).abs().max()) <= 1


def test_images_are_antialiased(tmp_path: Path) -> None:
    """A fine checkerboard becomes grey, where picking pixels would give black or white."""
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    write(tmp_path / "x.png", board)
    small = image_folder(tmp_path, 8, channels=1).float()
    assert float((small - 127.5).abs().max()) < 8


def test_small_images_are_enlarged(tmp_path: Path) -> None:
    write(tmp_path / "x.png", np.full((3, 5, 3), 90, np.uint8))
    assert torch.equal(image_folder(tmp_path, 8), torch.full((1, 3, 8, 8), 90, dtype=torch.uint8))


def test_channels(tmp_path: Path) -> None:
    grey = write(tmp_path / "a.png", pixels(0, 4, 5))
    assert torch.equal(image_folder(tmp_path), grey[None].expand(1, 3, 4, 5))
    assert torch.equal(image_folder(tmp_path, channels=None), grey[None])
    colour = write(tmp_path / "b.png", pixels(1, 4, 5, 3))
    assert torch.equal(image_folder(tmp_path, channels=None)[1], colour)
    both = image_folder(tmp_path, channels=1)
    assert torch.equal(both[0], grey)
    luminance = (colour.double() * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0)
    assert float((both[1, 0] - luminance).abs().max()) < 1


def test_transparency_is_left_out(tmp_path: Path) -> None:
    array = pixels(0, 4, 5, 4)
    Image.fromarray(array).save(tmp_path / "x.png")
    assert torch.equal(image_folder(tmp_path)[0], torch.from_numpy(array[..., :3]).movedim(-1, 0))


def test_load_reads_a_folder(tmp_path: Path) -> None:
    grey = write(tmp_path / "x.png", pixels(0, 4, 5))
    assert torch.equal(data.load(tmp_path), grey[None])
    assert data.load(str(tmp_path), size=2).shape == (1, 1, 2, 2)


# ---- errors ----


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a.png", pixels(0, 40, 40, 3))
    whole = (tmp_path / "a.png").read_bytes()
    for raw in (whole[: len(whole) // 2], b"", b"no image at all", whole[:60]):
        (tmp_path / "b.png").write_bytes(raw)
        with pytest.raises(ValueError, match=r"b\.png: damaged or unreadable image .*: remove it"):
            image_folder(tmp_path)


def test_images_of_more_than_8_bits_are_refused(tmp_path: Path) -> None:
    Image.fromarray(pixels(0, 4, 5).astype(np.uint16)).save(tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"x\.png: .* 8 bits a channel, got more: convert it to 8"):
        image_folder(tmp_path)


@pytest.mark.parametrize("colour", [0, 2, 4, 6])  # PNG's number for grey, RGB, both with alpha
def test_a_png_of_16_bits_a_channel_is_refused(colour: int, tmp_path: Path) -> None:
    """PIL opens them as if they had 8."""
    row = bytes(1 + 2 * 2 * {0: 1, 2: 3, 4: 2, 6: 4}[colour])
    (tmp_path / "x.png").write_bytes(png(2, 1, 16, colour, row))
    with pytest.raises(ValueError, match=r"x\.png: .* 8 bits a channel, got more: convert it to 8"):
        image_folder(tmp_path)


def test_sizes_that_differ_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.png", pixels(0, 4, 5))
    write(tmp_path / "b.png", pixels(0, 6, 5))
    with pytest.raises(ValueError, match=r"b\.png: .* one size, got 5 x 6 after 5 x 4: give size"):
        image_folder(tmp_path)


def test_an_image_without_a_class_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "cat/1.png", pixels(0, 4, 5))
    write(tmp_path / "loose.png", pixels(0, 4, 5))
    with pytest.raises(ValueError, match=r"loose\.png: labels=True needs every image in a folder"):
        image_folder(tmp_path, labels=True)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"size": 0}, ValueError, "size must be at least 1, got 0"),
        ({"size": 8.0}, TypeError, "size must be an int"),
        ({"channels": 2}, ValueError, "channels must be 1, 3 or None, got 2"),
        ({}, ValueError, r"data must be images \(\.bmp, .*\), found none"),
    ],
)
def test_image_folder_refuses(
    options: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        image_folder(tmp_path, **options)


def test_an_absent_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*absent"):
        image_folder(tmp_path / "absent")


def test_pillow_is_optional(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "x.png", pixels(0, 4, 5))
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r'pip install "fastmsgm\[images\]"'):
        image_folder(tmp_path)


@pytest.mark.parametrize("side", [60_000, 2**31 - 1])
@pytest.mark.parametrize("size", [None, 8])
def test_a_small_file_that_would_fill_the_memory_is_refused(
    side: int, size: int | None, tmp_path: Path
) -> None:
    (tmp_path / "x.png").write_bytes(png(side, side, 8, 2, b""))
    with pytest.raises(ValueError, match=r"x\.png: damaged or unreadable image .* pixels"):
        image_folder(tmp_path, size)


def test_the_limit_of_pixels_is_that_of_pillow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "x.png", pixels(0, 4, 5))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 19)
    monkeypatch.setattr(Image, "_decompression_bomb_check", lambda _: None)
    with pytest.raises(ValueError, match=r"x\.png: images must have at most 19 pixels, got 5 x 4"):
        image_folder(tmp_path)


@pytest.mark.parametrize("kind", ["GIF", "PCX", "SGI"])
def test_what_is_another_kind_of_file_than_its_name_says_is_refused(
    kind: str, tmp_path: Path
) -> None:
    """Pillow would read dozens of kinds, some by starting other programs."""
    Image.fromarray(pixels(0, 4, 5)).save(tmp_path / "x.png", format=kind)
    with pytest.raises(ValueError, match=r"x\.png: damaged or unreadable image .*identify"):
        image_folder(tmp_path)


def test_folders_may_be_deeper_than_pythons_stack(tmp_path: Path) -> None:
    folders = [tmp_path]
    for _ in range(1100):
        folders.append(folders[-1] / "a")
        os.mkdir(folders[-1])
    found = folders[-1] / "x.png"
    try:
        written = write(found, pixels(0, 4, 5))
        assert torch.equal(image_folder(tmp_path, channels=None)[0], written)
    finally:
        found.unlink()
        for folder in reversed(folders[1:]):  # rmtree would need the stack
            folder.rmdir()


def test_a_lack_of_memory_names_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    write(tmp_path / "x.png", pixels(0, 4, 5))
    monkeypatch.setattr(np, "empty", fail)
    with pytest.raises(MemoryError, match=f"{tmp_path}: there is not enough memory"):
        image_folder(tmp_path)
