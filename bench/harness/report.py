"""Outcomes of comparisons as rows of results.csv and as a printed table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bench.harness import results
from bench.harness.interleaved import Outcome


def record(outcome: Outcome) -> None:
    """Append the median of every provider to results.csv, then the ratios of the comparison."""

    def row(quantity: str, value: float, unit: str, note: str) -> None:
        results.append(
            benchmark=outcome.benchmark,
            quantity=quantity,
            value=value,
            unit=unit,
            note=note,
            device=outcome.device.type,
        )

    for p in outcome.providers:
        low, high = outcome.quartiles(p.name)
        note = f"{outcome.setting}, quartiles {low:.4g} .. {high:.4g}"
        row(p.name, outcome.value(p.name), outcome.unit, note)
    ratios: dict[str, float | None] = {}
    for p in outcome.providers:
        if p.against is None:
            ratios[f"{p.name}: times slower than {p.limit}"] = outcome.times(p.name, p.limit)
        else:
            ratios[f"{p.against}: times faster than {p.name}"] = outcome.times(p.name, p.against)
    for quantity, ratio in (ratios | outcome.derived).items():
        if ratio is not None:
            row(quantity, ratio, "ratio", f"medians, {outcome.setting}")


def table(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Yield the lines of a table: a heading for every comparison, a line for every provider."""
    yield "x limit: time over that of moving the same bytes without computing anything"
    yield "x ours: time over that of our provider"
    for outcome in outcomes:
        yield ""
        yield f"{outcome.benchmark}: {outcome.setting}"
        names = max(len(name) for name in (*outcome.seconds, *outcome.derived))
        heading = f"  {'':{names}}  {outcome.unit:>10}  {'quartiles':>20}"
        heading += f"  {'x limit':>8}  {'x ours':>8}"
        yield heading + (f"  {'modelled':>8}" if outcome.card else "")
        for p in outcome.providers:
            low, high = outcome.quartiles(p.name)
            line = f"  {p.name:{names}}  {_number(outcome.value(p.name)):>10}"
            line += f"  {f'{_number(low)} .. {_number(high)}':>20}"
            for other in (p.limit, p.against):
                line += f"  {_number(outcome.times(p.name, other)):>8}"
            yield line + (f"  {_number(outcome.modelled(p)):>8}" if outcome.card else "")
        for name, ratio in outcome.derived.items():
            yield f"  {name:{names}}  {_number(ratio):>10}"


def _number(value: float | None) -> str:
    """Return a number with three digits; a dash for None."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
