"""Faults: NaN is met by remedies and never kept, signals save first, a full disk is waited out, all is said clearly."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_experiment as small

from experiments.engine import checkpoint, exits, experiment, files, replay, rollback, run

ROOT = Path(__file__).resolve().parents[1]


def _ill_at(block, *, unless=lambda config, state: False):
    """The experiment's `advance`, NaN in the weights after `block`, traced; `unless` says where it is well."""

    def advance(config, state, data):
        after, metrics = small.advance(config, state, data)
        bad = (after.block == block) & ~jnp.asarray(unless(config, state))
        return after._replace(weights=jnp.where(bad, jnp.nan, after.weights)), metrics

    return advance


def _faults(folder):
    return [(line["block"], line["remedy"]) for line in files.Lines(folder / "faults.jsonl").read()]


def test_nan_from_a_passing_fault_leaves_no_trace_in_the_result(tmp_path, monkeypatch):
    """The machine errs once: the block is computed again and the run ends bit for bit as if nothing had been."""
    whole = run.run(small.experiment(), small.Config(20), small.request(tmp_path / "whole"))
    good, calls = run.program.compiled, []

    def erring(*arguments):
        made = good(*arguments)

        def advance(states, *data):
            after, metrics, ill = made.advance(states, *data)
            calls.append(1)
            return (after, metrics, ill | {".weights": np.array([2])}) if len(calls) == 7 else (after, metrics, ill)

        return made._replace(advance=advance)

    monkeypatch.setattr(run.program, "compiled", erring)
    broken = run.run(small.experiment(), small.Config(20), small.request(tmp_path / "broken"))
    assert small.metrics(broken) == small.metrics(whole)
    assert _faults(broken) == [(7, rollback.AGAIN)]
    assert json.loads((broken / "result.json").read_text())["remedies"] == ["again at block 7"]


def test_update_that_makes_nan_is_skipped_and_other_seeds_do_not_notice(tmp_path):
    """Seed 1 meets one bad batch: it goes on with other draws; seed 0 stays as it would have been alone."""
    bad = jax.random.key_data(jax.random.split(jax.random.key(1))[0])  # what seed 1 draws from in its second block
    ill = _ill_at(2, unless=lambda config, state: jnp.any(jax.random.key_data(state.key) != bad))
    both = run.run(small.experiment(advance=ill), small.Config(6), small.request(tmp_path / "both", seeds=(0, 1)))
    alone = run.run(small.experiment(), small.Config(6), small.request(tmp_path / "alone", seeds=(0, 1)))
    assert _faults(both) == [(2, rollback.AGAIN), (2, rollback.REDRAW)]
    ours, theirs = small.metrics(both)["loss"], small.metrics(alone)["loss"]
    assert ours[0] == theirs[0]
    assert ours[1][:1] == theirs[1][:1]
    assert ours[1][1] != theirs[1][1]


def test_rates_are_lowered_from_the_last_checkpoint_and_stay_low_after_a_stop(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "CHECKPOINT_EVERY", 0.0)
    rates, shown = [], run.Meter.advance

    def advance(config, state, data):
        rates.append(config.rate)
        after, metrics = small.advance(config, state, data)
        bad = (after.block >= 5) & (config.rate > 0.03)  # 0.1 / 4 is low enough, 0.1 / 2 is not
        return after._replace(weights=jnp.where(bad, jnp.nan, after.weights)), metrics

    def stop_after_six(self, done, *rest):
        shown(self, done, *rest)
        if done == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(run.Meter, "advance", stop_after_six)
    lowered = small.experiment(advance=advance)
    with pytest.raises(exits.Interrupted, match="SIGTERM after block 6"):
        run.run(lowered, small.Config(8), small.request(tmp_path))
    tried = [rollback.AGAIN, rollback.REDRAW, rollback.LOWER, rollback.LOWER]
    assert _faults(tmp_path) == [(5, remedy) for remedy in tried]
    assert sorted(set(rates), reverse=True) == [0.1, 0.05, 0.025]
    rates.clear()
    run.run(lowered, small.Config(8), small.request(tmp_path))
    assert set(rates) == {0.025}
    assert len(_faults(tmp_path)) == 4


def _states(config):
    state = small.init(config, jax.random.key(0), small.data(config, None))
    return jax.tree.map(lambda leaf: jnp.stack([leaf]), state)


