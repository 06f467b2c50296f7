"""Attention over neighbours: the softmax written out, isolated nodes, equivariance, smooth at the cutoff."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from equivariant import attention, convolution, graph, radial
from equivariant.equivariance import equivariance_error
from lie import smooth

NODES, C = 6, 4
# Node 5 has no edge; edges come unsorted, some are padding.
SENDERS, RECEIVERS = [1, 2, 0, 3, 0, 1, 4, 2, 3], [0, 0, 1, 1, 2, 3, 3, 4, 4]
GRAPH = graph.from_edges(SENDERS, RECEIVERS, NODES, max_edges=12)
POSITIONS = np.random.default_rng(0).normal(size=(NODES, 3))


def _scores(dtype, heads=2):
    return jax.random.normal(jax.random.key(0), (GRAPH.edges, heads), dtype)


def _layer(parities=1, out=1):
    kind = {"parities_in": parities, "parities_out": parities, "hidden": (5,)}
    return attention.Attention(1, out, C, embedding=3, heads=2, **kind, rngs=nnx.Rngs(0))


def _call(layer, x, positions):
    vectors = graph.vectors(GRAPH, positions)
    length = smooth.norm(vectors)
    envelope = radial.polynomial_cutoff(length, 3.0)
    return layer(x, GRAPH, vectors, radial.bessel(length, 3, 3.0) * envelope[:, None], envelope)


def _features(dtype, parities=1):
    return jax.random.normal(jax.random.key(1), (NODES, parities, 4, C), dtype)


def test_softmax_is_that_of_each_nodes_edges(dtype):
    scores = _scores(dtype)
    weights = np.asarray(jax.jit(partial(attention.softmax, GRAPH))(scores))
    assert weights.dtype == dtype
    for node in range(NODES):
        mine = np.flatnonzero(np.asarray(GRAPH.edge_mask) & (np.asarray(GRAPH.receivers) == node))
        if len(mine):
            exact = np.exp(np.asarray(scores, np.float64)[mine])
            bound = 8 * float(jnp.finfo(dtype).eps)
            np.testing.assert_allclose(weights[mine], exact / exact.sum(axis=0), rtol=bound, atol=0)
    np.testing.assert_array_equal(weights[~np.asarray(GRAPH.edge_mask)], 0)


def test_softmax_neither_overflows_nor_mixes_nodes_and_shifts_cancel(dtype):
    scores = _scores(dtype)
    shifted = scores + jnp.where(GRAPH.receivers == 3, 1e4, 0).astype(dtype)[:, None]
    function = jax.jit(
        lambda s: (attention.softmax(GRAPH, s), jax.grad(lambda s: jnp.sum(attention.softmax(GRAPH, s) ** 2))(s))
    )
    (weights, gradient), (moved, slope) = function(scores), function(shifted)
    bound = {"rtol": 0, "atol": 1e4 * float(jnp.finfo(dtype).eps)}
    np.testing.assert_allclose(moved, weights, **bound)
    np.testing.assert_allclose(slope, gradient, **bound)
    elsewhere = np.asarray(GRAPH.receivers) != 3
    np.testing.assert_array_equal(moved[elsewhere], weights[elsewhere])


def test_attend_shares_channels_among_heads_and_leaves_isolated_nodes_at_zero():
    scores, values = _scores(jnp.float64), jax.random.normal(jax.random.key(2), (GRAPH.edges, 1, 4, C), jnp.float64)
    y, weights = jax.jit(lambda s, v: (attention.attend(GRAPH, s, v), attention.softmax(GRAPH, s)))(scores, values)
    expected = np.zeros((NODES, 1, 4, C))
    for e in np.flatnonzero(np.asarray(GRAPH.edge_mask)):
        expected[GRAPH.receivers[e]] += np.repeat(np.asarray(weights[e]), C // 2) * np.asarray(values[e])
    np.testing.assert_allclose(y, expected, rtol=1e-13, atol=1e-14)
    np.testing.assert_array_equal(y[5], 0)


@pytest.mark.parametrize("parities", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_commutes_with_rotations_and_reflections(parities, dtype):
    layer, x = _layer(parities), _features(dtype, parities)
    run = jax.jit(lambda x, positions: _call(layer, x, positions))
    example = x, jnp.asarray(POSITIONS, dtype)
    report = equivariance_error(run, example, "E3", inputs=("features", "positions"), outputs="features")
    assert report.error < 32 * float(jnp.finfo(dtype).eps), report


def test_the_values_weighted_inside_the_convolution_are_those_weighted_outside():
    """Σ_j α_ij v_ij by `attend` of explicit values, each a convolution onto a node of its own."""
    layer, x, positions = _layer(), _features(jnp.float64), jnp.asarray(POSITIONS)

    def explicit(x, positions):
        vectors = graph.vectors(GRAPH, positions)
        length = smooth.norm(vectors)
        envelope = radial.polynomial_cutoff(length, 3.0)
        embedding = radial.bessel(length, 3, 3.0) * envelope[:, None]
        scores = layer.scores(x, GRAPH, vectors, embedding)
        values = jnp.stack([_single(layer, x, vectors, embedding, e) for e in range(GRAPH.edges)])
        return layer.out(attention.attend(GRAPH, scores, values, envelope))

    ours, expected = jax.jit(lambda x, p: (_call(layer, x, p), explicit(x, p)))(x, positions)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-13 * float(jnp.max(jnp.abs(expected))))


def _single(layer, x, vectors, embedding, e):
    """The value of one edge, on a graph of that edge alone."""
    alone = graph.from_edges([0], [0], 1)
    by_path = layer._by_path(layer.radial_values, layer.values, embedding[e : e + 1])
    sender = layer.mix_values(x)[GRAPH.senders][e : e + 1]
    return convolution.summed(layer.values, sender, alone, vectors[e : e + 1], by_path)[0]


def test_a_neighbour_leaves_smoothly_at_the_cutoff():
    layer, x = _layer(), _features(jnp.float64)
    positions = jnp.asarray(POSITIONS).at[1].set(POSITIONS[0])

    def along(distance):
        return _call(layer, x, positions.at[1, 0].add(distance))[0]

    before, after = jax.jit(jax.vmap(along))(jnp.asarray([3 - 1e-6, 3 + 1e-6]))
    np.testing.assert_allclose(before, after, rtol=0, atol=1e-5)
    slope = jax.jit(jax.vmap(lambda d: jax.vjp(along, d)[1](jnp.ones_like(before))[0]))
    np.testing.assert_allclose(*slope(jnp.asarray([3 - 1e-6, 3 + 1e-6])), rtol=0, atol=1e-3)


@pytest.mark.slow
def test_finite_derivatives_at_coincident_nodes_and_zero_features():
    layer = _layer()
    energy = lambda x, positions: jnp.sum(jnp.sin(_call(layer, x, positions)))

    @jax.jit
    def orders(x, positions):
        force = lambda positions: jax.grad(energy, argnums=1)(x, positions)
        return jax.grad(energy, (0, 1))(x, positions), jax.grad(lambda p: jnp.sum(force(p) ** 2))(positions)

    for x in (_features(jnp.float32), jnp.zeros((NODES, 1, 4, C), jnp.float32)):
        found = orders(x, jnp.zeros((NODES, 3), jnp.float32))
        assert all(bool(jnp.isfinite(part).all()) for part in jax.tree.leaves(found))


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (lambda: attention.softmax(GRAPH, jnp.zeros((3, 2))), ValueError, "scores: expected shape"),
        (lambda: attention.softmax(GRAPH, jnp.zeros((12, 2), jnp.int32)), TypeError, "scores: expected a floating"),
        (lambda: attention.softmax(GRAPH, jnp.zeros((12, 2)), jnp.zeros(3)), ValueError, "envelope: expected shape"),
        (
            lambda: attention.attend(GRAPH, jnp.zeros((12, 3)), jnp.zeros((12, 4))),
            ValueError,
            "values: expected channels",
        ),
        (lambda: attention.Attention(1, 1, 6, embedding=3, heads=4, rngs=nnx.Rngs(0)), ValueError, "heads: expected"),
        (
            lambda: _call(_layer(), jnp.zeros((NODES, 1, 9, C)), jnp.asarray(POSITIONS)),
            ValueError,
            "x: expected features",
        ),
    ],
)
def test_bad_input_is_named(function, error, message, own_checks):
    with pytest.raises(error, match=message):
        function()


def test_a_graph_without_edges_gives_the_bias_alone():
    empty = graph.from_edges(np.zeros(0, int), np.zeros(0, int), 3)
    x, none = jnp.ones((3, 1, 4, C), jnp.float32), jnp.zeros((0, 3), jnp.float32)
    assert float(jnp.max(jnp.abs(_layer()(x, empty, none, none, jnp.zeros(0, jnp.float32))))) == 0
