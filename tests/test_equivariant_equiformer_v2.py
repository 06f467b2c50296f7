"""EquiformerV2: commutes with what it should, mixes within |m|, forces are derivatives, its number of parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from equivariant import equiformer_v2, graph, turns
from equivariant.equivariance import equivariance_error
from lie import so3, wigner

NODES = 4
PAIRS = [(i, j) for j in range(NODES) for i in range(NODES) if i != j]
GRAPH = graph.from_edges([i for i, _ in PAIRS], [j for _, j in PAIRS], NODES, max_edges=len(PAIRS) + 2)
SPECIES = jnp.array([0, 1, 1, 0])


def _model(grid_degree=None, reflections=False, layers=1, **change):
    sizes = {"channels": 4, "max_degree": 2, "max_order": 1, "heads": 2, "hidden": 4, "alpha": 3, "value": 2}
    sizes |= {"feed_forward": 4, "edge_channels": 3, "basis": 5, "cutoff": 4.0} | change
    kind = {"grid_degree": grid_degree, "reflections": reflections, "layers": layers}
    return equiformer_v2.EquiformerV2(2, **sizes, **kind, rngs=nnx.Rngs(0))


def _energy(model, positions):
    return model(GRAPH, graph.vectors(GRAPH, positions), SPECIES)


def _positions(dtype):
    return jax.random.normal(jax.random.key(3), (NODES, 3), dtype)


@pytest.mark.parametrize(("reflections", "group"), [(True, "O3"), pytest.param(False, "SO3", marks=pytest.mark.slow)])
def test_energy_and_forces_commute_with_the_group(reflections, group, dtype):
    model = _model(reflections=reflections)
    run = jax.jit(jax.value_and_grad(lambda positions: _energy(model, positions)[0]))
    report = equivariance_error(run, _positions(dtype), group, inputs="vectors", outputs=("scalars", "vectors"))
    assert report.error < 42 * float(jnp.finfo(dtype).eps), report  # 5e-6
    assert float(jnp.max(jnp.abs(run(_positions(dtype))[1]))) > 1e-2
    order = np.array([3, 2, 1, 0])  # keeps the species
    moved = jax.jit(lambda p: _energy(model, p))(_positions(dtype)[order])
    np.testing.assert_allclose(moved[0], run(_positions(dtype))[0], rtol=0, atol=42 * float(jnp.finfo(dtype).eps))


def test_mixing_commutes_with_turns_about_the_edge_and_with_reflections_if_asked():
    """A turn about y acts on aligned rows by D; the two halves of each |m| mix as complex numbers do."""
    rows = turns.rows(2, 1)
    x = jax.random.normal(jax.random.key(0), (5, len(rows), 3), jnp.float64)
    turn = np.array(wigner.d_all(so3.exp(jnp.array([0.0, 0.7, 0.0])), 2))[np.ix_(rows, rows)]
    mirror = np.array(wigner.d_all(jnp.diag(jnp.array([-1.0, 1.0, 1.0])), 2))[np.ix_(rows, rows)]
    for reflections in (False, True):
        layer = equiformer_v2._Mixing(2, 1, 3, 4, 2, reflections, nnx.Rngs(0))
        y, extra = layer(x)
        turned, same = layer(jnp.asarray(turn) @ x)
        np.testing.assert_allclose(turned, jnp.asarray(turn) @ y, rtol=0, atol=1e-13)
        np.testing.assert_allclose(same, extra, rtol=0, atol=1e-13)
        gap = jnp.max(jnp.abs(layer(jnp.asarray(mirror) @ x)[0] - jnp.asarray(mirror) @ y))
        assert (float(gap) < 1e-13) == reflections


@pytest.mark.slow
def test_grids_leave_a_small_error_that_gates_do_not():
    for grid_degree, bound in ((4, 1e-3), (9, 1e-5)):
        model = _model(grid_degree, reflections=True)
        run = jax.jit(jax.value_and_grad(lambda positions, model=model: _energy(model, positions)[0]))
        words = {"inputs": "vectors", "outputs": ("scalars", "vectors")}
        report = equivariance_error(run, _positions(jnp.float64), samples=8, **words)
        assert 1e-12 < report.error < bound, report


@pytest.mark.slow
def test_forces_are_the_derivative_of_the_energy_and_finite_everywhere():
    model = _model()
    energy = jax.jit(lambda positions: _energy(model, positions)[0])
    place = (
        _positions(jnp.float64).at[1].set(_positions(jnp.float64)[0] + jnp.array([0.0, 1.1, 0.0]))
    )  # an edge along y
    direction = jax.random.normal(jax.random.key(4), place.shape, jnp.float64)
    step = 1e-5
    slope = (energy(place + step * direction) - energy(place - step * direction)) / (2 * step)
    force = jax.jit(jax.grad(energy))
    np.testing.assert_allclose(jnp.sum(force(place) * direction), slope, rtol=1e-6)
    second = jax.jit(jax.grad(lambda p: jnp.sum(force(p) ** 2)))
    for meeting in (place, place.at[1].set(place[0])):
        assert bool(jnp.isfinite(force(meeting)).all() & jnp.isfinite(second(meeting)).all())


def test_has_the_stated_number_of_parameters():
    parameters = nnx.state(nnx.eval_shape(lambda: equiformer_v2.EquiformerV2(90, rngs=nnx.Rngs(0))), nnx.Param)
    count = sum(leaf.size for leaf in jax.tree.leaves(parameters))
    assert f"{count:_}".replace("_", " ") in str(equiformer_v2.EquiformerV2.__doc__)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"layers": 0}, "layers"), ({"max_order": 3}, "max_order"), ({"grid_degree": 1}, "grid_degree")],
)
def test_a_model_that_cannot_be_is_refused(change, message, own_checks):
    with pytest.raises(ValueError, match=f"{message}: expected"):
        _model(**change)
