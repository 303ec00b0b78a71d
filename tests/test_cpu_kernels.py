"""The CPU kernels: Philox word for word, normals, and every mode of every operation within the oracle's bound."""

from __future__ import annotations

import itertools
import os
import threading

import numpy as np
import pytest
import torch
from numba import njit
from oracle import StepCase, assert_bits_of_rows, perturb_case, step_case

from fastmsgm import rng
from fastmsgm.kernels import cpu
from fastmsgm.kernels.cpu import arrays, box_muller, philox, threads

DIMENSIONS = (1, 3, 4, 63, 64, 130, 784)
FORMS = ((False, False), (False, True), (True, False), (True, True))  # stein, linear
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
RANDOM123 = (  # kat_vectors: counter, key, words
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
)  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@njit
def _words(quad, sample, step, seed):
    """The four words at an address whose kind is in the sample's upper word."""
    tables, _, products, radius, angle, _ = philox.buffers(4)
    philox.rounds_of_quads(quad, 1, 2**40, sample >> 32, 0, step, seed, tables)
    philox.rounds_of_samples(quad, 1, 2**40, sample, 0, seed, products)
    philox.philox(1, tables, 0, products, np.uint64(seed), radius, angle)
    radius, angle = radius.view(np.uint32), angle.view(np.uint32)
    return radius[0], angle[0], radius[1], angle[1]


@pytest.mark.parametrize(("counter", "key", "expected"), RANDOM123)
def test_philox_known_answers(counter, key, expected):
    # The third word is kind * 2^24 + sample // 2^32: here the sample's upper word holds all of it.
    sample, seed = (int(np.uint64(low + (high << 32)).astype(np.int64)) for low, high in (counter[1:3], key))
    assert _words(counter[0], sample, counter[3], seed) == expected


@pytest.mark.parametrize("start", [0, 2**32 - 3, 2**55])
@pytest.mark.parametrize("d", [1, 6, 784, 20_000])
def test_philox_words_of_a_stream(start, d):
    n, quads, kind, step = 7, (d + 3) // 4, rng.Kind.AUGMENTATION, 2**32 + 5
    stream = rng.stream(2**64 - 12345, start)
    room, words = philox.buffers(d), []
    for first in range(0, n * quads, philox.BLOCK):
        count = min(philox.BLOCK, n * quads - first)
        philox.block_words(first, count, d, stream.numpy(), int(kind), step, room)
        radius, angle = (w[:count].view(np.uint32).reshape(-1, 2) for w in room[3:5])
        words.append(np.stack((radius[:, 0], angle[:, 0], radius[:, 1], angle[:, 1]), axis=1))
    expected = rng.words(n, quads, stream, kind, step).reshape(-1, 4).numpy()
    assert (np.concatenate(words) == expected).all()


@pytest.mark.parametrize("d", [1, 3, 4, 130, 1030])
def test_fill_normal(d):
    n = 120_000 // d
    stream = rng.stream(3, 2**32 - 5)
    out = torch.full((n, d), torch.nan)
    cpu.fill_normal(out, stream, rng.Kind.PRIOR, 0)
    assert (out - rng.normals(n, d, stream, rng.Kind.PRIOR, 0, torch.float64)).abs().max() <= 2e-6


@njit
def _normals(count, radius, angle, z):
    box_muller.normals(count, radius, angle, z, 0, ())


def test_normals_in_the_tails():
    # The smallest radius words and both ends of every quadrant; the largest |z| of the stream is 6.77.
    radius = np.array([0, 0, 1, 2**32 - 1, 2**32 - 1, 2**31] * 8 + [0, 2**32 - 1], np.uint32)
    angle = np.array(
        [0, 2**29 - 1, 2**29, 2**30, 3 * 2**30, 2**32 - 1, 2**31 - 1, 7 * 2**29] * 6 + [2**29, 2**31 - 1], np.uint32
    )
    z = np.full(2 * len(radius), np.nan, np.float32)
    _normals(len(radius), radius, angle, z)
    size = np.sqrt(-2 * np.log((radius.astype(np.float32) * 2.0**-32 + 2.0**-33).astype(np.float32).astype(np.float64)))
    turn = 2 * np.pi * (angle.astype(np.float64) * 2.0**-32)
    expected = np.stack((size * np.cos(turn), size * np.sin(turn)), axis=1).ravel()
    assert np.abs(z - expected).max() <= 2e-6
    assert 6.7 < np.abs(z).max() < 6.78


@pytest.mark.parametrize("d", DIMENSIONS)
@pytest.mark.parametrize(("stein", "linear"), FORMS)
def test_gbm_step_without_logarithm(d, stein, linear):
    for seed, f_dtype in enumerate(DTYPES):
        modes = dict(stein=stein, linear=linear, log_state=False, f_dtype=f_dtype)
        case = step_case(19, d, seed=seed, start=2**32 - 5, **modes)
        case.check(cpu.gbm_step, in_place=seed % 2 == 0)


@pytest.mark.parametrize("d", DIMENSIONS)
@pytest.mark.parametrize(("stein", "linear"), FORMS)
@pytest.mark.parametrize("history", [False, True])
def test_gbm_step_with_logarithm(d, stein, linear, history):
    for seed, (net_in, f_dtype) in enumerate(zip((None, *DTYPES), (*DTYPES, torch.float32), strict=True)):
        modes = dict(stein=stein, linear=linear, history=history, net_in=net_in, f_dtype=f_dtype)
        step_case(19, d, seed=seed, **modes).check(cpu.gbm_step, in_place=seed % 2 == 0)


