"""The stream philox-v1: known answers, stored vectors, distinct counters, and normals."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from fastmsgm import rng
from fastmsgm.rng import Purpose
from tests.kernels.known_answers import KNOWN_ANSWERS

# (seed, sample, purpose, step, quad) -> words, normals. From integer Philox and Box-Muller in
# double precision. A number changed here needs a new name for the stream.
STORED = [
    (
        (0, 0, 0, 0, 0),
        "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
        (0.99113768, -0.92466259, -0.61760896, -0.48206859),
    ),
    (
        (3, 40, 2, 17, 195),
        "c2071c29 ceb33b9a d1e0bbe1 38c72d04",
        (0.26283939, -0.6966116, 0.11114248, 0.62044394),
    ),
    (
        (2**63 + 5, 2**32 + 1, 4, 2**32 - 1, 1),
        "54b8b559 99cdc2a1 caa4d0aa 17838b1b",
        (-1.19874342, -0.88013061, 0.57297342, 0.37303719),
    ),
    (
        (2**64 - 1, 2**56 - 1, 9, 123456, 7),
        "b73e0dec 5a3a2e82 56fa0c62 98f8dee4",
        (-0.49079671, 0.65410531, -1.20191957, -0.84525884),
    ),
]


def parse(words: str) -> list[int]:
    return [int(word, 16) for word in words.split()]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_philox_known_answers(
    counter: tuple[int, ...], key: tuple[int, ...], words: tuple[int, ...]
) -> None:
    c0, c1, c2, c3, k0, k1 = (torch.tensor(word) for word in (*counter, *key))
    assert [int(w) for w in rng.philox((c0, c1, c2, c3), (k0, k1))] == list(words)


@pytest.mark.parametrize(("counter", "words", "normals"), STORED)
def test_stored_vectors_freeze_the_stream(
    counter: tuple[int, ...], words: str, normals: tuple[float, ...]
) -> None:
    seed, sample, purpose, step, quad = counter
    assert rng.STREAM_VERSION == "philox-v1"
    stream = rng.stream(seed, sample)
    assert rng.words(1, quad + 1, stream, purpose, step)[0, quad].tolist() == parse(words)
    z = rng.normals(1, 4 * quad + 4, stream, purpose, step)[0, -4:].double()
    torch.testing.assert_close(z, torch.tensor(normals).double(), rtol=0, atol=2e-6)


def test_purposes_are_frozen() -> None:
    names = (
        "PRIOR RADIUS STEP ANGLE TRAINING_NOISE TRAINING_ANGLE TRAINING_TIME PROBE DATA_ORDER "
        "AUGMENTATION CONDITION_DROP"
    )
    assert [purpose.name for purpose in sorted(Purpose)] == names.split()
    assert sorted(Purpose) == list(range(11))


def test_a_row_is_a_sample_whatever_the_batch() -> None:
    whole = rng.normals(50, 7, rng.stream(3, 2**32 - 20), Purpose.STEP, 5)
    part = rng.normals(10, 7, rng.stream(3, 2**32 - 5), Purpose.STEP, 5)
    assert torch.equal(whole[15:25], part)
    assert torch.equal(whole[:, :6], rng.normals(50, 6, rng.stream(3, 2**32 - 20), Purpose.STEP, 5))


def counters(
    monkeypatch: pytest.MonkeyPatch, n: int, quads: int, start: int, purpose: int, step: int
) -> Tensor:
    """Return the counter words (n quads, 4) that ``rng.words`` gives to Philox."""
    with monkeypatch.context() as patch:
        patch.setattr(rng, "philox", lambda counter, key: counter)
        return rng.words(n, quads, rng.stream(0, start), purpose, step).reshape(-1, 4)


def test_all_counters_are_distinct(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take equal digits in different places, and random ones; a start stands for two samples."""
    small, middle = (0, 2, 4, 2**8, 2**16, 2**24 - 2, 2**24), (2**32 - 2, 2**32, 2**32 + 2)
    starts = (*small, *middle, 2**33, 2**48, 2**56 - 4)
    counted = set(itertools.product(starts, range(11), (0, 1, 2**8, 2**24, 2**32 - 1)))
    random = np.random.default_rng(0).integers(0, (2**55, 256, 2**32), size=(500, 3)).tolist()
    counted |= {(2 * start, purpose, step) for start, purpose, step in random}
    found = [counters(monkeypatch, 2, 3, *each) for each in sorted(counted)]
    words = torch.cat(found).numpy()
    assert words.min() >= 0
    assert words.max() < 2**32
    assert len(np.unique(words, axis=0)) == len(words) == 6 * len(counted)


