"""Samples on their way to a file: resumed, verified, shared, and never overwritten."""

from __future__ import annotations

import functools
import json
import logging
import multiprocessing
import os
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fastmsgm
from fastmsgm import NonFiniteError
from fastmsgm.output import found, stream
from fastmsgm.output.journal import Journal
from fastmsgm.output.verification import merge, verify
from tests.test_output import IMAGES, SETTINGS, data, everything, opened, write, written

pytest.importorskip("PIL.Image")
pytestmark = pytest.mark.usefixtures("one_thread")

FILES = [("x.npy", "x.npy.json"), ("x.npz", "x.npz.json"), ("folder", "folder/samples.json")]
NAMES = [name for name, _ in FILES]


def settings(n: int = 10, **changes: Any) -> dict[str, Any]:
    described = {"n": n, "start": 0, "first": 0, "batch_size": 4, "shape": [3, 5, 4]}
    return SETTINGS | described | {"dtype": "float32"} | changes


def without_checksums(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text())
    return {k: v for k, v in content.items() if k not in ("chunks", "frame", "sha256")}


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """The journal is written after every chunk."""
    monkeypatch.setattr(stream, "JOURNAL_SECONDS", -1.0)


# ---- names, manifests ----


@pytest.mark.parametrize(("name", "manifest"), FILES)
def test_the_manifest(name: str, manifest: str, tmp_path: Path) -> None:
    written(tmp_path / name, data(IMAGES), settings=settings())
    assert without_checksums(tmp_path / manifest) == settings()
    assert len(json.loads((tmp_path / manifest).read_text())["chunks"]) == 3


@pytest.mark.parametrize(("name", "manifest"), FILES)
@pytest.mark.parametrize("stopped", [False, True])
def test_an_unfinished_run_has_neither_name_nor_manifest(
    name: str, manifest: str, stopped: bool, tmp_path: Path
) -> None:
    output = opened(tmp_path / name)
    write(output, data(IMAGES), chunks=2)
    if stopped:
        output.target.stopped()
    assert not (tmp_path / manifest).exists()
    assert not (tmp_path / name).is_file()
    with pytest.raises(ValueError, match="is not finished: run the same command again"):
        verify(tmp_path / name)


@pytest.mark.parametrize("name", NAMES)
def test_a_finished_run_leaves_nothing_else(name: str, tmp_path: Path) -> None:
    written(tmp_path / name, data(IMAGES))
    names = {path for path in everything(tmp_path) if not path.endswith(".png")}
    assert names <= {"x.npy", "x.npy.json", "x.npz", "x.npz.json", "folder/samples.json"}


