# pyright: reportMissingImports=false
"""What the CPU kernels are made of: Philox, Box-Muller, 16-bit floats, numbers of a rotation."""

from __future__ import annotations

import ast
import errno
import hashlib
import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numba import njit
from numba.core import caching, config

from fastmsgm import rng
from fastmsgm.kernels.cpu import arrays, box_muller, compile, philox, rotation_flow
from tests.kernels.known_answers import KNOWN_ANSWERS


@njit
def _words(quad, sample, step, seed):
    """Return the four words at a counter whose purpose is in the sample's upper word."""
    tables, _, products, radius, angle, _ = philox.buffers(4)
    philox.rounds_of_quads(quad, 1, 2**40, sample >> 32, 0, step, seed, tables)
    philox.rounds_of_samples(quad, 1, 2**40, sample, 0, seed, products)
    philox.philox(1, tables, 0, products, np.uint64(seed), radius, angle)
    radius, angle = radius.view(np.uint32), angle.view(np.uint32)
    return radius[0], angle[0], radius[1], angle[1]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_philox_known_answers(
    counter: tuple[int, ...], key: tuple[int, ...], words: tuple[int, ...]
) -> None:
    # The third word is purpose * 2^24 + sample // 2^32: here the sample's upper word is all of it.
    sample, seed = (
        int(np.uint64(low + (high << 32)).astype(np.int64)) for low, high in (counter[1:3], key)
    )
    assert _words(counter[0], sample, counter[3], seed) == words


@pytest.mark.parametrize("start", [0, 2**32 - 3, 2**55])
@pytest.mark.parametrize("d", [1, 6, 784, 20_000])
def test_words_are_those_of_the_stream(start: int, d: int) -> None:
    n, quads, purpose, step = 7, (d + 3) // 4, rng.Purpose.AUGMENTATION, 2**32 + 5
    stream = rng.stream(2**64 - 12345, start)
    workspace, words = philox.buffers(d), []
    for first in range(0, n * quads, philox.BLOCK):
        count = min(philox.BLOCK, n * quads - first)
        philox.block_words(first, count, d, stream.numpy(), int(purpose), step, workspace)
        radius, angle = (w[:count].view(np.uint32).reshape(-1, 2) for w in workspace[3:5])
        words.append(np.stack((radius[:, 0], angle[:, 0], radius[:, 1], angle[:, 1]), axis=1))
    expected = rng.words(n, quads, stream, purpose, step).reshape(-1, 4).numpy()
    assert (np.concatenate(words) == expected).all()


@njit
def _normals(count, radius, angle, z):
    box_muller.normals(count, radius, angle, z, 0, ())


def test_normals_in_the_tails() -> None:
    """Take the smallest radius words and both ends of every quadrant.

    The largest |z| of the stream is 6.77.
    """
    radius = [0, 0, 1, 2**32 - 1, 2**32 - 1, 2**31] * 8 + [0, 2**32 - 1]
    angle = [0, 2**29 - 1, 2**29, 2**30, 3 * 2**30, 2**32 - 1, 2**31 - 1, 7 * 2**29] * 6
    radius_words = np.array(radius, np.uint32)
    angle_words = np.array([*angle, 2**29, 2**31 - 1], np.uint32)
    z = np.full(2 * len(radius), np.nan, np.float32)
    _normals(len(radius), radius_words, angle_words, z)
    uniform = (radius_words.astype(np.float32) * 2.0**-32 + 2.0**-33).astype(np.float32)
    size = np.sqrt(-2 * np.log(uniform.astype(np.float64)))
    turn = 2 * np.pi * (angle_words.astype(np.float64) * 2.0**-32)
    expected = np.stack((size * np.cos(turn), size * np.sin(turn)), axis=1).ravel()
    assert np.abs(z - expected).max() <= 2e-6
    assert 6.7 < np.abs(z).max() < 6.78


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_floats(dtype: torch.dtype) -> None:
    """Convert all 2^16 of them, and float32s of every exponent to them, as torch does."""
    every = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(dtype)
    wide = torch.zeros(2**16)
    code, _, bits = arrays.network_side(every)
    arrays.widen(2**16, code, bits, wide.numpy())
    torch.testing.assert_close(wide, every.float(), rtol=0, atol=0, equal_nan=True)
    # The bits below the rounding point: none, just below, at and just above the tie.
    ends = torch.tensor([0, 0x0FFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001])
    exact = ((torch.arange(2**19) << 13)[:, None] + ends).flatten()
    x = exact.to(torch.uint32).view(torch.float32)
    narrow = torch.zeros(len(x), dtype=dtype)
    code, *sides = arrays.network_side(narrow)
    arrays.write(len(x), code, x.numpy(), *sides)
    torch.testing.assert_close(narrow, x.to(dtype), rtol=0, atol=0, equal_nan=True)