def test_counters_are_the_documented_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    sample, purpose, step = 5 * 2**32 + 9, int(Purpose.AUGMENTATION), 77
    assert counters(monkeypatch, 1, 3, sample, purpose, step).tolist() == [
        [q, 9, 9 * 2**24 + 5, 77] for q in range(3)
    ]


@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1])
def test_every_bit_of_the_seed_is_in_the_key(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = []

    def spy(counter: tuple[Tensor, ...], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        keys.append((int(key[0]), int(key[1])))
        return counter

    monkeypatch.setattr(rng, "philox", spy)
    rng.words(1, 1, rng.stream(seed), 0, 0)
    assert keys == [(seed % 2**32, seed // 2**32)]


@pytest.mark.parametrize(("seed", "start"), [(-1, 0), (2**64, 0), (0, -1), (0, 2**56)])
def test_stream_out_of_range(seed: int, start: int) -> None:
    with pytest.raises(ValueError, match=r"(seed|start) must be in 0 \.\. 2\^(64|56) - 1, got"):
        rng.stream(seed, start)


@pytest.mark.parametrize("bad", [1.0, "1", None, True])
def test_stream_of_another_type(bad: Any) -> None:
    with pytest.raises(TypeError, match="seed must be an int, got"):
        rng.stream(bad)
    with pytest.raises(TypeError, match="start must be an int, got"):
        rng.stream(0, bad)


@pytest.fixture(scope="module")
def normals() -> Tensor:
    return rng.normals(2000, 100, rng.stream(11, 2**32 - 1000), Purpose.STEP, 3)


def test_normals_are_normal(normals: Tensor) -> None:
    assert stats.kstest(normals.double().flatten().numpy(), "norm").pvalue >= 1e-5


def test_normals_moments(normals: Tensor) -> None:
    z = normals.double()
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float((z**power).mean()) - moment) < 4.5 * math.sqrt(variance / z.numel())


def test_normals_are_independent_of_their_neighbours(normals: Tensor) -> None:
    """Values and squares do not correlate with other features, samples, steps, purposes, seeds."""

    def shifted(
        seed: int = 11, start: int = 2**32 - 1000, purpose: int = Purpose.STEP, step: int = 3
    ) -> Tensor:
        return rng.normals(2000, 100, rng.stream(seed, start), purpose, step)

    pairs = [(normals[:, :-lag], normals[:, lag:]) for lag in (1, 2, 3, 4)]
    pairs += [(normals[:, i::4], normals[:, j::4]) for i, j in itertools.combinations(range(4), 2)]
    others = [
        shifted(start=2**32 - 999),
        shifted(step=4),
        shifted(purpose=Purpose.ANGLE),
        shifted(seed=12),
    ]
    pairs += [(normals, other) for other in others]
    for a, b in pairs:
        a, b = a.double(), b.double()
        assert abs(float((a * b).mean())) < 5 / math.sqrt(a.numel())
        assert abs(float(((a**2 - 1) * (b**2 - 1)).mean())) < 5 * 2 / math.sqrt(a.numel())


def map_words(
    monkeypatch: pytest.MonkeyPatch, pairs: np.ndarray, dtype: torch.dtype = torch.float32
) -> np.ndarray:
    """Return the normals (k, 2) of (radius word, angle word) pairs (k, 2)."""
    words = torch.from_numpy(np.concatenate((pairs, pairs), axis=1))[:, None, :]
    with monkeypatch.context() as patch:
        patch.setattr(rng, "words", lambda n, quads, stream, purpose, step: words)
        z = rng.normals(len(pairs), 4, rng.stream(0), 0, 0, dtype)
    assert torch.equal(z[:, :2], z[:, 2:])
    return z[:, :2].double().numpy()


def test_normals_at_extreme_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Radius words at both ends and at powers of two, angle words around every eighth of a turn."""
    powers = [2**k + e for k in range(32) for e in (-1, 0, 1)]
    radius = np.unique(np.array([0, 1, 2**32 - 1, 2**32 - 2, *powers]) % 2**32)
    angle = np.unique(np.array([k * 2**29 + e for k in range(9) for e in (-1, 0, 1)]) % 2**32)
    pairs = np.stack(np.meshgrid(radius, angle, indexing="ij"), axis=-1).reshape(-1, 2)
    z = map_words(monkeypatch, pairs)
    np.testing.assert_allclose(z, map_words(monkeypatch, pairs, torch.float64), rtol=0, atol=2e-6)
    # The formula itself; uniforms are rounded to float32, which near 1 moves the radius by up to
    # sqrt(2^-23).
    size, turn = np.sqrt(-2 * np.log((pairs[:, 0] + 0.5) / 2**32)), 2 * np.pi * pairs[:, 1] / 2**32
    expected = np.stack((size * np.cos(turn), size * np.sin(turn)), axis=1)
    inner = pairs[:, 0] < 2**31
    np.testing.assert_allclose(z[inner], expected[inner], rtol=0, atol=2e-6)
    np.testing.assert_allclose(z, expected, rtol=0, atol=2.0**-11.5)


def test_normals_reach_beyond_six_sigma(monkeypatch: pytest.MonkeyPatch) -> None:
    turn = np.array([0, 2**30, 2**31, 3 * 2**30])
    z = map_words(monkeypatch, np.stack((np.zeros(4, np.int64), turn), axis=1))
    largest = math.sqrt(66 * math.log(2))
    assert largest == pytest.approx(6.76, abs=0.005)
    np.testing.assert_allclose(z, largest * np.array([[1, 0], [0, 1], [-1, 0], [0, -1]]), atol=2e-6)
    # Words below 65 give a radius above 6: the tail thins out rather than stopping there.
    near = map_words(monkeypatch, np.stack((np.arange(66), np.zeros(66, np.int64)), axis=1))[:, 0]
    assert np.all(np.diff(near) < 0)
    assert near[64] > 6 > near[65]


def test_normals_float32_against_float64(normals: Tensor) -> None:
    truth = rng.normals(2000, 100, rng.stream(11, 2**32 - 1000), Purpose.STEP, 3, torch.float64)
    assert normals.dtype == torch.float32
    assert truth.dtype == torch.float64
    assert float((normals - truth).abs().max()) <= 2e-6
    assert float(normals.abs().max()) > 4


def test_uniforms(monkeypatch: pytest.MonkeyPatch) -> None:
    u = rng.uniforms(5000, 10, rng.stream(5), Purpose.TRAINING_TIME, 2)
    assert u.shape == (5000, 40)
    assert u.dtype == torch.float64
    assert stats.kstest(u.flatten().numpy(), "uniform").pvalue >= 1e-5
    words = torch.tensor([0, 1, 2**31, 2**32 - 1])
    monkeypatch.setattr(
        rng, "words", lambda n, quads, stream, purpose, step: words.reshape(1, 1, 4)
    )
    assert rng.uniforms(1, 1, rng.stream(0), 0).tolist() == [
        [2.0**-33, 3 * 2.0**-33, 0.5 + 2.0**-33, 1 - 2.0**-33]
    ]
