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
    "top 1 %: precision of directions",
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
tables that are shipped with the model (`fit_solver`; train/fashion_solvers.py), sampled with
another seed than that of the fit. A dash is not measured.

"""
TRIED = """### What was tried for the tables

At 5 calls, 1,000 samples, one seed (not in results.csv; a single run each):

| loss and start | distance |
|---|---|
| DPM-Solver++(2M), unfitted | 4.74 |
| absolute error of log x, teacher of 24 calls, 300 iterations of 12 | 3.65 |
| and features of the network's own middle block | 3.47 |
| from there, with moments of those features | 3.37 |
| from there, a classifier's features and moments, teacher of 8 calls | 3.05 |
| the shipped loss, teacher of 8 calls, 300 iterations of 20 | 2.95 |

The shipped loss is the absolute error of log x, that of a classifier's features and that of their
means; the shipped tables had 600 iterations of 10. All fit, besides sigma and the coefficients,
the scale of the network's input (relaxed noise levels). Teachers of more calls are no better here:
8 calls of DPM-Solver++(2M) have 2.37, 12 calls 2.52. Tables for rotations were not tried: their
networks are small, and 20 calls cost little.

"""
VECTORS = """## {name}

100,000 samples, or 20,000 for more than 100 network calls, against 100,000 test vectors. Far out,
correlated Cauchy vectors lie along eight arms. Given the largest 1 % or 0.1 % of the norms: the
angle to the nearest arm in degrees, and the mean error of the arms' shares. And the sliced
Wasserstein distance of all directions. Precision is that of `conditional_directions`. The floor is
of two test sets.

"""


def write() -> None:
    """Write the page."""
    rows = results.latest("solver_curves")
    parts = [HEAD, IMAGES]
    for samples in (10_000, 2_000, 500):
        parts.append(_images(_cells(rows, samples), samples))
    parts += [_ratios(_cells(rows, 10_000)), TRIED]
    for name in ("cauchy-rotation", "cauchy-vp"):
        table = _vectors(rows, name)
        parts += [VECTORS.format(name=name), table or "Not measured yet.\n\n"]
    PAGE.write_text("".join(parts).rstrip() + "\n")


def _cells(
    rows: dict[str, tuple[float, str]], samples: int
) -> dict[str, dict[int, tuple[float, str]]]:
    """Return solver -> network calls -> distance and its standard error."""
    cells: dict[str, dict[int, tuple[float, str]]] = {}
    for quantity, (value, note) in rows.items():
        name, _, rest = quantity.removeprefix("fashion-gbm, ").rpartition(", NFE ")
        if quantity.startswith("fashion-gbm, ") and rest.endswith(f", {samples} samples"):
            error = note.removeprefix("standard error ").partition(",")[0]
            cells.setdefault(name, {})[int(rest.partition(",")[0])] = (value, error)
    return cells


def _images(cells: dict[str, dict[int, tuple[float, str]]], samples: int) -> str:
    """Return the tables of one number of samples: a row per solver, a column per network calls."""
    if not cells:
        return ""
    nfes = sorted({nfe for row in cells.values() for nfe in row})
    head = ["solver", *map(str, nfes)]
    values = [
        [_number(row[nfe][0]) if nfe in row else "-" for nfe in nfes] for row in cells.values()
    ]
    errors = [[row[nfe][1] if nfe in row else "-" for nfe in nfes] for row in cells.values()]
    subsets = "\nStandard errors, of the mean over subsets of 1,000:\n\n"
    text = f"### {samples:,} samples\n\n" + _table(head, list(cells), values)
    return text if samples < 2_000 else text + subsets.lstrip() + _table(head, list(cells), errors)


def _ratios(cells: dict[str, dict[int, tuple[float, str]]]) -> str:
    """Return the table of fitted solvers against the best unfitted result."""
    fitted = cells.get("fitted", {})
    others = {
        (name, nfe): value
        for name, row in cells.items()
        for nfe, (value, _) in row.items()
        if name != "fitted"
    }
    if not fitted or not others:
        return ""
    name, nfe = min(others, key=lambda cell: others[cell])
    best = others[name, nfe]
    rows = [[_number(fitted[k][0]), f"{fitted[k][0] / best:.2f}"] for k in sorted(fitted)]
    return f"The best unfitted result is {best:.3g}, of {name} at {nfe} calls.\n\n" + _table(
        ["calls of the table", "distance", "ratio"], [str(k) for k in sorted(fitted)], rows
    )


def _vectors(rows: dict[str, tuple[float, str]], name: str) -> str:
    """Return the table of a Cauchy model: a row per solver and network calls, the floor last."""
    found: dict[str, dict[str, float]] = {}
    floor = "floor of 100000 vectors"
    for quantity, (value, _) in rows.items():
        where, _, metric = quantity.partition(": ")
        if (where.startswith(f"{name}, ") or where == floor) and metric in VECTOR_METRICS:
            found.setdefault(where.removeprefix(f"{name}, "), {})[metric] = value
    lowest = found.pop(floor, {})
    if not found:
        return ""
    names = list(dict.fromkeys(where.partition(", NFE ")[0] for where in found))
    in_order = sorted(found, key=lambda k: (names.index(k.partition(", NFE ")[0]), _nfe(k)))
    found = {where: found[where] for where in in_order} | {"floor": lowest}
    table = [
        [solver.rpartition(", NFE ")[2] if "NFE" in solver else "-"]
        + [_number(row.get(metric)) for metric in VECTOR_METRICS]
        for solver, row in found.items()
    ]
    names = [solver.partition(", NFE ")[0] for solver in found]
    return _table(["solver", "NFE", *VECTOR_METRICS], names, table)


def _nfe(where: str) -> int:
    return int(where.rpartition(", NFE ")[2])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _table(head: list[str], names: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *([n, *row] for n, row in zip(names, rows, strict=True))]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) + "\n"
