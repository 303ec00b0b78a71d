"""Arrays from files: formats and dtypes that are read, and what is refused."""

from __future__ import annotations

import os
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import fastmsgm
from fastmsgm import data, nets

FIXTURE = Path(__file__).parent / "fashion_fixture.safetensors"


@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f4", "<f8"])
def test_load_npy(dtype: str, tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(size=(4, 2, 3)).astype(dtype)
    np.save(tmp_path / "x.npy", array)
    x = data.load(tmp_path / "x.npy")
    assert x.dtype == torch.float32
    assert torch.equal(x, torch.from_numpy(array.astype(np.float32)))
    np.save(tmp_path / "x.npy", np.asfortranarray(array))
    assert data.load(str(tmp_path / "x.npy")).is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_load_safetensors(dtype: torch.dtype, tmp_path: Path) -> None:
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    save_file({"anything": x}, tmp_path / "x.safetensors")
    assert torch.equal(data.load(tmp_path / "x.safetensors"), x.float())


@pytest.mark.parametrize("compressed", [False, True])
def test_load_npz(compressed: bool, tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(size=(4, 2, 3)).astype(np.float32)
    (np.savez_compressed if compressed else np.savez)(tmp_path / "x.npz", any_name=array)
    assert torch.equal(data.load(tmp_path / "x.npz"), torch.from_numpy(array))


def test_load_npz_takes_arr_0_of_several(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", np.ones((4, 3)), np.zeros(4), labels=np.zeros(4))
    assert torch.equal(data.load(tmp_path / "x.npz"), torch.ones(4, 3))


def write(path: Path, array: np.ndarray[Any, Any]) -> None:
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".npz":
        np.savez(path, array)
    else:
        save_file({"x": torch.from_numpy(array)}, path)


@pytest.mark.parametrize("suffix", ["npy", "npz", "safetensors"])
@pytest.mark.parametrize(
    ("shape", "channels_last"),
    [
        ((9, 3, 5, 7), False),
        ((9, 5, 7, 3), True),
        ((9, 5, 7, 1), True),
        ((9, 1, 5, 7), False),
        ((9, 6, 8, 7), False),
        ((9, 3, 3, 3), False),
    ],
)
def test_images_of_bytes_stay_bytes(
    shape: tuple[int, ...],
    channels_last: bool,
    suffix: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fastmsgm.data.files._BLOCK", 250)  # several blocks of images
    array = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
    write(tmp_path / f"x.{suffix}", array)
    images = data.load(tmp_path / f"x.{suffix}")
    expected = torch.from_numpy(array)
    assert images.dtype == torch.uint8
    assert images.is_contiguous()
    assert torch.equal(images, expected.movedim(-1, 1) if channels_last else expected)


@pytest.mark.parametrize(
    ("shape", "channels_last"),
    [((9, 5, 7, 3), True), ((9, 5, 7, 1), True), ((9, 3, 5, 7), False), ((9, 1, 7, 3), False)],
)
def test_channels_of_floats_are_moved_in_an_npz_alone(
    shape: tuple[int, ...], channels_last: bool, tmp_path: Path
) -> None:
    array = np.random.default_rng(0).random(shape, np.float32)
    expected = torch.from_numpy(array)
    for suffix in ("npy", "safetensors"):
        write(tmp_path / f"x.{suffix}", array)
        assert torch.equal(data.load(tmp_path / f"x.{suffix}"), expected)
    write(tmp_path / "x.npz", array)
    images = data.load(tmp_path / "x.npz")
    assert images.is_contiguous()
    assert torch.equal(images, expected.movedim(-1, 1) if channels_last else expected)


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
@pytest.mark.parametrize("channels", [1, 3])
def test_samples_in_an_npz_are_read_as_they_were_written(
    channels: int, dtype: str, tmp_path: Path
) -> None:
    x = torch.rand(6, channels, 4, 8, generator=torch.Generator().manual_seed(0))
    model = fastmsgm.GBMModel.for_data(
        nets.UNet(channels, 8, 8, 1, 1), fastmsgm.GBM(5.0), x, offset=1.0, bounds=(0.0, 1.0)
    )
    path = tmp_path / "x.npz"
    samples = fastmsgm.sample(model, 3, steps=1, out=path, dtype=dtype, progress=False)
    assert torch.equal(data.load(path), samples)


def test_the_file_stays_as_it_is(tmp_path: Path) -> None:
    x = torch.arange(2 * 5 * 7 * 3, dtype=torch.uint8).reshape(2, 5, 7, 3)
    save_file({"x": x}, tmp_path / "x.safetensors")
    data.load(tmp_path / "x.safetensors")
    assert torch.equal(load_file(tmp_path / "x.safetensors")["x"], x)


@pytest.mark.parametrize("name", ["", "fashion", "x.pt", "folder/x"])
def test_load_refuses_an_unknown_name(name: str) -> None:
    with pytest.raises(
        ValueError,
        match=rf"fashion-mnist, mnist, kmnist, cifar-10, .*\.npy, .* or \.nc .*folder.*'{name}'",
    ):
        data.load(name)


@pytest.mark.parametrize("suffix", ["npy", "npz", "safetensors"])
def test_load_names_an_absent_file(suffix: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"there is no file .*x\.{suffix}"):
        data.load(tmp_path / f"x.{suffix}")


@pytest.mark.parametrize("name", ["fashion-mnist", "x.npy"])
def test_load_refuses_a_size_for_what_is_no_folder(name: str) -> None:
    with pytest.raises(ValueError, match=f"size is for folders of images, got '{name}'"):
        data.load(name, size=32)


@pytest.mark.parametrize(
    ("array", "error", "message"),
    [
        (
            np.zeros((2, 28, 28), np.uint8),
            ValueError,
            r"uint8 must be images \(n, c, h, w\) or .*, got \(2, 28, 28\): add the axis",
        ),
        (np.zeros((2, 0, 2, 2), np.uint8), ValueError, r"got \(2, 0, 2, 2\)"),
        (np.zeros((2, 3), np.int16), TypeError, r"got torch\.int16: convert it to float32"),
        (np.zeros((2, 3), bool), TypeError, r"got torch\.bool: convert it to float32"),
        (np.zeros((2, 3), np.int64), TypeError, r"got torch\.int64: convert it to float32"),
        (np.zeros((2, 3), np.complex64), TypeError, r"got torch\.complex64"),
        (np.array([["a"]]), TypeError, "got <U1: convert it to float32"),
        (np.zeros(3), ValueError, r"shape \(n, \.\.\.\) with n >= 1 and features, got \(3,\)"),
        (np.zeros((0, 3)), ValueError, r"got \(0, 3\)"),
        (
            np.array([[0, 1], [np.nan, 0], [0, -np.inf]]),
            ValueError,
            r"in 2 of 3 samples, the first is sample 1: remove",
        ),
        (np.array([[1e300, 1]]), ValueError, "finite in float32, .* in 1 of 1 samples"),
    ],
)
def test_load_npy_refuses(
    array: np.ndarray[Any, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(error, match=rf"x\.npy: .*{message}"):
        data.load(tmp_path / "x.npy")


def test_load_never_unpickles(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([[object()]]), allow_pickle=True)
    np.savez(tmp_path / "x.npz", np.array([[object()]]), allow_pickle=True)
    for name in ("x.npy", "x.npz"):
        with pytest.raises(ValueError, match=rf"{name}: damaged .*it holds Python objects"):
            data.load(tmp_path / name)


@pytest.mark.parametrize("suffix", ["npy", "npz", "safetensors"])
@pytest.mark.parametrize(
    "raw", [b"", b"not an array, but long enough to have a header of sixty-four bytes or so"]
)
def test_load_refuses_a_damaged_file(suffix: str, raw: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(raw)
    with pytest.raises(
        ValueError, match=rf"x\.{suffix}: damaged \.{suffix} file .*: write it with"
    ):
        data.load(path)


def test_load_refuses_a_truncated_npy(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.zeros((20, 3)))
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"x\.npy: damaged .*promises .* 480 bytes, got 472"):
        data.load(path)


@pytest.mark.parametrize("compressed", [False, True])
def test_load_refuses_a_damaged_npz(compressed: bool, tmp_path: Path) -> None:
    path, array = tmp_path / "x.npz", np.random.default_rng(0).normal(size=(200, 3))
    (np.savez_compressed if compressed else np.savez)(path, array)
    raw = bytearray(path.read_bytes())
    raw[1000] ^= 255
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=r"x\.npz: damaged \.npz file"):
        data.load(path)


def test_load_refuses_several_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", images=np.ones((4, 3)), labels=np.zeros(4))
    with pytest.raises(ValueError, match=r"one named arr_0, got 2: images\.npy, labels\.npy"):
        data.load(tmp_path / "x.npz")


def test_load_refuses_several_tensors() -> None:
    with pytest.raises(ValueError, match="one tensor, got 2: images, labels"):
        data.load(FIXTURE)


# ---- hostile files ----


def npy(header: str, data: bytes = b"") -> bytes:
    """Return a .npy file with any text as its header."""
    text = header.encode("latin1")
    return b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text + data


def header(shape: str, descr: str = "<f4", fortran: str = "False") -> str:
    return f"{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}\n"


@pytest.mark.parametrize("shape", ["(1000000000000,)", "(-1, 4)", "(4, 1)", f"({10**30}, 2)"])
@pytest.mark.parametrize("descr", ["<f4", "<f8"])
def test_a_header_that_promises_other_numbers_is_refused(
    shape: str, descr: str, tmp_path: Path
) -> None:
    """Before memory is taken for them."""
    (tmp_path / "x.npy").write_bytes(npy(header(shape, descr), bytes(8)))
    with pytest.raises(ValueError, match=r"x\.npy: damaged .*promises .* bytes, got 8"):
        data.load(tmp_path / "x.npy")


@pytest.mark.parametrize(
    "text",
    [
        "-" * 900 + "1",
        "-" * 9000 + "1",
        "(" * 900,
        "f" + "(x)" * 300,
        "'",
        "'''",
        "{**{}}",
        "\0",
        header("(2, 1)", descr="9" * 50),
        header("(2, 1)", fortran="1L"),
        header(f"({'1' * 900},)"),
    ],
)
def test_a_header_that_is_no_header_is_a_damaged_file(text: str, tmp_path: Path) -> None:
    """It is a Python expression: parsers end in errors of many kinds."""
    (tmp_path / "x.npy").write_bytes(npy(text, bytes(8)))
    with pytest.raises(ValueError, match=r"x\.npy: damaged \.npy file") as caught:
        data.load(tmp_path / "x.npy")
    assert caught.type is ValueError


def test_a_header_of_a_length_that_is_not_there_is_refused(tmp_path: Path) -> None:
    raw = b"\x93NUMPY\2\0" + (2**32 - 1).to_bytes(4, "little")
    (tmp_path / "x.npy").write_bytes(raw + bytes(2000))
    with pytest.raises(ValueError, match=r"x\.npy: damaged"):
        data.load(tmp_path / "x.npy")


@pytest.mark.parametrize("descr", ["<U500000000", "V2000000000", "f4,f4", "(9,)f4", "<M8[ns]"])
def test_an_array_of_something_else_than_numbers_is_refused(descr: str, tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(npy(header("(2, 1)", descr), bytes(8)))
    with pytest.raises(TypeError, match=r"x\.npy: data must be of floating point, got"):
        data.load(tmp_path / "x.npy")


def test_bytes_after_the_array_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(npy(header("(2, 1)"), bytes(9)))
    with pytest.raises(ValueError, match=r"x\.npy: damaged .*promises .* 8 bytes, got 9"):
        data.load(tmp_path / "x.npy")


def test_a_size_that_deflate_cannot_reach_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez_compressed(path, np.zeros((10, 3)))
    raw = bytearray(path.read_bytes())
    at = raw.rindex(b"PK\1\2") + 24
    raw[at : at + 4] = (2**31).to_bytes(4, "little")
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=r"x\.npz: damaged .*promises 2147483648 bytes"):
        data.load(path)


def test_an_npz_that_numpy_does_not_write_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("arr_0.npy", npy(header("(2, 1)"), bytes(8)))
    with pytest.raises(ValueError, match=r"x\.npz: .*compressed in another way.*savez"):
        data.load(tmp_path / "x.npz")


def test_names_in_a_file_cannot_fill_or_control_the_terminal(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        for name in ("\x1b[31m", "a" * 1000):
            archive.writestr(name, b"")
    with pytest.raises(ValueError, match="with one array") as caught:
        data.load(tmp_path / "x.npz")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < len(str(tmp_path)) + 400


@pytest.mark.parametrize("suffix", ["npy", "npz", "safetensors"])
def test_what_was_loaded_stays_when_the_file_is_changed(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.{suffix}"
    write(path, np.ones((5000, 3), np.float32))
    x = data.load(path)
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
        file.truncate(10)
    assert torch.equal(x, torch.ones(5000, 3))


def test_an_error_of_the_system_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    write(tmp_path / "x.npy", np.ones((5, 3)))
    monkeypatch.setattr("fastmsgm.data.reading.read_exactly", fail)
    with pytest.raises(OSError, match=r"Input/output error: .*x\.npy") as caught:
        data.load(tmp_path / "x.npy")
    assert caught.value.errno == 5


def test_a_lack_of_memory_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    write(tmp_path / "x.npy", np.ones((5, 3)))
    monkeypatch.setattr(np, "empty", fail)
    with pytest.raises(MemoryError, match=r"x\.npy: there is not enough memory"):
        data.load(tmp_path / "x.npy")


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are bytes on Linux alone")
@pytest.mark.parametrize("suffix", ["npy", "npz", "safetensors"])
def test_a_name_that_is_no_text_can_be_read(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"{os.fsdecode(bytes([255]))}.{suffix}"
    write(tmp_path / f"x.{suffix}", np.ones((5, 3), np.float32))
    (tmp_path / f"x.{suffix}").rename(path)
    assert torch.equal(data.load(path), torch.ones(5, 3))
