"""Arrays from files: formats and dtypes that are read, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fastmsgm import data

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


@pytest.mark.parametrize("name", ["fashion", "x.npz", "x.pt", "folder/x"])
def test_load_refuses_an_unknown_name(name: str) -> None:
    with pytest.raises(
        ValueError,
        match=rf"fashion-mnist, mnist, kmnist, cifar-10, .*npy or \.safetensors.*'{name}'",
    ):
        data.load(name)


def test_load_names_an_absent_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no file .*x\.npy"):
        data.load(tmp_path / "x.npy")


@pytest.mark.parametrize(
    ("array", "error", "message"),
    [
        (
            np.zeros((2, 3), np.uint8),
            TypeError,
            "got uint8: if these are images, divide them by 255",
        ),
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
    with pytest.raises(ValueError, match=r"x\.npy: not a plain \.npy array .*allow_pickle"):
        data.load(tmp_path / "x.npy")


@pytest.mark.parametrize("suffix", ["npy", "safetensors"])
@pytest.mark.parametrize(
    "raw", [b"", b"not an array, but long enough to have a header of sixty-four bytes or so"]
)
def test_load_refuses_a_damaged_file(suffix: str, raw: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=r"not a plain \.npy array|damaged \.safetensors file"):
        data.load(path)


def test_load_refuses_a_truncated_npy(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.zeros((20, 3)))
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"not a plain \.npy array"):
        data.load(path)


def test_load_refuses_several_tensors() -> None:
    with pytest.raises(ValueError, match="one tensor, got 2: images, labels"):
        data.load(FIXTURE)
