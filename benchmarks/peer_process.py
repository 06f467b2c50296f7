"""A peer under another Python: a script that answers one request at a time, so that both sides can be interleaved.

A request is a line of JSON, {"task": name, "settings": {...}}; the script answers with a line when it is done. Arrays
go through files of NumPy's.
"""

import json
import os
import select
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from benchmarks import harness


class Peer:
    """The process, started by the first request; `variable` is the environment variable that holds its Python."""

    def __init__(self, script: str, variable: str, what: str):
        python = os.environ.get(variable)
        if not python:
            raise harness.Missing(f"set {variable} to a Python with {what}")
        self._command = [python, "-I", str(Path(__file__).with_name(script))]  # -I: nothing of ours on its path
        self._folder = tempfile.TemporaryDirectory()
        self._process: subprocess.Popen[bytes] | None = None
        self._arrays: Path | None = None

    def __enter__(self) -> "Peer":
        return self

    def give(self, **arrays: Any) -> None:
        """The arrays that the next tasks work on."""
        self._arrays = Path(self._folder.name, "given.npz")
        held: dict[str, Any] = {name: np.asarray(array) for name, array in arrays.items()}
        np.savez(self._arrays, **held)
        self._ask({"load": str(self._arrays)}, 60.0)

    def run(self, task: str, limit: float = 60.0, **settings: Any) -> None:
        """Does the task and keeps what it returns. After `limit` seconds the process ends: TimeoutError."""
        self._ask({"task": task, "settings": settings}, limit)

    def result(self) -> dict[str, np.ndarray]:
        """What the last task returned."""
        path = Path(self._folder.name, "result.npz")
        self._ask({"save": str(path)}, 60.0)
        with np.load(path) as arrays:
            return dict(arrays)

    def _ask(self, request: dict[str, Any], limit: float) -> None:
        if self._process is None:
            self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            if "load" not in request and self._arrays is not None:
                self._ask({"load": str(self._arrays)}, 60.0)
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(request).encode() + b"\n")
        process.stdin.flush()
        if not select.select([process.stdout], [], [], limit)[0]:
            self._end()
            raise TimeoutError(f"no answer to {request} within {limit:g} s")
        if process.stdout.readline() != b"done\n":
            self._end()
            raise harness.Missing(f"{self._command[-1]} ended at {request}; run it by hand to see why")

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()
        self._folder.cleanup()
