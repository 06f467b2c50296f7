"""Signals that stop a run after a block, saved; a second one stops it at once."""

import os
import signal
from types import FrameType
from typing import Any


class Signals:
    """While entered, SIGTERM and SIGINT only leave their name in `received`; the second stops the process at once.

    The handler does nothing else: work inside a handler can meet any lock half taken.
    """

    def __init__(self) -> None:
        self.received = ""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.received = signal.Signals(number).name
