"""docs/solvers.md: the tables of solver_curves.py, from results.csv alone."""

from __future__ import annotations

from pathlib import Path

from bench.harness import results

PAGE = Path(__file__).parents[1] / "docs" / "solvers.md"
VECTOR_METRICS = (
    "top 1 %: beyond 10 degrees",
    "top 1 %: 90 % angle",
    "top 1 %: error of the arms' shares",
    "top 0.1 %: 90 % angle",
    "sliced W2 of directions",
)
HEAD = """# Solvers: quality against network calls

Written by `python -m bench.solver_curves --write` from
[bench/results.csv](../bench/results.csv); `python -m bench.solver_curves --model NAME` measures
what is missing there. Defaults are read off these curves.

"""
IMAGES = """## fashion-gbm

The Frechet distance to the 10,000 test images, in the features of the bench's classifier. It is not
FID. Fewer samples have a larger distance: compare within a number of samples. "fitted" are the
tables that are shipped with the model (`fit_solver`). A dash is not measured.

"""
VECTORS = """## {name}

100,000 samples, or 20,000 for more than 100 network calls, against 100,000 test vectors. Far out,
correlated Cauchy vectors lie along eight arms. Given the largest 1 % or 0.1 % of the norms: the
angle to the nearest arm in degrees, and the mean error of the arms' shares. And the sliced
Wasserstein distance of all directions. The floors are of 200,000 vectors.

"""


def write() -> None:
    """Write the page."""
    rows = results.values("solver_curves")
    parts = [HEAD, IMAGES]
    for samples in (10_000, 2_000, 500):
        parts.append(_images(rows, samples))
    for name in ("cauchy-rotation", "cauchy-vp"):
        parts += [VECTORS.format(name=name), _vectors(rows, name)]
    PAGE.write_text("".join(parts).rstrip() + "\n")


def _images(rows: dict[str, float], samples: int) -> str:
    """Return the table of one number of samples: a row per solver, a column per network calls."""
    cells: dict[str, dict[int, float]] = {}
    for quantity, value in rows.items():
        name, _, rest = quantity.removeprefix("fashion-gbm, ").rpartition(", NFE ")
        if quantity.startswith("fashion-gbm, ") and rest.endswith(f", {samples} samples"):
            cells.setdefault(name, {})[int(rest.partition(",")[0])] = value
    if not cells:
        return ""
    nfes = sorted({nfe for row in cells.values() for nfe in row})
    table = [[_number(row.get(nfe)) for nfe in nfes] for row in cells.values()]
    title = f"### {samples:,} samples\n\n"
    return title + _table(["solver", *map(str, nfes)], list(cells), table)


def _vectors(rows: dict[str, float], name: str) -> str:
    """Return the table of a Cauchy model: a row per solver and network calls."""
    found: dict[str, dict[str, float]] = {}
    for quantity, value in rows.items():
        solver, _, metric = quantity.removeprefix(f"{name}, ").partition(": ")
        if quantity.startswith(f"{name}, ") and metric in VECTOR_METRICS:
            found.setdefault(solver, {})[metric] = value
    truth = results.values("cauchy_arms")
    for reference in ("truth", "floor"):
        found[reference] = {
            m: truth[k] for m in VECTOR_METRICS if (k := f"{reference}: {m}") in truth
        }
    table = [
        [solver.rpartition(", NFE ")[2] if "NFE" in solver else "-"]
        + [_number(row.get(metric)) for metric in VECTOR_METRICS]
        for solver, row in found.items()
    ]
    names = [solver.partition(", NFE ")[0] for solver in found]
    return _table(["solver", "NFE", *VECTOR_METRICS], names, table)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _table(head: list[str], names: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *([n, *row] for n, row in zip(names, rows, strict=True))]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) + "\n"
