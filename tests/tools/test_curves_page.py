"""docs/solvers.md: its tables hold the latest rows of the results."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import curves_page
from bench.harness import results

PLAN = "seed 1, Solver(), plan 0"


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results.csv")
    monkeypatch.setattr(curves_page, "PAGE", tmp_path / "solvers.md")
    return tmp_path / "solvers.md"


def add(quantity: str, value: float, note: str) -> None:
    results.append(
        benchmark="solver_curves", quantity=quantity, value=value, unit="feature^2", note=note
    )


def test_the_page_has_values_errors_and_ratios(page: Path) -> None:
    add("fashion-gbm, dpm++2m, NFE 8, 10000 samples", 9.0, f"standard error 0.5, {PLAN}")
    add("fashion-gbm, dpm++2m, NFE 8, 10000 samples", 2.0, f"standard error 0.1, {PLAN}")
    add("fashion-gbm, euler, NFE 18, 10000 samples", 4.0, f"standard error 0.2, {PLAN}")
    add("fashion-gbm, fitted, NFE 5, 10000 samples", 3.0, f"standard error 0.3, {PLAN}")
    curves_page.write()
    text = page.read_text()
    assert "| dpm++2m | - | 2 | - |" in text
    assert "| dpm++2m | - | 0.1 | - |" in text
    assert "| fitted | 3 | - | - |" in text
    assert "best unfitted result is 2, of dpm++2m at 8 calls" in text
    assert "| 5 | 3 | 1.50 |" in text
    assert "### 2,000 samples" not in text


def test_the_floor_of_vectors_comes_last(page: Path) -> None:
    metric = curves_page.VECTOR_METRICS[0]
    add(f"floor of 100000 vectors: {metric}", 0.016, "one test set against another")
    add(f"cauchy-rotation, dpm++2m, eta = 0.6, NFE 20: {metric}", 0.02, "100000 samples")
    curves_page.write()
    lines = page.read_text().splitlines()
    row = lines.index("| dpm++2m, eta = 0.6 | 20 | 0.02 | - | - | - | - | - |")
    assert lines[row + 1].startswith("| floor | - | 0.016 |")
