"""The engine: a run ends the same whatever happened to it on the way, and nothing wrong is accepted in silence."""

import dataclasses
import errno
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments.engine import checkpoint, cli, exits, experiment, files, identity, record, results, run, table
from experiments.engine.experiment import Experiment, Result, Row

ROOT = Path(__file__).resolve().parents[1]


@dataclasses.dataclass(frozen=True)
class ToyConfig:
    blocks: int = 12
    rate: float = 0.5


class ToyState(NamedTuple):
    key: jax.Array
    block: jax.Array
    weights: jax.Array


def _toy(**changes) -> Experiment:
    """A random walk with all the parts of an experiment; `changes` replace some."""

    def advance(config, state):
        key, noise = jax.random.split(state.key)
        weights = state.weights * config.rate + jax.random.normal(noise, (4,), jnp.float32)
        return ToyState(key, state.block + 1, weights), {"size": jnp.sum(weights**2)}

    parts = {
        "Config": ToyConfig,
        "PRESETS": {name: ToyConfig() for name in ("smoke", "cpu", "paper")},
        "init": lambda config, key: ToyState(key, jnp.int32(0), jnp.zeros(4, jnp.float32)),
        "advance": advance,
        "blocks": lambda config: config.blocks,
        "done": lambda config, state: int(state.block) >= config.blocks,
        "result": lambda config, metrics, state: Result((Row("size", float(metrics["size"][-1]), low=0.0),)),
        "figure": lambda metrics: Figure(),
        "__doc__": "A random walk.",
    }
    return Experiment("toy", types.SimpleNamespace(**(parts | changes)))  # type: ignore[arg-type]


def _request(runs: Path, **changes) -> run.Request:
    request = run.Request(preset="smoke", seeds=(0, 1), runs=runs, folder=None, data=None, fresh=False)
    return dataclasses.replace(request, **changes)


def _metrics(folder: Path) -> dict[str, list]:
    return {name: values.tolist() for name, values in record.metrics(folder).items()}


@pytest.fixture(autouse=True)
def every_block_is_saved(monkeypatch):
    monkeypatch.setattr(run, "CHECKPOINT_EVERY", 0.0)


def test_a_run_leaves_a_complete_record(tmp_path):
    folder = run.run(_toy(), ToyConfig(), _request(tmp_path))
    assert folder.parent == tmp_path / "toy"
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "provenance.json", "metrics.jsonl", "checkpoints", "figures", "result.json"} <= names
    result = json.loads((folder / "result.json").read_text())
    assert result["seeds"] == [0, 1]
    (row,) = result["rows"]
    assert len(row["ours"]) == 2
    assert row["passed"] == 2
    assert (folder / "figures" / "toy.pdf").stat().st_size > 0
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["versions"]["jax"] == jax.__version__


def test_each_seed_runs_as_if_it_were_alone(tmp_path):
    both = _metrics(run.run(_toy(), ToyConfig(), _request(tmp_path)))
    alone = _metrics(run.run(_toy(), ToyConfig(), _request(tmp_path, seeds=(1,))))
    assert both["size"][1] == alone["size"][0]
    assert both["size"][0] != both["size"][1]


def test_interrupted_run_goes_on_and_ends_bit_for_bit_the_same(tmp_path, monkeypatch):
    whole = run.run(_toy(), ToyConfig(), _request(tmp_path / "whole"))
    shown = run.Meter.advance

    def advance_and_interrupt(self, done, note):
        shown(self, done, note)
        if done in (3, 7):
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(run.Meter, "advance", advance_and_interrupt)
    for block in (3, 7):
        with pytest.raises(run.Interrupted, match=f"SIGTERM after block {block}"):
            run.run(_toy(), ToyConfig(), _request(tmp_path / "broken"))
    broken = run.run(_toy(), ToyConfig(), _request(tmp_path / "broken"))
    assert _metrics(broken) == _metrics(whole)
    attempts = {line["attempt"] for line in files.Lines(broken / "metrics.jsonl").read()}
    assert attempts == {1, 2, 3}


