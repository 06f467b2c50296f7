"""A run seen from outside: running, finished, dead or torn, it is described as it is, and looking changes nothing."""

import json
import os
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from rich.console import Console

from experiments.engine import cli, exits, files, progress, tensorboard, watch

HERE = socket.gethostname()


@pytest.fixture
def folder(tmp_path):
    """Six blocks of two seeds, the last two of a second start that computed block 4 again."""
    place = tmp_path / "runs" / "nbody" / "cpu-01234567"
    place.mkdir(parents=True)
    (place / "config.json").write_text('{"experiment": "nbody"}')
    lines = files.Lines(place / "metrics.jsonl")
    for attempt, steps in ((1, range(1, 5)), (2, range(4, 6))):
        for step in steps:
            values = {"loss": [10.0 / step, 20.0 / step], "epoch": [step, step], "picture": [[[0.0]], [[0.0]]]}
            lines.append({"step": step, "attempt": attempt, "seconds": 2.0} | values)
    return place


def _told(place, **changes):
    content = {"state": "running", "total": 10, "done": 5, "pid": os.getpid(), "host": HERE, "updated": time.time()}
    (place / progress.FILE).write_text(json.dumps(content | {"memory_peak_mb": 321.0} | changes))


def _text(view):
    console = Console(width=140, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(watch.draw(view, 140))
    console.file.close()
    return " ".join(console.export_text().split())  # however it was wrapped


def test_running_run_shows_rate_time_left_memory_and_every_scalar(folder):
    _told(folder)
    (folder / "provenance.json").write_text('{"compiled": {"seconds": 12.5, "cache": "1 of 2 programs"}}')
    view = watch.look(folder)
    assert (view.state, view.done, view.total) == ("running", 5, 10)
    assert (view.seconds, view.seconds_per_block, view.left) == (10.0, 2.0, 10.0)
    assert set(view.metrics) == {"loss", "epoch"}
    np.testing.assert_allclose(view.metrics["loss"][1], 20 / np.arange(1, 6))
    shown = _text(view)
    for part in (
        "block 5 of 10",
        "2 s/block",
        "10.0 s left",
        "compiled in 12.5 s",
        "peak 321 MiB",
        "median of 2 seeds",
    ):
        assert part in shown
    assert "█" in shown


def test_dead_run_is_called_dead_and_a_finished_one_finished(folder):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    _told(folder, pid=process.pid)
    assert watch.look(folder).state.startswith(f"dead: process {process.pid} is gone")
    assert watch.look(folder).left is None
    _told(folder, host="elsewhere", updated=time.time() - 1000)
    assert watch.look(folder).state.startswith("dead: no sign of life from elsewhere for 16:40")
    _told(folder, host="elsewhere", updated=time.time() - 1000, seconds_per_block=500.0)
    assert watch.look(folder).state == "running"  # its blocks take longer than that
    _told(folder, state="stopped: NaN in weights after block 6")
    assert "NaN in weights" in _text(watch.look(folder))
    (folder / "result.json").write_text("{}")
    assert watch.look(folder).state == "finished"


def test_torn_and_missing_files_are_read_as_far_as_they_go(folder):
    with open(folder / "metrics.jsonl", "ab") as file:
        file.write(b'[1, 2]\n{"step": "six"}\nnull\n{"step": 6, "attempt": 2, "seconds": 2.0, "loss": [1.0, ')
    (folder / progress.FILE).write_text('{"state": "runn')
    (folder / "provenance.json").write_text("[]")
    view = watch.look(folder)
    assert (view.done, view.total, view.state) == (5, None, "starting")
    assert "block 5," in _text(view)
    for name in ("metrics.jsonl", progress.FILE, "provenance.json"):
        (folder / name).unlink()
    assert "no block is finished yet" in _text(watch.look(folder))


def test_not_a_number_is_shown_as_such(folder):
    files.Lines(folder / "metrics.jsonl").append(
        {"step": 6, "attempt": 2, "seconds": 2.0, "loss": [float("nan"), 1.0], "epoch": [6, 6], "picture": [[], []]}
    )
    assert "×" in _text(watch.look(folder))
    assert watch.sparkline([np.nan, np.inf], 10) == "××"


def test_sparkline_has_eight_heights_and_is_logarithmic_over_decades():
    assert watch.sparkline(np.arange(8), 8) == "▁▂▃▄▅▆▇█"
    assert watch.sparkline(10.0 ** np.arange(8), 8) == "▁▂▃▄▅▆▇█"
    assert watch.sparkline([3.0] * 100, 5) == "▁▁▁▁▁"
    assert watch.sparkline([], 5) == ""
    assert len(watch.sparkline(np.random.default_rng(0).random(1000), 30)) == 30


def test_watch_takes_a_folder_or_the_newest_run_of_a_name(folder, capsys, monkeypatch):
    _told(folder)
    older = folder.with_name("cpu-older")
    older.mkdir()
    (older / "config.json").write_text("{}")
    os.utime(older / "config.json", (0, 0))
    monkeypatch.chdir(folder.parents[2])
    for named in ("nbody", str(folder)):
        with pytest.raises(SystemExit) as end:
            cli.main(["watch", named, "--once"])
        assert end.value.code == exits.FINISHED
        assert "cpu-01234567" in capsys.readouterr().out
    for arguments in (["acac"], ["no/folder"], ["nbody", "--every", "0"], [str(folder), "--runs"]):
        with pytest.raises(SystemExit) as end:
            cli.main(["watch", *arguments])
        assert end.value.code == exits.REFUSED


def test_meter_leaves_progress_for_others_and_says_how_it_ended(tmp_path, capsys):
    with progress.Meter("toy", 4, 1, tmp_path) as meter:
        assert json.loads((tmp_path / progress.FILE).read_text())["state"] == "running"
        for done in (2, 3, 4):
            meter.advance(done, "loss 1")
    told = json.loads((tmp_path / progress.FILE).read_text())
    assert (told["state"], told["done"], told["total"], told["pid"]) == ("finished", 4, 4, os.getpid())
    assert told["memory_peak_mb"] > 10
    assert "toy: 4/4 blocks" in capsys.readouterr().out
    with pytest.raises(KeyError), progress.Meter("toy", None, 0, tmp_path):
        raise KeyError("weights")
    assert json.loads((tmp_path / progress.FILE).read_text())["state"] == "stopped: 'weights'"
    with progress.Meter("toy", 1, 0, tmp_path / "no such folder") as meter:  # cannot be written: no reason to stop
        meter.advance(1, "")


def test_clock_is_read_at_a_glance():
    assert [progress.clock(t) for t in (8.44, 59.96, 60, 187, 3765, float("inf"))] == [
        *("8.4 s", "60.0 s", "1:00", "3:07", "1:02:45", "?"),
    ]


def test_tensorboard_gets_every_scalar_of_every_seed(tmp_path, monkeypatch):
    pytest.importorskip("tensorboardX")
    with tensorboard.sink(tmp_path, (3, 4), 0) as sink:
        sink(1, {"loss": np.array([1.5, 2.5]), "picture": np.zeros((2, 3))})
    written = {path.parent.name: path.read_bytes() for path in tmp_path.rglob("events*")}
    assert set(written) == {"seed3", "seed4"}
    for seed, number in (("seed3", 1.5), ("seed4", 2.5)):
        assert b"loss" in written[seed]
        assert np.float32(number).tobytes() in written[seed]
        assert b"picture" not in written[seed]
    with tensorboard.sink(None, (3,), 0) as sink:
        sink(1, {"loss": np.array([1.0])})
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(exits.Refused, match=r"pip install 'haar\[tensorboard\]'"):
        tensorboard.library()
