"""docs/experiments/paper_figures.md and its plots, from results.csv alone."""

from __future__ import annotations

import math
import os
import statistics
from pathlib import Path

from bench import paper_figures_plots as plots
from bench.paper_figures_rows import (
    ARMS,
    CAUCHY,
    MAIN,
    METRICS,
    OTHERS,
    Plan,
    Points,
    Rows,
    Setting,
    arms_of,
    points,
    read,
    settings,
    trainings,
)

DOCS = Path(__file__).parents[1] / "docs"
NUMBERED = ("dimension", "samples")  # figures with a tick at every x
PAGE, IMAGES = DOCS / "experiments" / "paper_figures.md", DOCS / "images" / "experiments"
HEAD = """# The figures of MSGM's experiments, as ours

Written by `python -m bench.paper_figures --write` from
[bench/results.csv](../../bench/results.csv); `python -m bench.paper_figures` measures what is
missing there. {finished} of {all} trainings are finished.

The runs are small on purpose: a perceptron of 3 x 128, batch {batch}, {steps} steps of Adam, EMA
0.995, at most {training} training samples, {samples} samples and as many test samples. All arms
have the same network, batches, steps and seeds. No arm oversamples extremes, which `fit` does by
default for rotations of heavy-tailed data. Longer trainings of the Cauchy set are in
[solvers.md](../solvers.md).

- **MMD** is that of MSGM's authors: the root of the squared discrepancy, with the kernel
  exp(-mean_j (x_j - y_j)^2 / d). Its width, d, is far beyond the median norm of the Cauchy data, so
  that there it sees their far samples and hardly the others.
- **sliced W2** is the sliced Wasserstein distance, in the data's units. Cauchy variables have no
  second moment, so that theirs is the distance of u log(1 + r / m), with the direction u, the norm
  r and its median m.

Values are means over {seeds} seeds; bands in the plots reach from the smallest to the largest. A
star marks a mean of fewer seeds. The floor is the distance of two test sets of the same size.

A rotation samples the norms from those of its training set, so that its errors are those of the
directions. Additive noise has to learn both. "VP, SSM" is the additive baseline of the paper, on
Cauchy data with the authors' scale. The others are stronger baselines than the paper has: EDM, EDM
with Student-t noise, and EDM of data that an inverse hyperbolic sine compresses. Ring and dense
noise simulate the forward process in 16 steps.

"""
SUMMARY = """## The nearest to the test set

{usual} sampling steps, {steps} optimizer steps. "As good" are the arms whose best seed is below the
worst seed of the nearest arm or below the floor. A step takes one network call for isotropic
rotations, four for dense noise and VP, and two for the others.

"""
STEPS = """## (a) Sampling steps

{data}, {training} training samples. Each arm has its default solver. Curves are drawn
against the network calls that the steps take, which are in the last table.

"""
TIME = """## (b) Training time

{data}, {usual} sampling steps. The averaged weights of one training at several optimizer steps; the
learning rate decays to zero at the end. CPU milliseconds of a step are measured in interleaved
rounds, on one thread.

"""
DIMENSION = """## (c) Dimension and data set

{training} training samples, {usual} sampling steps. In two dimensions there is one plane to rotate
in, so that ring and dense noise are isotropic noise. Dense noise has d^3 numbers and is left out
beyond d = 8; the compression is for heavy tails.

"""
SAMPLES = """## (d) Number of training samples

{data}, {usual} sampling steps. Ring and dense noise are run with the most samples alone. {batch} is
the batch also of fewer samples: it then holds them several times.

"""


def write(plan: Plan) -> None:
    """Write the page and its plots."""
    rows, last = read(), plan.trained[-1]
    all_trainings = list(trainings(plan))
    finished = sum(
        all(
            seed in rows.values.get(setting, {}).get(metric, {})
            for setting in settings(plan, data, arm, training)
            for metric in METRICS
        )
        for data, arm, training, seed in all_trainings
    )
    words = {
        "finished": finished,
        "all": len(all_trainings),
        "batch": plan.batch_size,
        "steps": f"{last:,}",
        "training": f"{plan.training[-1]:,}",
        "samples": f"{plan.samples:,}",
        "seeds": len(plan.seeds),
        "usual": plan.usual,
        "data": MAIN,
    }
    parts = [HEAD.format(**words), SUMMARY.format(**words), summary(rows, plan)]
    figures = points(plan)
    parts += [
        STEPS.format(**words),
        _curves("steps", rows, plan, figures["steps"], "network calls of a sample"),
        _tables(rows, plan, figures["steps"], "sampling steps"),
        _calls(rows, plan),
        TIME.format(**words),
        _curves("time", rows, plan, figures["time"], "CPU seconds of training, one thread"),
        _tables(rows, plan, figures["time"], "optimizer steps"),
        _milliseconds(rows),
        DIMENSION.format(**words),
        _curves("dimension", rows, plan, figures["dimension"], "dimensions of Cauchy vectors"),
        _others(rows, plan),
        _tables(rows, plan, figures["sets"], ""),
        SAMPLES.format(**words),
        _curves("samples", rows, plan, figures["samples"], "training samples"),
        _tables(rows, plan, figures["samples"], "training samples"),
    ]
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text("".join(parts).rstrip() + "\n")


