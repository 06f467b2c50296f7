"""Every experiment of the repository, stopped after a random block and gone on with by a new process: the same bits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.engine import exits, experiment, record

ROOT = Path(__file__).resolve().parents[1]

# The unbroken run and the first part of the broken one, in one process: they share their compiled programs.
FIRST = """
import contextlib, os, signal, sys, zlib
from pathlib import Path
import numpy as np
from experiments.engine import cli, record, run
name, folder = sys.argv[1], Path(sys.argv[2])

def status(part):
    sys.argv[1:] = ["run", name, "--preset", "smoke", "--run", str(folder / part)]
    try:
        cli.main()  # as a process of the command line does
    except SystemExit as end:
        return end.code

assert status("whole") == 0
blocks = len(next(iter(record.metrics(folder / "whole").values()))[0])
stop = int(np.random.default_rng(zlib.crc32(name.encode())).integers(1, max(blocks, 2)))
shown = run.Meter.advance

def stopping(self, done, *rest):
    shown(self, done, *rest)
    if done == stop:
        os.kill(os.getpid(), signal.SIGTERM)

run.Meter.advance = stopping
assert status("broken") == (75 if stop < blocks else 0)
print("stopped after", stop, "of", blocks)
"""


def _last_state(folder):
    """Digests of every array of the newest checkpoint."""
    newest = max((folder / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name))
    return newest.name, json.loads((newest / "manifest" / "metadata").read_text())["arrays"]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(experiment.names()))
def test_stopped_run_ends_bit_for_bit_as_the_unbroken_one(name, tmp_path):
    environment = os.environ | {"HAAR_CHECK": "0", "HAAR_CACHE": str(ROOT / ".cache" / "haar"), "PYTHONPATH": str(ROOT)}
    first = [sys.executable, "-c", FIRST, name, str(tmp_path)]
    done = subprocess.run(first, env=environment, cwd=tmp_path, text=True, capture_output=True)
    if done.returncode and not os.environ.get("HAAR_DATA") and "HAAR_DATA" in done.stderr:
        pytest.skip("HAAR_DATA names no data folder")
    assert done.returncode == 0, done.stdout + done.stderr
    second = [sys.executable, "-m", "experiments", "run", name, "--preset", "smoke", "--run", str(tmp_path / "broken")]
    done = subprocess.run(second, env=environment, cwd=tmp_path, text=True, capture_output=True)
    assert done.returncode == exits.FINISHED, done.stdout + done.stderr
    whole, broken = (record.metrics(tmp_path / part) for part in ("whole", "broken"))
    assert set(whole) == set(broken)
    for metric in whole:
        assert np.array_equal(whole[metric], broken[metric], equal_nan=True), metric
    assert _last_state(tmp_path / "whole") == _last_state(tmp_path / "broken")
    rows = [json.loads((tmp_path / part / "result.json").read_text())["rows"] for part in ("whole", "broken")]
    assert rows[0] == rows[1]