@pytest.mark.parametrize("d", DIMENSIONS)
def test_gbm_perturb(d):
    outputs = itertools.product((False, True), (None, *DTYPES))
    for seed, (x_t, net_in) in enumerate(outputs):
        z = seed % 3 == 0
        perturb_case(19, d, seed=seed, start=2**32 - 5, x_t=x_t, net_in=net_in, z=z).check(cpu.gbm_perturb)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_floats(dtype):
    """All 2^16 of them to float32, and float32s of every exponent to them, as torch converts."""
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


@pytest.mark.parametrize("dtype", DTYPES)
def test_bad_network_output_is_caught(dtype):
    for value, linear, log_state in itertools.product(
        (torch.nan, torch.inf, -torch.inf), (False, True), (False, True)
    ):  # fmt: skip
        case = step_case(40, 130, linear=linear, log_state=log_state, f_dtype=dtype)
        case.f[7, 129] = case.f[31, 0] = value
        got = case.run(cpu.gbm_step)
        expected = torch.full((40,), -1, dtype=torch.int32)
        expected[7] = expected[31] = case.step
        assert torch.equal(got["bad"], expected)
        assert got["x"].isnan().sum() == 2
        assert got["x"][7, 129].isnan()
        assert got["x"][31, 0].isnan()


@pytest.mark.parametrize("pattern", [0x7FC001FF, 0x7F800001, 0xFFFFFFFF])
def test_nan_payloads_are_caught(pattern):
    case = step_case(3, 64, log_state=False)
    case.f.view(torch.int32)[1, 5] = int(np.uint32(pattern).astype(np.int32))
    assert case.run(cpu.gbm_step)["bad"].tolist() == [-1, case.step, -1]


@pytest.mark.parametrize("log_state", [False, True])
def test_states_at_the_edge_of_float32(log_state):
    """A step that overflows or underflows is marked, and so is a sample that came in lost."""
    case = step_case(6, 64, log_state=log_state)
    case.table[2] = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0])
    case.table[2, 3] = 3.0  # x' = 20 x
    case.x[0, 3] = 3e38
    case.x[1, 63] = -2e37
    case.x[2, 0] = 1e37
    case.x[3, 1] = torch.inf
    case.x[4, 1] = 0.0
    case.x[5, 1] = torch.nan
    got = case.run(cpu.gbm_step)
    assert got["bad"].tolist() == [2, 2, -1, 2, 2, 2]
    assert got["x"][2].isfinite().all()
    assert got["x"][[0, 1, 3, 4, 5], [3, 63, 1, 1, 1]].isnan().all()
    assert got["x"].isnan().sum() == 5
    case.table[2, 3] = -3.0
    case.x[0, 3], case.x[1, 63], case.x[2, 0] = 2e-38, -1.5e-38, 1e-36
    assert case.run(cpu.gbm_step)["bad"].tolist() == [2, 2, -1, 2, 2, 2]


def test_first_bad_step_is_kept():
    case = step_case(3, 8)
    bad = torch.tensor([-1, 1, -1], dtype=torch.int32)
    case.f[:2] = torch.nan
    cpu.gbm_step(case.x, case.f, case.table, case.stream, 2, bad, case.x, None, None, False, False, True)
    assert bad.tolist() == [2, 1, -1]


@pytest.mark.parametrize("d", [1, 3, 130, 784, 1030])
def test_bits_do_not_depend_on_threads_or_split(d):
    n, state = 80_000 // d, ("x", "f", "history")
    for case, kernel, names in (
        (step_case(n, d, start=11, history=True, net_in=torch.bfloat16), cpu.gbm_step, state),
        (step_case(n, d, start=11, stein=True, log_state=False), cpu.gbm_step, state),
        (perturb_case(n, d, start=11), cpu.gbm_perturb, ("x0", "coefficients")),
    ):
        assert_bits_of_rows(case, kernel, names)


def test_callers_at_the_same_time():
    case = step_case(200, 784, log_state=False)
    expected = case.run(cpu.gbm_step)["x"]
    results = []
    callers = [threading.Thread(target=lambda: results.append(case.run(cpu.gbm_step)["x"])) for _ in range(6)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(results) == 6
    assert all(torch.equal(x, expected) for x in results)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # that is the point
def test_kernels_run_after_a_fork():
    case = step_case(200, 784, log_state=False)
    expected = case.run(cpu.gbm_step)["x"]
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(_range_step(case), expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _range_step(case: StepCase) -> torch.Tensor:
    """The step without torch's own parallel operators, whose threads the fork has lost."""
    out, bad = torch.empty_like(case.x), torch.full((len(case.x),), -1, dtype=torch.int32)
    flags = (case.stein, case.linear, case.log_state)
    cpu.gbm_step(case.x, case.f, case.table, case.stream, case.step, bad, out, None, None, *flags)
    return out


def test_every_row_is_handed_out_once():
    for n, d in ((1, 10**6), (7, 10**5), (10**5, 3)):
        torch.set_num_threads(4)
        taken = []
        threads.over_rows(lambda first, last, taken=taken: taken.extend(range(first, last)), n, d)
        assert sorted(taken) == list(range(n))


def test_empty_batch():
    out = torch.empty(0, 5)
    cpu.fill_normal(out, rng.stream(0), rng.Kind.PRIOR, 0)
    case = step_case(0, 5)
    assert case.run(cpu.gbm_step)["x"].shape == (0, 5)
