"""Properties over seeds, starts, shapes, dtypes, strides and splits, in cases of hypothesis."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import io
import itertools
import math
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir
from torch import Tensor

import fastmsgm
from fastmsgm import nets, ops, rng
from fastmsgm.data import DataOrder
from fastmsgm.data.batches import Batches
from fastmsgm.output import stream
from fastmsgm.output.array_file import ArrayFile
from fastmsgm.output.chunks import Chunks
from fastmsgm.output.journal import Journal, differences
from fastmsgm.output.verification import verify
from fastmsgm.processes import Processes
from fastmsgm.tensors import _DTYPES, DamagedFileError, load_tensors, save_tensors
from tests import test_stream
from tests.models import FAMILIES, D
from tests.ops.backends import CPU
from tests.ops.cases import (
    DTYPES,
    ROWS,
    Case,
    gbm_perturb_case,
    gbm_step_case,
    ring_step_case,
    rotation_perturb_case,
    rotation_step_case,
)
from tests.test_output import everything, opened, write

pytestmark = pytest.mark.usefixtures("one_thread")

# Its tables, which would else be in the working directory, as pytest collects the tests.
HOME = tempfile.mkdtemp(prefix="hypothesis-")
set_hypothesis_home_dir(HOME)
atexit.register(shutil.rmtree, HOME, ignore_errors=True)
# The same cases in every run, and nothing kept of them.
property_of = settings(deadline=None, derandomize=True, database=None, max_examples=25)

SEEDS = st.integers(0, 2**64 - 1)
FLOATS = st.sampled_from(DTYPES)


def starts(n: int) -> st.SearchStrategy[int]:
    """First samples of n, also where their index leaves 32 bits and where the stream ends."""
    last = rng.MAX_SAMPLES - n
    near = st.sampled_from([2**32, 2**56]).flatmap(lambda end: st.integers(end - 2 * n, end))
    return st.integers(0, last) | near.map(lambda start: min(max(start, 0), last))


def cuts(n: int) -> st.SearchStrategy[list[slice]]:
    """Consecutive parts of n rows, some of them empty."""

    def parts(places: list[int]) -> list[slice]:
        places = [0, *sorted(places), n]
        return [slice(a, b) for a, b in itertools.pairwise(places)]

    return st.lists(st.integers(0, n), max_size=4).map(parts)


# ---- operations ----


@st.composite
def operation_cases(draw: st.DrawFn) -> Case:
    """A call of any operation with noise: any seed and start, 1 .. 24 samples."""
    n, seed = draw(st.integers(1, 24)), draw(st.integers(0, 1000))
    flags = {name: draw(st.booleans()) for name in ("first", "second", "third")}
    half, dtype = draw(st.none() | FLOATS), draw(FLOATS)
    which = draw(st.sampled_from(["gbm", "rotation", "ring", "gbm perturb", "rotation perturb"]))
    d = draw(st.integers(2 if which != "gbm" else 1, 40))
    if which == "gbm":
        names = ("stein_score", "log_state", "prev_denoised")
        options = dict(zip(names, flags.values(), strict=True))
        options["log_state"] |= options["prev_denoised"] or half is not None
        case: Case = gbm_step_case(n, d, seed=seed, model_input=half, dtype=dtype, **options)
    elif which == "rotation":
        geodesic, angles = flags["first"], flags["second"] and not flags["first"]
        options = {"geodesic": geodesic, "angles": angles, "prev_denoised": flags["third"]}
        case = rotation_step_case(n, d, seed=seed, model_input=half, dtype=dtype, **options)
    elif which == "ring":
        options = {"restart": flags["first"], "noisy": flags["second"]}
        case = ring_step_case(n, d, seed=seed, model_input=half, dtype=dtype, **options)
    elif which == "gbm perturb":
        case = gbm_perturb_case(n, d, seed=seed, model_input=half)
    else:
        case = rotation_perturb_case(n, d, seed=seed, model_input=half)
    return dataclasses.replace(case, stream=rng.stream(draw(SEEDS), draw(starts(n))))


@given(st.data(), operation_cases())
@property_of
def test_an_operation_does_not_depend_on_how_rows_are_split(
    data: st.DataObject, case: Case
) -> None:
    """Bit for bit."""
    whole = case.run(CPU)
    rows = data.draw(cuts(len(getattr(case, case.state))))
    parts = [case.part(part).run(CPU) for part in rows]
    for name, expected in whole.items():
        together = torch.cat([part[name] for part in parts])
        torch.testing.assert_close(together, expected, rtol=0, atol=0, equal_nan=True)


@given(operation_cases())
@property_of
def test_the_cpu_kernels_are_the_reference(case: Case) -> None:
    case.check(CPU)


@given(
    shape=st.lists(st.integers(1, 5), min_size=2, max_size=4),
    data=st.data(),
    dtype=FLOATS,
    seed=SEEDS,
)
@property_of
def test_a_network_output_may_have_any_strides(
    shape: list[int], data: st.DataObject, dtype: torch.dtype, seed: int
) -> None:
    """Of any shape: its axes in memory in any order, and with gaps."""
    n, d = shape[0], math.prod(shape[1:])
    assume(n != ROWS)  # a state must not have the shape of the table
    case = gbm_step_case(n, d, dtype=dtype, model_input=dtype)
    case = dataclasses.replace(case, stream=rng.stream(seed))
    dense, strided = (case.op_arguments(tuple(shape)) for _ in range(2))
    order = data.draw(st.permutations(range(len(shape))))
    gap = data.draw(st.integers(1, 3))
    memory = torch.full([shape[axis] for axis in order] + [gap], torch.nan, dtype=dtype)
    view = memory[..., 0].permute([order.index(axis) for axis in range(len(shape))])
    view.copy_(strided["model_output"])
    strided["model_output"] = view
    assert torch.equal(ops.gbm_step(**strided), ops.gbm_step(**dense))
    assert torch.equal(strided["model_input"], dense["model_input"])


@given(
    n=st.integers(1, 5),
    d=st.integers(1, 30),
    data=st.data(),
    seed=SEEDS,
    purpose=st.integers(0, 255),
    step=st.integers(0, 2**31 - 1),
)
@property_of
def test_normals_are_those_of_the_stream(
    n: int, d: int, data: st.DataObject, seed: int, purpose: int, step: int
) -> None:
    of = rng.stream(seed, data.draw(starts(n)))
    out = torch.full((n, d), torch.nan)
    ops.fill_normal_(out, of, purpose, step)
    torch.testing.assert_close(out, rng.normals(n, d, of, purpose, step), rtol=0, atol=2e-6)


# ---- the stream of samples ----


def small_model(family: str) -> fastmsgm.ScoreModel:
    torch.manual_seed(0)
    condition = {"log_norm": 1} if family == "isotropic" else None
    return FAMILIES[family](nets.MLP(D, 64, 2, condition=condition)).eval()


MODELS = {family: small_model(family) for family in ("gbm denoiser", "isotropic", "vp")}


@given(data=st.data(), n=st.integers(1, 40), size=st.integers(1, 16), seed=SEEDS)
@property_of
@pytest.mark.parametrize("family", MODELS)
def test_a_part_of_a_stream_is_that_of_the_whole(
    family: str, data: st.DataObject, n: int, size: int, seed: int
) -> None:
    """Bit for bit at a given batch size, wherever either begins and ends."""
    start, first = data.draw(starts(n)), data.draw(st.integers(0, n - 1))
    count = data.draw(st.integers(1, n - first))
    options: dict[str, Any] = {"steps": 2, "seed": seed, "batch_size": size, "progress": False}
    whole = fastmsgm.sample(MODELS[family], n, start=start, **options)
    part = fastmsgm.sample(MODELS[family], count, start=start + first, **options)
    assert torch.equal(part, whole[first : first + count])


@given(start=st.integers(0, 2**56), n=st.integers(1, 10**12), data=st.data())
@property_of
def test_chunks_are_a_partition(start: int, n: int, data: st.DataObject) -> None:
    """Of the samples, in order; the wanted samples of a chunk are its rows."""
    size = data.draw(st.integers(max(1, n // 50), 2 * n))
    first = start - data.draw(st.integers(0, min(start, size - 1)))
    chunks, end = Chunks(start, n, size, first), 0
    for chunk in range(len(chunks)):
        rows, wanted = chunks.rows(chunk), chunks.wanted(chunk)
        assert rows.start == end
        assert 0 <= wanted.start < wanted.stop <= size
        assert start + rows.start == chunks.first_sample(chunk) + wanted.start
        assert rows.stop - rows.start == wanted.stop - wanted.start
        end = rows.stop
    assert end == n


# ---- files ----


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


NAMES = st.text(max_size=20).filter(lambda name: name != "__metadata__")
METADATA = st.dictionaries(st.text(max_size=9).filter(lambda k: k != "sha256"), st.text())
SHAPES = st.lists(st.integers(0, 4), max_size=4)


@st.composite
def any_tensors(draw: st.DrawFn) -> Tensor:
    """Any bits, shape and strides in a dtype that files can hold."""
    dtype, shape = draw(st.sampled_from(sorted(_DTYPES, key=str))), draw(SHAPES)
    if dtype == torch.bool:
        raw = draw(st.lists(st.booleans(), min_size=math.prod(shape), max_size=math.prod(shape)))
        x = torch.tensor(raw, dtype=dtype)
    else:
        size = math.prod(shape) * dtype.itemsize
        raw = draw(st.binary(min_size=size, max_size=size))
        x = torch.tensor(list(raw), dtype=torch.uint8).view(dtype)
    x = x.view(shape)
    if dtype.is_complex and draw(st.booleans()):
        x = x.conj() if draw(st.booleans()) else x.conj().imag  # which is negated when it is read
    change = draw(st.sampled_from(["none", "transposed", "expanded", "strided"]))
    if change == "transposed":
        return x.permute(tuple(reversed(range(x.ndim))))
    if change == "expanded":
        return x.expand(2, *shape)
    return x.repeat_interleave(2)[::2] if change == "strided" and x.ndim == 1 else x


def bits(x: Tensor) -> tuple[torch.dtype, tuple[int, ...], bytes]:
    plain = torch.empty(x.shape, dtype=x.dtype).copy_(x)
    return x.dtype, tuple(x.shape), plain.view(-1).view(torch.uint8).numpy().tobytes()


@given(tensors=st.dictionaries(NAMES, any_tensors(), max_size=4), metadata=METADATA)
@property_of
def test_tensors_come_back(
    folder: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]
) -> None:
    """Of any dtype, shape, strides and bits, under any name."""
    save_tensors(folder / "tensors", tensors, metadata)
    loaded, found = load_tensors(folder / "tensors")
    assert {name: bits(x) for name, x in loaded.items()} == {
        name: bits(x) for name, x in tensors.items()
    }
    assert {name: text for name, text in found.items() if name != "sha256"} == metadata


def damaged(raw: bytes, data: st.DataObject) -> bytes:
    """Return the bytes with a flipped bit, an end cut off or one put on."""
    place = data.draw(st.integers(0, len(raw) - 1))
    kind = data.draw(st.sampled_from(["bit", "bit", "cut", "more"]))
    if kind == "cut":
        return raw[:place]
    if kind == "more":
        return raw + data.draw(st.binary(min_size=1, max_size=20))
    flipped = bytearray(raw)
    flipped[place] ^= 1 << data.draw(st.integers(0, 7))
    return bytes(flipped)


@given(data=st.data())
@settings(property_of, max_examples=100)
def test_no_damage_of_tensors_is_missed(folder: Path, data: st.DataObject) -> None:
    path = folder / "damaged"
    save_tensors(path, {"a": torch.arange(6.0).view(2, 3), "b": torch.arange(3)}, {"step": "7"})
    path.write_bytes(damaged(path.read_bytes(), data))
    with pytest.raises(DamagedFileError, match="damaged' is damaged or not a file of fastmsgm"):
        load_tensors(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
DESCRIPTIONS = st.dictionaries(
    st.text().filter(lambda name: name not in ("chunks", "frame", "sha256")), JSON, max_size=5
)
FINISHED = st.dictionaries(st.integers(0, 2**40), st.text("0123456789abcdef"), max_size=9)


@given(described=DESCRIPTIONS, finished=FINISHED)
@property_of
def test_a_journal_comes_back(
    folder: Path, described: dict[str, Any], finished: dict[int, str]
) -> None:
    journal = Journal(described, finished, frame="ab")
    journal.write(folder / "journal")
    assert Journal.read(folder / "journal") == journal
    assert differences(described, described) == ("", "")


@given(data=st.data())
@settings(property_of, max_examples=100)
def test_no_damage_of_a_journal_is_missed(folder: Path, data: st.DataObject) -> None:
    """What is read in spite of it says the same."""
    path, journal = folder / "damaged.json", Journal({"seed": 3, "bounds": [0.5, 1.0]}, {0: "ab"})
    journal.write(path)
    path.write_bytes(damaged(path.read_bytes(), data))
    with contextlib.suppress(DamagedFileError):
        assert Journal.read(path) == journal


@given(
    data=st.data(), shape=st.lists(st.integers(1, 4), min_size=1, max_size=3), n=st.integers(1, 30)
)
@property_of
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_rows_are_written_in_any_order(
    folder: Path, suffix: str, data: st.DataObject, shape: list[int], n: int
) -> None:
    """A .npy has the bytes of np.save."""
    dtype = data.draw(st.sampled_from(["float32", "uint8"]))
    x = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (n, *shape)).astype(dtype))
    with tempfile.TemporaryDirectory(dir=folder) as place:
        file = ArrayFile(Path(place) / f"x{suffix}", n, tuple(shape), dtype)
        file.create()
        for rows in data.draw(cuts(n).flatmap(st.permutations)):
            file.write(rows, x[rows])
        file.complete()
        assert file.path.stat().st_size >= x.numel() * x.element_size()
        assert torch.equal(file.tensor(n), x)
        if suffix == ".npy":
            expected = io.BytesIO()
            np.save(expected, x.numpy())
            assert file.path.read_bytes() == expected.getvalue()
        else:
            last = len(shape) == 3
            with np.load(file.path) as archive:
                np.testing.assert_array_equal(archive["arr_0"], x.movedim(1, -1) if last else x)


@given(data=st.data())
@settings(property_of, max_examples=50)
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_no_damage_of_samples_is_missed(folder: Path, suffix: str, data: st.DataObject) -> None:
    """Anywhere in the file."""
    path = folder / f"verified{suffix}"
    if not path.exists():
        x, described = torch.arange(240.0).view(10, 2, 3, 4), test_stream.settings(shape=[2, 3, 4])
        output = opened(path, (2, 3, 4), settings=described)
        write(output, x)
        output.target.finished()
    verify(path)
    before = path.read_bytes()
    path.write_bytes(damaged(before, data))
    try:
        with pytest.raises(DamagedFileError):
            verify(path)
    finally:
        path.write_bytes(before)


@st.composite
def sittings(draw: st.DrawFn) -> list[dict[str, Any]]:
    """What happened to a run before it was finished: each sitting of one of K parts, or of all."""
    parts = st.integers(1, 3).flatmap(lambda k: st.tuples(st.integers(0, k - 1), st.just(k)))
    one = st.fixed_dictionaries(
        {
            "shard": st.none() | parts,
            "chunks": st.integers(0, 9),  # that it finishes
            "journal": st.booleans(),  # written after every chunk, or at the end alone
            "stopped": st.booleans(),  # by Ctrl-C, else killed
            "flip": st.none() | st.integers(0, 10**6),  # a bit of the samples, afterwards
        }
    )
    return draw(st.lists(one, max_size=4))


@given(sitting=sittings(), n=st.integers(1, 30), size=st.integers(1, 7))
@property_of
def test_a_run_ends_as_the_uninterrupted_one(
    folder: Path, sitting: list[dict[str, Any]], n: int, size: int
) -> None:
    """However often it was stopped, killed, shared and damaged."""
    x = torch.arange(7 * n, dtype=torch.float32).view(n, 7)
    described = {"n": n, "start": 0, "first": 0, "batch_size": size, "shape": [7]}
    options: dict[str, Any] = {"shape": (7,), "n": n, "size": size}
    options["settings"] = test_stream.settings(**described)
    with tempfile.TemporaryDirectory(dir=folder) as place, pytest.MonkeyPatch.context() as patch:
        path = Path(place) / "x.npy"
        for step in sitting:
            patch.setattr(stream, "JOURNAL_SECONDS", -1.0 if step["journal"] else 1e9)
            output = opened(path, shard=step["shard"], **options)
            write(output, x, step["chunks"], size)
            if step["stopped"]:
                output.target.stopped()
            output.target._lock.release()  # pyright: ignore[reportAttributeAccessIssue]
            partial = Path(f"{path}.partial")
            if step["flip"] is not None and partial.exists():
                raw = bytearray(partial.read_bytes())
                raw[128 + step["flip"] % (len(raw) - 128)] ^= 1
                partial.write_bytes(raw)
        patch.setattr(stream, "JOURNAL_SECONDS", 1e9)
        output = opened(path, **options)
        write(output, x, size=size)
        assert torch.equal(output.target.finished(), x)
        verify(path)
        again = opened(Path(place) / "whole" / "x.npy", **options)
        write(again, x, size=size)
        again.target.finished()
        files = everything(Path(place))
        whole = {f"whole/{name}": raw for name, raw in files.items() if "whole" not in name}
        assert {name: raw for name, raw in files.items() if "whole" in name} == whole


# ---- training data ----


@given(
    data=st.data(),
    n=st.integers(1, 40),
    size=st.integers(1, 20),
    processes=st.integers(1, 5),
    first=st.integers(0, 1000),
    seed=SEEDS,
)
@property_of
@pytest.mark.parametrize("transformed", [False, True])
def test_parts_of_batches_are_the_batches_of_one_process(
    transformed: bool,
    data: st.DataObject,
    n: int,
    size: int,
    processes: int,
    first: int,
    seed: int,
) -> None:
    """With labels, conditions and augmentation."""
    assume(processes <= size)
    dtype = data.draw(st.sampled_from([torch.float32, torch.uint8]))
    options: dict[str, Any] = {"batch_size": size, "seed": seed}
    options["transform"] = (lambda x: x + torch.rand(3)) if transformed else None
    batches = Batches(
        torch.arange(3 * n).view(n, 3).to(dtype),
        torch.arange(n),
        {"c": torch.arange(2.0 * n).view(n, 2)},
        **options,
    )
    runs = [batches.parts(first, Processes(rank, processes)) for rank in range(processes)]
    for (x, condition), *parts in zip(
        itertools.islice(batches.iterate(first), 3), *runs, strict=False
    ):
        assert torch.equal(torch.cat([part.x for part in parts]), x)
        for name, value in condition.items():
            assert torch.equal(torch.cat([part.condition[name] for part in parts]), value)
        assert [part.first for part in parts] == [
            0,
            *itertools.accumulate(len(part.x) for part in parts[:-1]),
        ]
        assert {part.n for part in parts} == {size}


@given(
    n=st.integers(1, 200),
    size=st.integers(1, 60),
    seed=SEEDS,
    epoch=st.integers(0, 2**20),
)
@property_of
def test_an_epoch_is_a_permutation(n: int, size: int, seed: int, epoch: int) -> None:
    """Whatever the batch size: batches run on over its ends."""
    order, first = DataOrder(n, size, seed), epoch * n
    steps = range(first // size, (first + n - 1) // size + 1)
    indices = torch.cat([order.batch(step) for step in steps])[first % size :][:n]
    assert sorted(indices.tolist()) == list(range(n))
