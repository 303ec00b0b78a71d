"""A short run of the fuzzer; ``python -m tests.soak.fuzz`` is the long one."""

from __future__ import annotations

from tests.soak.fuzz import fuzz


def test_damaged_files_are_refused_as_documented() -> None:
    report = fuzz(cases=1200, seed=1)
    assert report.cases == 1200
    assert not report.failures, "\n".join(str(failure) for failure in report.failures[:3])
