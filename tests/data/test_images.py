"""Image data sets: the IDX reader on bytes written here, and a fake torchvision."""

from __future__ import annotations

import gzip
import hashlib
import struct
import sys
from pathlib import Path
from pickle import UnpicklingError
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fastmsgm import data
from fastmsgm.data import images as module
from fastmsgm.data.images import read_idx

FIXTURE = Path(__file__).parent / "fashion_fixture.safetensors"


def write_idx(path: Path, array: np.ndarray[Any, Any]) -> None:
    header = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes(), mtime=0))


@pytest.fixture
def debian(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like the Debian package's, with three training images and two test images."""
    monkeypatch.setattr(module, "DEBIAN_FASHION_MNIST", tmp_path)
    for prefix, n in (("train", 3), ("t10k", 2)):
        write_idx(
            tmp_path / f"{prefix}-images-idx3-ubyte.gz",
            np.arange(n * 784).reshape(n, 28, 28).astype(np.uint8),
        )
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte.gz", np.arange(n).astype(np.uint8))
    return tmp_path


@pytest.fixture
def no_debian(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(module, "DEBIAN_FASHION_MNIST", tmp_path / "absent")
    monkeypatch.setenv("FASTMSGM_CACHE", str(tmp_path / "cache"))
    return tmp_path


def fake_torchvision(monkeypatch: pytest.MonkeyPatch, **sets: Any) -> None:
    torchvision: Any = ModuleType("torchvision")
    torchvision.datasets = SimpleNamespace(**sets)
    monkeypatch.setitem(sys.modules, "torchvision", torchvision)


# ---- images ----


@pytest.mark.parametrize(("split", "n"), [("train", 3), ("test", 2)])
@pytest.mark.usefixtures("debian")
def test_fashion_mnist_from_debian(split: str, n: int) -> None:
    images, labels = data.fashion_mnist(split, labels=True)
    assert images.shape == (n, 1, 28, 28)
    assert images.dtype == torch.float32
    assert torch.equal(images.flatten(), (torch.arange(n * 784) % 256) / 255)
    assert labels.dtype == torch.int64
    assert labels.tolist() == list(range(n))
    assert torch.equal(data.fashion_mnist(split), images)


@pytest.mark.usefixtures("debian")
def test_load_of_a_name_gives_the_training_set() -> None:
    assert torch.equal(data.load("fashion-mnist"), data.fashion_mnist("train"))


@pytest.mark.parametrize("name", ["fashion_mnist", "mnist", "kmnist"])
def test_torchvision_grey(name: str, no_debian: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = torch.arange(2 * 784).reshape(2, 28, 28).to(torch.uint8)

    def dataset(root: Path, train: bool, download: bool) -> SimpleNamespace:
        assert (root, train, download) == (no_debian / "cache", False, True)
        return SimpleNamespace(data=raw, targets=torch.tensor([4, 1]))

    fake_torchvision(
        monkeypatch, **{{"fashion_mnist": "FashionMNIST"}.get(name, name.upper()): dataset}
    )
    images, labels = getattr(data, name)("test", labels=True)
    assert torch.equal(images, raw[:, None] / 255)
    assert labels.tolist() == [4, 1]


@pytest.mark.usefixtures("no_debian")
def test_torchvision_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = np.random.default_rng(0).integers(256, size=(2, 32, 32, 3), dtype=np.uint8)
    fake_torchvision(
        monkeypatch, CIFAR10=lambda *_, **__: SimpleNamespace(data=raw, targets=[7, 9])
    )
    images, labels = data.cifar10(labels=True)
    assert images.shape == (2, 3, 32, 32)
    assert images.is_contiguous()
    assert images[1, 2, 5, 9].item() == pytest.approx(raw[1, 5, 9, 2] / 255)
    assert labels.tolist() == [7, 9]
    assert torch.equal(data.load("cifar-10"), images)


@pytest.mark.usefixtures("no_debian")
def test_no_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(
        ImportError, match=r'torchvision is not installed: pip install "fastmsgm\[images\]"$'
    ):
        data.mnist()
    with pytest.raises(
        ImportError, match=r"absent does not exist.*fastmsgm\[images\].*apt install dataset-fashion"
    ):
        data.fashion_mnist()


@pytest.mark.usefixtures("no_debian")
@pytest.mark.parametrize("error", [RuntimeError("no mirror"), OSError("no route")])
def test_no_network(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def dataset(*_: object, **__: object) -> None:
        raise error

    fake_torchvision(monkeypatch, KMNIST=dataset, FashionMNIST=dataset)
    with pytest.raises(
        RuntimeError,
        match=r"KMNIST: torchvision could neither .*cache .*no (mirror|route).*network",
    ):
        data.kmnist()
    with pytest.raises(
        RuntimeError,
        match=r"absent does not exist.*network access.*apt install dataset-fashion-mnist",
    ):
        data.fashion_mnist()


@pytest.mark.usefixtures("no_debian")
@pytest.mark.parametrize("error", [AssertionError(), EOFError("x"), UnpicklingError("x")])
def test_damaged_files_of_torchvision(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def dataset(*_: object, **__: object) -> None:
        raise error

    fake_torchvision(monkeypatch, CIFAR10=dataset)
    with pytest.raises(ValueError, match=r"cache: the files of CIFAR10 are damaged .* remove them"):
        data.cifar10()


@pytest.fixture
def archives(no_debian: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of archives of a fake MNIST, whose unpacked files hold something else."""
    folder = no_debian / "cache" / "MNIST" / "raw"
    folder.mkdir(parents=True)
    names = [f"{s}-{k}" for s in ("train", "t10k") for k in ("images.gz", "labels.gz")]
    for number, name in enumerate(names):
        shape = (2, 28, 28) if "images" in name else (2,)
        write_idx(folder / name, np.full(shape, number, np.uint8))

    class MNIST:
        resources = tuple(
            (name, hashlib.md5((folder / name).read_bytes()).hexdigest()) for name in names
        )
        data, targets = torch.full((2, 28, 28), 255, dtype=torch.uint8), torch.tensor([9, 9])

        def __init__(self, *_: object, **__: object) -> None: ...

    fake_torchvision(monkeypatch, MNIST=MNIST)
    return folder


@pytest.mark.parametrize(("split", "first"), [("train", 0), ("test", 2)])
@pytest.mark.usefixtures("archives")
def test_archives_of_known_checksum_are_read(split: str, first: int) -> None:
    images, labels = data.mnist(split, labels=True)
    assert torch.equal(images, torch.full((2, 1, 28, 28), first / 255))
    assert labels.tolist() == [first + 1] * 2


@pytest.mark.parametrize("name", ["train-images.gz", "train-labels.gz"])
def test_an_archive_of_another_checksum_is_refused(name: str, archives: Path) -> None:
    raw = bytearray((archives / name).read_bytes())
    raw[8] ^= 1  # a flag of gzip, which no reader looks at
    (archives / name).write_bytes(raw)
    with pytest.raises(ValueError, match=rf"{name}: damaged file \(its checksum"):
        data.mnist()


@pytest.mark.parametrize("name", ["fashion_mnist", "mnist", "kmnist", "cifar10"])
def test_unknown_split(name: str) -> None:
    with pytest.raises(ValueError, match="split must be one of train, test, got 'valid'"):
        getattr(data, name)("valid")


def test_fixture_is_balanced() -> None:
    fixture = load_file(FIXTURE)
    assert fixture["images"].shape == (250, 1, 28, 28)
    assert fixture["images"].dtype == torch.uint8
    assert fixture["labels"].bincount().tolist() == [25] * 10


# ---- the IDX reader ----


def test_read_idx(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(256, size=(2, 3, 5, 7), dtype=np.uint8)
    write_idx(tmp_path / "a.gz", array)
    assert torch.equal(read_idx(tmp_path / "a.gz"), torch.from_numpy(array))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"plain", "damaged gzip"),
        (
            gzip.compress(b"\0\0\x08\x01\0\0\0\xc8" + bytes(range(200)), mtime=0)[:-20],
            "damaged gzip",
        ),
        (
            gzip.compress(b"\0\0\x0d\x01\0\0\0\x01\0\0\0\0", mtime=0),
            "not an IDX file of unsigned bytes .* 00 00 0d 01",
        ),
        (gzip.compress(b"\0\0", mtime=0), "not an IDX file"),
        (gzip.compress(b"\0\0\x08\x02\0\0\0\x01", mtime=0), "not an IDX file"),
        (gzip.compress(b"\0\0\x08\x01\0\0\0\x03ab", mtime=0), "3 bytes .*, got 2"),
        (gzip.compress(b"\0\0\x08\x01\0\0\0\x01ab", mtime=0), "1 bytes .*, got more"),
        (
            gzip.compress(b"\0\0\x08\x02\xff\xff\xff\xff\xff\xff\xff\xff", mtime=0),
            "promises 18446744065119617025 bytes",
        ),
    ],
)
def test_read_idx_refuses(raw: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=f"a.gz: .*{message}"):
        read_idx(path)
