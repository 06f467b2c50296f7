"""The soak: kills, flipped bytes, signals, a full disk and NaN at random moments; what is acknowledged is never lost.

Slow; prints its counts (`pytest -m slow -s tests/test_experiments_soak.py`).
"""

import contextlib
import os
import select
import shutil
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

from experiments.engine import checkpoint, exits, files, run

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")]
ROOT = Path(__file__).resolve().parents[1]
KILLS, FLIPS = 100, 100


def _state(step):
    """A state that says its step in every number: nothing mixed or stale can pass for it."""
    key = jax.random.key(step)
    return {"key": key, "step": jnp.int32(step), "w": jax.random.normal(key, (64, 256), jnp.float32)}


def _right(restored) -> bool:
    expected = _state(restored.step)
    return all(
        np.array_equal(a, b)
        for a, b in zip(
            checkpoint.named_leaves(restored.state).values(), checkpoint.named_leaves(expected).values(), strict=True
        )
    )


# Forks before each round, so that a kill costs neither the imports nor a compilation: the parent never runs JAX.
SAVER = """
import os, sys
sys.path.insert(0, sys.argv[2])
import jax, jax.numpy as jnp, numpy as np
from pathlib import Path
from experiments.engine import checkpoint
import test_experiments_soak as soak
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        store = checkpoint.Checkpoints(Path(sys.argv[1]))
        restored = store.restore(soak._state(0))
        assert restored.step == 0 or soak._right(restored), f"step {restored.step} holds another state"
        print("restored", restored.step, len(restored.warnings), flush=True)
        for step in range(restored.step + 1, 10**9):
            store.save(step, soak._state(step))
            print("saved", step, flush=True)  # the acknowledgement
    print("pid", child, flush=True)
    os.waitpid(child, 0)
    print("gone", flush=True)
"""


class _Saver:
    """A process that saves in a loop, in rounds that end by kill -9."""

    def __init__(self, folder: Path) -> None:
        environment = os.environ | {"PYTHONPATH": str(ROOT), "HAAR_CHECK": "0", "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-u", "-c", SAVER, str(folder), str(ROOT / "tests")]
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin, self.process.stdout

    def _line(self) -> list[str]:
        ready, _, _ = select.select([self.stdout], [], [], 60)
        assert ready, "the saver is silent"
        return self.stdout.readline().split()

    def round(self, saves: int, wait: float) -> tuple[int, int, int]:
        """(restored step, last acknowledged step, warnings); killed `wait` seconds after the given number of saves."""
        self.stdin.write("\n")
        self.stdin.flush()
        restored = acknowledged = warnings = pid = 0
        killed = False
        while True:
            word, *numbers = self._line()
            if word == "gone":
                return restored, acknowledged, warnings
            if word == "pid":
                pid = int(numbers[0])
            elif word == "restored":
                restored, warnings = map(int, numbers)
                acknowledged = restored
            elif word == "saved":
                acknowledged = int(numbers[0])
            if not killed and pid and word in ("restored", "saved") and acknowledged >= restored + saves:
                time.sleep(wait)
                os.kill(pid, signal.SIGKILL)
                killed = True


def test_kill_at_any_moment_of_saving_and_deleting_loses_nothing_acknowledged(tmp_path):
    rng, saver, acknowledged, ahead, warned, seconds = np.random.default_rng(0), _Saver(tmp_path / "c"), 0, 0, 0, 0.05
    for kill in range(KILLS):
        restored, newest, warnings = saver.round(int(rng.integers(1, 5)), rng.uniform(0, 2 * seconds))
        assert restored >= acknowledged, f"kill {kill}: step {acknowledged} was acknowledged, {restored} came back"
        ahead, warned, acknowledged = ahead + (restored > acknowledged), warned + warnings, newest
    saver.stdin.close()
    saver.process.wait(60)
    restored = checkpoint.Checkpoints(tmp_path / "c").restore(_state(0))
    assert restored.step >= acknowledged
    assert _right(restored)
    left = sorted(path.name for path in (tmp_path / "c").iterdir())
    assert len([name for name in left if name.isdigit()]) <= 3, left
    print(
        f"\n{KILLS} kills while saving and deleting, {acknowledged} steps acknowledged: 0 lost; {ahead} kills came "
        f"after a step was whole and before it was acknowledged; {warned} damaged steps were passed"
    )