def test_finished_run_is_not_run_again_and_fresh_keeps_the_old_one(tmp_path):
    folder = run.run(_toy(), ToyConfig(), _request(tmp_path))
    before = (folder / "result.json").stat().st_mtime_ns
    run.run(_toy(advance=None), ToyConfig(), _request(tmp_path))  # would fail if it ran
    assert (folder / "result.json").stat().st_mtime_ns == before
    run.run(_toy(), ToyConfig(), _request(tmp_path, fresh=True))
    assert (folder / "result.json").stat().st_mtime_ns > before
    assert len(list((folder / "old").glob("*/result.json"))) == 1


def test_nothing_recompiles_in_the_loop(tmp_path):
    chex.clear_trace_counter()
    toy = _toy()
    run.run(_toy(advance=chex.assert_max_traces(toy.module.advance, n=1)), ToyConfig(), _request(tmp_path))


def test_folder_of_another_config_is_refused_with_the_difference(tmp_path):
    run.run(_toy(), ToyConfig(), _request(tmp_path, folder=tmp_path / "mine"))
    with pytest.raises(exits.Refused, match=r"config\.rate: 0\.5 -> 0\.25"):
        run.run(_toy(), ToyConfig(rate=0.25), _request(tmp_path, folder=tmp_path / "mine"))


def test_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("do not touch")
    with pytest.raises(exits.Refused, match=r"no run folder \(thesis\.tex\)"):
        run.run(_toy(), ToyConfig(), _request(tmp_path, folder=tmp_path))


def _hold(folder: Path, held, release) -> None:
    with files.locked(folder):
        held.set()
        release.wait(30)


def test_folder_in_use_is_refused_and_a_dead_holder_is_no_holder(tmp_path):
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(tmp_path, held, release))
    holder.start()
    assert held.wait(60)
    with pytest.raises(exits.Refused, match=rf"in use by another run \(pid {holder.pid} on"), files.locked(tmp_path):
        pass
    assert holder.pid is not None
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    with files.locked(tmp_path):
        pass


def test_full_disk_at_the_start_is_refused(tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "write_bytes", full)
    with pytest.raises(exits.Refused, match=r"cannot write .*: No space left on device"):
        run.run(_toy(), ToyConfig(), _request(tmp_path))


def test_full_disk_later_does_not_stop_training_but_is_reported(tmp_path, monkeypatch, capsys):
    good, calls = checkpoint.Checkpoints.save, []

    def sometimes_full(self, step, *rest):
        calls.append(step)
        if step in (4, 5):
            raise exits.NotSaved("no space left")
        good(self, step, *rest)

    monkeypatch.setattr(checkpoint.Checkpoints, "save", sometimes_full)
    folder = run.run(_toy(), ToyConfig(), _request(tmp_path))
    assert (folder / "result.json").exists()
    assert capsys.readouterr().out.count("warning: no space left; training goes on") == 2

    monkeypatch.setattr(
        checkpoint.Checkpoints, "save", lambda *arguments: (_ for _ in ()).throw(exits.NotSaved("full"))
    )
    with pytest.raises(exits.NotSaved, match="full"):
        run.run(_toy(), ToyConfig(), _request(tmp_path / "other"))


def test_nan_is_never_saved(tmp_path):
    def diverging(config, state):
        state, metrics = _toy().module.advance(config, state)
        return state._replace(weights=jnp.where(state.block > 5, jnp.nan, state.weights)), metrics

    with pytest.raises(FloatingPointError, match=r"NaN in \.weights after block 6"):
        run.run(_toy(advance=diverging), ToyConfig(), _request(tmp_path))
    (folder,) = (tmp_path / "toy").iterdir()
    restored = checkpoint.Checkpoints(folder / "checkpoints").restore(
        jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), _toy().module.init(ToyConfig(), jax.random.key(0)))
    )
    assert restored.step == 5
    assert bool(jnp.isfinite(restored.state.weights).all())


def _big_state(seed: int):
    return {"key": jax.random.key(seed), "w": jax.random.normal(jax.random.key(seed), (300, 40), jnp.float32)}


def _same(a, b) -> bool:
    return bool(jnp.array_equal(jax.random.key_data(a["key"]), jax.random.key_data(b["key"]))) and bool(
        jnp.array_equal(a["w"], b["w"])
    )


