"""A least-squares training of microseconds a block, for tests that need runs in other processes, killed or in step."""

import dataclasses
import sys
import types
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from experiments.engine import exits, mesh, record, run
from experiments.engine.experiment import Experiment, Result, Row


@dataclasses.dataclass(frozen=True)
class Config:
    blocks: int = 40
    rate: float = 0.1
    batch: int = 16


class State(NamedTuple):
    key: jax.Array
    block: jax.Array
    weights: jax.Array
    best: jax.Array


class Data(NamedTuple):
    x: jax.Array
    y: jax.Array


def data(config, folder):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 300)).astype(np.float32)
    return Data(jnp.asarray(x), jnp.asarray(x @ rng.normal(size=300).astype(np.float32)))


def init(config, key, data):
    return State(key, jnp.int32(0), jnp.zeros(300, jnp.float32), jnp.float32(jnp.inf))


def advance(config, state, data):
    key, draw = jax.random.split(state.key)
    chosen = jax.random.permutation(draw, 64)[: config.batch]
    batch = mesh.split(jax.tree.map(lambda a: a[chosen], data))

    def loss(weights):
        return jnp.mean((batch.x @ weights - batch.y) ** 2)

    value, gradient = jax.value_and_grad(loss)(state.weights)
    weights = state.weights - jnp.float32(config.rate / 100) * gradient
    return State(key, state.block + 1, weights, jnp.minimum(state.best, value)), {"loss": value}


def experiment(**changes) -> Experiment:
    """The experiment; `changes` replace some of its parts."""
    parts = {
        "Config": Config,
        "PRESETS": {name: Config() for name in ("smoke", "cpu", "paper")},
        "data": data,
        "init": init,
        "advance": advance,
        "blocks": lambda config: config.blocks,
        "done": lambda config, state: int(state.block) >= config.blocks,
        "result": lambda config, metrics, state, data: Result((Row("loss", float(metrics["loss"][-1]), low=0.0),)),
        "figure": lambda metrics: Figure(),
        "lower_rate": lambda config, factor: dataclasses.replace(config, rate=factor * config.rate),
        "__doc__": "A least-squares training.",
    }
    return Experiment("small", types.SimpleNamespace(**(parts | changes)))  # type: ignore[arg-type]


def request(folder: Path, **changes) -> run.Request:
    """A run of seed 0 in `folder`."""
    made = run.Request(preset="smoke", seeds=(0,), runs=folder, folder=folder, data=None, fresh=False)
    return dataclasses.replace(made, **changes)


def metrics(folder: Path) -> dict[str, list]:
    """What a run measured, seeds first."""
    return {name: values.tolist() for name, values in record.metrics(folder).items()}


def main(arguments: list[str]) -> None:
    """FOLDER BLOCKS SEEDS DEVICES EVERY [ADDRESS,COUNT,RANK]: the run as a command; EVERY: seconds between saves."""
    folder, blocks, seeds, count, every, *join = arguments
    if join:
        mesh.join(join[0])
    run.CHECKPOINT_EVERY = float(every)
    asked = request(Path(folder), seeds=tuple(range(int(seeds))), devices=int(count))
    with exits.as_status():
        run.run(experiment(), Config(blocks=int(blocks)), asked)


if __name__ == "__main__":
    main(sys.argv[1:])
