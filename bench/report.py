"""What comparisons measured, as rows of the results and as a table to read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import results
from interleaved import Outcome


def record(outcome: Outcome) -> None:
    """Rows of results.csv: the median of every contender, then the ratios that the comparison is about."""

    def row(quantity: str, value: float, unit: str, note: str) -> None:
        kind = outcome.device.type
        results.append(benchmark=outcome.benchmark, quantity=quantity, value=value, unit=unit, note=note, device=kind)

    for c in outcome.contenders:
        low, high = outcome.quartiles(c.name)
        row(c.name, outcome.value(c.name), outcome.unit, f"{outcome.setting}, quartiles {low:.4g} .. {high:.4g}")
    ratios: dict[str, float | None] = {}
    for c in outcome.contenders:
        if c.against is None:
            ratios[f"{c.name}: times slower than {c.limit}"] = outcome.times(c.name, c.limit)
        else:
            ratios[f"{c.against}: times faster than {c.name}"] = outcome.times(c.name, c.against)
    for quantity, ratio in (ratios | outcome.derived).items():
        if ratio is not None:
            row(quantity, ratio, "ratio", f"medians, {outcome.setting}")


def table(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Lines: a heading for every comparison, a line for every contender."""
    yield "x limit: times as long as what moves the same bytes and computes nothing; x ours: times as long as ours"
    for outcome in outcomes:
        yield ""
        yield f"{outcome.benchmark}: {outcome.setting}"
        names = max(len(name) for name in (*outcome.seconds, *outcome.derived))
        modelled = f"  {'modelled':>8}" if outcome.card else ""
        yield f"  {'':{names}}  {outcome.unit:>10}  {'quartiles':>20}  {'x limit':>8}  {'x ours':>8}{modelled}"
        for c in outcome.contenders:
            low, high = outcome.quartiles(c.name)
            quartiles = f"{_number(low)} .. {_number(high)}"
            over_limit, over_ours = (_number(outcome.times(c.name, other)) for other in (c.limit, c.against))
            value = _number(outcome.value(c.name))
            modelled = f"  {_number(outcome.modelled(c)):>8}" if outcome.card else ""
            yield f"  {c.name:{names}}  {value:>10}  {quartiles:>20}  {over_limit:>8}  {over_ours:>8}{modelled}"
        for name, ratio in outcome.derived.items():
            yield f"  {name:{names}}  {_number(ratio):>10}"


def _number(value: float | None) -> str:
    """Three digits, or a dash."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
