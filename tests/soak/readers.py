"""What is fuzzed: every kind of file, with an original, its damage and its reader."""

from __future__ import annotations

import contextlib
import gzip
import logging
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

import fastmsgm
from fastmsgm import data, nets
from fastmsgm.data.images import read_idx
from fastmsgm.output.verification import merge, verify
from fastmsgm.tensors import DamagedFileError, load_tensors, save_tensors
from fastmsgm.tools.arguments import read_classes, read_condition
from fastmsgm.training.training_run import STATE, TrainingRun
from tests.soak import mutations

Damage = Callable[[bytes, Random, bytes], bytes]
FILE = (ValueError, TypeError, OSError)  # what a reader of other people's files may raise


@dataclass(frozen=True)
class Reader:
    """A kind of file, and how it is read.

    Args:
        name: In the report.
        target: The file that is damaged.
        read: Reads ``target``, or its folder, and checks that what it read is well-formed.
        sealing: Damage that keeps checksums right, where the format has one.
        errors: What may be raised; also ``FileNotFoundError`` and the like for OSError.
        named: What every message must contain.
        sealed: Whether a checksum covers the whole file: then what loads after blind damage must be
            equal to the original.
        others: Files from which blocks are spliced in.
    """

    name: str
    target: Path
    read: Callable[[Path], Any]
    sealing: tuple[Damage, ...] = ()
    errors: tuple[type[Exception], ...] = FILE
    named: str = ""
    sealed: bool = False
    others: list[bytes] = field(default_factory=list)


def readers(folder: Path) -> list[Reader]:
    """Write an original of every kind of file into a folder, and return the readers."""
    logging.getLogger("fastmsgm").setLevel(logging.CRITICAL)
    found = [*_arrays(folder), *_images(folder), *_checkpoints(folder), _training(folder)]
    found += [*_samples(folder), *_unfinished(folder)]
    originals = [reader.target.read_bytes() for reader in found]
    for reader in found:
        reader.others[:] = originals
    return found


# ---- data ----


def _arrays(folder: Path) -> list[Reader]:
    random = np.random.default_rng(0)
    vectors = random.lognormal(size=(4, 3)).astype(np.float32)
    pictures = random.integers(256, size=(2, 4, 4, 3), dtype=np.uint8)
    np.save(folder / "x.npy", vectors)
    np.save(folder / "bytes.npy", pictures)
    np.save(folder / "fortran.npy", np.asfortranarray(vectors))
    np.savez(folder / "stored.npz", vectors)
    np.savez_compressed(folder / "deflated.npz", pictures)
    save_file({"x": torch.from_numpy(vectors)}, folder / "x.safetensors")
    np.save(folder / "classes.npy", np.arange(5))
    save_tensors(folder / "sealed.safetensors", {"x": torch.from_numpy(vectors)}, {"a": "1"})
    shape = struct.pack(">3I", 2, 4, 4)
    raw = b"\0\0\x08\3" + shape + pictures[:, :, :, 0].tobytes()
    (folder / "idx.gz").write_bytes(gzip.compress(raw, mtime=0))
    original = load_tensors(folder / "sealed.safetensors")

    def tensors(path: Path) -> Any:
        read = load_tensors(path)
        return read, read[1] == original[1] and _equal(read[0], original[0])

    def classes(path: Path) -> None:
        _check(read_classes("--label", str(path)), torch.int64)

    def condition(path: Path) -> None:
        read_condition(str(path))

    def idx(path: Path) -> None:
        _check(read_idx(path), torch.uint8)

    npy, npz = (mutations.damage_npy,), (mutations.damage_npz,)
    safetensors = (mutations.damage_safetensors,)
    return [
        Reader("npy of floats", folder / "x.npy", _load, npy),
        Reader("npy of bytes", folder / "bytes.npy", _load, npy),
        Reader("npy in Fortran order", folder / "fortran.npy", _load, npy),
        Reader("npz, stored", folder / "stored.npz", _load, npz),
        Reader("npz, deflated", folder / "deflated.npz", _load, npz),
        Reader("safetensors of data", folder / "x.safetensors", _load, safetensors),
        Reader("npy of classes", folder / "classes.npy", classes, npy),
        Reader("npy of a condition", folder / "x.npy", condition, npy),
        Reader("gzipped IDX", folder / "idx.gz", idx, (mutations.damage_gzip,)),
        Reader(
            "tensors of ours",
            folder / "sealed.safetensors",
            tensors,
            safetensors,
            errors=(DamagedFileError, OSError),
            sealed=True,
        ),
    ]


def _load(path: Path) -> None:
    _check(data.load(path), torch.float32, torch.uint8)


