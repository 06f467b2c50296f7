"""Convolution: both semantics against the product written out, the law of O(3), derivatives at the poles of frames."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from equivariant import convolution, features, paths
from equivariant import graph as graphs
from lie import harmonics, so3

NODES, EDGES, CHANNELS = 6, 20, 3
PRODUCTS = [(2, 2, 2, 1, 1), (0, 2, 2, 1, 2), (2, 1, 1, 2, 2)]


def _case(product, dtype=jnp.float64, edges=EDGES):
    """One isolated node, one edge that does not count; edges along ±y, the axis of the frames, and of no length."""
    rng = np.random.default_rng(0)
    senders, receivers = rng.integers(0, NODES - 1, (2, edges))
    graph = graphs.from_edges(senders, receivers, NODES, max_edges=edges + 1)
    x = rng.normal(size=(NODES, product.parities_in, (product.degree_in + 1) ** 2, CHANNELS))
    vectors = rng.normal(size=(edges + 1, 3))
    vectors[:4] = [[0, 1.5, 0], [0, -0.5, 0], [0, 0, 0], [1e-6, -1, 0]]
    weights = rng.normal(size=(edges + 1, len(paths.of(product)), CHANNELS))
    return graph, *(jnp.asarray(a, dtype) for a in (x, vectors, weights))


def _written_out(product, x, graph, vectors, weights):
    """By path: Σ over edges of w · √(2·l3 + 1) C x Y, (nodes, orders, channels)."""
    Y, found = harmonics.evaluate(vectors, product.degree_filter), []
    for i, path in enumerate(paths.of(product)):
        (l1, p1), (l2, _), _ = path
        part = x[graph.senders, p1, l1 * l1 : (l1 + 1) ** 2]
        C = paths.coupling(path).astype(x.dtype)
        message = jnp.einsum("abc,eaf,eb->ecf", C, part, Y[:, l2 * l2 : (l2 + 1) ** 2], precision="highest")
        found.append(graphs.sum_edges(graph, message * weights[:, i, None]))
    return found


def _written_out_sum(product, x, graph, vectors, weights):
    total = jnp.zeros((NODES, product.parities_out, (product.degree_out + 1) ** 2, CHANNELS), x.dtype)
    for path, part in zip(paths.of(product), _written_out(product, x, graph, vectors, weights), strict=True):
        l3, p3 = path.out
        total = total.at[:, p3, l3 * l3 : (l3 + 1) ** 2].add(part)
    return total


def _kept(product, x, graph, vectors, weights, **options):
    by_target = convolution.kept(product, x, graph, vectors, weights, **options)
    taken: dict = {}
    found = []
    for path in paths.of(product):
        l3, p3 = path.out
        found.append(by_target[p3][l3][:, :, taken.get(path.out, 0)])
        taken[path.out] = taken.get(path.out, 0) + 1
    return found


def _close(found, expected, tolerance):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1.0, float(jnp.max(jnp.abs(b), initial=0))))


@pytest.mark.parametrize("product", [paths.product(*p) for p in PRODUCTS[:2]] + [
    pytest.param(paths.product(*p), marks=pytest.mark.slow) for p in PRODUCTS[2:]
])  # fmt: skip
@pytest.mark.parametrize(
    ("ours", "theirs"), [(convolution.summed, _written_out_sum), (_kept, _written_out)], ids=["summed", "kept"]
)
def test_equals_the_product_written_out_in_value_and_two_derivatives(product, ours, theirs):
    """In float64, with respect to features, vectors and weights, in blocks that do not divide the edges."""
    graph, *arrays = _case(product)

    def slope(f, options):
        def loss(x, vectors, weights):
            y = jax.tree.leaves(f(product, x, graph, vectors, weights, **options))
            return sum(jnp.sum(jnp.sin(a + i)) for i, a in enumerate(y)), y

        return jax.grad(loss, (0, 1, 2), has_aux=True)

    def everything(f, options):
        def scalar(*arrays):
            first, y = slope(f, options)(*arrays)
            return sum(jnp.sum(jnp.cos(a)) for a in first), (first, y)

        second, (first, y) = jax.grad(scalar, (0, 1, 2), has_aux=True)(*arrays)
        return y, first, second

    found, expected = jax.jit(lambda: (everything(ours, {"block_edges": 8}), everything(theirs, {})))()
    assert all(bool(jnp.isfinite(a).all()) for a in jax.tree.leaves(found))
    for a, b, tolerance in zip(found, expected, (1e-14, 1e-13, 1e-12), strict=True):
        _close(a, b, tolerance)


@pytest.mark.parametrize("semantics", ["summed", "kept"])
@pytest.mark.parametrize(
    "max_degree", [2, pytest.param(4, marks=pytest.mark.slow), pytest.param(8, marks=pytest.mark.slow)]
)
def test_commutes_with_rotations_and_reflections(max_degree, semantics):
    """max |f(Dx) − D f(x)| / max |f(x)| over 32 rotations and reflections, turned in float64, the layer in float32."""
    product = paths.product(
        max_degree, max_degree, max_degree, 2 if max_degree == 2 else 1, 2 if max_degree == 2 else 1
    )
    graph, *arrays = _case(product)
    R = so3.sample((32,), jnp.float64, key=jax.random.key(2)) * jnp.where(jnp.arange(32) % 2, -1.0, 1.0)[:, None, None]

    @jax.jit
    def apply(x, vectors):
        x, vectors, weights = (a.astype(jnp.float32) for a in (x, vectors, arrays[2]))
        if semantics == "summed":
            return convolution.summed(product, x, graph, vectors, weights).astype(jnp.float64)
        parts = convolution.kept(product, x, graph, vectors, weights)
        summed = [jnp.concatenate([jnp.sum(part, axis=2) for part in row], axis=1) for row in parts]
        return jnp.stack(summed, axis=1).astype(jnp.float64)

    expected = apply(*arrays[:2])
    turned = jax.lax.map(lambda Q: apply(features.rotate(arrays[0], Q), arrays[1] @ Q.T), R)
    error = jnp.max(jnp.abs(turned - features.rotate(expected, R[:, None])), axis=(1, 2, 3, 4))
    assert float(jnp.max(error) / jnp.max(jnp.abs(expected))) <= (5e-7 if max_degree <= 4 else 1e-6)


def test_float32_derivatives_are_right_at_the_axis_of_the_frames():
    """First and second derivative with respect to edges along ±y, where angles have none, to 1e-5 of float64's."""
    product = paths.product(2, 2, 2)

    def derivatives(dtype):
        graph, x, vectors, weights = _case(product, dtype)

        def energy(vectors):
            return jnp.sum(jnp.sin(convolution.summed(product, x, graph, vectors, weights)))

        first = jax.grad(energy)
        second = jax.grad(lambda v: jnp.sum(first(v) ** 2))
        return first(vectors)[:2], second(vectors)[:2]

    for a, b in zip(jax.jit(derivatives, static_argnums=0)(jnp.float32), derivatives(jnp.float64), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * float(jnp.max(jnp.abs(b))))


