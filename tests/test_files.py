"""Atomic writes, and the folder for cached files."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from fastmsgm.files import cache_folder, write_atomically

# ---- write_atomically ----


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for text in ("first", "second"):
        write_atomically(path, lambda p, text=text: p.write_text(text))
        assert path.read_text() == text
    assert names(tmp_path) == ["file"]


def test_a_failed_write_leaves_the_old_file_and_no_temporary_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]
    write_atomically(path, lambda p: p.write_text("new"))
    assert path.read_text() == "new"


def test_a_failed_first_write_leaves_no_file(tmp_path: Path) -> None:
    def fail(temporary: Path) -> None:
        raise OSError("no permission")

    with pytest.raises(OSError, match="no permission"):
        write_atomically(tmp_path / "file", fail)
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["replace", "fsync"])
def test_a_failure_after_the_write_leaves_the_old_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise OSError("power cut")

    monkeypatch.setattr(os, name, fail)
    with pytest.raises(OSError, match="power cut"):
        write_atomically(path, lambda p: p.write_text("new"))
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_temporary_names_are_unique_and_beside_the_file(tmp_path: Path) -> None:
    seen: list[Path] = []

    def write(temporary: Path) -> None:
        assert not temporary.exists()
        seen.append(temporary)
        temporary.write_text("text")

    for _ in range(20):
        write_atomically(tmp_path / "file", write)
    assert len(set(seen)) == 20
    assert {temporary.parent for temporary in seen} == {tmp_path}
    assert tmp_path / "file" not in seen


def test_two_writers_do_not_disturb_each_other(tmp_path: Path) -> None:
    """The second writes between the first one's write and its end; both files are whole."""
    path, inside, written = tmp_path / "file", threading.Event(), threading.Event()

    def slow(temporary: Path) -> None:
        temporary.write_text("slow")
        inside.set()
        assert written.wait(10)

    thread = threading.Thread(target=write_atomically, args=(path, slow))
    thread.start()
    assert inside.wait(10)
    write_atomically(path, lambda p: p.write_text("fast"))
    assert path.read_text() == "fast"
    written.set()
    thread.join()
    assert path.read_text() == "slow"
    assert names(tmp_path) == ["file"]


def test_the_file_is_synced_before_it_replaces_and_its_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, os.replace

    def remember_fsync(descriptor: int) -> None:
        where = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        events.append("folder" if where == tmp_path.resolve() else "file")
        fsync(descriptor)

    def remember_replace(source: Path, target: Path) -> None:
        events.append("replace")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", remember_fsync)
    monkeypatch.setattr(os, "replace", remember_replace)
    write_atomically(tmp_path / "file", lambda p: p.write_bytes(bytes(10)))
    assert events == ["file", "replace", "folder"]


# ---- cache_folder ----


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"FASTMSGM_CACHE": "own", "XDG_CACHE_HOME": "shared"}, "own"),
        ({"FASTMSGM_CACHE": "own"}, "own"),
        ({"FASTMSGM_CACHE": "", "XDG_CACHE_HOME": "shared"}, "shared/fastmsgm"),
        ({"XDG_CACHE_HOME": "shared"}, "shared/fastmsgm"),
        ({"XDG_CACHE_HOME": ""}, "home/.cache/fastmsgm"),
        ({}, "home/.cache/fastmsgm"),
    ],
)
def test_the_cache_folder(
    variables: dict[str, str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FASTMSGM_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, str(tmp_path / value) if value else "")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    assert cache_folder() == tmp_path / expected
    assert not cache_folder().exists()