def test_noise_without_a_direction_moves_nothing() -> None:
    a, b, v, scale = (torch.full((3,), 0.5).numpy() for _ in range(4))
    square, rest = torch.zeros(2, 3).numpy()
    rotation_flow.rotation_coeffs(3, v, square, rest, scale, a, b)
    assert (a == scale).all()
    assert not b.any()
    assert not v.any()


# ---- machine code on disk ----


def add_one() -> Any:
    """Return a kernel that is compiled, or read from the cache, where it is first called."""

    def one_more(x):
        return x + np.float32(1)

    return compile.routine(one_more)


def misses(kernel: Any) -> int:
    """Call a kernel of ``add_one``; return 0 if its machine code was read from the cache."""
    assert kernel(np.float32(2)) == 3
    return sum(kernel.stats.cache_misses.values())


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for machine code, in a process that has warned of nothing."""
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(compile, "_warned", set())
    return tmp_path


def kept(cache: Path) -> list[Path]:
    return [path for path in cache.rglob("*") if path.is_file()]


def test_machine_code_is_read_from_the_cache(cache: Path) -> None:
    assert misses(add_one()) == 1
    assert misses(add_one()) == 0


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut": lambda content: content[:-100],
    "flipped bit": lambda content: content[:900] + bytes([content[900] ^ 4]) + content[901:],
    "no pickle": lambda content: b"no pickle" + hashlib.sha256(b"no pickle").digest(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_machine_code_is_compiled_again(
    cache: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    misses(add_one())
    (path,) = kept(cache)
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    assert misses(add_one()) == 1
    assert misses(add_one()) == 0
    (record,) = caplog.records
    message = f"CPU kernels in {path.parent} cannot be read: compiling again ("
    assert record.getMessage().startswith(message)


def test_a_full_disk_costs_the_cache_alone(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(caching, "open", full, raising=False)
    assert misses(add_one()) == misses(add_one()) == 1
    assert kept(cache) == []
    (record,) = caplog.records
    assert record.getMessage().startswith("CPU kernels cannot be kept in")
    assert "No space left on device" in record.getMessage()


def test_folders_of_other_source_are_removed(cache: Path) -> None:
    misses(add_one())
    (folder,) = {path.parent for path in kept(cache)}
    old = folder.rename(folder.with_name(folder.name[:-16] + 16 * "0"))
    others = [folder.parent / name for name in ("fastmsgm-cpython-999-0", "a.nbi")]
    for other in others:
        other.mkdir()
    misses(add_one())
    assert not old.exists()
    assert all(path.exists() for path in (folder, *others))


def test_a_process_older_than_its_source_leaves_the_cache_alone(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its modules may be of different versions."""
    misses(add_one())
    before = kept(cache)
    kernel = add_one()
    monkeypatch.setattr(compile, "_fingerprint", lambda: "of edited source")
    assert misses(kernel) == 1
    assert kept(cache) == before


