"""Forces and stress: finite differences, second order through a loss on forces, structures apart, one compilation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from equivariant import graph, potential, radial
from lie import smooth, so3

CELL = np.array([[4.6, 0, 0], [0.5, 4.4, 0], [-0.3, 0.2, 5.1]])
CUTOFF = 3.0


def atoms(n=8, seed=0):
    """Points of a jittered lattice: no two closer than 1.2."""
    rng = np.random.default_rng(seed)
    lattice = np.stack(np.meshgrid(*[[0.0, 0.5]] * 3, indexing="ij"), -1).reshape(-1, 3)[:n]
    return jnp.asarray(lattice @ CELL + rng.uniform(-0.3, 0.3, (n, 3)))


def pairwise(parameters, g):
    """A Morse energy per structure that ends smoothly at the cutoff."""
    depth, stiffness, length = parameters

    def energy(vectors):
        r = smooth.norm(vectors)
        pair = depth * (1 - jnp.exp(-stiffness * (r - length))) ** 2 * radial.polynomial_cutoff(r, CUTOFF)
        return graph.sum_nodes(g, graph.sum_edges(g, pair)) / 2

    return energy


PARAMETERS = jnp.array([0.7, 1.1, 1.9])


def numerical(f, x, step=1e-4):
    """Central differences of fourth order of a scalar function of an array, entry by entry."""
    x = np.asarray(x, np.float64)
    out = np.zeros(x.size)
    for k in range(x.size):
        move = np.zeros(x.size)
        move[k] = step
        at = lambda m, move=move: float(f(jnp.asarray(x + m * move.reshape(x.shape))))
        out[k] = (8 * (at(1) - at(-1)) - (at(2) - at(-2))) / (12 * step)
    return out.reshape(x.shape)


@pytest.fixture(scope="module")
def crystal():
    return atoms(), graph.radius_graph(atoms(), CUTOFF, CELL)


def test_forces_and_stress_are_the_differences_of_the_energy(crystal):
    x, g = crystal
    energy = pairwise(PARAMETERS, g)
    out = potential.forces(energy, x, g, cell=jnp.asarray(CELL))
    total = jax.jit(lambda x: energy(graph.vectors(g, x))[0])
    assert_allclose(out.forces, -numerical(total, x), atol=1e-9)
    assert_allclose(jnp.sum(out.forces, axis=0), 0, atol=1e-12)
    strained = jax.jit(lambda e: energy(graph.vectors(g, x) @ (jnp.eye(3) + (e + e.T) / 2))[0])
    volume = abs(np.linalg.det(CELL))
    assert_allclose(out.stress[0], numerical(strained, np.zeros((3, 3))) / volume, atol=1e-9)
    assert_allclose(out.stress[0], out.stress[0].T, atol=0)


def test_both_ways_of_stating_the_energy_agree(crystal):
    x, g = crystal
    energy = pairwise(PARAMETERS, g)
    images = g.shifts @ jnp.linalg.inv(jnp.asarray(CELL))

    def of_positions(x, cell):
        return energy(x[g.receivers] - x[g.senders] + images @ cell)[0]

    ours = potential.forces(energy, x, g, cell=jnp.asarray(CELL))
    other = potential.forces(of_positions, x, cell=jnp.asarray(CELL))
    assert_allclose(other.energy, ours.energy[0], rtol=1e-14)
    assert_allclose(other.forces, ours.forces, atol=1e-12)
    assert_allclose(other.stress, ours.stress[0], atol=1e-14)
    free = potential.forces(lambda x: jnp.sum(x**4), x)
    assert free.stress is None
    assert_allclose(free.forces, -4 * x**3, rtol=1e-12)


def test_the_gradient_of_a_loss_on_forces_and_stress_is_right_to_second_order(crystal):
    x, g = crystal

    @jax.jit
    def loss(parameters, x):
        out = potential.forces(pairwise(parameters, g), x, g, cell=jnp.asarray(CELL))
        return jnp.sum((out.forces - 0.1) ** 2) + jnp.sum(out.stress**2) + jnp.sum(out.energy)

    by_parameters, by_positions = jax.jit(jax.grad(loss, argnums=(0, 1)))(PARAMETERS, x)
    assert_allclose(by_parameters, numerical(lambda p: loss(p, x), PARAMETERS), rtol=1e-8)
    assert_allclose(by_positions, numerical(lambda x: loss(PARAMETERS, x), x), atol=1e-7)
    hessian = jax.jit(jax.hessian(loss))(PARAMETERS, x)
    slope = jax.jit(jax.grad(loss))
    differences = [numerical(lambda p, k=k: slope(p, x)[k], PARAMETERS) for k in range(3)]
    assert_allclose(hessian, np.array(differences), rtol=1e-7)


def test_forces_turn_with_the_atoms(crystal):
    x, g = crystal
    R = so3.sample((), jnp.float64, key=jax.random.key(0))
    turn = lambda rows: rows @ R.T
    cell = jnp.asarray(CELL)
    ours = potential.forces(pairwise(PARAMETERS, g), x, g, cell=cell)
    turned = graph.radius_graph(turn(x), CUTOFF, turn(cell))
    other = potential.forces(pairwise(PARAMETERS, turned), turn(x), turned, cell=turn(cell))
    assert_allclose(other.energy, ours.energy, rtol=1e-13)
    assert_allclose(other.forces, turn(ours.forces), atol=1e-12)
    assert_allclose(other.stress[0], R @ ours.stress[0] @ R.T, atol=1e-13)


def test_structures_of_a_batch_feel_only_themselves_and_padding_nothing(dtype):
    x = jnp.stack([atoms(seed=k) for k in range(3)]).astype(dtype)
    cells = jnp.asarray(np.stack([CELL, CELL, 1.1 * CELL]), dtype)
    stacked = jax.vmap(lambda x, cell: graph.radius_graph(x, CUTOFF, cell, max_edges=400))(x, cells)
    g = graph.batch(stacked)
    assert not g.overflow
    parameters = PARAMETERS.astype(dtype)
    together = potential.forces(pairwise(parameters, g), x.reshape(-1, 3), g, cell=cells)
    assert {a.dtype for a in together} == {jnp.dtype(dtype)}
    alone = [
        potential.forces(pairwise(parameters, h), x[k], h, cell=cells[k]) for k, h in enumerate(unstack(stacked, 3))
    ]
    tolerance = 64 * float(jnp.finfo(dtype).eps)
    for k, single in enumerate(alone):
        assert_allclose(together.energy[k], single.energy[0], rtol=tolerance)
        assert_allclose(together.forces.reshape(3, -1, 3)[k], single.forces, atol=tolerance)
        assert_allclose(together.stress[k], single.stress[0], atol=tolerance)


def unstack(tree, count):
    return [jax.tree.map(lambda a, k=k: a[k], tree) for k in range(count)]


def test_one_compilation_serves_all_parameters_and_positions(crystal):
    x, g = crystal
    traces = []

    @jax.jit
    def step(parameters, x):
        traces.append(1)
        return jax.grad(lambda p: jnp.sum(potential.forces(pairwise(p, g), x, g).forces ** 2))(parameters)

    for k in range(3):
        step(PARAMETERS * (1 + k), x + 0.01 * k)
    assert len(traces) == 1


def test_nothing_and_one_atom():
    empty = graph.radius_graph(jnp.zeros((0, 3)), CUTOFF, max_edges=4)
    out = potential.forces(pairwise(PARAMETERS, empty), jnp.zeros((0, 3)), empty)
    assert out.forces.shape == (0, 3)
    assert_allclose(out.energy, [0])
    one = graph.radius_graph(jnp.zeros((1, 3)), CUTOFF, max_edges=4)
    assert_allclose(potential.forces(pairwise(PARAMETERS, one), jnp.zeros((1, 3)), one).forces, 0)
    g = graph.radius_graph(jnp.zeros((2, 3)), CUTOFF)  # coincident: no direction, no force, no NaN
    gradient = jax.grad(lambda x: jnp.sum(potential.forces(pairwise(PARAMETERS, g), x, g).forces[0]))
    assert np.isfinite(gradient(jnp.zeros((2, 3)))).all()


def test_bad_arguments_are_named(own_checks, crystal):
    x, g = crystal
    energy = pairwise(PARAMETERS, g)
    with pytest.raises(ValueError, match=r"positions: expected shape \(8, 3\)"):
        potential.forces(energy, x[:5], g)
    with pytest.raises(ValueError, match=r"cell: expected shape \(1, 3, 3\) or \(3, 3\), got \(2, 3, 3\)"):
        potential.forces(energy, x, g, cell=jnp.ones((2, 3, 3)))
    with pytest.raises(ValueError, match=r"energy: expected a result of shape \(\) or \(1,\), got \(8,\)"):
        potential.forces(lambda v: jnp.zeros(8), x, g)
    with pytest.raises(ValueError, match=r"energy: expected one number, got shape \(3,\)"):
        potential.forces(lambda x: jnp.sum(x, axis=0), x)
