"""Batatia et al. 2022, acetylacetone: force RMSE of MACE 5.1 meV/Å at 300 K, 22.4 at 600 K; of NequIP 5.9 and 27.8.

Command: `python -m experiments run acac --preset cpu --data FOLDER`; expected: NequIP l_max 2 below 25 meV/Å at 300 K.
Energies and forces of 500 frames of molecular dynamics at 300 K (450 to learn from, 50 to validate), tested on 650
frames at 300 K and 650 at 600 K. Higher degrees of the features learn more from the same frames: l_max 0 > 1 >= 2.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable
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

from equivariant import graph, mace, nequip, potential
from experiments.engine import experiment, style
from experiments.engine.exits import Refused
from experiments.engine.experiment import Result, Row
from experiments.learners import force_field
from experiments.readers import molecules
from lie import so3

BIBTEX = r"""
@article{batatia2022design,
  title = {The Design Space of E(3)-Equivariant Atom-Centered Interatomic Potentials},
  author = {Batatia, Ilyes and Batzner, Simon and Kov{\'a}cs, D{\'a}vid P{\'e}ter and Musaelian, Albert and
    Simm, Gregor N. C. and Drautz, Ralf and Ortner, Christoph and Kozinsky, Boris and Cs{\'a}nyi, G{\'a}bor},
  journal = {arXiv preprint},
  year = {2022},
  eprint = {2205.06643},
  archiveprefix = {arXiv},
}
"""
FILES = {"train": "train_300K", "300k": "test_MD_300K", "600k": "test_MD_600K"}
TRAIN = 450  # of the 500 frames; the others validate
PUBLISHED = {  # energy in meV, force in meV/Å: test at 300 K, at 600 K; quoted from memory
    "mace": {"energy_300k": 0.9, "force_300k": 5.1, "energy_600k": 4.6, "force_600k": 22.4},
    "nequip": {"energy_300k": 0.81, "force_300k": 5.90, "energy_600k": 6.04, "force_600k": 27.8},
}
MASSES = {1: 1.008, 6: 12.011, 8: 15.999}  # atomic mass units
ACCELERATION = 9.648533e-3  # Å/fs² of an atomic mass unit under 1 eV/Å


@dataclass(frozen=True)
class Config:
    """The published sizes; presets make networks smaller and training shorter."""

    nequip: tuple[int, ...] = (2,)
    """l_max of the NequIP networks, one for each number."""
    mace: tuple[int, ...] = (2,)
    """l_max of the messages of the MACE networks, one for each number."""
    epochs: int = 2000
    """Passes over the 450 training frames."""
    test_every: int = 20
    """Epochs between two evaluations; the best validation error chooses the one that counts."""
    test_frames: int = 650
    """Frames of each test set, at most 650."""
    batch: int = 5
    channels: int = 128
    nequip_layers: int = 5
    mace_layers: int = 2
    mace_filter: int = 3
    """Highest degree of the harmonics in MACE."""
    correlation: int = 3
    radial_hidden: tuple[int, ...] = (64, 64, 64)
    cutoff: float = 5.0
    """In Å."""
    neighbors: float = 12.1
    """Mean number of neighbours of an atom within the cutoff, which scales messages."""
    rate: float = 0.01
    """Adam's first learning rate; a cosine takes it to 0."""
    energy_weight: float = 0.3
    """Weight of (energy error)²/atoms against the mean squared error of a force component."""
    average: float = 0.99
    """Decay, each step, of the average of the parameters that is evaluated."""

    def __post_init__(self) -> None:
        for field in ("epochs", "test_every", "test_frames", "batch", "channels", "nequip_layers", "mace_layers"):
            if getattr(self, field) < 1:
                raise Refused(f"{field}: expected at least 1, got {getattr(self, field)}")
        if self.batch > TRAIN:
            raise Refused(f"batch: expected at most {TRAIN}, got {self.batch}")
        if not self.nequip and not self.mace:
            raise Refused("nequip, mace: expected at least one l_max among them")


_SMALL = Config(channels=32, nequip_layers=3, radial_hidden=(32,), mace_filter=2)
PRESETS = {
    "smoke": dataclasses.replace(
        _SMALL, nequip=(1,), mace=(), epochs=2, test_every=1, test_frames=50, batch=15, channels=8, nequip_layers=2
    ),
    "cpu": dataclasses.replace(_SMALL, nequip=(0, 1, 2), mace=(0, 1), epochs=200, test_every=20),
    "paper": Config(),
}


class Data(NamedTuple):
    """Energies less those of the isolated atoms and the training mean, subtracted in float64 before rounding."""

    train: force_field.Sample
    valid: force_field.Sample
    tests: dict[str, force_field.Sample]
    species: Array  # (atoms,)
    masses: Array  # (atoms,)
    unit: Array  # rms force of the training frames, eV/Å: energies are learned in it


class State(NamedTuple):
    key: Array
    epoch: Array
    trainings: dict[str, force_field.Training]


Metrics = dict[str, Array]


def data(config: Config, folder: Path | None) -> Data:
    """Frames from the data folder's `acac`, energies made relative, neighbours within the cutoff found once."""
    place = molecules.find(folder, "acac")
    frames = {name: molecules.read(place / f"{file}.xyz") for name, file in FILES.items()}
    numbers = frames["train"].numbers
    isolated = molecules.isolated_energies(place / "isolated_atoms.xyz")
    atoms = sum(isolated[z] for z in numbers.tolist())
    mean = float(np.mean(frames["train"].energy[:TRAIN] - atoms))
    samples = {name: force_field.sample(f, atoms + mean, config.cutoff) for name, f in frames.items()}
    train, valid = (jax.tree.map(lambda a, s=s: a[s], samples["train"]) for s in (slice(TRAIN), slice(TRAIN, None)))
    kinds = np.unique(numbers)
    tests = {name: jax.tree.map(lambda a: a[: config.test_frames], samples[name]) for name in ("300k", "600k")}
    return Data(
        train,
        valid,
        tests,
        jnp.asarray(np.searchsorted(kinds, numbers), jnp.int32),
        jnp.asarray([MASSES[z] for z in numbers.tolist()], jnp.float32),
        jnp.sqrt(jnp.mean(train.force**2)),
    )


def names(config: Config) -> list[str]:
    """The networks of a config, `nequip_l2` and so on."""
    return [f"nequip_l{l}" for l in config.nequip] + [f"mace_l{l}" for l in config.mace]


def _build(config: Config, name: str) -> Callable[[nnx.Rngs], nnx.Module]:
    kind, degree = name.split("_l")
    shared = {
        "channels": config.channels,
        "max_degree": int(degree),
        "cutoff": config.cutoff,
        "radial_hidden": config.radial_hidden,
        "neighbors": config.neighbors,
    }
    if kind == "nequip":
        return lambda rngs: nequip.NequIP(3, parities=1, layers=config.nequip_layers, **shared, rngs=rngs)
    own = {"layers": config.mace_layers, "degree_filter": config.mace_filter, "correlation": config.correlation}
    return lambda rngs: mace.MACE(3, **own, **shared, rngs=rngs)


def _energy(config: Config, name: str, data: Data) -> force_field.Energy:
    """energy(parameters, graph, vectors, species) in eV; the module is rebuilt around the parameters while tracing."""
    module = _module(config, name)
    return lambda parameters, *arguments: data.unit * nnx.merge(module, parameters)(*arguments)


def _module(config: Config, name: str) -> Any:
    """The network without its parameters."""
    return nnx.split(nnx.eval_shape(lambda: _build(config, name)(nnx.Rngs(0))))[0]


def _optimizer(config: Config) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_decay_schedule(config.rate, config.epochs * (TRAIN // config.batch)))


def init(config: Config, key: Array, data: Data) -> State:
    """Untrained networks, each from its own key."""
    key, *model_keys = jax.random.split(key, 1 + len(names(config)))
    trainings = {}
    for name, model_key in zip(names(config), model_keys, strict=True):
        _, parameters = nnx.split(_build(config, name)(nnx.Rngs(params=model_key)))
        trainings[name] = force_field.Training(
            parameters, _optimizer(config).init(parameters), jax.tree.map(jnp.copy, parameters)
        )
    return State(key, jnp.int32(0), trainings)


def model(config: Config, state: State, data: Data) -> experiment.Model:
    """The NequIP of highest degree, or else MACE: (energies in eV, forces in eV/Å) of acetylacetone's atoms in order.

    Energies are relative to the mean of the training frames; the unit of the network's energy is a parameter.
    """
    kind = "nequip" if config.nequip else "mace"
    name = f"{kind}_l{max(config.nequip or config.mace)}"
    module = _module(config, name)

    def one(parameters: Any, x: Array) -> tuple[Array, Array]:
        near = graph.radius_graph(x, config.cutoff, max_edges=len(data.species) * (len(data.species) - 1))
        network = nnx.merge(module, parameters["network"])
        out = potential.forces(lambda r: parameters["unit"] * network(near, r, data.species), x, near)
        return out.energy[0], out.forces

    parameters = {"network": state.trainings[name].average, "unit": data.unit}
    inputs = {"position": (f"batch, {len(data.species)}, 3", "float32")}
    return experiment.Model(parameters, jax.vmap(one, in_axes=(None, 0)), inputs)


def blocks(config: Config) -> int:
    """How often `advance` is called."""
    return math.ceil(config.epochs / config.test_every)


def done(config: Config, state: State) -> bool:
    return int(state.epoch) >= config.epochs


def lower_rate(config: Config, factor: float) -> Config:
    """The same training with its learning rate times `factor`."""
    return dataclasses.replace(config, rate=factor * config.rate)


def advance(config: Config, state: State, data: Data) -> tuple[State, Metrics]:
    """`test_every` epochs of every network on the same batches, then the errors of its averaged parameters."""
    key, shuffle_key = jax.random.split(state.key)
    steps = TRAIN // config.batch
    orders = jax.vmap(lambda k: jax.random.permutation(k, TRAIN)[: steps * config.batch])
    batches = orders(jax.random.split(shuffle_key, config.test_every)).reshape(-1, config.batch)
    metrics: Metrics = {"epoch": state.epoch + config.test_every}
    loss = force_field.Loss(data.unit, config.energy_weight, config.average)
    trainings = {}
    for name, training in state.trainings.items():
        energy = _energy(config, name, data)
        training, losses = force_field.train(
            energy, training, data.train, data.species, batches, _optimizer(config), loss
        )
        trainings[name] = training
        metrics[f"{name}_train_loss"] = jnp.mean(losses[-steps:])
        for split, sample in {"valid": data.valid, **data.tests}.items():
            energy_rmse, force_rmse = force_field.errors(energy, training.average, sample, data.species)
            metrics[f"{name}_{split}_energy_rmse_mev"] = energy_rmse
            metrics[f"{name}_{split}_force_rmse_mev_per_angstrom"] = force_rmse
    return State(key, state.epoch + config.test_every, trainings), metrics


def turned(config: Config, name: str, parameters: Any, data: Data, dtype: Any) -> tuple[float, float]:
    """Largest change of an energy (eV) and error of a turned force, over the largest force, in arithmetic of `dtype`.

    Under a rotation and a reflection, over ten validation frames. In float32 the turned positions are rounded as well:
    2e-7 Å, which bonds of 50 eV/Å² make 1e-5 eV/Å.
    """
    with jax.enable_x64(dtype == np.float64):
        cast = lambda tree: jax.tree.map(
            lambda a: jnp.asarray(a, dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a, tree
        )
        sample, parameters = cast((jax.tree.map(lambda a: a[:10], data.valid), parameters))
        energy = _energy(config, name, cast(data))
        R = so3.sample((), dtype, key=jax.random.key(0))

        @jax.jit
        def under(R: Array) -> tuple[Array, Array]:
            E, F = force_field.predict(energy, parameters, sample, data.species)
            moved = sample._replace(position=so3.act(R, sample.position))
            turned_E, turned_F = force_field.predict(energy, parameters, moved, data.species)
            return jnp.max(jnp.abs(turned_E - E)), jnp.max(jnp.abs(turned_F - so3.act(R, F))) / jnp.max(jnp.abs(F))

        both = [under(R), under(-R)]
        return max(float(e) for e, _ in both), max(float(f) for _, f in both)


def drift(config: Config, energy: force_field.Energy, parameters: Any, data: Data, steps: int = 2000) -> float:
    """|E(end) − E(start)| per atom in meV of molecular dynamics without a thermostat: 0.5 fs steps from 300 K."""
    x, masses, step = data.valid.position[0], data.masses[:, None], 0.5
    speed = jnp.sqrt(8.617333e-5 * 300 * ACCELERATION / masses)
    v = speed * jax.random.normal(jax.random.key(0), x.shape, x.dtype)
    v = v - jnp.sum(masses * v, axis=0) / jnp.sum(masses)

    def act(x: Array) -> tuple[Array, Array]:
        g = graph.radius_graph(x, config.cutoff, max_edges=x.shape[0] * (x.shape[0] - 1))
        out = potential.forces(lambda vectors: energy(parameters, g, vectors, data.species), x, g)
        return out.energy[0], out.forces

    def move(carry: tuple[Array, Array, Array], _: None) -> tuple[tuple[Array, Array, Array], Array]:
        x, v, F = carry
        v = v + 0.5 * step * ACCELERATION * F / masses
        x = x + step * v
        E, F = act(x)
        v = v + 0.5 * step * ACCELERATION * F / masses
        return (x, v, F), E + jnp.sum(masses * v * v) / (2 * ACCELERATION)

    _, total = jax.jit(lambda x, v: lax.scan(move, (x, v, act(x)[1]), None, length=steps))(x, v)
    half = steps // 4  # means over quarters: the energy of one step oscillates with the bonds
    return 1e3 * abs(float(jnp.mean(total[-half:]) - jnp.mean(total[:half]))) / x.shape[0]


def result(config: Config, metrics: dict[str, np.ndarray], state: State, data: Data) -> Result:
    """The table at the best validation error, the order of the degrees, symmetry and energy conservation."""
    long_enough = config.epochs >= PRESETS["cpu"].epochs
    gate = lambda bound: bound if long_enough else math.inf
    rows, force = [], {}
    for name in names(config):
        best = int(np.argmin(metrics[f"{name}_valid_force_rmse_mev_per_angstrom"]))
        kind, degree = name.split("_l")
        label = f"{'NequIP' if kind == 'nequip' else 'MACE'} l_max {degree}"
        for split in ("300k", "600k"):
            for quantity, unit in (("energy", "mev"), ("force", "mev_per_angstrom")):
                value = float(metrics[f"{name}_{split}_{quantity}_rmse_{unit}"][best])
                force[name, split] = value if quantity == "force" else math.nan
                goal = gate(25.0) if (quantity, split, degree) == ("force", "300k", "2") else math.inf
                title = f"{label}, {quantity} RMSE at {split[:-1]} K ({'meV' if quantity == 'energy' else 'meV/Å'})"
                rows.append(
                    Row(
                        title, value, PUBLISHED[kind][f"{quantity}_{split}"], "acetylacetone table", "memory", high=goal
                    )
                )
        rows.append(Row(f"{label}, force RMSE at 600 K / 300 K", force[name, "600k"] / force[name, "300k"]))
        energy, parameters = _energy(config, name, data), state.trainings[name].average
        for dtype, most in ((np.float64, 1e-6), (np.float32, math.inf)):
            change, error = turned(config, name, parameters, data, dtype)
            rows.append(Row(f"{label}, {dtype.__name__}: change of an energy when turned (eV)", change, high=most))
            rows.append(Row(f"{label}, {dtype.__name__}: error of a turned force / largest force", error, high=1e-5))
        rows.append(Row(f"{label}, drift of the energy in 1 ps (meV/atom)", drift(config, energy, parameters, data)))
    for kind, degrees in (("nequip", config.nequip), ("mace", config.mace)):
        for low, high in itertools.pairwise(sorted(degrees)):
            ratio = force[f"{kind}_l{low}", "300k"] / force[f"{kind}_l{high}", "300k"]
            rows.append(
                Row(f"{kind}, force RMSE of l_max {low} / l_max {high}", ratio, low=1.0 if long_enough else -math.inf)
            )
    return Result(tuple(rows))


def figure(metrics: dict[str, np.ndarray]) -> "style.Figure":
    """Force errors over training at 300 K and 600 K, beside the published ones."""
    picture = style.figure(9.5, 3.4)
    panels = dict(zip(("300k", "600k"), picture.subplots(1, 2, sharey=True), strict=True))
    epoch = metrics["epoch"][0]
    found = [key.removesuffix("_train_loss") for key in metrics if key.endswith("_train_loss")]
    for split, axes in panels.items():
        for name, colour in zip(found, itertools.cycle(style.COLOURS)):
            values = metrics[f"{name}_{split}_force_rmse_mev_per_angstrom"]
            kind, degree = name.split("_l")
            label = f"{'NequIP' if kind == 'nequip' else 'MACE'}, l_max {degree}"
            axes.plot(epoch, np.median(values, axis=0), color=colour, label=label, ls="-" if kind == "nequip" else "--")
            axes.fill_between(epoch, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.2, linewidth=0)
        for kind, side in (("NequIP", "bottom"), ("MACE", "top")):
            value = PUBLISHED[kind.lower()][f"force_{split}"]
            axes.axhline(value, color=style.PUBLISHED, linestyle=":", linewidth=1)
            axes.text(epoch[0], value, f"{kind}, published", color=style.PUBLISHED, fontsize=7, va=side)
        axes.set(xlabel="epoch", yscale="log", title=f"Trained at 300 K, tested at {split[:-1]} K")
    panels["300k"].set_ylabel("force RMSE (meV/Å)")
    panels["300k"].legend()
    return picture