# What Orbax abandons when a damaged file stops it complains again when it is collected.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_damaged_checkpoint_is_never_loaded_in_silence(tmp_path):
    """One byte flipped in every file of the newest step: the older step is restored, or the newest was not hurt."""
    states = {1: _big_state(1), 2: _big_state(2)}
    store = checkpoint.Checkpoints(tmp_path / "good")
    for step, state in states.items():
        store.save(step, state)
    store.close()
    damaged = 0
    for path in sorted(path for path in (tmp_path / "good" / "2").rglob("*") if path.is_file()):
        shutil.rmtree(tmp_path / "bad", ignore_errors=True)
        shutil.copytree(tmp_path / "good", tmp_path / "bad")
        content = path.read_bytes()
        middle = len(content) // 2
        flipped = content[:middle] + bytes(byte ^ 0x10 for byte in content[middle : middle + 1]) + content[middle + 1 :]
        (tmp_path / "bad" / path.relative_to(tmp_path / "good")).write_bytes(flipped)
        store = checkpoint.Checkpoints(tmp_path / "bad")
        step, state, warnings, _ = store.restore(_big_state(0))
        assert step in states
        assert _same(state, states[step])
        assert bool(warnings) == (step == 1)
        if step == 1:  # the number of the damaged step can be saved again
            damaged += 1
            store.save(2, states[2])
            assert store.restore(_big_state(0)).step == 2
        store.close()
    assert damaged > 0


def test_checkpoint_of_another_shape_is_refused(tmp_path):
    store = checkpoint.Checkpoints(tmp_path)
    store.save(1, {"w": jnp.zeros((3, 4), jnp.float32)})
    for other in (jnp.zeros((4, 3), jnp.float32), jnp.zeros((3, 4), jnp.float16)):
        with pytest.raises(exits.Refused, match=r"1: w is float32 of shape \[3, 4\], this code expects float"):
            store.restore({"w": other})
    with pytest.raises(exits.Refused, match=r"1: v is absent, this code expects float32"):
        store.restore({"w": jnp.zeros((3, 4), jnp.float32), "v": jnp.zeros(3, jnp.float32)})
    assert store.restore({"w": jnp.ones((3, 4), jnp.float32)}).step == 1


def test_arrays_without_elements_are_restored(tmp_path):
    store = checkpoint.Checkpoints(tmp_path)
    state = {"none": jnp.zeros((0, 3), jnp.float32), "w": jnp.arange(3, dtype=jnp.float32)}
    store.save(1, state)
    restored = store.restore(jax.tree.map(jnp.zeros_like, state))
    assert restored.step == 1
    assert not restored.warnings
    jax.tree.map(np.testing.assert_array_equal, restored.state, state)
    with pytest.raises(exits.Refused, match=r"none is float32 of shape \[0, 3\], this code expects"):
        store.restore(state | {"none": jnp.zeros((0, 4), jnp.float32)})
    store.close()


def test_torn_last_line_is_skipped_and_closed(tmp_path):
    lines = files.Lines(tmp_path / "metrics.jsonl")
    lines.append({"step": 1})
    with open(lines.path, "ab") as file:
        file.write(b'{"step": 2, "lo')
    lines.append({"step": 2})
    assert lines.read() == [{"step": 1}, {"step": 2}]


