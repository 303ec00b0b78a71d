"""Ctrl-C and SIGTERM as an event, so that a training step is always finished."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """Yield an event that Ctrl-C or SIGTERM sets, so that a step is always finished.

    A second signal raises KeyboardInterrupt at once, where a step does not end.
    Signals reach the main thread alone; elsewhere the event is never set. A signal that is
    ignored, as under ``nohup``, or whose handler was not installed by Python, is left alone.
    """
    stop = threading.Event()
    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            handler = signal.getsignal(number)
            if handler not in (signal.SIG_IGN, None):
                before[number] = handler

    def request(*_: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt("stopped in the middle of a step, which is lost")
        stop.set()

    for number in before:
        signal.signal(number, request)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
