"""Batzner et al. 2022, fig. 5: NequIP's force error falls like a power of the training size, lower for higher l_max.

Command: `python -m experiments run ethanol --preset cpu --data FOLDER` (10 minutes of one core; expected: the error of
l_max 0 > 1 > 2 at every size). Ethanol of rMD17: one network for each l_max and number of training frames, all trained
for the same number of steps, tested on 500 other frames. The slope of the log-log line is the exponent. NequIP's
published MAE at 1000 frames is 2.8 meV/Å.
"""

import dataclasses
import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax
from jaxtyping import Array

from equivariant import nequip
from experiments.engine import style
from experiments.engine.exits import Refused
from experiments.engine.experiment import Result, Row
from experiments.learners import force_field
from experiments.readers import molecules

BIBTEX = r"""
@article{batzner2022e3,
  title = {{E(3)}-equivariant graph neural networks for data-efficient and accurate interatomic potentials},
  author = {Batzner, Simon and Musaelian, Albert and Sun, Lixin and Geiger, Mario and Mailoa, Jonathan P. and
    Kornbluth, Mordechai and Molinari, Nicola and Smidt, Tess E. and Kozinsky, Boris},
  journal = {Nature Communications},
  volume = {13},
  pages = {2453},
  year = {2022},
}
"""
PUBLISHED_MAE = 2.8  # meV/Å at 1000 frames, NequIP; quoted from memory


@dataclass(frozen=True)
class Config:
    """The sizes of the learning curve; presets make networks smaller and training shorter."""

    degrees: tuple[int, ...] = (0, 1, 2, 3)
    """l_max of the networks."""
    sizes: tuple[int, ...] = (25, 50, 100, 200, 400, 800)
    """Numbers of training frames, of 1000."""
    steps: int = 100_000
    """Adam's, for every size."""
    blocks: int = 20
    test_frames: int = 500
    batch: int = 5
    channels: int = 64
    layers: int = 5
    radial_hidden: tuple[int, ...] = (64, 64, 64)
    cutoff: float = 4.0
    """In Å."""
    neighbors: float = 7.94
    """Mean number of neighbours of an atom within the cutoff, which scales messages."""
    rate: float = 0.01
    """Adam's first learning rate; a cosine takes it to 0."""
    energy_weight: float = 0.3
    """Weight of (energy error)²/atoms against the mean squared error of a force component."""
    average: float = 0.99
    """Decay, each step, of the average of the parameters that is evaluated."""

    def __post_init__(self) -> None:
        for field in ("steps", "blocks", "test_frames", "batch", "channels", "layers"):
            if getattr(self, field) < 1:
                raise Refused(f"{field}: expected at least 1, got {getattr(self, field)}")
        if len(self.sizes) < 2 or min(self.sizes) < 1:
            raise Refused(f"sizes: expected two or more positive numbers, got {self.sizes}")
        if not self.degrees or min(self.degrees) < 0:
            raise Refused(f"degrees: expected one or more l_max >= 0, got {self.degrees}")


_SMALL = Config(channels=32, layers=3, radial_hidden=(32,))
PRESETS = {
    "smoke": dataclasses.replace(_SMALL, degrees=(1,), sizes=(25, 50), steps=20, blocks=2, test_frames=50, channels=8),
    "cpu": dataclasses.replace(_SMALL, degrees=(0, 1, 2), sizes=(25, 100, 400), steps=5000),
    "paper": Config(),
}


class Data(NamedTuple):
    """Energies less those of the isolated atoms and the training mean, subtracted in float64 before rounding."""

    train: force_field.Sample
    test: force_field.Sample
    species: Array  # (atoms,)
    unit: Array  # rms force of the training frames, eV/Å: energies are learned in it


class State(NamedTuple):
    key: Array
    step: Array
    trainings: dict[str, force_field.Training]  # by l_max, one for each size along the first axis


Metrics = dict[str, Array]


