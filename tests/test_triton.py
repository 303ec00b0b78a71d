"""The Triton kernels in the interpreter: words to the bit, normals to 2e-6, operations to the bound of ``oracle``."""

from __future__ import annotations

import itertools

import pytest
import torch
from oracle import check_interpreted, perturb_case, step_case

from fastmsgm import reference, rng

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")
from fastmsgm.kernels import gbm, philox  # noqa: E402

# The interpreter computes masked lanes and lost states with NumPy, which warns where a GPU is silent.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

SIZES = (1, 3, 4, 63, 64, 130, 784)
# Random123's known answers for philox4x32-10: counter, key, words.
KNOWN_ANSWERS = (
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
)


def samples(d: int) -> int:
    """So many that two programs run and the second is not full."""
    n = (gbm.QUADS + 100) // -(-d // 4) + 1
    assert gbm._grid(n, d) == (2,)
    return n


# ---- noise ----


@triton.jit
def _philox_kernel(in_ptr, out_ptr):
    columns = tl.arange(0, 4)
    c0, c1, c2, c3, k0, k1 = (tl.load(in_ptr + 4 * i + columns).to(tl.uint32) for i in tl.static_range(6))
    for i, word in enumerate(philox.philox(c0, c1, c2, c3, k0, k1)):
        tl.store(out_ptr + 4 * i + columns, word.to(tl.int64))