def test_run_that_nothing_helps_stops_with_a_bundle_that_names_the_operation(tmp_path, monkeypatch, capsys):
    def advance(config, state, data):
        after, metrics = small.advance(config, state, data)
        minus = jnp.where(after.block >= 5, -jnp.float32(1), jnp.float32(1))
        return after._replace(weights=after.weights * jnp.sqrt(minus)), metrics

    broken = small.experiment(advance=advance)
    with pytest.raises(FloatingPointError, match=r"NaN in \.weights after block 5, and no remedy helped") as end:
        run.run(broken, small.Config(20), small.request(tmp_path))
    place = tmp_path / "failure-000005"
    assert f"experiments replay {place}" in str(end.value)
    content = json.loads((place / "bundle.json").read_text())
    assert content["found"] == {"NaN in .weights": [0]}
    assert content["rates_halved"] == 3
    assert "warning: NaN in .weights after block 5; it is computed again" in capsys.readouterr().out
    restored = checkpoint.Checkpoints(tmp_path / "checkpoints").restore(_states(small.Config()))
    assert restored.step == 4
    assert bool(jnp.isfinite(restored.state.weights).all())

    monkeypatch.setattr(experiment, "load", lambda name: broken)
    lines = replay.replay(place, None)
    assert "nan generated by primitive: sqrt" in lines[1]
    other = small.experiment(advance=advance, data=lambda config, folder: small.Data(jnp.zeros(3), jnp.zeros(3)))
    monkeypatch.setattr(experiment, "load", lambda name: other)
    with pytest.raises(exits.Refused, match="the data are not those of the run"):
        replay.replay(place, None)


def test_infinity_and_metrics_count_unless_they_were_there_before_or_are_excused(tmp_path):
    def overflowing(config, state, data):
        after, metrics = small.advance(config, state, data)
        return after, metrics | {"size": jnp.where(after.block == 3, jnp.inf, 1.0)}

    with pytest.raises(FloatingPointError, match="infinity in the metric size after block 3"):
        run.run(small.experiment(advance=overflowing), small.Config(4), small.request(tmp_path / "stops"))
    excused = small.experiment(advance=overflowing, MAY_NOT_BE_FINITE=("size",))
    run.run(excused, small.Config(4), small.request(tmp_path / "excused"))
    assert _faults(tmp_path / "excused") == []


def test_full_disk_is_waited_out_by_the_metrics_too(tmp_path, monkeypatch, capsys):
    """Neither lines nor checkpoints fit for a while: nothing is lost once they do; 74 if they never do."""
    monkeypatch.setattr(run, "CHECKPOINT_EVERY", 0.0)
    good, calls = files.Lines.flush, []

    def full(self):
        calls.append(1)
        if len(calls) < limit:
            raise OSError(errno.ENOSPC, "No space left on device")
        good(self)

    monkeypatch.setattr(files.Lines, "flush", full)
    limit = 20
    folder = run.run(small.experiment(), small.Config(12), small.request(tmp_path / "a"))
    assert "No space left on device; training goes on and tries again" in capsys.readouterr().out
    assert len(small.metrics(folder)["loss"][0]) == 12
    limit = 1000
    with pytest.raises(exits.NotSaved, match="No space left"):
        run.run(small.experiment(), small.Config(5), small.request(tmp_path / "b"))


def test_damaged_config_is_refused_with_a_way_out(tmp_path):
    run.run(small.experiment(), small.Config(2), small.request(tmp_path))
    content = (tmp_path / "config.json").read_bytes()
    for damaged in (content[:-9], b"\xff" + content, b""):
        (tmp_path / "config.json").write_bytes(damaged)
        with pytest.raises(exits.Refused, match=r"config.json is damaged .* --fresh"):
            run.run(small.experiment(), small.Config(2), small.request(tmp_path))
    (tmp_path / "config.json").write_bytes(content.replace(b'"rate": 0.1', b'"rate": 0.2'))
    with pytest.raises(exits.Refused, match=r"config\.rate: 0\.2 -> 0\.1"):
        run.run(small.experiment(), small.Config(2), small.request(tmp_path))


def _start(folder, blocks, every="30"):
    command = [sys.executable, str(ROOT / "tests" / "small_experiment.py"), str(folder), str(blocks), "1", "1", every]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HAAR_CHECK": "0"}
    process = subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    for _ in range(600):
        if process.poll() is not None or (folder / "metrics.jsonl").exists():
            break
        time.sleep(0.05)
    return process


def test_signal_saves_and_ends_with_75_and_a_second_run_is_kept_out(tmp_path):
    process = _start(tmp_path, 10_000_000)
    with pytest.raises(exits.Refused, match=rf"in use by another run \(pid {process.pid} on"):
        run.run(small.experiment(), small.Config(10_000_000), small.request(tmp_path))
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == exits.INTERRUPTED
    assert "stopped by SIGTERM after block" in error
    stopped = int(error.split("block ")[1].split(",")[0])
    assert checkpoint.Checkpoints(tmp_path / "checkpoints").restore(_states(small.Config())).step == stopped


def test_second_signal_stops_at_once():
    signals = "from experiments.engine.signals import Signals; import os, signal\n"
    code = signals + "with Signals() as s:\n for _ in range(2): os.kill(os.getpid(), signal.SIGTERM)\n while True: pass"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60)
    assert done.returncode == -signal.SIGTERM