@pytest.mark.parametrize("name", ["x.npy", "x.npz", None])
@pytest.mark.parametrize("count", [0, 4, 8])
def test_samples_of_an_unfinished_run(name: str | None, count: int, tmp_path: Path) -> None:
    x = data(IMAGES)
    output = opened(name and tmp_path / name)
    write(output, x, count // 4)
    samples = output.target.stopped()
    assert samples is not None
    assert torch.equal(samples, x[:count])


@pytest.mark.parametrize("name", NAMES)
def test_a_run_without_a_chunk_leaves_nothing(name: str, tmp_path: Path) -> None:
    opened(tmp_path / name).target.stopped()
    assert not everything(tmp_path)


# ---- resume ----


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [0, 1, 2, 3])
@pytest.mark.parametrize("stopped", [False, True])
def test_a_run_goes_on(name: str, count: int, stopped: bool, tmp_path: Path) -> None:
    """After it was stopped, and after it was killed, which lets go of its lock."""
    x = data(IMAGES)
    (tmp_path / "whole").mkdir()
    written(tmp_path / "whole" / name, x)
    output = opened(tmp_path / "killed" / name)
    write(output, x, count)
    if stopped:
        output.target.stopped()
    output.target._lock.release()  # pyright: ignore[reportAttributeAccessIssue]
    again = opened(tmp_path / "killed" / name)
    assert list(again.target.todo) == list(range(count, 3))
    write(again, x)
    again.target.finished()
    assert everything(tmp_path / "killed") == everything(tmp_path / "whole")


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_chunk_is_computed_again(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    x = data(IMAGES)
    output = opened(tmp_path / name)
    write(output, x, 2)
    output.target.stopped()
    damaged = tmp_path / (f"{name}.partial" if "." in name else "folder/000005.png")
    raw = bytearray(damaged.read_bytes())
    raw[len(raw) // 2 if "." in name else -1] ^= 1
    damaged.write_bytes(raw)
    again = opened(tmp_path / name)
    assert "1 of 2 finished chunks are damaged and not used" in caplog.text
    assert list(again.target.todo) == [1, 2]
    write(again, x)
    again.target.finished()
    shutil.rmtree(tmp_path / "whole", ignore_errors=True)
    written(tmp_path / "whole" / name, x)
    whole = everything(tmp_path / "whole")
    assert {k: v for k, v in everything(tmp_path).items() if not k.startswith("whole")} == whole


@pytest.mark.usefixtures("always")
def test_a_damaged_journal_costs_its_chunks(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = opened(tmp_path / "x.npy")
    write(output, data(IMAGES), 2)
    output.target.stopped()
    path = tmp_path / "x.npy.partial.json"
    path.write_text(path.read_text().replace("Heun", "Euler"))
    assert list(opened(tmp_path / "x.npy").target.todo) == [0, 1, 2]
    assert "its checksum is wrong): its chunks are computed again" in caplog.text


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("finished", [False, True])
def test_other_samples_are_refused(name: str, finished: bool, tmp_path: Path) -> None:
    """The message names what differs; nothing is changed."""
    output = opened(tmp_path / name)
    write(output, data(IMAGES), 3 if finished else 1)
    if finished:
        output.target.finished()
    else:
        output.target.stopped()
    before = everything(tmp_path)
    message = (
        r"out='.*' holds other samples, which differ in seed \(there 3, here 4\), guidance \(there "
        r"nothing, here 2\): give another name, or remove them"
    )
    with pytest.raises(ValueError, match=message):
        opened(tmp_path / name, settings=SETTINGS | {"seed": 4, "guidance": 2})
    assert everything(tmp_path) == before


def test_another_environment_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Samples then differ by rounding."""
    output = opened(tmp_path / "x.npy")
    write(output, data(IMAGES), 1)
    output.target.stopped()
    opened(tmp_path / "x.npy", settings=SETTINGS | {"threads": 2})
    assert "differs by rounding: threads (there 1, here 2)" in caplog.text


@pytest.mark.parametrize("name", NAMES)
def test_a_finished_run_is_not_computed_again(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    x = data(IMAGES)
    first = written(tmp_path / name, x)
    before = everything(tmp_path)
    with caplog.at_level(logging.INFO, "fastmsgm"):
        again = opened(tmp_path / name)
    assert "holds these samples already" in caplog.text
    assert not list(again.target.todo)
    assert torch.equal(again.target.finished(), first)
    assert everything(tmp_path) == before


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_a_file_of_the_users_is_not_overwritten(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(ValueError, match="is a file that this run did not write: give another"):
        opened(tmp_path / name)
    assert everything(tmp_path) == {name: b"mine"}


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_a_kill_before_the_manifest_costs_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = data(IMAGES)
    output = opened(tmp_path / name)
    write(output, x)
    with monkeypatch.context() as patch:
        patch.setattr(found, "_write_manifest", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            output.target.finished()
    assert (tmp_path / name).exists()
    output.target._lock.release()  # pyright: ignore[reportAttributeAccessIssue]
    assert torch.equal(opened(tmp_path / name).target.finished(), x)
    written(tmp_path / "whole" / name, x)
    assert (tmp_path / f"{name}.json").read_bytes() == (
        tmp_path / "whole" / f"{name}.json"
    ).read_bytes()


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_a_partial_file_that_was_renamed_is_not_complete(name: str, tmp_path: Path) -> None:
    output = opened(tmp_path / name)
    write(output, data(IMAGES), 2)
    output.target.stopped()
    (tmp_path / f"{name}.partial").rename(tmp_path / name)
    with pytest.raises(ValueError, match="is a file that this run did not write"):
        opened(tmp_path / name)
    assert not (tmp_path / f"{name}.json").exists()


@pytest.mark.parametrize("kind", ["file", "link", "dangling"])
def test_a_partial_file_of_the_users_stays(kind: str, tmp_path: Path) -> None:
    (tmp_path / "mine").write_bytes(b"mine")
    partial = tmp_path / "x.npy.partial"
    if kind == "file":
        partial.write_bytes(b"mine")
    else:
        partial.symlink_to(tmp_path / ("mine" if kind == "link" else "nothing"))
    with pytest.raises(ValueError, match=r"there is x\.npy\.partial, which this run did not write"):
        opened(tmp_path / "x.npy")
    assert (tmp_path / "mine").read_bytes() == b"mine"
    assert partial.is_symlink() == (kind != "file")
    assert not (tmp_path / "x.npy.partial.json").exists()


def test_a_manifest_of_the_users_stays(tmp_path: Path) -> None:
    (tmp_path / "x.npy.json").write_text("{}")
    with pytest.raises(ValueError, match=r"x\.npy\.json' is damaged or not a manifest"):
        opened(tmp_path / "x.npy")
    assert (tmp_path / "x.npy.json").read_text() == "{}"


@pytest.mark.parametrize("name", NAMES)
def test_a_finished_run_that_was_damaged_is_refused(name: str, tmp_path: Path) -> None:
    written(tmp_path / name, data(IMAGES))
    path = tmp_path / (name if "." in name else "folder/000003.png")
    raw = bytearray(path.read_bytes())
    raw[-1 if name != "x.npz" else 500] ^= 1
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=r"is not what .*\.json describes"):
        opened(tmp_path / name)


def test_a_full_disk_names_the_file_and_frees_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = data(IMAGES)
    output = opened(tmp_path / "folder")
    write(output, x, 1)

    def full(self: Path, content: Any) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        message = r"No space left on device: finished chunks stay.*folder"
        with pytest.raises(OSError, match=message) as raised:
            output.write(1, x[4:8])
        output.target.stopped()
    again = opened(tmp_path / "folder")  # while the error is still there
    assert list(again.target.todo) == [1, 2]
    assert raised.value.errno == 28


def test_two_runs_to_one_file_are_refused(tmp_path: Path) -> None:
    output = opened(tmp_path / "x.npy")
    with pytest.raises(ValueError, match="is in use by another run: wait for it, or give another"):
        opened(tmp_path / "x.npy")
    write(output, data(IMAGES))
    output.target.finished()


def test_without_space_nothing_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10_000, 9_000, 1_000))
    message = r"the samples need 2,528 bytes, and 1,000 are free: make room, or sample less"
    with pytest.raises(OSError, match=message):
        opened(tmp_path / "x.npy")
    assert not everything(tmp_path)


def test_the_space_of_all_samples_is_reserved(tmp_path: Path) -> None:
    opened(tmp_path / "x.npy", n=100_000)
    assert (tmp_path / "x.npy.partial").stat().st_blocks * 512 >= 100_000 * 60 * 4


# ---- parts ----


@pytest.mark.parametrize("name", NAMES)
def test_parts_are_merged(name: str, tmp_path: Path) -> None:
    """In any order, and a part twice; the file is that of one process."""
    x = data(IMAGES, 30)
    options: dict[str, Any] = {"n": 30, "settings": settings(30, dtype="uint8")}
    for i in (2, 0, 2):
        output = opened(tmp_path / "parts" / name, dtype="uint8", shard=(i, 3), **options)
        write(output, x)
        output.target.finished()
    with pytest.raises(RuntimeError, match=r"3 of 8 chunks are missing \(1, 4, 7\): run the same"):
        merge(tmp_path / "parts" / name)
    output = opened(tmp_path / "parts" / name, dtype="uint8", shard=(1, 3), **options)
    write(output, x)
    output.target.finished()
    merged = merge(tmp_path / "parts" / name)
    options.pop("n")
    whole = written(tmp_path / "whole" / name, x, dtype="uint8", **options)
    assert torch.equal(merged, whole)
    assert everything(tmp_path / "parts") == everything(tmp_path / "whole")
    verify(tmp_path / "parts" / name)


def test_one_process_finishes_what_parts_began(tmp_path: Path) -> None:
    x = data(IMAGES, 30)
    output = opened(tmp_path / "x.npy", n=30, shard=(1, 3))
    write(output, x)
    output.target.finished()
    again = opened(tmp_path / "x.npy", n=30)
    assert list(again.target.todo) == [0, 2, 3, 5, 6]
    write(again, x)
    assert torch.equal(again.target.finished(), x)


def test_parts_of_different_runs_are_refused(tmp_path: Path) -> None:
    output = opened(tmp_path / "x.npy", shard=(0, 2), settings=settings())
    write(output, data(IMAGES))
    output.target.finished()
    with pytest.raises(ValueError, match=r"holds other samples, which differ in seed"):
        opened(tmp_path / "x.npy", shard=(1, 2), settings=settings(seed=1))


def test_nothing_to_merge(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="has no parts: sample them first, with shard"):
        merge(tmp_path / "x.npy")


# ---- verify ----


@pytest.mark.parametrize(("name", "manifest"), FILES)
def test_verify_returns_the_manifest(name: str, manifest: str, tmp_path: Path) -> None:
    described = settings(dtype="uint8" if name == "folder" else "float32")
    written(tmp_path / name, data(IMAGES), settings=described)
    assert verify(tmp_path / name) == described


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
@pytest.mark.parametrize(
    ("place", "message"),
    [
        (1200, r"is damaged \(samples 4 \.\. 7\)"),
        (70, r"is damaged \(its header or its length\)"),
        (None, r"is damaged \(samples 8 \.\. 9\)"),
    ],
)
def test_verify_finds_damage(name: str, place: int | None, message: str, tmp_path: Path) -> None:
    written(tmp_path / name, data(IMAGES), settings=settings())
    path = tmp_path / name
    raw = bytearray(path.read_bytes())
    if place is None:
        raw = raw[:2200]
    else:
        raw[place] ^= 1
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=message):
        verify(path)


def test_verify_finds_a_missing_picture(tmp_path: Path) -> None:
    written(tmp_path, data(IMAGES), settings=settings(dtype="uint8"))
    (tmp_path / "000006.png").unlink()
    with pytest.raises(ValueError, match=r"is damaged \(samples 4 \.\. 7\)"):
        verify(tmp_path)


@pytest.mark.parametrize("change", [{"n": 9}, {"seed": 5}, {"batch_size": 0}])
def test_verify_finds_a_changed_manifest(change: dict[str, Any], tmp_path: Path) -> None:
    written(tmp_path / "x.npy", data(IMAGES), settings=settings())
    path = tmp_path / "x.npy.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=r"x\.npy\.json' is damaged"):
        verify(tmp_path / "x.npy")


def test_a_manifest_that_describes_nothing(tmp_path: Path) -> None:
    Journal({"n": -1}, {}).write(tmp_path / "x.npy.json")
    (tmp_path / "x.npy").touch()
    with pytest.raises(ValueError, match="describes no samples"):
        verify(tmp_path / "x.npy")


def test_verify_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        verify(tmp_path / "x.npy")


# ---- sample ----


def noise(x: Tensor, s: Tensor) -> Tensor:
    return torch.zeros_like(x)


def sampled(out: Path, f: Any = noise, **options: Any) -> Tensor:
    described: dict[str, Any] = {"process": fastmsgm.GBM(1.0), "shape": (7,)}
    described |= {"prediction": "epsilon", "time": "sigma", "steps": 2, "batch_size": 2}
    return fastmsgm.sample(f, 6, **described, progress=False, out=out, **options)


@pytest.mark.parametrize("error", [NonFiniteError, KeyboardInterrupt])
def test_a_run_that_ends_early_goes_on(error: type[BaseException], tmp_path: Path) -> None:
    """The second chunk of two samples fails at first."""
    calls = 0

    def f(x: Tensor, s: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls != 3:
            return torch.zeros_like(x)
        if error is KeyboardInterrupt:
            raise KeyboardInterrupt
        return x * torch.nan

    whole = sampled(tmp_path / "whole.npy")
    with pytest.raises(error) as raised:
        sampled(tmp_path / "x.npy", f)
    if isinstance(raised.value, NonFiniteError):
        assert raised.value.samples is None
    assert np.array_equal(np.load(tmp_path / "x.npy.partial")[:2], whole[:2])
    calls = 10
    assert torch.equal(sampled(tmp_path / "x.npy", f), whole)


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_a_network_that_fails_at_once_leaves_nothing(name: str, tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError):
        sampled(tmp_path / name, lambda x, s: x * torch.nan)
    assert not everything(tmp_path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, "seed"),
        ({"steps": 3}, "nfe"),
        ({"batch_size": 3}, "batch_size"),
        ({"start": 2}, "start"),
        ({"guidance": 2.0}, "guidance"),
        ({"solver": "heun"}, "solver"),
        ({"dtype": "uint8"}, "dtype"),
        ({"label": 3}, "label"),
    ],
)
def test_every_setting_counts(change: dict[str, Any], named: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"n": 2, "steps": 2, "batch_size": 2, "progress": False}
    fastmsgm.sample("fashion-gbm", **options, out=tmp_path / "x.npy")
    with pytest.raises(ValueError, match=rf"holds other samples, which differ in .*\b{named} "):
        fastmsgm.sample("fashion-gbm", **options | change, out=tmp_path / "x.npy")


def test_another_model_is_refused(tmp_path: Path) -> None:
    """Also one whose weights alone differ."""
    model = fastmsgm.load("cauchy-vp")
    options: dict[str, Any] = {"steps": 2, "progress": False, "out": tmp_path / "x.npy"}
    fastmsgm.sample(model, 2, **options)
    with torch.no_grad():
        next(model.net.parameters()).mul_(1.001)
    with pytest.raises(ValueError, match=r"holds other samples, which differ in model"):
        fastmsgm.sample(model, 2, **options)


def test_another_function_is_refused(tmp_path: Path) -> None:
    """Of the same name."""
    sampled(tmp_path / "x.npy", lambda x, s: torch.zeros_like(x))
    with pytest.raises(ValueError, match=r"holds other samples, which differ in model"):
        sampled(tmp_path / "x.npy", lambda x, s: 0.1 * x)


@pytest.mark.parametrize("where", ["closure", "default", "partial", "object"])
def test_what_a_function_holds_counts(where: str, tmp_path: Path) -> None:
    class Scaled:
        def __init__(self, by: float) -> None:
            self.by = by

        def __call__(self, x: Tensor, s: Tensor) -> Tensor:
            return self.by * x

    def scaled(by: float) -> Any:
        def enclosed(x: Tensor, s: Tensor) -> Tensor:
            return by * x

        def default(x: Tensor, s: Tensor, by: float = by) -> Tensor:
            return by * x

        kinds = {"closure": enclosed, "default": default, "object": Scaled(by)}
        return functools.partial(default, by=by) if where == "partial" else kinds[where]

    first = sampled(tmp_path / "x.npy", scaled(0.1))
    assert torch.equal(sampled(tmp_path / "x.npy", scaled(0.1)), first)
    with pytest.raises(ValueError, match=r"holds other samples, which differ in model"):
        sampled(tmp_path / "x.npy", scaled(0.2))


@pytest.mark.parametrize("wrong", ["3", "3/3", "-1/3", "a/b", "1/2/3", 1, (0, 2)])
def test_a_shard_is_a_part_of_some(wrong: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r'shard must be "i/K"'):
        sampled(tmp_path / "x.npy", shard=wrong)


@pytest.mark.parametrize("option", [{"shard": "0/2"}, {"distributed": True}])
def test_only_files_are_shared(option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="needs a file or folder that all processes write to"):
        fastmsgm.sample("cauchy-vp", 2, progress=False, **option)


def hold(path: str) -> None:
    opened(path)
    os._exit(9)


def test_the_lock_of_a_killed_run_is_free(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(
        target=hold, args=(str(tmp_path / "x.npy"),)
    )
    process.start()
    process.join(60)
    assert process.exitcode == 9
    x = data(IMAGES)
    np.testing.assert_array_equal(written(tmp_path / "x.npy", x), x)
