"""Potentials learned from energies and forces of one molecule: samples with their graphs, Adam's steps, errors."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array

from equivariant import graph, potential
from experiments.engine import mesh
from experiments.readers import molecules

Energy = Callable[..., Array]  # energy(parameters, graph, vectors, species) in eV, one for each structure


class Sample(NamedTuple):
    """Frames with their graphs, stacked; energies less a constant."""

    position: Array  # (frames, atoms, 3) Å
    energy: Array  # (frames,) eV
    force: Array  # (frames, atoms, 3) eV/Å
    graph: graph.Graph


class Training(NamedTuple):
    """Parameters under training, the state of Adam, and the average of the parameters that is evaluated."""

    parameters: Any
    optimizer: Any
    average: Any


class Loss(NamedTuple):
    """Mean squared error of a force component + energy_weight (energy error)²/atoms, in units of `unit`²."""

    unit: Array  # eV/Å
    energy_weight: float
    average: float  # decay, each step, of the average of the parameters


def sample(frames: molecules.Frames, constant: float, cutoff: float) -> Sample:
    """The frames with energies less `constant`, subtracted in float64, and the neighbours within `cutoff`."""
    x = jnp.asarray(frames.positions, jnp.float32)
    n = x.shape[1]
    find = jax.jit(jax.vmap(lambda x: graph.radius_graph(x, cutoff, max_edges=n * (n - 1))))
    graphs = find(x)
    return Sample(
        x, jnp.asarray(frames.energy - constant, jnp.float32), jnp.asarray(frames.forces, jnp.float32), graphs
    )


def predict(energy: Energy, parameters: Any, sample: Sample, species: Array) -> tuple[Array, Array]:
    """Energies (frames,) and forces (frames, atoms, 3): all frames as one graph."""
    together, kinds = graph.batch(sample.graph), jnp.tile(species, len(sample.energy))
    of_vectors = lambda vectors: energy(parameters, together, vectors, kinds)
    out = potential.forces(of_vectors, sample.position.reshape(-1, 3), together)
    return out.energy, out.forces.reshape(sample.force.shape)


def train(
    energy: Energy,
    training: Training,
    data: Sample,
    species: Array,
    batches: Array,
    optimizer: optax.GradientTransformation,
    weights: Loss,
) -> tuple[Training, Array]:
    """One step of `optimizer` per row of `batches` (indices of frames); the losses come batch by batch."""

    def loss(parameters: Any, sample: Sample) -> Array:
        energies, forces = predict(energy, parameters, sample, species)
        per_atom = jnp.mean((energies - sample.energy) ** 2) / len(species)
        return (jnp.mean((forces - sample.force) ** 2) + weights.energy_weight * per_atom) / weights.unit**2

    def step(training: Training, batch: Array) -> tuple[Training, Array]:
        sample = mesh.split(jax.tree.map(lambda a: a[batch], data))
        value, gradient = jax.value_and_grad(loss)(training.parameters, sample)
        updates, moments = optimizer.update(gradient, training.optimizer)
        parameters = optax.apply_updates(training.parameters, updates)
        average = jax.tree.map(lambda a, p: a + (1 - weights.average) * (p - a), training.average, parameters)
        return Training(parameters, moments, average), value

    return lax.scan(step, training, batches)


def predictions(energy: Energy, parameters: Any, sample: Sample, species: Array) -> tuple[Array, Array]:
    """As `predict`, by parts of at most 25 frames: for sets of any size."""
    count = len(sample.energy)
    size = max(k for k in range(1, 26) if count % k == 0)
    split = jax.tree.map(lambda a: a.reshape(count // size, size, *a.shape[1:]), sample)
    split = mesh.split(split, axis=1)
    energies, forces = lax.map(lambda part: predict(energy, parameters, part, species), split)
    return energies.reshape(-1), forces.reshape(sample.force.shape)


def errors(energy: Energy, parameters: Any, sample: Sample, species: Array) -> tuple[Array, Array]:
    """RMSE of energies in meV and of force components in meV/Å."""
    energies, forces = predictions(energy, parameters, sample, species)
    energy_error, force_error = energies - sample.energy, forces - sample.force
    return 1e3 * jnp.sqrt(jnp.mean(energy_error**2)), 1e3 * jnp.sqrt(jnp.mean(force_error**2))
