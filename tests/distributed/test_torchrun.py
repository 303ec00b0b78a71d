"""Sampling and training under torchrun: as one process would."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fastmsgm.output.verification import verify
from tests.distributed import script

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parents[2]


def torchrun(processes: int, folder: Path, *tasks: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    code = (
        f"from tests.distributed import script; script.main(script.Path({str(folder)!r}), {tasks})"
    )
    command += ["--no-python", sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one process."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("one")
    script.sample(folder)
    script.fit(folder, "run")
    script.fit(folder, "half", steps=10)
    script.fit(folder, "half")
    script.fit_tail(folder)
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of two processes."""
    folder = tmp_path_factory.mktemp("two")
    done = torchrun(2, folder, "differ", "sample", "fit", "half", "tail")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of three processes."""
    folder = tmp_path_factory.mktemp("three")
    done = torchrun(3, folder, "fit")
    assert done.returncode == 0, done.stderr
    return folder


def assert_close(a: Path, b: Path) -> None:
    first, second = load_file(a / "training.safetensors"), load_file(b / "training.safetensors")
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=0, atol=1e-5, msg=name)


def test_samples_are_bit_equal(one: Path, two: Path) -> None:
    for name in ("x.npy", "x.npy.json"):
        assert (two / name).read_bytes() == (one / name).read_bytes()
    assert not list(two.glob("*partial*"))


@pytest.mark.parametrize("folder", ["two", "three"])
def test_parameters_average_and_losses_are_those_of_one(
    folder: str, one: Path, request: pytest.FixtureRequest
) -> None:
    """And the state of the optimizer; batches of 13 make uneven parts."""
    assert_close(one / "run", request.getfixturevalue(folder) / "run")


def test_oversampled_batches_are_those_of_one(one: Path, two: Path) -> None:
    assert_close(one / "tail", two / "tail")


def test_two_processes_are_resumed_by_one(one: Path, two: Path) -> None:
    script.fit(two, "half")
    assert_close(one / "half", two / "half")


def test_what_a_dead_process_left_is_finished(one: Path, tmp_path: Path) -> None:
    """By one process; the other had time to finish its own chunks, or was stopped."""
    done = torchrun(2, tmp_path, "die")
    assert done.returncode != 0
    assert not (tmp_path / "x.npy").exists()
    assert (tmp_path / "x.npy.partial.1-of-2.json").exists()
    with pytest.raises(ValueError, match="is not finished"):
        verify(tmp_path / "x.npy")
    script.sample(tmp_path)
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), np.load(one / "x.npy"))
    verify(tmp_path / "x.npy")