def test_run_id_depends_on_every_field_and_on_nothing_else():
    description = {"experiment": "toy", "config": identity.plain(ToyConfig()), "seeds": [0]}
    assert identity.run_id("cpu", description) == identity.run_id("cpu", dict(reversed(description.items())))
    for changed in ({"seeds": [1]}, {"config": identity.plain(ToyConfig(rate=0.1))}):
        assert identity.run_id("cpu", description | changed) != identity.run_id("cpu", description)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["walk"], "no command is called 'walk'; there are: list, run"),
        (["run"], "takes the name of an experiment"),
        (["run", "nbodi"], "no experiment is called 'nbodi'; did you mean nbody"),
        (["run", "nbody", "--epochz", "3"], "--epochs"),
        (["run", "nbody", "--epochs", "many"], "many"),
        (["run", "nbody", "--epochs", "0"], "epochs: expected at least 1, got 0"),
        (["run", "nbody", "--preset", "huge"], "huge"),
        (["run", "nbody", "--seeds", "3:1"], "--seeds 3:1: expected one seed"),
        (["run", "nbody", "--data", "no/such/folder"], "data folder no/such/folder does not exist"),
        (["run", "nbody", "--dataset", "no/such/file.npz"], "no/such/file.npz does not exist"),
        (["figure", "no/such/run"], "is no run folder"),
    ],
)
def test_wrong_command_ends_with_one_clear_line_and_status_2(arguments, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HAAR_DATA", raising=False)
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert end.value.code == exits.REFUSED
    captured = capsys.readouterr()
    assert message in captured.err + captured.out


def test_list_names_every_experiment_with_its_claim(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["list"])
    assert end.value.code == exits.FINISHED
    listed = capsys.readouterr().out
    for name in experiment.names():
        assert experiment.load(name).claim in listed


@pytest.mark.parametrize("name", sorted(experiment.names()))
def test_every_experiment_has_all_its_parts(name):
    module = experiment.load(name).module
    for part in ("Config", "PRESETS", "init", "advance", "done", "result", "figure"):
        assert hasattr(module, part), f"{module.__name__} lacks {part}"
    assert set(module.PRESETS) == {"smoke", "cpu", "paper"}
    assert "Command: `python -m experiments run" in (module.__doc__ or "")


def test_generated_pages_follow_from_the_records():
    """A new experiment is one file: until the next rebuild its row, which would say "not run", may be absent."""
    for path, text in table.pages(ROOT).items():
        found, expected = path.read_text().splitlines(), text.splitlines()
        absent = [line for line in expected if "| not run |" in line and line not in found]
        assert found == [line for line in expected if line not in absent], (
            f"{path.name} was edited by hand; rebuild it by `python -m experiments report`"
        )


def test_verdict_is_computed_from_the_gate():
    line = results.Line("x", (0.5, 2.0), None, "", "", -np.inf, 1.0)
    assert line.verdict == "FAIL (1 of 2 seeds inside)"
    assert dataclasses.replace(line, high=2.0).verdict == "pass"
    assert dataclasses.replace(line, high=np.inf).verdict == ""


def _command(folder: Path) -> list[str]:
    flags = "--preset smoke --epochs 60 --test-every 2 --train-samples 100 --test-samples 50 --batch 10"
    flags += " --hidden 8 --layers 2"
    return [sys.executable, "-m", "experiments", "run", "nbody", *flags.split(), "--runs", str(folder)]


@pytest.mark.slow
def test_kill_at_any_moment_then_the_same_command_ends_bit_for_bit_the_same(tmp_path):
    """kill -9 at random moments of a real run, eight times at most; then an unbroken run, and both compared."""
    environment = os.environ | {"HAAR_CACHE": str(tmp_path / "cache"), "HAAR_CHECK": "0"}
    subprocess.run(_command(tmp_path / "whole"), check=True, env=environment, cwd=ROOT, timeout=600)
    random, kills = np.random.default_rng(0), 0
    script = "from experiments.engine import cli, run; run.CHECKPOINT_EVERY = 0.0; cli.main()"
    command = [sys.executable, "-c", script, *_command(tmp_path / "broken")[3:]]
    for _ in range(8):
        process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL)
        started = list((tmp_path / "broken").rglob("metrics.jsonl"))
        before = started[0].stat().st_size if started else 0
        for _ in range(1200):  # until it has done something new, then a random moment more
            found = list((tmp_path / "broken").rglob("metrics.jsonl"))
            if process.poll() is not None or (found and found[0].stat().st_size > before):
                break
            time.sleep(0.05)
        time.sleep(random.uniform(0, 0.5))
        if process.poll() is not None:
            break
        process.kill()
        process.wait()
        kills += 1
    subprocess.run(command, check=True, env=environment, cwd=ROOT, timeout=600)
    (whole,), (broken,) = ((tmp_path / name / "nbody").iterdir() for name in ("whole", "broken"))
    assert kills >= 2
    assert _metrics(whole) == _metrics(broken)
    rows = [json.loads((folder / "result.json").read_text())["rows"] for folder in (whole, broken)]
    assert rows[0] == rows[1]