def test_flipped_byte_of_any_file_is_never_loaded(tmp_path):
    """Random bytes over every file of the newest step: what is restored is always what was saved."""
    store = checkpoint.Checkpoints(tmp_path / "good")
    for step in (1, 2):
        store.save(step, _state(step))
    store.close()
    paths = sorted(path for path in (tmp_path / "good" / "2").rglob("*") if path.is_file() and path.stat().st_size)
    rng, passed, unhurt = np.random.default_rng(1), 0, 0
    for flip in range(FLIPS):
        path = paths[flip % len(paths)]
        shutil.rmtree(tmp_path / "bad", ignore_errors=True)
        shutil.copytree(tmp_path / "good", tmp_path / "bad")
        content = bytearray(path.read_bytes())
        content[rng.integers(len(content))] ^= 1 << rng.integers(8)
        (tmp_path / "bad" / path.relative_to(tmp_path / "good")).write_bytes(content)
        store = checkpoint.Checkpoints(tmp_path / "bad")
        restored = store.restore(_state(0))
        store.close()
        assert restored.step in (1, 2)
        assert _right(restored), f"{path.name}: damaged numbers were loaded"
        assert bool(restored.warnings) == (restored.step == 1)
        passed, unhurt = passed + (restored.step == 1), unhurt + (restored.step == 2)
    print(
        f"\n{FLIPS} flips over {len(paths)} files: {passed} steps refused and passed, {unhurt} unhurt, 0 loaded wrong"
    )


def test_signals_and_nan_at_random_blocks_end_as_the_unbroken_run(tmp_path, monkeypatch):
    """SIGTERM after random blocks, and faults of the machine that leave NaN or infinity once, in the same runs."""
    rng, blocks, rounds = np.random.default_rng(2), 60, 8
    whole = run.run(small.experiment(), small.Config(blocks), small.request(tmp_path / "whole"))
    good, shown, stops, ills, done = run.program.compiled, run.Meter.advance, set(), set(), {"stops": 0, "nan": 0}

    def stopping(self, step, *rest):
        shown(self, step, *rest)
        if step in stops:
            stops.remove(step)
            done["stops"] += 1
            os.kill(os.getpid(), signal.SIGTERM)

    def erring(*arguments):
        made = good(*arguments)

        def advance(states, *data):
            after, metrics, ill = made.advance(states, *data)
            block = int(after.block[0])
            if block in ills:
                ills.remove(block)
                done["nan"] += 1
                bad = (jnp.nan, jnp.inf)[block % 2]
                after = after._replace(weights=after.weights.at[0, block].set(bad))
                ill = run.program.rollback.illness(states, after)
            return after, metrics, ill

        return made._replace(advance=advance)

    monkeypatch.setattr(run.program, "compiled", erring)
    monkeypatch.setattr(run.Meter, "advance", stopping)
    for r in range(rounds):
        stops |= {int(b) for b in rng.choice(np.arange(2, blocks - 1), 4, replace=False)}
        ills |= {int(b) for b in rng.choice(np.arange(2, blocks - 1), 4, replace=False)}
        broken = tmp_path / f"broken{r}"
        for _ in range(20):
            with contextlib.suppress(exits.Interrupted):
                run.run(small.experiment(), small.Config(blocks), small.request(broken))
                break
        assert small.metrics(broken) == small.metrics(whole)
        assert not stops
        assert not ills
    print(
        f"\n{done['stops']} SIGTERMs and {done['nan']} NaN or infinities at random blocks of {rounds} runs: "
        "all ended bit for bit as the unbroken run"
    )