def data(config: Config, folder: Path | None) -> Data:
    """Frames from the data folder's `ethanol_rmd17`; training frames in the file's order, the first of them used."""
    place = molecules.find(folder, "ethanol_rmd17")
    train, test = (molecules.read(place / f"{name}.xyz") for name in ("train", "test_MD"))
    if max(config.sizes) > len(train.energy) or config.test_frames > len(test.energy):
        raise Refused(f"sizes, test_frames: expected at most {len(train.energy)} and {len(test.energy)} frames")
    isolated = molecules.isolated_energies(place / "isolated_atoms.xyz")
    constant = sum(isolated[z] for z in train.numbers.tolist())
    constant += float(np.mean(train.energy - constant))
    first, other = (force_field.sample(frames, constant, config.cutoff) for frames in (train, test))
    species = jnp.asarray(np.searchsorted(np.unique(train.numbers), train.numbers), jnp.int32)
    unit = jnp.sqrt(jnp.mean(first.force**2))
    return Data(first, jax.tree.map(lambda a: a[: config.test_frames], other), species, unit)


def _build(config: Config, degree: int, rngs: nnx.Rngs) -> nequip.NequIP:
    return nequip.NequIP(
        3,
        channels=config.channels,
        max_degree=degree,
        parities=1,
        layers=config.layers,
        cutoff=config.cutoff,
        radial_hidden=config.radial_hidden,
        neighbors=config.neighbors,
        rngs=rngs,
    )


def _optimizer(config: Config) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_decay_schedule(config.rate, config.steps))


def init(config: Config, key: Array, data: Data) -> State:
    """Untrained networks; those of one l_max begin alike at every size."""
    key, *keys = jax.random.split(key, 1 + len(config.degrees))
    trainings = {}
    for degree, one in zip(config.degrees, keys, strict=True):
        _, parameters = nnx.split(_build(config, degree, nnx.Rngs(params=one)))
        start = force_field.Training(parameters, _optimizer(config).init(parameters), parameters)
        trainings[f"l{degree}"] = jax.tree.map(lambda a: jnp.stack([jnp.asarray(a)] * len(config.sizes)), start)
    return State(key, jnp.int32(0), trainings)


def blocks(config: Config) -> int:
    """How often `advance` is called."""
    return config.blocks


def done(config: Config, state: State) -> bool:
    return int(state.step) >= config.steps


def lower_rate(config: Config, factor: float) -> Config:
    """The same training with its learning rate times `factor`."""
    return dataclasses.replace(config, rate=factor * config.rate)


def advance(config: Config, state: State, data: Data) -> tuple[State, Metrics]:
    """A share of the steps of every network, then the test errors of its averaged parameters."""
    key, batch_key = jax.random.split(state.key)
    steps = math.ceil(config.steps / config.blocks)
    draws = jax.random.uniform(batch_key, (steps, config.batch), jnp.float32)
    sizes = jnp.asarray(config.sizes, jnp.int32)
    loss = force_field.Loss(data.unit, config.energy_weight, config.average)
    metrics: Metrics = {"steps": state.step + steps, "sizes": sizes}
    trainings = {}
    for name, training in state.trainings.items():
        degree = int(name.removeprefix("l"))
        module, _ = nnx.split(nnx.eval_shape(lambda degree=degree: _build(config, degree, nnx.Rngs(0))))

        def energy(parameters: Any, *arguments: Any, module: Any = module) -> Array:
            return data.unit * nnx.merge(module, parameters)(*arguments)

        def one(case: tuple[force_field.Training, Array], energy: force_field.Energy = energy) -> Any:
            training, size = case
            batches = jnp.minimum((draws * size).astype(jnp.int32), size - 1)
            after, losses = force_field.train(
                energy, training, data.train, data.species, batches, _optimizer(config), loss
            )
            energies, forces = force_field.predictions(energy, after.average, data.test, data.species)
            wrong = jnp.abs(forces - data.test.force)
            found = jnp.sqrt(jnp.mean(wrong**2)), jnp.mean(wrong), jnp.mean(jnp.abs(energies - data.test.energy))
            return after, (jnp.mean(losses[-10:]), *found)

        trainings[name], (last, rmse, mae, energy_mae) = lax.map(one, (training, sizes))
        metrics[f"{name}_train_loss"] = last
        metrics[f"{name}_force_rmse_mev_per_angstrom"] = 1e3 * rmse
        metrics[f"{name}_force_mae_mev_per_angstrom"] = 1e3 * mae
        metrics[f"{name}_energy_mae_mev"] = 1e3 * energy_mae
    return State(key, state.step + steps, trainings), metrics


