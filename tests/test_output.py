"""Where samples go: what tensors, files and folders hold, and what is refused."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastmsgm.output.chunks import Chunks
from fastmsgm.output.targets import Output, open_output, open_store
from fastmsgm.processes import Processes

Image = pytest.importorskip("PIL.Image")

IMAGES, VECTORS = (3, 5, 4), (7,)
BOUNDS = (-1.0, 3.0)
SETTINGS = {"seed": 3, "solver": "Heun()", "threads": 1}


def data(shape: tuple[int, ...], n: int = 10) -> Tensor:
    """Return samples with every level of BOUNDS and what lies between and beyond."""
    low, high = BOUNDS
    x = torch.rand(n, *shape, generator=torch.Generator().manual_seed(0))
    x = low + (high - low) * (1.1 * x - 0.05)
    x[0].flatten()[:2] = torch.tensor(BOUNDS)
    return x


def levels(x: Tensor) -> Tensor:
    """Return round(255 (x - low) / (high - low)), computed in float64."""
    low, high = BOUNDS
    return (255 * (x.double() - low) / (high - low)).round().clamp(0, 255).to(torch.uint8)


def opened(
    out: Any,
    shape: tuple[int, ...] = IMAGES,
    n: int = 10,
    *,
    size: int = 4,
    start: int = 0,
    dtype: str = "float32",
    bounds: tuple[float, float] | None = BOUNDS,
    device: str = "cpu",
    settings: dict[str, Any] = SETTINGS,
    processes: Processes | None = None,
    shard: tuple[int, int] | None = None,
) -> Output:
    if isinstance(out, (str, Path)):
        out, dtype = open_store(out, n, shape, start=start, dtype=dtype, bounds=bounds)
    return open_output(
        out,
        Chunks(start, n, size, start),
        shape,
        device=torch.device(device),
        dtype=dtype,
        bounds=bounds,
        settings=lambda: settings,
        processes=processes or Processes(),
        shard=shard,
    )


def write(output: Output, x: Tensor, chunks: int = 1000, size: int = 4) -> None:
    """Write chunks of x that are to do, so many at most."""
    for chunk in output.target.todo[:chunks]:
        output.write(chunk, x[size * chunk : size * (chunk + 1)])


def written(out: Any, x: Tensor, **options: Any) -> Tensor:
    """Return the result of writing x in three chunks."""
    output = opened(out, tuple(x.shape[1:]), len(x), **options)
    write(output, x)
    return output.target.finished()


def everything(folder: Path) -> dict[str, bytes]:
    """Return the contents of all files, by their names below the folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(params=[IMAGES, VECTORS], ids=["images", "vectors"])
def x(request: pytest.FixtureRequest) -> Tensor:
    return data(request.param)


@pytest.fixture(params=["float32", "uint8"])
def dtype(request: pytest.FixtureRequest) -> str:
    return request.param


def expected(x: Tensor, dtype: str) -> Tensor:
    return x if dtype == "float32" else levels(x)


# ---- memory ----


def test_a_new_tensor(x: Tensor, dtype: str) -> None:
    result = written(None, x, dtype=dtype)
    assert result.dtype == getattr(torch, dtype)
    assert torch.equal(result, expected(x, dtype))


def test_a_new_tensor_is_on_the_device() -> None:
    assert opened(None, device="meta").target.finished().device.type == "meta"


def test_a_tensor_is_filled_and_returned(x: Tensor, dtype: str) -> None:
    out = torch.zeros(x.shape, dtype=getattr(torch, dtype))
    assert written(out, x, dtype=dtype) is out
    assert torch.equal(out, expected(x, dtype))


def test_an_array_is_filled_and_its_memory_returned(x: Tensor, dtype: str) -> None:
    out = np.zeros(x.shape, dtype)
    result = written(out, x, dtype=dtype)
    assert result.data_ptr() == out.ctypes.data
    np.testing.assert_array_equal(out, expected(x, dtype))


def test_chunks_go_to_their_position() -> None:
    x, out = data(VECTORS), torch.zeros(10, *VECTORS)
    opened(out, VECTORS).write(1, x[:4])
    assert torch.equal(out[4:8], x[:4])
    assert not out[:4].any()
    assert not out[8:].any()


def test_uint8_keeps_the_samples_it_is_given() -> None:
    x = data(VECTORS)
    before = x.clone()
    written(None, x, dtype="uint8")
    assert torch.equal(x, before)


def test_every_level_of_an_image_returns() -> None:
    low, high = BOUNDS
    every = torch.arange(256, dtype=torch.uint8).view(256, 1)
    result = written(None, low + (high - low) * (every.float() / 255), dtype="uint8")
    assert torch.equal(result, every)


