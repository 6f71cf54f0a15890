"""Ctrl-C that waits for the step to end."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any


class Stop:
    """Turns the first Ctrl-C (or SIGTERM) into a request to stop after the step; a later one interrupts at once.

    The same Ctrl-C can reach a process twice, from the terminal and from a launcher that passes it on.
    """

    echo = 2.0
    """Seconds within which another signal is taken for the same."""

    def __init__(self) -> None:
        self.requested = False
        self._asked = 0.0
        self._old: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _request(self, _number: int, _frame: FrameType | None) -> None:
        if not self.requested:
            self.requested, self._asked = True, time.monotonic()
        elif time.monotonic() - self._asked > self.echo:
            raise KeyboardInterrupt

    def _restore(self) -> None:
        while self._old:
            number, handler = self._old.popitem()
            signal.signal(number, handler)
