# pyright: reportMissingImports=false
"""What the CPU kernels are made of: Philox, Box-Muller, 16-bit floats, numbers of a rotation."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numba import njit

from fastmsgm import rng
from fastmsgm.kernels.cpu import arrays, box_muller, philox, rotation_flow
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


# ---- compilation ----

# The smallest kernel. On stdout: the number of cached kernels when something is logged.
COMPILE = """
import logging, pathlib, sys
import numpy as np
import fastmsgm
logging.getLogger("fastmsgm").addFilter(
    lambda record: print(len(list(pathlib.Path(sys.argv[1]).rglob("*.nbi")))) is None
)
from fastmsgm.kernels.cpu import scalar
scalar.magnitude(np.float32(1))
scalar.is_normal(np.float32(1))
"""


def compile_in_a_new_process(cache: Path) -> tuple[str, str]:
    """Return what a process that uses two kernels writes to stdout and to stderr."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache)}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, cache],
        check=True,
        capture_output=True,
        text=True,
        env=environment,
    )
    return done.stdout, done.stderr


def test_the_first_compilation_alone_is_announced_before_it_begins(tmp_path: Path) -> None:
    stdout, stderr = compile_in_a_new_process(tmp_path)
    assert stdout == "0\n"  # nothing was compiled yet
    (line,) = stderr.splitlines()
    assert line.startswith("compiling the CPU kernels, which takes up to a minute the first time")
    (folder,) = tmp_path.iterdir()
    assert f"the machine code is kept in {folder} for the next time" in line
    assert compile_in_a_new_process(tmp_path) == ("", "")
