"""The launcher: what dies is started again from its last checkpoint, what means to stop is left alone."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import small_experiment as small

from experiments.engine import exits, files, launch, run

ROOT = Path(__file__).resolve().parents[1]


def _ending(status):
    return lambda address, rank: [sys.executable, "-c", f"import os; os._exit({status})"]


@pytest.mark.parametrize("status", [exits.FINISHED, exits.REFUSED, exits.NOT_SAVED, exits.INTERRUPTED])
def test_meant_statuses_are_handed_on_and_nothing_starts_again(status):
    assert launch.supervise(_ending(status), 2, 5) == status


def test_what_dies_at_once_again_and_again_is_given_up(capfd):
    assert launch.supervise(_ending(9), 1, 20) == 9
    assert "gave up: status 9, 3 times in a row" in capfd.readouterr().err


def test_signal_is_handed_on(tmp_path):
    """To a child that ends with 75 at SIGTERM, as runs do."""
    code = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
    code += f"open({str(tmp_path / 'ready')!r}, 'w').close(); time.sleep(60)"
    script = "import sys; from experiments.engine import launch\nsys.exit(launch.supervise(lambda a, r: "
    script += f"[sys.executable, '-c', {code!r}], 1, 5))"
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)
    while not (tmp_path / "ready").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == exits.INTERRUPTED


@pytest.mark.slow
def test_peer_that_dies_costs_no_more_than_the_blocks_since_the_last_checkpoint(tmp_path, monkeypatch, capfd):
    """Of two processes the second is killed -9 once something is saved; both start again and end as one would alone."""
    monkeypatch.setattr(launch, "_GRACE", 3.0)
    starts, folder = [], tmp_path / "run"

    def one(address, rank):
        starts.append(rank)
        script = str(ROOT / "tests" / "small_experiment.py")
        environment = {"PYTHONPATH": str(ROOT), "HAAR_CHECK": "0", "JAX_PLATFORMS": "cpu"}
        prefix = ["env", *(f"{name}={value}" for name, value in environment.items())]
        prefix += ["XLA_FLAGS=--xla_force_host_platform_device_count=1"]
        note = f"import os, sys; open({str(tmp_path)!r} + '/{rank}.pid', 'w').write(str(os.getpid())); "
        note += "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
        run_it = [script, str(folder), "400", "1", "2", "0.2", f"{address},2,{rank}"]
        return [*prefix, sys.executable, "-c", note, *run_it]

    def kill_once():
        while not any(path.name.isdigit() for path in (folder / "checkpoints").glob("*")):
            time.sleep(0.05)
        os.kill(int((tmp_path / "1.pid").read_text()), signal.SIGKILL)

    killer = threading.Thread(target=kill_once, daemon=True)
    killer.start()
    assert launch.supervise(one, 2, 5) == exits.FINISHED
    killer.join(1)
    assert starts == [0, 1, 0, 1]
    assert "a process died" in capfd.readouterr().out
    attempts = [line["attempt"] for line in files.Lines(folder / "metrics.jsonl").read()]
    assert set(attempts) == {1, 2}
    alone = run.run(small.experiment(), small.Config(400), small.request(tmp_path / "alone"))
    np.testing.assert_allclose(small.metrics(folder)["loss"], small.metrics(alone)["loss"], rtol=1e-5)
