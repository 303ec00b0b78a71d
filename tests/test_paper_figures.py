"""docs/experiments/paper_figures.md: its plan, the names of its rows, its tables and its plots."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch

from bench import paper_figures, paper_figures_page
from bench.harness import results
from bench.paper_figures_plots import spread
from bench.paper_figures_rows import (
    ARMS,
    BENCHMARK,
    DIMENSIONS,
    FULL,
    MAIN,
    SIMULATED,
    Setting,
    arms_of,
    floor_quantity,
    points,
    read,
    settings,
    time_quantity,
    trainings,
)

DSM, RING, EDM = "rotation, isotropic, DSM", "rotation, ring, SSM", "EDM"
MOST, LAST = FULL.training[-1], FULL.trained[-1]


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results.csv")
    monkeypatch.setattr(results, "_commit", lambda: "none")
    monkeypatch.setattr(paper_figures_page, "PAGE", tmp_path / "docs" / "page.md")
    monkeypatch.setattr(paper_figures_page, "IMAGES", tmp_path / "images")
    return tmp_path / "docs" / "page.md"


def add(quantity: str, value: float, note: str = "") -> None:
    results.append(benchmark=BENCHMARK, quantity=quantity, value=value, unit="MMD", note=note)


def add_seeds(setting: Setting, metric: str, values: list[float], nfe: int = 64) -> None:
    for seed, value in enumerate(values):
        add(setting.quantity(seed, metric), value, f"2048 samples, NFE {nfe}")


def test_the_page_has_means_stars_and_gaps(page: Path) -> None:
    add_seeds(FULL.setting(MAIN, DSM, MOST), "MMD", [0.1, 0.2, 0.6])
    add_seeds(FULL.setting(MAIN, RING, MOST), "MMD", [0.4], 127)
    add_seeds(FULL.setting(MAIN, EDM, MOST), "MMD", [0.5, math.inf, 0.5], 127)
    add(floor_quantity(MAIN, "MMD"), 0.025)
    add(time_quantity(DSM), 4.0)
    paper_figures_page.write(FULL)
    text = page.read_text()
    steps = text.partition("## (a)")[2].partition("## (b)")[0]
    assert f"| {DSM} | not run | not run | not run | not run | 0.3 | not run |" in steps
    assert rf"| {RING} | not run | not run | not run | not run | 0.4\* | not run |" in steps
    assert f"| {EDM} | not run | not run | not run | not run | not finite | not run |" in steps
    assert f"| floor |{' 0.025 |' * 6}" in steps
    assert f"| {RING} | - | - | - | - | 127 | - |" in steps
    assert f"| {DSM} | 4 |" in text.partition("## (b)")[2]
    assert "0 of 135 trainings are finished" in text


def test_the_summary_names_the_nearest_and_those_as_good(page: Path) -> None:
    add_seeds(FULL.setting("Lorenz-63", DSM, MOST), "MMD", [0.1, 0.2, 0.3])
    add_seeds(FULL.setting("Lorenz-63", RING, MOST), "MMD", [0.29, 0.5, 0.5])
    add_seeds(FULL.setting("Lorenz-63", "t-EDM", MOST), "MMD", [0.31, 0.5, 0.5])
    add_seeds(FULL.setting("Lorenz-63", EDM, MOST), "MMD", [0.01, math.inf, 0.01])
    summary = paper_figures_page.summary(read(), FULL)
    assert f"| Lorenz-63 | 16,384 | MMD | {DSM} | 0.2 | not run | {RING} |\n" in summary
    assert "| Lorenz-63 | 16,384 | sliced W2 | not run | not run |" in summary
    add(floor_quantity("Lorenz-63", "MMD"), 0.4)
    summary = paper_figures_page.summary(read(), FULL)
    assert f"| MMD | {DSM} | 0.2 | 0.4 | {RING}; t-EDM |\n" in summary


def test_only_measured_figures_are_drawn(page: Path, tmp_path: Path) -> None:
    paper_figures_page.write(FULL)
    assert page.read_text().count("Not run.") == 4
    assert not (tmp_path / "images").exists()
    for steps in FULL.sampled:
        add_seeds(Setting(MAIN, DSM, MOST, LAST, steps), "MMD", [1 / steps, 2 / steps], steps)
    add_seeds(FULL.setting("Swiss roll", DSM, MOST), "sliced W2", [0.1, 0.2])
    paper_figures_page.write(FULL)
    drawn = {path.name for path in (tmp_path / "images").iterdir()}
    # Figure (b) has no CPU times yet.
    assert drawn == {"steps.png", "dimension.png", "samples.png", "sets.png"}
    text = page.read_text()
    assert all(f"](../images/{name})" in text for name in drawn)
    assert text.count("Not run.") == 1


def test_rows_are_read_as_they_are_named(page: Path) -> None:
    setting = Setting("Cauchy, d = 8", "EDM, asinh", 64, 250, 32)
    add_seeds(setting, "sliced W2", [1.0, 2.0, 3.0], 63)
    add(setting.quantity(1, "sliced W2"), 5.0, "2048 samples, NFE 63")
    rows = read()
    assert rows.of(setting, "sliced W2", FULL) == [1.0, 5.0, 3.0]  # the last of a name counts
    assert rows.calls == {("EDM, asinh", 32): 63}


def test_the_trainings_measure_what_the_figures_show() -> None:
    planned = list(trainings(FULL))
    assert len(set(planned)) == len(planned)
    measured = {
        (setting, seed)
        for data, arm, training, seed in planned
        for setting in settings(FULL, data, arm, training)
    }
    shown = {
        (setting, seed)
        for of in points(FULL).values()
        for by_arm in of.values()
        for setting in by_arm.values()
        for seed in FULL.seeds
        if setting.training == MOST or setting.arm not in SIMULATED
    }
    assert measured == shown


def test_the_network_and_the_noise_of_every_arm() -> None:
    torch.manual_seed(0)
    for data, d in DIMENSIONS.items():
        x = paper_figures.load(data, 64, 0)
        assert x.shape == (64, d)
        for arm in arms_of(data):
            model = paper_figures.build(data, arm, x)
            objective = "ssm" if "SSM" in arm else "dsm"
            assert (model.objective, model.shape) == (objective, (d,)), arm
            assert {(p.shape[0], p.shape[1]) for p in model.net.parameters() if p.ndim == 2} > {
                (128, 128),
                (d, 128),
            }
            if "ring" in arm:
                assert model.preconditioning.process.B_max >= d**2 / 4
    assert set(ARMS) == set(arms_of(MAIN))


def test_vectors_are_compressed_along_their_directions() -> None:
    test = torch.tensor([[3.0, 4.0], [0.0, 1.0], [0.0, -50.0]])  # the median norm is 5
    x = torch.tensor([[6.0, 8.0], [0.0, -5.0], [1e30, 0.0]])
    expected = [
        [0.6 * math.log(3), 0.8 * math.log(3)],
        [0.0, -math.log(2)],
        [math.log(1e30 / 5), 0.0],
    ]
    found = paper_figures.compressed(x, test)
    assert torch.allclose(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-6)


@pytest.mark.parametrize("heights", [[0.5], [0.1, 0.9], [0.5, 0.5, 0.5], [0.0, 0.04, 0.08, 0.5]])
def test_labels_keep_apart(heights: list[float]) -> None:
    found = spread(heights, gap=0.05)
    assert all(b - a >= 0.05 - 1e-9 for a, b in itertools.pairwise(found))
    assert sum(found) == pytest.approx(sum(heights))
    if all(b - a >= 0.05 for a, b in itertools.pairwise(heights)):
        assert found == heights