def test_real_nan_at_random_blocks_is_skipped_or_stops_clearly(tmp_path):
    """Batches that make NaN wherever they are met: finite to the end by other draws, or stopped with a bundle."""
    rng, counts = np.random.default_rng(3), {"finished": 0, "stopped": 0}
    data = small.data(small.Config(), None)
    template = jax.tree.map(lambda leaf: leaf[None], small.init(small.Config(), jax.random.key(0), data))
    for r in range(4):
        block, always = int(rng.integers(2, 20)), r == 3

        def advance(config, state, data, block=block, always=always):
            after, metrics = small.advance(config, state, data)
            unlucky = jnp.bool_(always) | (jax.random.key_data(state.key)[0] % 2 == 0)
            bad = (after.block == block) & unlucky
            return after._replace(weights=jnp.where(bad, jnp.nan, after.weights)), metrics

        folder, message = tmp_path / str(r), ""
        try:
            run.run(small.experiment(advance=advance), small.Config(24), small.request(folder))
            counts["finished"] += 1
        except FloatingPointError as error:
            counts["stopped"], message = counts["stopped"] + 1, str(error)
        assert always <= (f"NaN in .weights after block {block}" in message)
        assert bool(message) == (folder / f"failure-{block:06d}" / "bundle.json").exists()
        restored = checkpoint.Checkpoints(folder / "checkpoints").restore(template)
        assert bool(jnp.isfinite(restored.state.weights).all())
    print(
        f"\nbad batches in {sum(counts.values())} runs: {counts['finished']} finished, {counts['stopped']} stopped "
        "with a bundle, 0 saved a number that is not finite"
    )


@contextlib.contextmanager
def _small_disk(folder: Path, kilobytes: int):
    """A real file system of that size; skips where nobody may mount one."""
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "haar", str(folder)], capture_output=True
    )
    if made.returncode:
        pytest.skip("a small disk can be mounted by root only")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_full_disk_at_random_moments_costs_nothing_but_the_saves_in_between(tmp_path, monkeypatch, capfd):
    """A real disk, filled to the last byte after random blocks and freed later: the run ends as the unbroken one."""
    monkeypatch.setattr(run, "CHECKPOINT_EVERY", 0.0)
    whole = run.run(small.experiment(), small.Config(30), small.request(tmp_path / "whole"))
    rng, shown, warned, ended, message = np.random.default_rng(4), run.Meter.advance, 0, 0, ""
    with _small_disk(tmp_path / "disk", 4096):
        filler = tmp_path / "disk" / "filler"

        def filling(self, step, *rest):
            shown(self, step, *rest)
            if step == first:
                with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
                    while True:
                        file.write(b"\0" * int(rng.integers(1, 2000)))
            if step == last:
                filler.unlink()

        monkeypatch.setattr(run.Meter, "advance", filling)
        for r in range(4):
            first = int(rng.integers(2, 20))
            last = first + int(rng.integers(1, 9)) if r else 10**9  # the first run never finds room again
            folder = tmp_path / "disk" / f"run{r}"
            try:
                run.run(small.experiment(), small.Config(30), small.request(folder))
            except exits.NotSaved as error:
                ended, message = ended + 1, str(error)
                filler.unlink()
                first = last = -1
                run.run(small.experiment(), small.Config(30), small.request(folder))
            assert small.metrics(folder) == small.metrics(whole)
            warned += capfd.readouterr().out.count("training goes on and tries again")
            shutil.rmtree(folder)
    assert ended == 1
    assert str(tmp_path / "disk" / "run0") in message
    assert warned >= 4
    print(
        f"\na full disk in 4 runs: {warned} saves failed with a warning, training went on; {ended} run ended with its "
        "last save failed and was finished by the same command; all equal the unbroken run"
    )


def test_two_writers_and_a_stale_lock(tmp_path):
    """Of many processes that want one folder at once one gets it; a lock that a dead process left is none."""
    (tmp_path / "lock").write_text("pid 1 on a machine long gone\n")
    code = "import sys, time; from pathlib import Path; from experiments.engine import files\n"
    code += "with files.locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(3)"
    command = [sys.executable, "-c", code, str(tmp_path)]
    several = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    results = [process.communicate(timeout=60) for process in several]
    held = sum(b"held" in output for output, _ in results)
    refused = sum(b"in use by another run" in error for _, error in results)
    assert held >= 1
    assert held + refused == 2
    with files.locked(tmp_path):
        pass