def _check(x: Tensor, *dtypes: torch.dtype) -> None:
    assert x.dtype in dtypes, x.dtype
    assert x.is_contiguous()
    assert x.numel() <= 2**20
    assert torch.isfinite(x).all()


def _images(folder: Path) -> list[Reader]:
    """Return a reader for each kind of image, each alone in a folder."""
    pixels = np.random.default_rng(1).integers(256, size=(6, 5, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    kinds: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "png": (picture, {}),
        "palette.png": (picture.convert("P"), {}),
        "jpg": (picture, {"exif": _exif()}),
        "bmp": (picture, {}),
        "ppm": (picture, {}),
        "tiff": (picture, {}),
        "lzw.tiff": (picture, {"compression": "tiff_lzw"}),
        "webp": (picture, {"lossless": True}),
    }
    found = []
    for kind, (image, options) in kinds.items():
        path = folder / f"images-{kind}" / f"x.{kind}"
        path.parent.mkdir()
        image.save(path, **options)
        sealing = (mutations.damage_png,) if kind.endswith("png") else ()
        found.append(Reader(f"image, {kind}", path, _image_folder, sealing, named=path.parent.name))
    return found


def _exif() -> Image.Exif:
    exif = Image.Exif()
    exif[274] = 6  # turned
    return exif


def _image_folder(path: Path) -> None:
    images = data.load(path.parent, size=4)
    assert tuple(images.shape) in ((1, 1, 4, 4), (1, 3, 4, 4)), images.shape
    _check(images, torch.uint8)


# ---- checkpoints ----


def _checkpoints(folder: Path) -> list[Reader]:
    found: list[Reader] = []
    for name, model in _models().items():
        path = folder / f"model-{name}"
        model.save(path)
        found.append(_checkpoint(name, path))
    config = replace(found[0], name="config.json", target=found[0].target.with_name("config.json"))
    # It is a copy: whatever happens to it, the model loads.
    return [*found, replace(config, sealing=(_damage_config,), errors=())]


def _damage_config(raw: bytes, random: Random, other: bytes) -> bytes:
    return mutations.damage_json(raw.decode(), random).encode("utf-8", "surrogatepass")


def _models() -> dict[str, fastmsgm.ScoreModel]:
    torch.manual_seed(0)
    x = torch.rand(20, 3) + 0.5
    images = torch.rand(8, 1, 4, 4)
    own = {"log_norm": 1}
    mlp = nets.MLP(3, 8, 1, condition={"site": 2}, classes=2)
    labels = torch.arange(20) % 2
    return {
        "gbm": fastmsgm.GBMModel.for_data(mlp, fastmsgm.GBM(5.0), x, labels=labels, classes=2),
        "gbm of images": fastmsgm.GBMModel.for_data(
            nets.UNet(1, 8, 8, 1, 1, levels=2),
            fastmsgm.GBM(5.0),
            images,
            offset=1.0,
            bounds=(0.0, 1.0),
        ),
        "rotation": fastmsgm.RotationModel.for_data(
            nets.MLP(3, 8, 1, condition=own), fastmsgm.Rotation(), x, pareto=0.1
        ),
        "ring": fastmsgm.RotationModel.for_data(
            nets.MLP(3, 8, 1, condition=own), fastmsgm.Rotation(noise="ring"), x
        ),
        "dense": fastmsgm.RotationModel.for_data(
            nets.MLP(3, 8, 1, condition=own), fastmsgm.Rotation(noise="dense"), x
        ),
        "vp": fastmsgm.VPModel.for_data(nets.MLP(3, 8, 1), fastmsgm.VP(), x),
    }


def _checkpoint(name: str, path: Path) -> Reader:
    original = fastmsgm.load(path)
    weights, shown = original.state_dict(), repr(original)

    def read(target: Path) -> Any:
        model = fastmsgm.load(target.parent)
        assert 0 < math.prod(model.shape) <= 2**20, f"{target.parent}: shape {model.shape}"
        assert all(isinstance(v, Tensor) for v in model.state_dict().values())
        return model, repr(model) == shown and _equal(model.state_dict(), weights)

    return Reader(
        f"model, {name}",
        path / "model.safetensors",
        read,
        (mutations.damage_safetensors,),
        errors=(ValueError, OSError),
        named=path.name,
        sealed=True,
    )


def _training(folder: Path) -> Reader:
    """Return a reader of a state of training; the network keeps what the last case left in it."""
    path = folder / "run"
    x = torch.rand(20, 3) + 0.5
    model = fastmsgm.GBMModel.for_data(nets.MLP(3, 8, 1), fastmsgm.GBM(5.0), x)
    settings = {"ema": 0.9, "steps": 4, "seed": 0, "data": {"shape": [20, 3]}}

    def optimizer() -> torch.optim.Optimizer:
        return torch.optim.Adam(model.net.parameters())

    run = TrainingRun(model, optimizer(), settings, None)
    run.out = path
    path.mkdir()
    model.net(torch.randn(2, 3), torch.zeros(2)).sum().backward()
    run.optimizer.step()
    run.step, run.losses = 2, [1.0, 0.5]
    run.save()
    for other in path.iterdir():
        if other.name != STATE:
            other.unlink()

    def state(of: TrainingRun) -> dict[str, Any]:
        moments = of.optimizer.state_dict()["state"]
        return {
            **{f"net.{k}": v.clone() for k, v in model.net.state_dict().items()},
            **{f"average.{k}": v.clone() for k, v in of.average.state_dict().items()},
            **{
                f"{i}.{k}": torch.as_tensor(v).clone()
                for i in moments
                for k, v in moments[i].items()
            },
        }

    original = state(run)

    def read(target: Path) -> Any:
        resumed = TrainingRun(model, optimizer(), settings, target.parent)
        assert 0 <= resumed.step <= 4
        assert len(resumed.losses) == resumed.step
        same = resumed.step == 2 and resumed.losses == [1.0, 0.5]
        return resumed, same and _equal(state(resumed), original)

    return Reader(
        "training state",
        path / STATE,
        read,
        (mutations.damage_safetensors,),
        errors=(ValueError, OSError),
        named=path.name,
        sealed=True,
    )


# ---- samples ----


def _sampler() -> fastmsgm.ScoreModel:
    torch.manual_seed(0)
    return fastmsgm.GBMModel.for_data(nets.MLP(3, 8, 1), fastmsgm.GBM(5.0), torch.rand(20, 3) + 0.5)


def _sample(model: fastmsgm.ScoreModel, out: Path, **options: Any) -> Tensor:
    options = {"steps": 1, "batch_size": 2, "progress": False, **options}
    return fastmsgm.sample(model, 5, out=out, **options)


def _samples(folder: Path) -> list[Reader]:
    """Return readers of finished samples, and of their manifest."""
    found = []
    for suffix in ("npy", "npz"):
        path = folder / "samples" / f"x.{suffix}"
        _sample(_sampler(), path)
        original = path.read_bytes()

        def read(_: Path, path: Path = path, original: bytes = original) -> Any:
            manifest = verify(path)
            return manifest, path.read_bytes() == original

        errors = (ValueError, DamagedFileError, OSError)
        found.append(Reader(f"samples, {suffix}", path, read, errors=errors, sealed=True))
        if suffix == "npy":
            manifest = path.with_name(f"{path.name}.json")
            damage = (mutations.damage_manifest,)
            found.append(Reader("manifest", manifest, read, damage, errors, path.name))
    return found


def _unfinished(folder: Path) -> list[Reader]:
    """Return readers that complete samples."""
    model = _sampler()
    expected = _sample(model, folder / "whole.npy").clone()
    path, parts = folder / "stopped" / "x.npy", folder / "parts" / "x.npy"
    calls = 0

    def stop(_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:  # in the second of three chunks
            raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        _sample(model, path, callback=stop)
    _sample(model, parts, shard="0/1")

    def resume(_: Path) -> Any:
        samples = _sample(model, path)
        return samples, torch.equal(samples, expected)

    def complete(_: Path) -> Any:
        samples = merge(parts)
        return samples, torch.equal(samples, expected)

    errors, damage = (ValueError, DamagedFileError, OSError), (mutations.damage_manifest,)
    resumed = Reader(
        "journal, resumed",
        path.with_name("x.npy.partial.json"),
        _anew(path.parent, resume),
        damage,
        errors,
        path.name,
        sealed=True,
    )
    merged = replace(
        resumed,
        name="journal, merged",
        target=parts.with_name("x.npy.partial.0-of-1.json"),
        read=_anew(parts.parent, complete),
        errors=(*errors, RuntimeError),
    )
    partial = path.with_name("x.npy.partial")
    return [
        resumed,
        replace(resumed, name="partial, resumed", target=partial, sealing=()),
        merged,
        replace(merged, name="partial, merged", target=parts.with_name(partial.name), sealing=()),
    ]


def _anew(folder: Path, read: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """Return a reader that first restores the other files of a folder, which it changes."""
    before = {file: file.read_bytes() for file in folder.iterdir()}

    def restored(target: Path) -> Any:
        damaged = target.read_bytes()
        for file in folder.iterdir():
            file.unlink()
        for file, content in {**before, target: damaged}.items():
            file.write_bytes(content)
        return read(target)

    return restored


def _equal(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
