"""The guard of the GPU kernels: what their machine code must keep, checked without a GPU.

``machine_code.py`` compiles every variant for every target, and mutants of one variant of every
kernel, in a process of its own, since here Triton is imported for its interpreter. The mutants
prove that the guard notices what it is for.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fastmsgm.tools import roofline

triton = pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]
H100 = next(gpu for gpu in roofline.GPUS if gpu.name == "H100")

# Instructions per element and registers on sm_80, sm_90, sm_100 and gfx942: what they are now, or
# the fewest they ever were where that is within the margin.
TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
MEASURED = {
    ("fill_normal", ""): ((32.0, 32.5, 32.4, 38.1), (80, 80, 95, 45)),
    ("gbm_perturb", "x_t"): ((38.3, 38.7, 38.7, 43.2), (96, 107, 107, 61)),
    ("gbm_perturb", "model_input z"): ((55.9, 56.7, 50.7, 64.0), (121, 142, 135, 64)),
    ("gbm_step", ""): ((45.2, 45.1, 44.6, 54.6), (96, 121, 124, 65)),
    ("gbm_step", "float32"): ((43.3, 44.0, 43.1, 49.9), (122, 116, 114, 62)),
    ("gbm_step", "sign_agnostic"): ((45.1, 44.9, 43.2, 50.9), (96, 115, 127, 53)),
    ("gbm_step", "log"): ((60.8, 60.8, 62.3, 72.9), (111, 114, 125, 102)),
    ("gbm_step", "log float32"): ((59.5, 60.6, 60.9, 72.4), (110, 126, 126, 98)),
    ("gbm_step", "log model_input"): ((64.2, 63.7, 58.4, 81.0), (124, 128, 128, 102)),
    ("gbm_step", "log model_input prev_denoised"): ((68.6, 67.0, 63.2, 81.2), (168, 168, 182, 120)),
    ("gbm_step", "log sign_agnostic model_input prev_denoised"): (
        (79.7, 79.0, 74.8, 79.6),
        (137, 209, 222, 115),
    ),
    ("rotation_perturb", ""): ((44.9, 45.2, 42.8, 58.2), (128, 128, 130, 216)),
    ("rotation_step", ""): ((17.0, 17.0, 17.4, 27.7), (148, 142, 140, 168)),
    ("rotation_step", "float32"): ((14.9, 14.8, 16.2, 19.6), (128, 126, 140, 182)),
    ("rotation_step", "prev_denoised"): ((22.2, 22.4, 23.6, 33.0), (254, 240, 232, 246)),
    ("rotation_step", "angles prev_denoised"): ((59.2, 58.9, 57.2, 75.4), (254, 243, 234, 266)),
    ("rotation_step", "geodesic prev_denoised"): ((58.1, 58.5, 57.1, 72.1), (255, 240, 243, 273)),
    ("ring_step", "flow step_start"): ((40.3, 40.4, 34.6, 50.5), (168, 168, 185, 236)),
    ("ring_step", "noise"): ((81.0, 81.1, 79.9, 95.6), (255, 255, 255, 273)),
    ("ring_step", "noise restart step_start"): ((83.1, 83.1, 76.7, 96.9), (246, 247, 177, 264)),
    ("egd_step", ""): ((16.2, 15.4, 14.9, 21.8), (50, 54, 54, 49)),
}
MARGIN = 1.13
if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 7):
    # What they are with Triton 3.6, where one of them is beyond the margin.
    MEASURED |= {
        ("fill_normal", ""): ((32.8, 32.9, 32.9, 42.7), (79, 77, 77, 55)),
        ("gbm_perturb", "x_t"): ((38.4, 38.6, 38.6, 47.3), (112, 112, 112, 62)),
        ("gbm_perturb", "model_input z"): ((57.2, 57.3, 51.1, 68.6), (158, 150, 137, 78)),
        ("gbm_step", ""): ((45.6, 45.8, 46.2, 58.9), (109, 109, 122, 68)),
        ("gbm_step", "sign_agnostic"): ((45.8, 46.3, 44.3, 55.6), (136, 109, 106, 58)),
        ("gbm_step", "log"): ((62.0, 61.8, 62.4, 74.3), (116, 114, 128, 96)),
        ("gbm_step", "log float32"): ((60.5, 60.3, 60.8, 73.9), (118, 126, 126, 80)),
        ("gbm_step", "log model_input"): ((64.9, 65.0, 58.9, 83.2), (142, 130, 136, 106)),
        ("gbm_step", "log model_input prev_denoised"): (
            (69.5, 70.0, 62.5, 83.8),
            (206, 206, 210, 111),
        ),
        ("gbm_step", "log sign_agnostic model_input prev_denoised"): (
            (83.2, 82.4, 76.2, 85.8),
            (192, 222, 238, 110),
        ),
        ("rotation_perturb", ""): ((45.0, 45.0, 42.1, 58.5), (128, 128, 136, 256)),
        ("ring_step", "flow step_start"): ((40.3, 40.4, 40.0, 54.5), (168, 168, 168, 284)),
        ("ring_step", "noise"): ((81.1, 81.4, 76.5, 104.7), (255, 255, 255, 324)),
        ("ring_step", "noise restart step_start"): (
            (83.2, 83.3, 79.2, 106.5),
            (243, 242, 206, 332),
        ),
        ("egd_step", ""): ((16.2, 15.4, 15.4, 22.7), (50, 54, 54, 58)),
    }
# Instructions per element on sm_90 that the documentation promises, where that is less.
PROMISED = {
    ("gbm_step", ""): 48,
    ("gbm_step", "float32"): 48,
    ("gbm_step", "sign_agnostic"): 48,
    ("gbm_step", "log"): 64,
    ("gbm_step", "log float32"): 64,
    ("gbm_step", "log model_input"): 64,
    ("rotation_step", "angles prev_denoised"): 60,
    ("rotation_step", "geodesic prev_denoised"): 60,
    ("ring_step", "flow step_start"): 60,
    ("egd_step", ""): 16,
}
# The model's time of memory over that of the slowest other part on an H100: what is promised, or
# what it is now, less the margin.
SLACK = {
    ("fill_normal", ""): 0.96,
    ("gbm_perturb", "x_t"): 1.62,
    ("gbm_perturb", "model_input z"): 1.38,
    ("gbm_step", ""): 1.8,
    ("gbm_step", "float32"): 1.8,
    ("gbm_step", "sign_agnostic"): 1.8,
    ("gbm_step", "log"): 1.31,
    ("gbm_step", "log float32"): 1.6,
    ("gbm_step", "log model_input"): 1.6,
    ("gbm_step", "log model_input prev_denoised"): 1.6,
    ("gbm_step", "log sign_agnostic model_input prev_denoised"): 1.6,
    ("rotation_perturb", ""): 1.73,
    ("rotation_step", ""): 1.8,
    ("rotation_step", "float32"): 1.8,
    ("rotation_step", "prev_denoised"): 1.8,
    ("rotation_step", "angles prev_denoised"): 1.8,
    ("rotation_step", "geodesic prev_denoised"): 1.8,
    ("ring_step", "flow step_start"): 1.3,
    ("ring_step", "noise"): 1.3,
    ("ring_step", "noise restart step_start"): 1.3,
    ("egd_step", ""): 1.8,
}
# What a thread may read besides its elements, in numbers of 64 and of 32 bits: the stream (seed,
# sample, step); the step's row of the table; coefficients of its samples and whether those are
# nonfinite; neighbours in a row of a table of angles, or in two rows of both tables; the learning
# rate, a weight after the last quad and its gradient.
STREAM = 3
NUMBERS = {
    "fill_normal": 0,
    "gbm_perturb": 3 * 8,
    "gbm_step": 9 + 8,
    "rotation_perturb": 4 + 8,
    "rotation_step": 9 + 2 + 1,
    "ring_step": 3 + 1,
    "egd_step": 1 + 2,
}
# Whether samples are nonfinite; a weight after the last quad.
WRITTEN_NUMBERS = {"gbm_step": 8, "rotation_step": 1, "ring_step": 1, "egd_step": 1}
# step_start of a nonfinite sample is overwritten by NaN; the stores are off for all others.
WRITTEN_AGAIN = {
    ("ring_step", "flow step_start"): 13,
    ("ring_step", "noise restart step_start"): 13,
}
NOT_GIVEN = {"rotation_perturb": {"u_t"}}  # outputs that no variant has
BARRIERS = {"rotation_perturb": 3, "rotation_step": 1, "ring_step": 1}  # of lanes of one row


@pytest.fixture(scope="module")
def tables() -> dict[str, list[dict[str, Any]]]:
    """Return what ``machine_code.py`` finds."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, Path(__file__).with_name("machine_code.py"), "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def faults(row: dict[str, Any]) -> list[str]:
    """Return what is wrong with a variant's machine code, whatever its kernel."""
    kernel, amd = row["kernel"], row["target"] == "gfx942"
    limits = {"spills": 0, "stack": 0, "branches": 0, "barriers": BARRIERS.get(kernel, 0)}
    found = [f"{row[name]} {name}, not {most}" for name, most in limits.items() if row[name] > most]
    if not row["wide_offsets"]:
        found.append("rows at offsets of 32 bits")
    numbers = {
        "loads": {64: STREAM, 32: STREAM + NUMBERS[kernel]},
        "stores": {32: WRITTEN_NUMBERS.get(kernel, 0)},
    }
    numbers["stores"][128] = WRITTEN_AGAIN.get((kernel, row["variant"]), 0)
    for name, more in numbers.items():
        actual, needed = widths(row[name]), widths(row[f"array_{name}"])
        for bits in {*actual, *needed}:
            least = needed.get(bits, 0)
            most = least + more.get(bits, 0)
            if amd and kernel in BARRIERS:
                most += 3  # one empty chunk is left, out of the bounds of each of the arrays
            if not least <= actual.get(bits, 0) <= most:
                found.append(f"{actual.get(bits, 0)} {name} of {bits} bits, not {least} to {most}")
    return found


