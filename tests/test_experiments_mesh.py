"""Many devices, many processes: the same run to rounding, and checkpoints that know nothing of devices."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import small_experiment as small

from experiments.engine import exits, files, mesh, run

ROOT = Path(__file__).resolve().parents[1]
BLOCKS = 30


def _start(folder, seeds, devices, *, fake=1, blocks=BLOCKS, join=()):
    script = [sys.executable, str(ROOT / "tests" / "small_experiment.py")]
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "HAAR_CHECK": "0",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={fake}",
    }
    command = [*script, str(folder), str(blocks), str(seeds), str(devices), "30", *join]
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def _finish(*processes):
    for process in processes:
        output, error = process.communicate(timeout=120)
        assert process.returncode == 0, output + error


def _together(folder, seeds, *, blocks=BLOCKS):
    """Two processes of one device each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    return [_start(folder, seeds, 2, blocks=blocks, join=[f"{address},2,{rank}"]) for rank in range(2)]


def _loss(folder):
    return np.array(small.metrics(folder)["loss"])


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One device, one process, two seeds."""
    folder = tmp_path_factory.mktemp("alone")
    return run.run(small.experiment(), small.Config(BLOCKS), small.request(folder, seeds=(0, 1)))


def test_eight_devices_give_the_loss_of_one(tmp_path, alone):
    """One seed: its batches of 16 are dealt out; the sums are in another order, nothing else changes."""
    _finish(_start(tmp_path / "eight", 1, 8, fake=8))
    np.testing.assert_allclose(_loss(tmp_path / "eight"), _loss(alone)[:1], rtol=1e-5)


@pytest.mark.slow
def test_seeds_dealt_out_are_computed_bit_for_bit_as_alone(tmp_path, alone):
    _finish(_start(tmp_path / "two", 2, 2, fake=2))
    assert np.array_equal(_loss(tmp_path / "two"), _loss(alone))


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [1, 2])
def test_two_processes_give_the_loss_of_one(tmp_path, alone, seeds):
    _finish(*_together(tmp_path / "two", seeds))
    np.testing.assert_allclose(_loss(tmp_path / "two"), _loss(alone)[:seeds], rtol=1e-5)
    assert len(list(tmp_path.rglob("result.json"))) == 1


@pytest.mark.slow
def test_checkpoint_of_eight_devices_goes_on_with_one_and_with_two_and_with_two_processes(tmp_path, alone):
    """Stopped after a third on eight devices; the same folder, copied, is finished on fewer."""
    started = _start(tmp_path / "eight", 1, 8, fake=8, blocks=10)
    _finish(started)
    for name in ("one", "two", "processes"):
        shutil.copytree(tmp_path / "eight", tmp_path / name)
        (tmp_path / name / "result.json").unlink()
        description = files.read_json(tmp_path / name / "config.json")
        description["config"]["blocks"] = BLOCKS  # as if it had been stopped on its way there
        files.write_json(tmp_path / name / "config.json", description)
    _finish(_start(tmp_path / "one", 1, 1))
    _finish(_start(tmp_path / "two", 1, 2, fake=2))
    _finish(*_together(tmp_path / "processes", 1))
    for name in ("one", "two", "processes"):
        attempts = [line["attempt"] for line in files.Lines(tmp_path / name / "metrics.jsonl").read()]
        assert attempts == [1] * 10 + [2] * 20
        np.testing.assert_allclose(_loss(tmp_path / name), _loss(alone)[:1], rtol=1e-5)


@pytest.mark.slow
def test_a_folder_in_use_stops_all_processes(tmp_path):
    with files.locked(tmp_path):
        processes = _together(tmp_path, 1)
        for process, message in zip(processes, ("in use by another run", "process 0 stopped"), strict=True):
            _, error = process.communicate(timeout=120)
            assert process.returncode == exits.REFUSED
            assert message in error


@pytest.mark.parametrize("text", ["8", "data=0", "model=2", "data=2,model=2", "data=-1", "data="])
def test_other_meshes_are_refused(text):
    with pytest.raises(exits.Refused, match="expected data=N"):
        mesh.parse(text)


def test_more_devices_than_there_are_are_refused_with_the_number():
    with pytest.raises(exits.Refused, match=r"there are \d+ cpu device\(s\); --device cpu:4096 makes 4096"):
        mesh.build(4096)


@pytest.mark.parametrize("text", ["here", "host,2,0", "host:1,2"])
def test_unclear_addresses_are_refused(text):
    with pytest.raises(exits.Refused, match="expected auto, or HOST:PORT,COUNT,RANK"):
        mesh.join(text)
