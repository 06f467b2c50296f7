"""MACE: many bodies, all symmetries, a smooth end, forces that are learned; as large as it says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpy.testing import assert_allclose

from equivariant import atoms, graph, mace, potential
from lie import so3

CUTOFF = 3.0
SMALL = {
    "channels": 3,
    "max_degree": 1,
    "degree_filter": 2,
    "correlation": 2,
    "layers": 2,
    "cutoff": CUTOFF,
    "radial_hidden": (4,),
    "readout": 4,
}
SPECIES = jnp.array([0, 1, 1, 2, 0, 1])


def small(**changed):
    return mace.MACE(3, **{**SMALL, "neighbors": 4.0, **changed}, rngs=nnx.Rngs(0))


def cluster(dtype=jnp.float64, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(6, 3)) * 1.3, dtype)


def evaluate(model, x, species=SPECIES):
    g = graph.radius_graph(x, CUTOFF, max_edges=30)
    return potential.forces(lambda vectors: model(g, vectors, species), x, g)


@pytest.fixture(scope="module")
def model():
    return small()


@pytest.fixture(scope="module")
def compiled(model):
    return jax.jit(lambda x, species: evaluate(model, x, species))


def test_energy_stands_and_forces_turn_under_rotations_reflections_shifts_and_permutations(compiled):
    x = cluster()
    out = compiled(x, SPECIES)
    assert float(jnp.abs(out.forces).max()) > 1e-2
    R = so3.sample((), jnp.float64, key=jax.random.key(0))
    for element in (R, -R):
        turned = compiled(x @ element.T + 0.7, SPECIES)
        assert_allclose(turned.energy, out.energy, rtol=1e-12)
        assert_allclose(turned.forces, out.forces @ element.T, atol=1e-12)
    order = np.array([3, 0, 5, 1, 4, 2])
    moved = compiled(x[order], SPECIES[order])
    assert_allclose(moved.energy, out.energy, rtol=1e-12)
    assert_allclose(moved.forces, out.forces[order], atol=1e-12)


@pytest.mark.slow
def test_float32_stays_and_agrees(compiled):
    wide, narrow = compiled(cluster(), SPECIES), compiled(cluster(jnp.float32), SPECIES)
    assert {narrow.energy.dtype, narrow.forces.dtype} == {jnp.dtype(jnp.float32)}
    assert_allclose(narrow.forces, wide.forces, atol=2e-5 * float(jnp.abs(wide.forces).max()))


def test_forces_are_the_differences_of_the_energy_and_end_smoothly_at_the_cutoff(compiled):
    x, step = cluster(), 1e-4
    direction = jnp.asarray(np.random.default_rng(1).normal(size=(6, 3)))
    at = lambda t: float(compiled(x + t * direction, SPECIES).energy[0])
    slope = (8 * (at(step) - at(-step)) - (at(2 * step) - at(-2 * step))) / (12 * step)
    assert_allclose(-float(jnp.sum(compiled(x, SPECIES).forces * direction)), slope, rtol=1e-8)
    # One atom walks through the cutoff of another; forces have no jump and, to rounding, no kink.
    line = lambda t: jnp.zeros((6, 3)).at[:, 0].set(jnp.array([0.0, CUTOFF + t, 20, 40, 60, 80]))
    jump = compiled(line(1e-4), SPECIES).forces - compiled(line(-1e-4), SPECIES).forces
    assert_allclose(jump, 0, atol=1e-6)


@pytest.mark.slow
def test_the_gradient_of_a_loss_on_forces_is_right(model):
    graph_of, parameters = nnx.split(model)
    parameters = jax.tree.map(lambda p: p.astype(jnp.float64), parameters)
    x = cluster()

    @jax.jit
    def loss(parameters):
        out = evaluate(nnx.merge(graph_of, parameters), x)
        return jnp.sum((out.forces - 0.1) ** 2) + jnp.sum(out.energy**2)

    leaves, structure = jax.tree.flatten(parameters)
    random = np.random.default_rng(2)
    directions = jax.tree.unflatten(structure, [jnp.asarray(random.normal(size=leaf.shape)) for leaf in leaves])
    moved = lambda t: jax.tree.map(lambda p, d: p + t * d, parameters, directions)
    step = 1e-4
    slope = sum(w * float(loss(moved(k * step))) for k, w in ((-2, 1), (-1, -8), (1, 8), (2, -1))) / (12 * step)
    gradient = jax.jit(jax.grad(loss))(parameters)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    found = sum(
        float(jnp.sum(g * d)) for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(directions), strict=True)
    )
    assert_allclose(found, slope, rtol=1e-6)


def test_single_atoms_coincident_atoms_and_no_atoms(model, compiled):
    far = cluster() + 50.0 * jnp.arange(6.0)[:, None]
    alone = compiled(far, SPECIES)  # six single atoms: their energies are their species'
    assert_allclose(alone.forces, 0)
    assert_allclose(compiled(far[::-1], SPECIES).energy, alone.energy, rtol=1e-14)
    pair = compiled(far.at[1].set(far[0]), SPECIES)
    assert np.isfinite(pair.energy).all()
    assert np.isfinite(pair.forces).all()
    assert float(pair.energy[0]) != float(alone.energy[0])
    empty = evaluate(model, jnp.zeros((0, 3)), SPECIES[:0])
    assert_allclose(empty.energy, [0])
    assert empty.forces.shape == (0, 3)


def test_the_paper_sizes_are_the_defaults():
    count = lambda **k: sum(
        leaf.size for leaf in jax.tree.leaves(nnx.state(nnx.eval_shape(lambda: mace.MACE(3, **k, rngs=nnx.Rngs(0)))))
    )
    assert count() == 3_297_808  # as the docstring says
    assert atoms.parameter_count(small()) == count(**SMALL)


def test_bad_arguments_are_named(own_checks, model):
    x = cluster()
    g = graph.radius_graph(x, CUTOFF)
    v = graph.vectors(g, x)
    with pytest.raises(ValueError, match=r"species: expected shape \(6,\), one for each node, got \(5,\)"):
        model(g, v, SPECIES[:5])
    with pytest.raises(TypeError, match="species: expected integers"):
        model(g, v, SPECIES.astype(jnp.float32))
    with pytest.raises(ValueError, match="species: expected integers from 0 to 2"):
        model(g, v, SPECIES + 1)
    with pytest.raises(ValueError, match="vectors: expected one row for each of the graph's"):
        model(g, v[:-1], SPECIES)
    with pytest.raises(ValueError, match="scale: expected a number or one for each of 3 species, got 2"):
        small(scale=(1.0, 2.0))
    with pytest.raises(ValueError, match="layers: expected at least 1"):
        small(layers=0)