def widths(text: str) -> dict[int, int]:
    """Parse "4x64 8x128"."""
    return {int(bits): int(count) for count, bits in (item.split("x") for item in text.split())}


def test_the_code_has_no_faults(tables: dict[str, list[dict[str, Any]]]) -> None:
    wrong = {(row["target"], row["kernel"], row["variant"]): faults(row) for row in tables["codes"]}
    assert not {name: found for name, found in wrong.items() if found}


def test_no_more_instructions_and_registers(tables: dict[str, list[dict[str, Any]]]) -> None:
    assert {(row["kernel"], row["variant"]) for row in tables["codes"]} == MEASURED.keys()
    wrong = []
    for row in tables["codes"]:
        variant, target = (row["kernel"], row["variant"]), TARGETS.index(row["target"])
        most, registers = (MARGIN * numbers[target] for numbers in MEASURED[variant])
        if row["target"] == "sm_90":
            most = min(most, PROMISED.get(variant, most))
        if float(row["instructions_per_element"]) > most or row["registers"] > registers:
            found = (row["instructions_per_element"], row["registers"])
            wrong.append((row["target"], *variant, *found))
    assert not wrong


def test_memory_is_the_limit(tables: dict[str, list[dict[str, Any]]]) -> None:
    rows = [row for row in tables["codes"] if row["target"] == H100.target]
    got = {(row["kernel"], row["variant"]): roofline.model(row, H100).slack for row in rows}
    assert got.keys() == SLACK.keys()
    assert not {name: got[name] for name, least in SLACK.items() if got[name] < least}


