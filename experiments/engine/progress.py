"""How far a run is: a bar with ETA on a terminal, one plain line every ten seconds elsewhere."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_PLAIN_EVERY = 10.0  # seconds


class Meter:
    """A context that shows `advance(done, note)`; `total` None: nobody knows how many blocks there will be."""

    def __init__(self, title: str, total: int | None, done: int = 0) -> None:
        self._title, self._total, self._first = title, total, done
        self._started = self._shown = time.monotonic()
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("ETA"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task(title, total=total, completed=done, note="")

    def __enter__(self) -> "Meter":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self, done: int, note: str) -> None:
        """Shows that `done` blocks are finished."""
        now = time.monotonic()
        if self._bar:
            self._bar.update(self._task, completed=done, note=note)
        elif now - self._shown >= _PLAIN_EVERY or done == self._total:
            self._shown = now
            rate = (done - self._first) / max(now - self._started, 1e-3)
            eta = f", {(self._total - done) / rate:.0f} s left" if self._total and rate > 0 else ""
            print(
                f"{self._title}: {done}/{self._total or '?'} blocks, {now - self._started:.0f} s{eta}  {note}",
                flush=True,
            )
