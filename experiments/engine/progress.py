"""How far a run is: a bar on a terminal, one plain line every ten seconds elsewhere, and progress.json for `watch`.

Rate and time left come from the newest blocks of this start; data, compiling and earlier starts are no part of them.
"""

import collections
import contextlib
import json
import math
import os
import resource
import socket
import sys
import time
from pathlib import Path
from types import TracebackType

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

FILE = "progress.json"
_PLAIN_EVERY = 10.0  # seconds
_FILE_EVERY = 1.0
_NEWEST = 20  # blocks that the rate is taken from


class Meter:
    """A context that shows `advance(done, note)`; `total` None: nobody knows how many blocks there will be.

    `folder`, if given, gets progress.json.
    """

    def __init__(self, title: str, total: int | None, done: int = 0, folder: Path | None = None) -> None:
        self._title, self._total, self._done, self._folder = title, total, done, folder
        self._started = self._shown = time.monotonic()
        self._written = -math.inf
        self._ends = collections.deque([self._started], _NEWEST + 1)
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[pace]}  {task.fields[note]}"),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task(title, total=total, completed=done, note="", pace="")

    def __enter__(self) -> "Meter":
        if self._bar:
            self._bar.start()
        self._write("running")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()
        self._write("finished" if error is None else f"stopped: {str(error) or type(error).__name__}")

    def advance(self, done: int, note: str) -> None:
        """Shows that `done` blocks are finished."""
        now = time.monotonic()
        self._done = done
        self._ends.append(now)
        if now - self._written >= _FILE_EVERY:
            self._write("running")
        if self._bar:
            self._bar.update(self._task, completed=done, note=note, pace=self._pace())
        elif now - self._shown >= _PLAIN_EVERY or done == self._total:
            self._shown = now
            far = f"{done}/{self._total or '?'} blocks, {clock(now - self._started)}"
            print(f"{self._title}: {far}, {self._pace()}  {note}", flush=True)

    def _pace(self) -> str:
        parts = [f"{self.seconds_per_block:.3g} s/block", f"{memory()['peak_mb'] / 1024:.1f} GB"]
        if self._total:
            parts.insert(1, f"{clock((self._total - self._done) * self.seconds_per_block)} left")
        return ", ".join(parts)

    @property
    def seconds_per_block(self) -> float:
        """Mean over the newest blocks; 0 before the first."""
        return (self._ends[-1] - self._ends[0]) / max(len(self._ends) - 1, 1)

    def _write(self, state: str) -> None:
        """Replaces progress.json without waiting for the disk: it tells how things stand, nothing depends on it."""
        self._written = time.monotonic()
        if self._folder is None:
            return
        content = {
            "state": state,
            "done": self._done,
            "total": self._total,
            "seconds": round(self._written - self._started, 3),
            "seconds_per_block": self.seconds_per_block,
            "updated": time.time(),
            "pid": os.getpid(),
            "host": socket.gethostname(),
            **{f"memory_{name}": value for name, value in memory().items()},
        }
        fresh = self._folder / f".{FILE}"
        with contextlib.suppress(OSError):  # a full disk must not end a training for this
            fresh.write_text(json.dumps(content) + "\n")
            fresh.replace(self._folder / FILE)


def memory() -> dict[str, float]:
    """Peak memory of this process in MiB, and of its first device where the backend counts it (GPU, TPU)."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    found = {"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit}
    counted = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in counted:
        found["device_peak_mb"] = counted["peak_bytes_in_use"] / 2**20
    return found


def clock(seconds: float) -> str:
    """'8.4 s', '3:07', '1:02:45'."""
    if not math.isfinite(seconds):
        return "?"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"
