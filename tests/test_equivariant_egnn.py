"""EGNN and the radial field: laws of E(n) and of permutations, the published layer written out, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from equivariant import egnn, radial_field
from lie import so3

N, HIDDEN = 5, 16


def _inputs(dtype, batch=(3, 2)):
    keys = jax.random.split(jax.random.key(1), 4)
    shapes = ((*batch, N, 1), (*batch, N, 3), (*batch, N, 3), (*batch, N, N, 2))
    return tuple(jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True))


def _network(kind):
    if kind == "egnn":
        model = egnn.EGNN(hidden=HIDDEN, layers=3, rngs=nnx.Rngs(0))
        for layer in model.layers:  # at their published scale the pushes would hide in the rounding of x
            push = vars(layer)["coordinate_out"]
            push[...] = push[...] * 300
        return lambda h, x, v, edges: model(h, x, v, edges).position
    model = radial_field.RadialField(hidden=HIDDEN, layers=3, rngs=nnx.Rngs(0))
    model.pair_out[...] = model.pair_out[...] * 300
    return lambda h, x, v, edges: model(x, v, edges)


@pytest.fixture(params=["egnn", "radial_field"])
def network(request):
    return jax.jit(_network(request.param))


def _close(ours, theirs, dtype, steps=64.0):
    scale = float(jnp.max(jnp.abs(theirs)))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=steps * float(jnp.finfo(dtype).eps) * scale)


@pytest.mark.parametrize("sign", [1, -1])
def test_commutes_with_rotations_reflections_and_translations(network, dtype, sign):
    h, x, v, edges = _inputs(dtype)
    key_R, key_t = jax.random.split(jax.random.key(2))
    R, t = sign * so3.sample((), dtype, key=key_R), jax.random.normal(key_t, (3,), dtype)
    turn = lambda a: jnp.sum(R * a[..., None, :], axis=-1)
    _close(network(h, turn(x) + t, turn(v), edges), turn(network(h, x, v, edges)) + t, dtype)


def test_commutes_with_permutations(network, dtype):
    h, x, v, edges = _inputs(dtype)
    order = np.array([3, 0, 4, 1, 2])
    permuted = network(h[..., order, :], x[..., order, :], v[..., order, :], edges[..., order, :, :][..., order, :])
    _close(permuted, network(h, x, v, edges)[..., order, :], dtype)


def test_keeps_dtype_and_finite_second_derivatives_at_coincident_particles(network, dtype):
    h, x, v, edges = _inputs(dtype, batch=())
    x, v = jnp.zeros_like(x), jnp.zeros_like(v)
    assert network(h, x, v, edges).dtype == dtype
    hessian = jax.hessian(lambda x: jnp.sum(network(h, x, v, edges) ** 2))(x)
    assert bool(jnp.isfinite(hessian).all())


def test_egnn_is_the_published_layer_written_out():
    """Eqs. 3-7 with velocities, edge by edge in NumPy, from the same weights."""
    h, x, v, edges = (np.asarray(a) for a in _inputs(jnp.float64, batch=()))
    model = egnn.EGNN(hidden=HIDDEN, layers=1, rngs=nnx.Rngs(0))
    w = jax.tree.map(lambda a: np.asarray(a, np.float64), model.layers[0].weights(jnp.float64))
    silu = lambda a: a / (1 + np.exp(-a))
    features = h @ np.asarray(model.embedding[...], np.float64) + np.asarray(model.embedding_bias[...], np.float64)
    first = np.concatenate([w.receiver, w.sender, w.pair])
    position, new_features = x.copy(), features.copy()
    for i in range(N):
        total, push = 0.0, 0.0
        for j in set(range(N)) - {i}:
            pair = np.concatenate([features[i], features[j], [np.sum((x[i] - x[j]) ** 2)], edges[i, j]])
            message = silu(silu(pair @ first + w.edge_bias) @ w.edge + w.edge_bias_2)
            push = push + (x[i] - x[j]) * (silu(message @ w.coordinate + w.coordinate_bias) @ w.coordinate_out)
            total = total + message
        drift = silu(features[i] @ w.velocity + w.velocity_bias) @ w.velocity_out + w.velocity_bias_2
        position[i] += push / (N - 1) + drift * v[i]
        node = np.concatenate([features[i], total]) @ np.concatenate([w.node, w.message]) + w.node_bias
        new_features[i] += silu(node) @ w.node_out + w.node_bias_2
    output = model(*map(jnp.asarray, (h, x, v, edges)))
    np.testing.assert_allclose(output.position, position, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(output.features, new_features, rtol=1e-12, atol=1e-12)


def test_has_as_many_parameters_as_the_published_model():
    parameters = nnx.state(nnx.eval_shape(lambda: egnn.EGNN(rngs=nnx.Rngs(0))), nnx.Param)
    assert sum(leaf.size for leaf in jax.tree.leaves(parameters)) == 134_020


def test_absent_particles_change_nothing(dtype):
    h, x, v, edges = _inputs(dtype)
    model = egnn.EGNN(hidden=HIDDEN, layers=2, rngs=nnx.Rngs(0))
    mask = jnp.arange(N) < 3
    padded = model(h, x, v, edges, jnp.broadcast_to(mask, x.shape[:-1])).position
    alone = model(h[..., :3, :], x[..., :3, :], v[..., :3, :], edges[..., :3, :3, :]).position
    _close(padded[..., :3, :], alone, dtype)
    np.testing.assert_array_equal(padded[..., 3:, :], x[..., 3:, :])


@pytest.mark.parametrize("n", [0, 1])
def test_systems_of_no_or_one_particle(n):
    model = egnn.EGNN(hidden=HIDDEN, layers=2, rngs=nnx.Rngs(0))
    x = jnp.ones((2, n, 3), jnp.float32)
    output = model(x[..., :1], x, x, jnp.ones((2, n, n, 2), jnp.float32)).position
    assert output.shape == x.shape
    assert bool(jnp.isfinite(output).all())


def test_silu_is_x_times_the_logistic_function(dtype):
    x = jnp.asarray(np.concatenate([np.linspace(-30, 30, 601), [-1e4, 1e4, 0]]), dtype)
    exact = np.asarray(x, np.float64) * (0.5 + 0.5 * np.tanh(np.asarray(x, np.float64) / 2))
    in_bound = np.abs(np.asarray(egnn.silu(x), np.float64) - exact) <= 1.5 * float(jnp.finfo(dtype).eps) * np.maximum(
        1, np.abs(np.asarray(x, np.float64))
    )
    assert in_bound.all()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": jnp.zeros((2, N, 3), jnp.int32)}, TypeError, "x: expected a floating-point array"),
        ({"v": jnp.zeros((2, N, 2), jnp.float32)}, ValueError, r"v: expected shape \(2, 5, 3\), got \(2, 5, 2\)"),
        ({"h": jnp.zeros((2, N, 4), jnp.float32)}, ValueError, r"h: expected shape \(2, 5, 1\), got \(2, 5, 4\)"),
        ({"edges": None}, ValueError, "edges: expected shape"),
        ({"edges": jnp.zeros((2, N, N, 3), jnp.float32)}, ValueError, "edges: expected shape"),
        ({"mask": jnp.ones((2, N + 1), bool)}, ValueError, "mask: expected shape"),
        ({"v": jnp.zeros((2, N, 3), jnp.float64)}, TypeError, "expected one dtype"),
        ({"x": jnp.full((2, N, 3), jnp.nan, jnp.float32)}, ValueError, "x: expected only finite values"),
    ],
)
def test_bad_input_is_named(change, error, message, own_checks):
    good = dict(zip(("h", "x", "v", "edges"), _inputs(jnp.float32, batch=(2,)), strict=True))
    model = egnn.EGNN(hidden=HIDDEN, layers=1, rngs=nnx.Rngs(0))
    with pytest.raises(error, match=message):
        model(**(good | change))
