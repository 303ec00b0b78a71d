# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportMissingImports=false
"""Device functions of the Triton kernels in the interpreter: words to the bit, normals to 2e-6."""

from __future__ import annotations

import itertools

import pytest
import torch

from fastmsgm import rng
from tests.kernels.known_answers import KNOWN_ANSWERS

pytest.importorskip("triton")
import triton
import triton.language as tl

from fastmsgm.kernels import philox

# The interpreter computes with NumPy, which warns where a GPU is silent.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@triton.jit
def _philox_kernel(in_ptr, out_ptr):
    columns = tl.arange(0, 4)
    c0, c1, c2, c3, k0, k1 = (
        tl.load(in_ptr + 4 * i + columns).to(tl.uint32) for i in tl.static_range(6)
    )
    for i, word in enumerate(philox.philox(c0, c1, c2, c3, k0, k1)):
        tl.store(out_ptr + 4 * i + columns, word.to(tl.int64))


@triton.jit
def _words_kernel(out_ptr, stream_ptr, purpose, step, N: tl.constexpr, QUADS: tl.constexpr):
    lane = tl.arange(0, N * QUADS)
    first_row = tl.zeros([], tl.int64)
    words = philox.words(lane % QUADS, first_row, lane // QUADS, stream_ptr, purpose, step)
    for i, word in enumerate(words):
        tl.store(out_ptr + 4 * lane + i, word.to(tl.int64))


@triton.jit
def _box_muller_kernel(word_ptr, out_ptr, scale, N: tl.constexpr):
    lane = tl.arange(0, N)
    radius_word, angle_word = (tl.load(word_ptr + 2 * lane + i).to(tl.uint32) for i in range(2))
    x, y = philox.box_muller(radius_word, angle_word, scale)
    tl.store(out_ptr + 2 * lane, x)
    tl.store(out_ptr + 2 * lane + 1, y)


def test_philox_known_answers() -> None:
    inputs = [(*counter, *key) for counter, key, _ in KNOWN_ANSWERS]
    columns = torch.tensor([*inputs, inputs[0]]).T.contiguous()  # four lanes, a power of two
    got = torch.full((4, 4), -1)
    _philox_kernel[(1,)](columns, got)
    assert got.T[:3].tolist() == [list(words) for _, _, words in KNOWN_ANSWERS]


@pytest.mark.parametrize("start", [0, 2**32 - 3, 2**32, 2**56 - 8])
@pytest.mark.parametrize(
    ("seed", "purpose", "step"), [(0, 0, 0), (2**64 - 1, 9, 17), (2**63 + 5, 255, 2**31 - 1)]
)
def test_words_are_those_of_the_stream(start: int, seed: int, purpose: int, step: int) -> None:
    stream = rng.stream(seed, start)
    got = torch.full((8, 4, 4), -1)
    _words_kernel[(1,)](got, stream, purpose, step, 8, 4)
    assert torch.equal(got, rng.words(8, 4, stream, purpose, step))


def test_normals_at_the_edges_of_the_words(monkeypatch: pytest.MonkeyPatch) -> None:
    radius_words = (0, 1, 2**23 + 1, 2**31, 3037000499, 2**32 - 2**7, 2**32 - 1)
    angle_words = [(k * 2**29 + offset) % 2**32 for k in range(8) for offset in (-1, 0, 1)]
    pairs = torch.tensor([*itertools.product(radius_words, angle_words)])
    pairs = torch.cat((pairs, pairs[: 256 - len(pairs)]))
    got = torch.full(pairs.shape, float("nan"))
    _box_muller_kernel[(1,)](pairs, got, 1.0, 256)
    monkeypatch.setattr(rng, "words", lambda *_: pairs.view(1, -1, 4))
    expected = rng.normals(1, 512, rng.stream(0), 0, 0, torch.float64).view_as(got)
    assert expected.abs().max() > 6.7
    assert (got - expected).abs().max() <= 2e-6


@pytest.mark.parametrize(
    ("scale", "relative"), [(30.0, 5e-7), (1e-2, 5e-7), (1e-4, 1e-5), (1e-6, 1e-3)]
)
def test_small_scales_of_normals(scale: float, relative: float) -> None:
    """Errors are relative to a large normal.

    Below 0.002 there are denormal numbers in between, in steps of 1e-9 of a normal of scale 1.
    """
    stream, got = rng.stream(4), torch.full((256, 2), float("nan"))
    pairs = rng.words(1, 128, stream, rng.Purpose.STEP, 0).view(-1, 2)
    _box_muller_kernel[(1,)](pairs, got, scale, 256)
    expected = scale * rng.normals(1, 512, stream, rng.Purpose.STEP, 0, torch.float64).view_as(got)
    error = (got - expected).abs().max()
    assert error <= 5 * scale * relative
    assert error <= 5 * scale * 5e-7 + 1e-9