def test_the_guard_notices_every_mutant(tables: dict[str, list[dict[str, Any]]]) -> None:
    unseen = [(row["mutant"], row["kernel"]) for row in tables["mutants"] if not faults(row)]
    assert not unseen
    assert len(tables["mutants"]) == 33


def test_steps_seeds_and_batches_share_compiled_kernels(
    tables: dict[str, list[dict[str, Any]]],
) -> None:
    for row in tables["compilations"]:
        assert row["compiled"] == row["classes"], row["kernel"]


def test_kernels_write_what_their_operations_say(tables: dict[str, list[dict[str, Any]]]) -> None:
    written: dict[str, set[str]] = {}
    for row in tables["codes"]:
        written.setdefault(row["kernel"], set()).update(row["written"].split())
    for kernel, names in written.items():
        arguments = getattr(torch.ops.fastmsgm, f"{kernel}_").default._schema.arguments
        declared = {a.name for a in arguments if a.alias_info is not None and a.alias_info.is_write}
        if kernel.endswith("_step") and kernel != "egd_step":
            # Out of place or, if given the state itself, in place.
            declared = declared - {arguments[0].name} | {"out"}
        assert names == declared - NOT_GIVEN.get(kernel, set()), kernel


def test_the_table_is_of_these_variants(tables: dict[str, list[dict[str, Any]]]) -> None:
    with open(ROOT / "bench/machine_code.csv") as file:
        kept = list(csv.DictReader(file))
    kept, found = (
        [(row["target"], row["kernel"], row["variant"]) for row in table]
        for table in (kept, tables["codes"])
    )
    assert kept == found
