"""SE(3)-Transformer: commutes with E(3) and permutations, finite where atoms meet, its number of parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from equivariant import graph, se3_transformer
from equivariant.equivariance import equivariance_error

NODES = 5
PAIRS = [(i, j) for j in range(NODES) for i in range(NODES) if i != j]
GRAPH = graph.from_edges([i for i, _ in PAIRS], [j for _, j in PAIRS], NODES, max_edges=len(PAIRS) + 3)


def _model(parities=1, layers=2):
    return se3_transformer.SE3Transformer(
        3, edge_features=1, channels=4, max_degree=1, parities=parities, layers=layers, heads=2, max_degree_out=1,
        channels_out=2, radial_hidden=(4,), rngs=nnx.Rngs(0),
    )  # fmt: skip


def _inputs(dtype):
    keys = jax.random.split(jax.random.key(0), 3)
    x, positions = (jax.random.normal(key, (NODES, 3), dtype) for key in keys[:2])
    return x, positions, jax.random.normal(keys[2], (GRAPH.edges, 1), dtype)


def _call(model, x, positions, edges):
    return model(x, GRAPH, graph.vectors(GRAPH, positions), edges)


@pytest.mark.parametrize("parities", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_commutes_with_rotations_reflections_translations_and_permutations(parities, dtype):
    model, example = _model(parities), _inputs(dtype)
    run = jax.jit(lambda x, positions, edges: _call(model, x, positions, edges))
    assert run(*example).dtype == dtype
    report = equivariance_error(run, example, "E3", inputs=("scalars", "positions", "scalars"), outputs="features")
    assert report.error < 96 * float(jnp.finfo(dtype).eps), (
        report
    )  # 54: two layer norms, each of four channels, amplify
    order = np.array([3, 0, 4, 1, 2])
    x, positions, _ = example
    plain = run(x, positions, jnp.zeros((GRAPH.edges, 1), dtype))
    moved = run(x[order], positions[order], jnp.zeros((GRAPH.edges, 1), dtype))
    scale = float(jnp.max(jnp.abs(plain)))
    np.testing.assert_allclose(moved, plain[order], rtol=0, atol=96 * float(jnp.finfo(dtype).eps) * scale)


@pytest.mark.slow
def test_forces_and_their_derivatives_are_finite_where_atoms_meet():
    model, (x, positions, edges) = _model(), _inputs(jnp.float32)
    energy = lambda positions: jnp.sum(_call(model, x, positions, edges) ** 2)
    both = jax.jit(lambda p: (jax.grad(energy)(p), jax.grad(lambda p: jnp.sum(jax.grad(energy)(p) ** 2))(p)))
    for place in (positions, jnp.zeros_like(positions), positions.at[1].set(positions[0])):
        assert all(bool(jnp.isfinite(part).all()) for part in both(place))


def test_has_the_stated_number_of_parameters():
    make = lambda: se3_transformer.SE3Transformer(11, edge_features=4, rngs=nnx.Rngs(0))
    parameters = nnx.state(nnx.eval_shape(make), nnx.Param)
    assert f"{sum(leaf.size for leaf in jax.tree.leaves(parameters)):_}".replace("_", " ") in str(
        se3_transformer.SE3Transformer.__doc__
    )


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": jnp.zeros((NODES, 2), jnp.float32)}, ValueError, "x: expected shape"),
        ({"x": jnp.zeros((NODES + 1, 3), jnp.float32)}, ValueError, "x: expected shape"),
        ({"vectors": jnp.zeros((2, 3), jnp.float32)}, ValueError, "vectors: expected shape"),
        ({"vectors": jnp.zeros((GRAPH.edges, 3))}, TypeError, "one dtype"),
        ({"edges": None}, ValueError, "edges: expected shape"),
    ],
)
def test_bad_input_is_named(change, error, message, own_checks):
    x, positions, edges = _inputs(jnp.float32)
    good = {"x": x, "graph": GRAPH, "vectors": graph.vectors(GRAPH, positions), "edges": edges}
    with pytest.raises(error, match=message):
        _model(layers=1)(**(good | change))


@pytest.mark.parametrize(("change", "message"), [({"layers": 0}, "layers"), ({"division": 3}, "division")])
def test_a_model_that_cannot_be_is_refused(change, message, own_checks):
    with pytest.raises(ValueError, match=f"{message}: expected"):
        se3_transformer.SE3Transformer(3, **change, rngs=nnx.Rngs(0))