def result(config: Config, metrics: dict[str, np.ndarray], state: State, data: Data) -> Result:
    """Exponents of the learning curves, their order, and the errors at the largest size."""
    enough = config.steps >= PRESETS["cpu"].steps
    rows, force = [], {}
    for degree in config.degrees:
        force[degree] = metrics[f"l{degree}_force_rmse_mev_per_angstrom"][-1]
        slope = np.polyfit(np.log(config.sizes), np.log(force[degree]), 1)[0]
        rows.append(Row(f"l_max {degree}: exponent of the force RMSE in the training size", float(slope)))
        n, label = config.sizes[-1], f"l_max {degree}, {config.sizes[-1]} frames"
        rows.append(Row(f"{label}: force RMSE (meV/Å)", float(force[degree][-1])))
        mae = float(metrics[f"l{degree}_force_mae_mev_per_angstrom"][-1, -1])
        rows.append(Row(f"{label}: force MAE (meV/Å)", mae, PUBLISHED_MAE, "at 1000 frames", "memory"))
        rows.append(Row(f"{label}: energy MAE (meV)", float(metrics[f"l{degree}_energy_mae_mev"][-1, -1])))
    for low, high in itertools.pairwise(config.degrees):
        for place in (0, -1):
            n = config.sizes[place]
            ratio = float(force[low][place] / force[high][place])
            label = f"force RMSE of l_max {low} / l_max {high}, {n} frames"
            rows.append(Row(label, ratio, low=1.0 if enough else -math.inf))
    return Result(tuple(rows))


def figure(metrics: dict[str, np.ndarray]) -> "style.Figure":
    """Test errors against the number of training frames, with their power laws."""
    picture = style.figure(9.5, 3.5)
    curves, training = picture.subplots(1, 2)
    sizes = metrics["sizes"][0, -1]
    names = [key.removesuffix("_train_loss") for key in metrics if key.endswith("_train_loss")]
    for name, colour in zip(names, itertools.cycle(style.COLOURS)):
        values = metrics[f"{name}_force_rmse_mev_per_angstrom"]
        last = np.median(values[:, -1], axis=0)
        slope, offset = np.polyfit(np.log(sizes), np.log(last), 1)
        label = f"l_max {name.removeprefix('l')}: n^{slope:.2f}"
        curves.plot(sizes, last, "o", color=colour, markersize=4, label=label)
        curves.plot(sizes, np.exp(offset) * sizes**slope, color=colour, linewidth=1)
        low, high = values[:, -1].min(axis=0), values[:, -1].max(axis=0)
        curves.fill_between(sizes, low, high, color=colour, alpha=0.2, linewidth=0)
        line = np.median(values[:, :, -1], axis=0)
        training.plot(metrics["steps"][0], line, color=colour, label=f"l_max {name.removeprefix('l')}")
    curves.set(xscale="log", yscale="log", xlabel="training frames n", ylabel="force RMSE (meV/Å)")
    curves.set_title("Ethanol (rMD17), 500 other frames")
    curves.set_xticks(sizes, [f"{n:.0f}" for n in sizes])
    curves.xaxis.set_minor_formatter("")
    curves.legend()
    training.set(yscale="log", xlabel="step", ylabel="force RMSE (meV/Å)", title=f"Training on {sizes[-1]:.0f} frames")
    for axes in (curves, training):
        axes.yaxis.set_minor_formatter("{x:.0f}")
        axes.yaxis.set_major_formatter("{x:.0f}")
        axes.tick_params(axis="y", which="minor", labelsize=7)
    training.legend()
    return picture