@pytest.mark.parametrize("semantics", ["summed", "kept"])
def test_layer_keeps_variance_dtype_and_permutations(semantics):
    channels, degree = 16, 2
    rng = np.random.default_rng(1)
    layer = convolution.Convolution(degree, degree, channels, embedding=4, semantics=semantics, rngs=nnx.Rngs(0))
    x = jnp.asarray(rng.normal(size=(40, 1, 9, channels)), jnp.float32)
    graph = graphs.from_edges(np.roll(np.arange(40), 1), np.arange(40), 40)
    vectors = jnp.asarray(rng.normal(size=(40, 3)), jnp.float32)
    embedding = jnp.asarray(rng.normal(size=(40, 4)), jnp.float32)
    y = layer(x, graph, vectors, embedding)
    assert y.shape == x.shape
    assert y.dtype == jnp.float32
    assert 0.3 < float(jnp.mean(y * y)) < 3
    order = rng.permutation(40)
    back = np.argsort(order)
    permuted = graphs.from_edges(back[np.asarray(graph.senders)], back[np.asarray(graph.receivers)], 40)
    places = np.asarray(permuted.receivers)  # the record sorts edges by receiver; here each node has one
    z = layer(x[order], permuted, vectors[order[places]], embedding[order[places]])
    np.testing.assert_allclose(z, y[order], rtol=0, atol=2e-5)


def test_no_edges_no_nodes_and_single_atoms():
    layer = convolution.Convolution(1, 1, 2, embedding=3, extra_scalars=2, rngs=nnx.Rngs(0))
    for nodes in (0, 1, 3):
        graph = graphs.from_edges([], [], nodes)
        y, extra = layer(jnp.ones((nodes, 1, 4, 2)), graph, jnp.zeros((0, 3)), jnp.zeros((0, 3)))
        assert y.shape == (nodes, 1, 4, 2)
        assert extra.shape == (nodes, 2)
        assert not bool(jnp.any(y != 0))


def test_bad_input_is_named():
    product = paths.product(1, 1, 1)
    graph, x, vectors, weights = _case(product, jnp.float32)
    with pytest.raises(ValueError, match=r"x: expected features of shape \(\.\.\., 1, 4"):
        convolution.summed(product, x[:, :, :3], graph, vectors, weights)
    with pytest.raises(ValueError, match=r"x: expected one row for each of the graph's 6 nodes"):
        convolution.summed(product, x[:-1], graph, vectors, weights)
    with pytest.raises(ValueError, match=r"vectors: expected one row for each of the graph's 21 edges, got \(20, 3\)"):
        convolution.kept(product, x, graph, vectors[:-1], weights)
    with pytest.raises(ValueError, match=r"weights: expected"):
        convolution.summed(product, x, graph, vectors, weights[:, :-1])
    with pytest.raises(TypeError, match="expected one dtype"):
        convolution.summed(product, x, graph, vectors.astype(jnp.float64), weights)
    with pytest.raises(ValueError, match="vectors"):
        convolution.summed(product, x, graph, vectors.at[0, 0].set(jnp.nan), weights)
    with pytest.raises(ValueError, match="semantics: expected 'summed' or 'kept', got 'both'"):
        convolution.Convolution(1, 1, 2, embedding=3, semantics="both", rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="parities_in: expected 1"):
        convolution.Convolution(1, 1, 2, embedding=3, parities_in=3, rngs=nnx.Rngs(0))
    layer = convolution.Convolution(1, 1, CHANNELS, embedding=3, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="embedding"):
        layer(x, graph, vectors, jnp.ones((21, 4), jnp.float32))
