"""What docs/reproducibility.md promises and no other test holds: threads, forks, parts of a run."""

from __future__ import annotations

import ast
import os
import pickle
import re
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fastmsgm
from fastmsgm import nets
from fastmsgm.output import stream, verification
from fastmsgm.training import trainer
from tests.models import FAMILIES, D, positive_data
from tests.test_output import data, opened, write

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reproducibility.md"
MODELS = ("cauchy-rotation", "cauchy-vp")
OPTIONS: dict[str, Any] = {"batch_size": 64, "steps": 3, "progress": False}


def samples(model: Any, seed: int = 0, n: int = 200, **options: Any) -> Tensor:
    return fastmsgm.sample(model, n, seed=seed, **OPTIONS | options)


# ---- the page ----


def footnotes() -> dict[str, list[str]]:
    """Return the tests that every footnote of the page names."""
    found = re.findall(r"^\[\^([\w-]+)\]:((?:.|\n(?!\n|\[))*)", PAGE.read_text(), re.MULTILINE)
    return {name: re.findall(r"`(tests/[\w/]+\.py::\w+)`", text) for name, text in found}


def test_every_test_that_is_named_exists() -> None:
    names = [name for found in footnotes().values() for name in found]
    assert len(names) > 40
    for path in {name.split("::")[0] for name in names}:
        body = ast.parse((ROOT / path).read_text()).body
        there = {f"{path}::{node.name}" for node in body if isinstance(node, ast.FunctionDef)}
        assert not {name for name in names if name.startswith(path)} - there


def test_every_footnote_is_used_and_names_a_test() -> None:
    notes = footnotes()
    assert all(notes.values())
    assert set(re.findall(r"\[\^([\w-]+)\](?!:)", PAGE.read_text())) == set(notes)


def test_every_guarantee_has_a_footnote() -> None:
    """Every item of a list, but for what was measured, or planned and not run."""
    text = PAGE.read_text().split("## Beside another program")[0]
    items = re.findall(r"^- (?:.|\n(?!\n|- ))*", text, re.MULTILINE)
    assert len(items) > 25
    assert not [item for item in items if not re.search(r"\[\^[\w-]+\]$", item.strip())]


# ---- calls ----


@pytest.mark.parametrize("model", MODELS)
def test_the_same_call_gives_the_same_bits(model: str) -> None:
    """Also where the batch size is chosen by the package."""
    first, second = (samples(model, batch_size=None) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("model", MODELS)
def test_another_batch_size_differs_by_rounding(model: str) -> None:
    torch.testing.assert_close(samples(model, batch_size=50), samples(model), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model", MODELS)
def test_another_number_of_threads_differs_by_rounding(model: str) -> None:
    expected = samples(model, batch_size=200)
    torch.set_num_threads(2)
    torch.testing.assert_close(samples(model, batch_size=200), expected, rtol=1e-4, atol=1e-4)


def test_another_backend_differs_by_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = samples("cauchy-rotation")
    monkeypatch.setenv("FASTMSGM_BACKEND", "reference")
    torch.testing.assert_close(samples("cauchy-rotation"), expected, rtol=1e-4, atol=1e-4)


# ---- training ----


def trained(threads: int = 1, **options: Any) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = FAMILIES["gbm denoiser"](nets.MLP(D, 128, 2))
    torch.set_num_threads(threads)
    settings: dict[str, Any] = {"steps": 10, "batch_size": 512, "warmup": 2, "progress": False}
    fastmsgm.fit(model, positive_data(2000), **settings | options)
    return model.state_dict()


def test_the_same_fit_gives_the_same_bits() -> None:
    first, second = trained(), trained()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_another_seed_gives_another_model() -> None:
    first, second = trained(), trained(seed=1)
    assert not torch.equal(first["net.out.weight"], second["net.out.weight"])


def test_training_leaves_the_generator_alone() -> None:
    model = FAMILIES["gbm denoiser"](nets.MLP(D, 8, 1))
    before = torch.random.get_rng_state()
    fastmsgm.fit(model, positive_data(), steps=3, progress=False)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_run_with_accumulation_and_conditions_resumes_exactly(tmp_path: Path) -> None:
    def run(folder: str, steps: int) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model = FAMILIES["gbm denoiser"](nets.MLP(D, 16, 1, condition={"c": 1}))
        condition, rate = {"c": torch.arange(64.0)}, constant_rate
        options: dict[str, Any] = {"accumulate": 3, "batch_size": 5, "drop": 0.3, "lr": rate}
        options |= {"condition": condition, "out": tmp_path / folder, "progress": False}
        return fastmsgm.fit(model, positive_data(), steps=steps, **options).state_dict()

    run("halved", 4)
    whole, resumed = run("whole", 9), run("halved", 9)
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def constant_rate(step: int) -> float:
    return 1e-3


def test_checkpoints_are_three_minutes_apart() -> None:
    assert trainer.CHECKPOINT_SECONDS == 180


def test_training_on_two_threads_differs_by_rounding() -> None:
    first, second = trained(), trained(threads=2)
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=0, atol=1e-5, msg=name)


# ---- threads ----


@pytest.mark.parametrize("family", ["gbm denoiser", "isotropic", "ring", "vp"])
def test_threads_that_sample_one_model_do_not_disturb_each_other(family: str) -> None:
    torch.manual_seed(0)
    condition = {"log_norm": 1} if family in ("isotropic", "ring") else None
    model = FAMILIES[family](nets.MLP(D, 32, 2, condition=condition))
    expected = [samples(model, seed, steps=2) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda seed: samples(model, seed, steps=2), range(4)))
    assert all(map(torch.equal, found, expected))


