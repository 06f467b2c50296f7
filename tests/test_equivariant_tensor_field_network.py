"""Tensor field network: the laws of E(3) and of permutations, its stated size, hard graphs, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from equivariant import features, graph, tensor_field_network
from equivariant.features import Layout
from lie import so3

N = 6


def _model(out=None):
    out = out or Layout(1, 2, 2)
    return tensor_field_network.TensorFieldNetwork(Layout(1, 2), out, layers=2, channels=3, rngs=nnx.Rngs(0))


def _inputs(dtype):
    keys = jax.random.split(jax.random.key(1), 2)
    x, positions = jax.random.normal(keys[0], (N, 1, 4, 2), dtype), jax.random.normal(keys[1], (N, 3), dtype)
    return x, graph.radius_graph(positions, 2.0, max_edges=N * N), positions


@pytest.fixture(scope="module")
def network():
    return jax.jit(_model())


@pytest.mark.parametrize("sign", [1, -1])
def test_commutes_with_rotations_reflections_translations_and_permutations(network, dtype, sign):
    x, edges, positions = _inputs(dtype)
    assert 0 < int(edges.edge_mask.sum()) < N * (N - 1)
    y = network(x, edges, positions)
    assert y.shape == (N, 2, 4, 2)
    assert y.dtype == dtype
    assert float(jnp.abs(y[:, 1]).max()) > 1e-3  # pseudotensors from cross products
    tolerance = 128 * float(jnp.finfo(dtype).eps) * float(jnp.abs(y).max())
    R = sign * so3.sample((), jnp.float64, key=jax.random.key(2))
    rotate = lambda x: features.rotate(x.astype(jnp.float64), R).astype(dtype)
    moved = (jnp.sum(R * positions[:, None].astype(jnp.float64), axis=-1) + 1).astype(dtype)
    np.testing.assert_allclose(network(rotate(x), edges, moved), rotate(y), rtol=0, atol=tolerance)
    order = np.array([3, 5, 0, 4, 1, 2])
    again = network(x[order], graph.radius_graph(positions[order], 2.0, max_edges=N * N), positions[order])
    np.testing.assert_allclose(again, y[order], rtol=0, atol=tolerance)


def test_coincident_and_lonely_nodes_have_finite_second_derivatives(network):
    x, _, positions = _inputs(jnp.float32)
    positions = positions.at[1].set(positions[0]).at[2].set(100.0)
    edges = graph.from_edges([0, 1, 3], [1, 0, 0], N, max_edges=N * N)
    f = lambda positions: jnp.sum(network(x, edges, positions) ** 2)
    slope = lambda p: jnp.sum(jax.grad(f)(p) * jnp.arange(3 * N, dtype=p.dtype).reshape(N, 3))
    value, gradient = jax.jit(jax.value_and_grad(slope))(positions)
    assert float(jnp.abs(value)) > 0
    assert bool(jnp.isfinite(gradient).all())


def test_defaults_have_the_stated_size():
    make = lambda: tensor_field_network.TensorFieldNetwork(rngs=nnx.Rngs(0))
    assert sum(a.size for a in jax.tree.leaves(nnx.state(nnx.eval_shape(make), nnx.Param))) == 972


def test_shifted_softplus_is_its_formula(dtype):
    x = jnp.asarray(np.linspace(-30, 30, 601), dtype)
    exact = np.logaddexp(np.asarray(x, np.float64), 0) - np.log(2)
    ours = np.asarray(tensor_field_network.shifted_softplus(x), np.float64)
    assert (np.abs(ours - exact) <= 2 * float(jnp.finfo(dtype).eps) * np.maximum(1, np.abs(x))).all()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x, p: (x[..., :1], p), ValueError, "x: expected features of shape"),
        (lambda x, p: (x[:3], p), ValueError, "x: expected one row for each of the graph's 6 nodes"),
        (lambda x, p: (x, p[:3]), ValueError, r"positions: expected shape \(6, 3\)"),
        (lambda x, p: (x, p[:, :2]), ValueError, "positions: expected shape"),
        (lambda x, p: (x, p.astype(jnp.bfloat16)), TypeError, "expected one dtype"),
        (lambda x, p: (x, p.at[0].set(jnp.nan)), ValueError, "positions: expected only finite values"),
    ],
)
def test_bad_input_is_named(change, error, message, own_checks):
    x, edges, positions = _inputs(jnp.float32)
    x, positions = change(x, positions)
    with pytest.raises(error, match=message):
        _model()(x, edges, positions)


def test_more_than_the_network_holds_is_refused():
    with pytest.raises(ValueError, match="layout_out: expected at most degree 1 and 2 parities"):
        _model(Layout(2, 1))