@triton.jit
def _words_kernel(out_ptr, stream_ptr, kind, step, N: tl.constexpr, QUADS: tl.constexpr):
    lane = tl.arange(0, N * QUADS)
    for i, word in enumerate(philox.words(lane % QUADS, tl.zeros([], tl.int64), lane // QUADS, stream_ptr, kind, step)):
        tl.store(out_ptr + 4 * lane + i, word.to(tl.int64))


@triton.jit
def _box_muller_kernel(word_ptr, out_ptr, scale, N: tl.constexpr):
    lane = tl.arange(0, N)
    radius_word, angle_word = (tl.load(word_ptr + 2 * lane + i).to(tl.uint32) for i in range(2))
    x, y = philox.box_muller(radius_word, angle_word, scale)
    tl.store(out_ptr + 2 * lane, x)
    tl.store(out_ptr + 2 * lane + 1, y)


def test_philox_known_answers() -> None:
    vectors = [[int(word, 16) for word in f"{counter} {key}".split()] for counter, key, _ in KNOWN_ANSWERS]
    expected = torch.tensor([[int(word, 16) for word in words.split()] for _, _, words in KNOWN_ANSWERS])
    columns = torch.tensor([*vectors, vectors[0]]).T.contiguous()  # four lanes, a power of two
    got = torch.full((4, 4), -1)
    _philox_kernel[(1,)](columns, got)
    assert torch.equal(got.T[:3], expected)


@pytest.mark.parametrize("start", [0, 2**32 - 3, 2**32, 2**56 - 8])
@pytest.mark.parametrize(("seed", "kind", "step"), [(0, 0, 0), (2**64 - 1, 9, 17), (2**63 + 5, 255, 2**31 - 1)])
def test_words_are_those_of_the_stream(start: int, seed: int, kind: int, step: int) -> None:
    stream = rng.stream(seed, start)
    got = torch.full((8, 4, 4), -1)
    _words_kernel[(1,)](got, stream, kind, step, 8, 4)
    assert torch.equal(got, rng.words(8, 4, stream, kind, step))


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


@pytest.mark.parametrize(("scale", "relative"), [(30.0, 5e-7), (1e-2, 5e-7), (1e-4, 1e-5), (1e-6, 1e-3)])
def test_small_scales_of_normals(scale: float, relative: float) -> None:
    """Of a large normal; below 0.002 denormal numbers are in between, whose steps are 1e-9 of a normal of scale 1."""
    stream = rng.stream(4)
    pairs, got = rng.words(1, 128, stream, rng.Kind.STEP, 0).view(-1, 2), torch.full((256, 2), float("nan"))
    _box_muller_kernel[(1,)](pairs, got, scale, 256)
    expected = scale * rng.normals(1, 512, stream, rng.Kind.STEP, 0, torch.float64).view_as(got)
    error = (got - expected).abs().max()
    assert error <= 5 * scale * relative
    assert error <= 5 * scale * 5e-7 + 1e-9


@pytest.mark.parametrize("d", SIZES)
def test_fill_normal(d: int) -> None:
    n, stream = samples(d), rng.stream(2**63 + 1, 2**32 - 2)
    out = torch.full((n, d), float("nan"))
    gbm.fill_normal(out, stream, rng.Kind.PRIOR, 3)
    assert (out - rng.normals(n, d, stream, rng.Kind.PRIOR, 3, torch.float64)).abs().max() <= 2e-6


def test_noise_does_not_depend_on_the_batch() -> None:
    whole, part = torch.empty(5, 130), torch.empty(2, 130)
    gbm.fill_normal(whole, rng.stream(7, 100), rng.Kind.PRIOR, 0)
    gbm.fill_normal(part, rng.stream(7, 102), rng.Kind.PRIOR, 0)
    assert torch.equal(whole[2:4], part)


# ---- operations ----


@pytest.mark.parametrize("d", SIZES)
@pytest.mark.parametrize(
    ("x_t", "net_in", "z"),
    [(True, torch.float32, True), (True, torch.bfloat16, False), (True, None, False), (False, torch.float16, True)],
)
def test_gbm_perturb(d: int, x_t: bool, net_in: torch.dtype | None, z: bool) -> None:
    check_interpreted(perturb_case(samples(d), d, start=2**32 - 2, x_t=x_t, net_in=net_in, z=z), gbm.gbm_perturb)


def test_gbm_perturb_in_place() -> None:
    case = perturb_case(5, 130, net_in=None, z=False)
    expected, x = case.run(gbm.gbm_perturb)["x_t"], case.x0.clone()
    gbm.gbm_perturb(x, case.coefficients, case.stream, case.kind, case.step, x, None, None)
    assert torch.equal(x, expected)


def test_gbm_perturb_of_no_number_is_none() -> None:
    case = perturb_case(1, 4)
    case.x0[0] = torch.tensor([float("nan"), 0.0, float("inf"), 1.0])
    got = case.run(gbm.gbm_perturb)
    assert got["net_in"].isnan().tolist() == [[True, True, True, False]]
    assert got["x_t"].isfinite().tolist() == [[False, True, False, True]]
    assert got["x_t"][0, 1] == 0


MODES = [
    {"log_state": False},
    {"log_state": False, "f_dtype": torch.bfloat16},
    {"log_state": True, "f_dtype": torch.float16},
    {"log_state": True, "history": True},
    {"log_state": True, "net_in": torch.bfloat16},
    {"log_state": True, "history": True, "net_in": torch.float16, "f_dtype": torch.bfloat16},
    {"log_state": True, "history": True, "net_in": torch.float32},
]


@pytest.mark.parametrize("d", SIZES)
@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("stein", [False, True])
def test_gbm_step(d: int, linear: bool, stein: bool) -> None:
    for seed, mode in enumerate(MODES):
        case = step_case(samples(d), d, seed=seed, start=2**32 - 2, stein=stein, linear=linear, **mode)
        check_interpreted(case, gbm.gbm_step, in_place=seed % 2 == 0)


@pytest.mark.parametrize("d", [63, 64])
def test_gbm_step_in_place_is_the_same(d: int) -> None:
    case = step_case(9, d, history=True, net_in=torch.float32)
    for a, b in zip(case.run(gbm.gbm_step).values(), case.run(gbm.gbm_step, in_place=True).values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("d", [3, 64])
@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("log_state", [False, True])
def test_gbm_step_marks_a_lost_state_and_no_other(d: int, linear: bool, log_state: bool) -> None:
    case = step_case(9, d, linear=linear, log_state=log_state, net_in=torch.float32 if log_state else None)
    case.table[:, 6] = 100.0  # so that a large f leaves the float32 numbers in the linear form, too
    clean = case.run(gbm.gbm_step)
    case.f[1, 2] = float("nan")
    case.f[2, 0] = float("inf")
    case.x[3, 1] = float("nan")  # came in lost
    case.x[4, 2] = 0.0
    case.f[5, 0], case.f[6, 1] = -3e38, 3e38
    lost = torch.zeros(9, d, dtype=torch.bool)
    lost[(1, 2, 3, 4, 5, 6), (2, 0, 1, 2, 0, 1)] = True

    got = case.run(gbm.gbm_step, in_place=True)
    expected = case.run(reference.gbm_step, torch.float64, in_place=True)
    assert got["bad"].tolist() == expected["bad"].tolist() == [-1, 2, 2, 2, 2, 2, 2, -1, -1]
    assert torch.equal(got["x"].isnan(), lost)
    assert torch.equal(got["x"][~lost], clean["x"][~lost])
    if log_state:
        assert torch.equal(got["net_in"].isnan(), lost)


def test_gbm_step_keeps_the_first_step_of_a_lost_sample() -> None:
    case = step_case(2, 64, log_state=False)
    case.f[:, 5] = float("nan")
    bad = torch.tensor([1, -1], dtype=torch.int32)
    gbm.gbm_step(case.x, case.f, case.table, case.stream, 3, bad, case.x, None, None, False, False, False)
    assert bad.tolist() == [1, 3]
