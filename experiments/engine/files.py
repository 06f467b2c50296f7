"""Writing that a crash cannot tear: whole files by rename, lines by append, one writer per folder."""

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.engine.exits import Refused


def write_json(path: Path, value: Any) -> None:
    """Replaces `path` in one step: a reader sees the old file or the new one, never a part."""
    write_bytes(path, (json.dumps(value, indent=1, allow_nan=True) + "\n").encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Replaces `path` in one step, on disk before the old content is gone."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(fresh, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """The content of `path`; Refused if it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or not even text
        raise Refused(f"{path} is damaged ({error}); move its folder away or give --fresh") from error


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds `folder` for this process; Refused if another holds it.

    The kernel drops the lock when its holder dies, however it dies, so a lock is never stale; pid and host in the file
    only tell who it is.
    """
    with open(folder / "lock", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise Refused(f"{folder} is in use by another run ({file.read().strip() or 'unknown'})") from error
        file.truncate(0)
        file.write(f"pid {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


class Lines:
    """Append-only JSON lines; a torn last line, left by a kill, is skipped by readers and closed by the next writer."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._waiting: list[bytes] = []

    def append(self, value: dict[str, Any]) -> None:
        """One line, flushed to the kernel: it survives the death of this process.

        A line that the disk refuses (OSError) waits here and is written before the next one.
        """
        self._waiting.append(json.dumps(value).encode() + b"\n")
        self.flush()

    def flush(self) -> None:
        """Writes the lines that wait; those of a part that was written before the disk refused come twice."""
        if not self._waiting:
            return
        torn = self.path.exists() and self.path.stat().st_size > 0 and not _ends_in_newline(self.path)
        with open(self.path, "ab") as file:
            file.write((b"\n" if torn else b"") + b"".join(self._waiting))
        self._waiting = []

    def sync(self) -> None:
        """On disk: it survives the death of the machine too."""
        self.flush()
        if self.path.exists():
            with open(self.path, "rb") as file:
                os.fsync(file.fileno())

    def read(self) -> list[dict[str, Any]]:
        """All whole lines, in order."""
        if not self.path.exists():
            return []
        values = []
        for line in self.path.read_text(errors="replace").splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                values.append(json.loads(line))
        return values


def _ends_in_newline(path: Path) -> bool:
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