# ---- .npy and .npz ----


@pytest.mark.parametrize("as_text", [False, True])
def test_npy(x: Tensor, dtype: str, as_text: bool, tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.npy"
    result = written(str(path) if as_text else path, x, dtype=dtype)
    stored = np.load(path)
    assert stored.dtype == dtype
    np.testing.assert_array_equal(stored, expected(x, dtype))
    assert torch.equal(result, expected(x, dtype))


@pytest.mark.parametrize("as_text", [False, True])
def test_npz(x: Tensor, dtype: str, as_text: bool, tmp_path: Path) -> None:
    """Images have their channels last in the file, and first in the result."""
    path = tmp_path / "new" / "x.npz"
    result = written(str(path) if as_text else path, x, dtype=dtype)
    wanted = expected(x, dtype)
    with np.load(path) as file:
        assert file.files == ["arr_0"]
        stored = file["arr_0"]
    assert stored.dtype == dtype
    np.testing.assert_array_equal(stored, wanted.movedim(1, -1) if x.ndim == 4 else wanted)
    assert result.shape == wanted.shape
    assert torch.equal(result, wanted)


def test_npz_is_a_sound_archive_without_compression(tmp_path: Path) -> None:
    written(tmp_path / "x.npz", data(IMAGES))
    with zipfile.ZipFile(tmp_path / "x.npz") as archive:
        assert archive.testzip() is None
        (info,) = archive.infolist()
        assert info.compress_type == zipfile.ZIP_STORED


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_the_tensor_of_a_file_is_a_map_whose_changes_stay_in_memory(
    name: str, tmp_path: Path
) -> None:
    x = data(VECTORS)
    result = written(tmp_path / name, x)
    assert result.data_ptr() % 64 == 0
    result.zero_()
    stored = np.load(tmp_path / name)
    np.testing.assert_array_equal(stored if name == "x.npy" else stored["arr_0"], x)


def test_an_npz_of_any_bytes_is_sound(tmp_path: Path) -> None:
    """Also where the samples end in what ends a zip archive."""
    end = np.frombuffer(b"PK\x05\x06" + bytes(18), np.uint8)
    x = torch.from_numpy(np.tile(end, (10, 1)).astype(np.float32) / 255)
    written(tmp_path / "x.npz", x, dtype="uint8", bounds=(0.0, 1.0))
    np.testing.assert_array_equal(np.load(tmp_path / "x.npz")["arr_0"], np.tile(end, (10, 1)))


def test_memory_does_not_grow_with_the_number_of_samples(tmp_path: Path) -> None:
    """Half a MiB at a time, in a process of its own; NumPy's and Python's memory."""
    code = f"""
        import tracemalloc, torch
        from pathlib import Path
        from tests.test_output import opened
        chunk, chunks = torch.zeros(8, 1, 256, 256), 20
        for name in ("x.npy", "x.npz", "folder"):
            output = opened(Path({str(tmp_path)!r}) / name, (1, 256, 256), 8 * chunks, size=8,
                            dtype="uint8")
            output.write(0, chunk)  # what is imported and allocated once
            tracemalloc.start()
            for i in range(1, chunks):
                output.write(i, chunk)
            print(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert all(int(peak) < 2**20 for peak in done.stdout.split())


# ---- PNGs ----


@pytest.mark.parametrize("channels", [1, 3])
def test_a_folder_holds_a_png_for_each_sample_named_by_its_index(
    channels: int, tmp_path: Path
) -> None:
    x, folder = data((channels, 5, 4)), tmp_path / "new" / "pictures"
    result = written(folder, x, start=123)
    names = [f"{i:06d}.png" for i in range(123, 133)]
    assert sorted(path.name for path in folder.iterdir()) == [*names, "samples.json"]
    for name, wanted in zip(names, levels(x), strict=True):
        with Image.open(folder / name) as picture:
            assert picture.mode == {1: "L", 3: "RGB"}[channels]
            got = torch.from_numpy(np.array(picture)).view(5, 4, channels).movedim(-1, 0)
        assert torch.equal(got, wanted)
    assert result.shape == (0, channels, 5, 4)


def test_indices_above_a_million_get_more_digits(tmp_path: Path) -> None:
    written(tmp_path / "folder", data(IMAGES, n=1), start=12_345_678)
    assert (tmp_path / "folder" / "12345678.png").exists()


def test_pngs_of_other_samples_stay_and_are_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "000003.png").write_bytes(b"mine")
    with caplog.at_level(logging.WARNING, "fastmsgm"):
        written(tmp_path, data(IMAGES), start=5)
    assert "holds 1 PNGs of other samples, which stay" in caplog.text
    assert (tmp_path / "000003.png").read_bytes() == b"mine"
    assert len(list(tmp_path.glob("*.png"))) == 11


def test_pngs_of_the_same_names_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "000007.png").write_bytes(b"mine")
    with pytest.raises(ValueError, match="holds pictures with the names of these samples"):
        written(tmp_path, data(IMAGES), start=5)
    assert everything(tmp_path) == {"000007.png": b"mine"}


def test_a_missing_pillow_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r'pip install "fastmsgm\[images\]"'):
        opened(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


# ---- what is refused ----


@pytest.mark.parametrize(
    ("out", "options", "error", "message"),
    [
        ([1.0], {}, TypeError, "out must be a tensor, an array or a path, got list"),
        (
            torch.empty(9, *IMAGES),
            {},
            ValueError,
            r"float32 of shape \(10, 3, 5, 4\), got torch\.float32 \(9, 3, 5, 4\)$",
        ),
        (
            np.empty((10, *IMAGES)),
            {},
            ValueError,
            r"out must be float32 of shape .*, got torch\.float64 \(10, 3, 5, 4\)$",
        ),
        (
            np.empty((10, *IMAGES), np.uint8),
            {},
            ValueError,
            r'out must be float32 .* got torch\.uint8 .*: dtype="uint8" fills it',
        ),
        (
            torch.empty(10, *IMAGES),
            {"dtype": "uint8"},
            ValueError,
            r'out must be uint8 .* got torch\.float32 .*: dtype="float32" fills it',
        ),
        (
            np.broadcast_to(np.float32(0), (10, *IMAGES)),
            {},
            ValueError,
            "out must be writable, got a read-only array",
        ),
        (
            torch.empty(1, *IMAGES).expand(10, *IMAGES),
            {},
            ValueError,
            r"out must have memory of its own for every sample, got an expanded tensor",
        ),
        (
            torch.empty(10, *IMAGES, requires_grad=True),
            {},
            ValueError,
            r"out must not require a gradient, got one that does: give out\.detach\(\)",
        ),
        (None, {"dtype": "uint8", "bounds": None}, ValueError, "finite bounds, got bounds=None"),
        (
            None,
            {"dtype": "uint8", "bounds": (0.0, float("inf"))},
            ValueError,
            r"finite bounds, got bounds=\(0\.0, inf\)",
        ),
    ],
)
def test_bad_arguments(
    out: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        opened(out, **options)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "x.txt",
            {},
            r"out must be a path that ends in \.npy or \.npz, or a folder for PNGs, .*x\.txt",
        ),
        ("folder", {"shape": VECTORS}, r"PNGs, which need samples of shape .* are \(7,\): give"),
        ("folder", {"shape": (2, 5, 4)}, r"PNGs, which need samples of shape .* are \(2, 5, 4\)"),
        ("folder", {"bounds": None}, "PNGs need a model with finite bounds, got bounds=None"),
        ("x.npz", {"dtype": "uint8", "bounds": None}, "finite bounds, got bounds=None"),
        ("x.npy", {"dtype": "uint8", "bounds": None}, "finite bounds, got bounds=None"),
    ],
)
def test_a_refused_path_is_not_made(
    name: str, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        opened(tmp_path / "new" / name, **options)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["", ".", "/", "..", "x/.."])
def test_a_path_without_a_name_is_refused(name: str) -> None:
    message = f"out must be a path that ends in the name of a file or folder, got {name!r}"
    with pytest.raises(ValueError, match=re.escape(message)):
        opened(name)


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_a_folder_is_no_file(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match=r"out must be a file where it ends in .* is a folder"):
        opened(tmp_path / name)


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "folder", "new/x.npy"])
def test_a_place_that_cannot_be_written_is_refused_at_once(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)  # root may all
    with pytest.raises(ValueError, match=r"out must be writable, got .*: no permission to write"):
        opened(tmp_path / name)


def test_a_folder_may_be_in_one_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    written(tmp_path / "folder", data(IMAGES))


@pytest.mark.parametrize("name", ["x.npy", "new/x.npz", "folder"])
def test_a_file_in_a_file_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("keep")
    with pytest.raises(ValueError, match=r"out must be in a folder, got .*notes' is a file"):
        opened(tmp_path / "notes" / name)


def test_a_file_without_suffix_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("keep")
    with pytest.raises(ValueError, match=r"a folder of PNGs, but '.*notes' is a file"):
        opened(tmp_path / "notes")
    assert (tmp_path / "notes").read_text() == "keep"
