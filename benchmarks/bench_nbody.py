"""One training step of EGNN on the N-body table (batch 100, 4 layers, 64 hidden) against the original PyTorch code.

The peer runs in its own environment: HAAR_TORCH_PYTHON is a Python with torch, HAAR_EGNN_REPOSITORY a clone of
vgsatorras/egnn. Its process answers one request at a time, so the two are interleaved on the same machine; it has one
torch thread, its fastest setting here (two threads were slower or equal). Ours is a step of the scanned training loop.
"""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp

from benchmarks import harness
from benchmarks.harness import Metric, Options
from experiments import satorras2021_nbody as nbody
from experiments.simulators.charged_particles import Sample

_STEPS = 30  # one epoch of the published protocol


def measure(options: Options) -> Iterator[Metric]:
    """The ratio of the times of a training step, theirs over ours."""
    if not options.wants("training step"):
        return
    ours = _ours()
    with _Theirs() as theirs:
        timings = harness.interleave({"torch": theirs, "haar": ours}, options.rounds(25))
    milliseconds = {name: timings.median(name) / _STEPS * 1e3 for name in ("torch", "haar")}
    yield Metric(
        "training step",
        timings.ratio("torch", "haar"),
        "x",
        "higher",
        tolerance=0.25,
        goal=2.5,
        note=f"{milliseconds['haar']:.1f} ms against {milliseconds['torch']:.1f} ms",
    )


def _ours():
    config = nbody.PRESETS["paper"]
    keys = jax.random.split(jax.random.key(0), 5)
    x, v, y = (jax.random.normal(key, (3000, 5, 3)) for key in keys[:3])
    sample = Sample(x, v / 2, jnp.sign(jax.random.normal(keys[3], (3000, 5))), y)
    batches = jnp.arange(3000).reshape(_STEPS, config.batch)
    training = nbody.init(config, keys[4], {}).trainings["egnn"]

    @jax.jit
    def epoch(parameters, moments, sample):
        return nbody.train(config, "egnn", parameters, moments, sample, batches)

    return lambda: epoch(training.parameters, training.optimizer, sample)


class _Theirs:
    """The peer's process: each call makes it take `_STEPS` training steps and waits for its answer."""

    def __enter__(self) -> "_Theirs":
        python, repository = os.environ.get("HAAR_TORCH_PYTHON"), os.environ.get("HAAR_EGNN_REPOSITORY")
        if not python or not repository:
            raise harness.Missing("set HAAR_TORCH_PYTHON and HAAR_EGNN_REPOSITORY to measure against the PyTorch code")
        script = Path(__file__).with_name("peer_egnn.py")
        self._process = subprocess.Popen(
            [python, str(script), repository, str(_STEPS)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __call__(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        if self._process.stdout.readline() != "done\n":
            raise harness.Missing("the PyTorch process ended; run benchmarks/peer_egnn.py by hand to see why")

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.wait()