def summary(rows: Rows, plan: Plan) -> str:
    """Return the table of the best arms of each data set and number of training samples."""
    lines = []
    *fewer, most = plan.training
    cases = [(data, most) for data in (*CAUCHY, *OTHERS)] + [(MAIN, n) for n in fewer]
    for data, training in cases:
        for metric in METRICS:
            found = {
                arm: rows.of(plan.setting(data, arm, training), metric, plan)
                for arm in arms_of(data)
            }
            found = {a: v for a, v in found.items() if v and all(map(math.isfinite, v))}
            if not found:
                lines.append([data, f"{training:,}", metric, *["not run"] * 4])
                continue
            best = min(found, key=lambda arm: statistics.mean(found[arm]))
            floor = rows.floors.get(data, {}).get(metric)
            limit = max(*found[best], floor or 0.0)
            tied = "; ".join(a for a, v in found.items() if a != best and min(v) < limit) or "none"
            distance = _cell(found[best], plan)
            lines.append([data, f"{training:,}", metric, best, distance, _number(floor), tied])
    head = ["data", "training samples", "metric", "nearest", "distance", "floor", "as good"]
    return _table([head, *lines])


# ---- plots ----


def _curves(name: str, rows: Rows, plan: Plan, of: Points, xlabel: str) -> str:
    """Draw a figure with a panel for each metric, and return its Markdown."""
    panels = []
    for metric in METRICS:
        drawn, floor = [], {}
        for column, by_arm in of.items():
            for setting in by_arm.values():
                if (lowest := rows.floors.get(setting.data, {}).get(metric)) is not None:
                    floor[_x(name, rows, column, setting)] = lowest
        for arm in ARMS:
            found = [
                (_x(name, rows, column, by_arm[arm]), values)
                for column, by_arm in of.items()
                if arm in by_arm and (values := rows.of(by_arm[arm], metric, plan))
            ]
            if found := [(x, values) for x, values in found if x is not None]:
                drawn.append(plots.Curve(arm, *map(list, zip(*found, strict=True))))
        floor = {x: y for x, y in floor.items() if x is not None}
        panels.append(plots.Panel(metric, drawn, floor))
    if not any(panel.curves for panel in panels):
        return "Not run.\n\n"
    plots.curves(IMAGES / f"{name}.png", panels, xlabel, numbered=name in NUMBERED)
    return _picture(name, f"{' and '.join(METRICS)} against {xlabel}")


def _x(name: str, rows: Rows, column: float | str, setting: Setting) -> float | None:
    """Return where a point is drawn: network calls, CPU seconds, or the column itself.

    None is where the network calls or the seconds are not in the results.
    """
    if name == "steps":
        return rows.calls.get((setting.arm, setting.sampled))
    if name == "time":
        milliseconds = rows.milliseconds.get(setting.arm)
        return None if milliseconds is None else setting.trained * milliseconds / 1000
    return float(column)


def _others(rows: Rows, plan: Plan) -> str:
    """Draw the data sets without a series of dimensions, and return the Markdown."""
    panels = []
    for data in OTHERS:
        for metric in METRICS:
            found = [
                plots.Curve(arm, [0.0], [values])
                for arm in arms_of(data)
                if (values := rows.of(plan.setting(data, arm, plan.training[-1]), metric, plan))
            ]
            lowest = rows.floors.get(data, {}).get(metric)
            floor = {} if lowest is None else {0.0: lowest}
            panels.append(plots.Panel(f"{data}: {metric}", found, floor))
    if not any(panel.curves for panel in panels):
        return ""
    plots.ranges(IMAGES / "sets.png", panels)
    return _picture("sets", f"{' and '.join(METRICS)} of {' and '.join(OTHERS)}")


def _picture(name: str, text: str) -> str:
    folder = Path(os.path.relpath(IMAGES, PAGE.parent)).as_posix()
    return f"![{text}]({folder}/{name}.png)\n\n"


# ---- tables ----


def _tables(rows: Rows, plan: Plan, of: Points, what: str) -> str:
    """Return a table for each metric: a row for each arm, a column for each point, the floor."""
    columns = [f"{column:,}" if what else str(column) for column in of]
    text = ""
    for metric in METRICS:
        table = [[f"{metric}; {what}" if what else metric, *columns]]
        for arm in ARMS:
            found = [
                _cell(rows.of(by_arm[arm], metric, plan), plan) if arm in by_arm else "-"
                for by_arm in of.values()
            ]
            table.append([arm, *found])
        sets = [next(iter(by_arm.values())).data for by_arm in of.values()]
        floors = [rows.floors.get(data, {}).get(metric) for data in sets]
        table.append(["floor", *map(_number, floors)])
        text += _table(table)
    return text


def _calls(rows: Rows, plan: Plan) -> str:
    """Return the table of network calls."""
    table = [["network calls; sampling steps", *map(str, plan.sampled)]]
    table += [[arm, *(str(rows.calls.get((arm, k), "-")) for k in plan.sampled)] for arm in ARMS]
    return _table(table)


def _milliseconds(rows: Rows) -> str:
    """Return the table of CPU times."""
    table = [["arm", "CPU ms of an optimizer step"]]
    return _table(table + [[arm, _number(rows.milliseconds.get(arm))] for arm in ARMS])


def _cell(values: list[float], plan: Plan) -> str:
    """Return the mean of the seeds, with a star where there are fewer than planned."""
    if not values:
        return "not run"
    star = "" if len(values) == len(plan.seeds) else r"\*"
    return _number(statistics.mean(values)) + star


def _number(value: float | None) -> str:
    if value is None:
        return "not run"
    return f"{value:.3g}" if math.isfinite(value) else "not finite"


def _table(lines: list[list[str]]) -> str:
    """Return a Markdown table."""
    head, *body = lines
    rows = [head, ["---"] * len(head), *body]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows) + "\n"
