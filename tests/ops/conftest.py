"""Run every operation on one thread, and with the backend of its device unless a test names one."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _defaults(one_thread: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTMSGM_BACKEND", raising=False)