def test_the_hash_covers_all_source_that_kernels_import() -> None:
    package = Path(compile.__file__).parent
    imported = set(package.glob("*.py"))
    for path in package.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == 2:
                imported.add(package.parent / f"{node.module}.py")
            if isinstance(node, ast.ImportFrom) and node.module == "fastmsgm":
                names = [f"fastmsgm.{alias.name}" for alias in node.names]
                imported |= {Path(str(sys.modules[name].__file__)) for name in names}
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fastmsgm."):
                imported.add(Path(str(sys.modules[str(node.module)].__file__)))
    assert imported == set(compile._sources())


@pytest.fixture
def import_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """Import a module of a copy of the CPU kernels, as a new process does."""
    source, copy = Path(compile.__file__).parents[1], tmp_path / "source" / "kernels_copy"
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.syspath_prepend(copy.parent)

    def forget() -> None:
        for name in [name for name in sys.modules if name.split(".")[0] == "kernels_copy"]:
            del sys.modules[name]

    def imported(name: str) -> Any:
        forget()
        importlib.invalidate_caches()
        return importlib.import_module(f"kernels_copy.cpu.{name}")

    yield imported
    forget()


def egd_weight(optim: Any) -> float:
    """Return 1 after a step of the exponentiated gradient with 2^{-1}."""
    w = np.ones(1, np.float32)
    optim._update(1, w, np.ones(1, np.float32), np.float32(1))
    return w[0]


@pytest.mark.usefixtures("cache")
def test_an_edit_of_what_a_kernel_calls_is_compiled(import_copy: Callable[[str], Any]) -> None:
    """The edited file is not that of the cached function."""
    optim = import_copy("optim")
    assert egd_weight(optim) == 0.5
    with open(Path(optim.__file__).with_name("scalar.py"), "a") as file:
        file.write("\n\n@routine\ndef exp2(x):\n    return np.float32(0.25)\n")
    assert egd_weight(import_copy("optim")) == 0.25


@pytest.fixture
def no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No place where numba keeps machine code can be written."""
    monkeypatch.setattr(config, "CACHE_DIR", "/dev/null/cache")
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/cache")
    monkeypatch.setenv("HOME", "/dev/null")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)


@pytest.mark.usefixtures("no_folder")
def test_kernels_are_compiled_without_a_folder_to_keep_them(
    import_copy: Callable[[str], Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "source" / "kernels_copy" / "cpu" / "__pycache__").touch()
    assert egd_weight(import_copy("optim")) == 0.5
    (record,) = caplog.records
    message = "there is no folder to keep the machine code in: set NUMBA_CACHE_DIR to a folder"
    assert message in record.getMessage()


# The smallest kernels. On stdout: the number of cached kernels when something is logged.
COMPILE = """
import logging, pathlib, sys
import numpy as np
import fastmsgm
logging.getLogger("fastmsgm").addFilter(
    lambda record: print(len(list(pathlib.Path(sys.argv[1]).rglob("*.nbc")))) is None
)
from fastmsgm.kernels.cpu import scalar
scalar.magnitude(np.float32(1))
scalar.is_normal(np.float32(1))
"""


def start(cache: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", COMPILE, cache],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "NUMBA_CACHE_DIR": str(cache)},
    )


def test_processes_that_compile_say_so_before_and_may_do_it_at_the_same_time(
    tmp_path: Path,
) -> None:
    processes = [start(tmp_path) for _ in range(2)]
    outputs = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert "0\n" in [stdout for stdout, _ in outputs]  # nothing was compiled yet
    ((folder,),) = (path.iterdir() for path in tmp_path.iterdir())
    for _, stderr in outputs:
        for line in stderr.splitlines():  # none where the other process was faster
            assert line.startswith("compiling the CPU kernels, which takes up to a minute")
            assert f"the machine code is kept in {folder} for the next time" in line
    assert len(kept(tmp_path)) == 2  # no temporary file
    assert start(tmp_path).communicate() == ("", "")
