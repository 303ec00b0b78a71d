"""Signals during training: a request to stop, unless they are ignored or another's."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from fastmsgm.training.stop import stop_requests

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_a_request(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with stop_requests() as stop:
        assert not stop.is_set()
        signal.raise_signal(number)
        assert stop.is_set()
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("number", SIGNALS)
def test_an_ignored_signal_stays_ignored(number: signal.Signals) -> None:
    signal.signal(number, signal.SIG_IGN)
    with stop_requests() as stop:
        signal.raise_signal(number)
        assert not stop.is_set()
    assert signal.getsignal(number) == signal.SIG_IGN


def test_the_other_signal_counts_where_one_is_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with stop_requests() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop.is_set()


def test_a_process_whose_parent_ignores_ctrl_c() -> None:
    code = """
import signal
from fastmsgm.training.stop import stop_requests
with stop_requests() as stop:
    signal.raise_signal(signal.SIGINT)
    print(stop.is_set())
"""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # which a child inherits, as under nohup
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "False\n"


def test_a_handler_that_python_did_not_install_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # So Python reports the handler of a program that it is embedded in.
    monkeypatch.setattr(signal, "getsignal", lambda number: None)
    changed: list[int] = []
    monkeypatch.setattr(signal, "signal", lambda number, handler: changed.append(number))
    with stop_requests() as stop:
        assert not stop.is_set()
    assert changed == []


def test_other_threads_get_no_signals() -> None:
    seen: list[bool] = []

    def work() -> None:
        with stop_requests() as stop:
            seen.append(stop.is_set())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(timeout=60)
    assert seen == [False]
