"""The harness: wrong results are refused, and ratios, rows and tables follow from the times."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import pytest
import torch

from bench.harness import checks, report, results
from bench.harness.interleaved import Outcome, Provider, check, summary


def test_wrong_results_are_refused() -> None:
    providers = [
        Provider("right", lambda: torch.ones(3), lambda x: checks.assert_close(x, torch.ones(3))),
        Provider("wrong", lambda: torch.ones(3), lambda x: checks.assert_close(x, torch.zeros(3))),
    ]
    with pytest.raises(AssertionError, match="not close"):
        check(providers)


@pytest.mark.parametrize(
    ("shift", "scale", "slope", "what"),
    [
        (0.1, 1.0, 1.0, "means"),
        (0.0, 1.1, 1.0, "standard deviations"),
        (0.0, 1.19**0.5, 0.9, "correlations"),
    ],
)
def test_other_distributions_are_refused(
    shift: float, scale: float, slope: float, what: str
) -> None:
    torch.manual_seed(0)
    given, ours, other = torch.randn(3, 50_000)
    checks.assert_same_distribution(given + other, given + ours, given)
    with pytest.raises(AssertionError, match=f"the {what} differ"):
        checks.assert_same_distribution(slope * given + scale * other + shift, given + ours, given)


@pytest.fixture
def outcome() -> Outcome:
    def done(*_: object) -> None:
        pass

    providers = [
        Provider("ours", done, done, limit="copy", modelled=("gbm_step", "float32", 10**9)),
        Provider("theirs", done, done, against="ours", limit="copy"),
        Provider("copy", done, done),
    ]
    seconds = {
        "ours": [0.002, 0.002, 0.003],
        "theirs": [0.008, 0.008, 0.009],
        "copy": [0.001, 0.001, 0.002],
    }
    return Outcome(
        "some_step", "3 x 4", "ms", torch.device("cpu"), "", providers, seconds, {"a share": 0.5}
    )


def test_rows_of_the_results(
    outcome: Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results.csv")
    report.record(outcome)
    with results.RESULTS.open(newline="") as file:
        rows = {row["quantity"]: (float(row["value"]), row["unit"]) for row in csv.DictReader(file)}
    assert rows == {
        "ours": (2, "ms"),
        "theirs": (8, "ms"),
        "copy": (1, "ms"),
        "ours: times slower than copy": (2, "ratio"),
        "ours: times faster than theirs": (4, "ratio"),
        "a share": (0.5, "ratio"),
    }


def test_table_and_summary(outcome: Outcome) -> None:
    lines = [line.split() for line in report.table([outcome])]
    assert ["theirs", "8", "8", "..", "8.5", "8", "4"] in lines
    assert ["copy", "1", "1", "..", "1.5", "-", "-"] in lines
    row = summary(outcome)["providers"]["theirs"]
    assert (row["median"], row["times limit"], row["times ours"]) == (8, 8, 4)


def test_modelled_and_measured_times_in_one_table(outcome: Outcome) -> None:
    """A step of 10^9 elements moves 12 GB, which takes an H100's memory 3.58 ms: the bound."""
    on_a_gpu = dataclasses.replace(outcome, card="NVIDIA H100 80GB HBM3")
    lines = [line.split() for line in report.table([on_a_gpu])]
    assert ["ours", "2", "2", "..", "2.5", "2", "-", "3.58"] in lines
    assert ["theirs", "8", "8", "..", "8.5", "8", "4", "-"] in lines
    assert dataclasses.replace(outcome, card="NVIDIA T4").modelled(outcome.providers[0]) is None