def test_interleaved_runs_do_not_disturb_each_other() -> None:
    model = fastmsgm.load("cauchy-rotation")
    runs = [fastmsgm.sample_iter(model, 200, seed=seed, **OPTIONS) for seed in range(3)]
    chunks = list(zip(*runs, strict=True))
    for seed, run in enumerate(zip(*chunks, strict=True)):
        assert torch.equal(torch.cat(run), samples(model, seed))


# ---- other processes ----


def in_process(model: fastmsgm.ScoreModel, seed: int) -> np.ndarray:
    torch.set_num_threads(1)
    return samples(model, seed).numpy()


def test_another_process_gives_the_same_bits() -> None:
    """The model is pickled on its way there."""
    model = fastmsgm.load("cauchy-rotation")
    with ProcessPoolExecutor(1, mp_context=get_context("forkserver")) as pool:
        found = pool.submit(in_process, model, 3).result(timeout=120)
    np.testing.assert_array_equal(found, samples(model, 3).numpy())


@pytest.mark.parametrize("name", [*MODELS, "fashion-gbm"])
def test_a_pickled_model_gives_the_same_bits(name: str) -> None:
    model = fastmsgm.load(name)
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(samples(again, n=4, batch_size=4), samples(model, n=4, batch_size=4))


FORKS = """
import os, signal, torch, fastmsgm

def bits(threads):
    torch.set_num_threads(threads)
    x = fastmsgm.sample("cauchy-rotation", 600, batch_size=300, steps=2, progress=False)
    return x.numpy().tobytes()[:4000]

def in_fork(threads):
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        os.write(send, bits(threads))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, "the child did not finish"
    return os.read(receive, 4000)

before = in_fork(2)
one = bits(1)
assert in_fork(1) == one
assert bits(2) == before
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_forks_give_the_same_bits() -> None:
    """Before the first operation of PyTorch, and, where that had one thread, also after it."""
    command = [sys.executable, "-W", "ignore", "-c", FORKS]
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    environment["OMP_WAIT_POLICY"] = "passive"  # other tests may be on the same cores
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


# ---- files ----


def test_a_journal_is_written_every_ten_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the first chunk after them; what it holds is not computed again after a kill."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(stream, "time", SimpleNamespace(monotonic=lambda: clock.now))
    output, x = opened(tmp_path / "x.npy", n=40), data((3, 5, 4), 40)
    for chunk in range(6):
        clock.now += 4
        output.target.write(chunk, x[4 * chunk : 4 * chunk + 4])
    output.target._lock.release()  # pyright: ignore[reportAttributeAccessIssue]
    assert list(opened(tmp_path / "x.npy", n=40).target.todo) == [6, 7, 8, 9]


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="no space is reserved here")
def test_space_is_reserved_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process of the run may be writing the next time."""
    calls, reserve = [], os.posix_fallocate

    def reserved(*arguments: int) -> None:
        calls.append(arguments)
        reserve(*arguments)

    monkeypatch.setattr(os, "posix_fallocate", reserved)
    for i in range(2):
        opened(tmp_path / "x.npy", n=1000, shard=(i, 2))
    assert len(calls) == 1


# ---- one file of many processes ----


def test_shards_and_merge_are_one_process(tmp_path: Path) -> None:
    """Bit for bit, in any order of the parts."""
    samples("cauchy-rotation", out=tmp_path / "whole.npy")
    for i in (2, 0, 1):
        samples("cauchy-rotation", out=tmp_path / "x.npy", shard=f"{i}/3")
    assert torch.equal(
        verification.merge(tmp_path / "x.npy"), torch.from_numpy(np.load(tmp_path / "whole.npy"))
    )
    for suffix in (".npy", ".npy.json"):
        assert (tmp_path / f"x{suffix}").read_bytes() == (tmp_path / f"whole{suffix}").read_bytes()


def test_a_run_does_not_take_over_a_part_that_is_at_work(tmp_path: Path) -> None:
    part = opened(tmp_path / "x.npy", shard=(0, 2))
    write(part, data((3, 5, 4)), 1)
    with pytest.raises(ValueError, match="is in use by another run: wait for it"):
        opened(tmp_path / "x.npy")
    write(part, data((3, 5, 4)))
    part.target.finished()
    whole = opened(tmp_path / "x.npy")
    assert list(whole.target.todo) == [1]
    whole.target.stopped()


def test_a_part_does_not_start_beside_a_whole_run(tmp_path: Path) -> None:
    whole = opened(tmp_path / "x.npy")
    with pytest.raises(ValueError, match="is in use by another run: wait for it"):
        opened(tmp_path / "x.npy", shard=(0, 2))
    whole.target.stopped()


def test_a_file_keeps_its_batch_size(tmp_path: Path) -> None:
    """Another one makes other samples; without one, that of the file is taken."""
    out = tmp_path / "x.npy"
    first = samples("cauchy-rotation", out=out)
    assert torch.equal(samples("cauchy-rotation", out=out, batch_size=None), first)
    with pytest.raises(ValueError, match="which differ in batch_size"):
        samples("cauchy-rotation", out=out, batch_size=50)
