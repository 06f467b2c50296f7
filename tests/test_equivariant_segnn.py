"""SEGNN: the laws of E(3) and of permutations, the published layer written out with e3nn-jax, sizes, bad input."""

import importlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from equivariant import features, graph, segnn
from equivariant.features import Layout
from lie import so3

e3nn_jax: Any = importlib.import_module("e3nn_jax")  # its annotations are narrower than what it takes

N, HIDDEN = 5, 12


def _inputs(dtype, batch=(3,), degree=1, edges=(N, N - 1)):
    keys = jax.random.split(jax.random.key(1), 4)
    attributes = (1, (degree + 1) ** 2, 1)
    shapes = ((N, *batch, 1, 4, 2), (N, *batch, *attributes), (*edges, *batch, *attributes), (*edges, *batch, 2))
    return tuple(jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True))


def _model(degree=1):
    return segnn.SEGNN(max_degree=degree, attribute_degree=degree, hidden=HIDDEN, layers=2, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(("degree", "sign"), [(1, -1), pytest.param(2, 1, marks=pytest.mark.slow)])
def test_commutes_with_rotations_and_reflections(degree, sign, dtype):
    x, a, b, s = _inputs(dtype, degree=degree)
    R = sign * so3.sample((), jnp.float64, key=jax.random.key(2))
    rotate = lambda x: features.rotate(x.astype(jnp.float64), R).astype(dtype)
    model = jax.jit(_model(degree))
    y = model(x, a, b, s)
    assert y.shape == (N, 3, 1, 4, 1)
    assert y.dtype == dtype
    tolerance = 128 * float(jnp.finfo(dtype).eps) * float(jnp.max(jnp.abs(y)))
    np.testing.assert_allclose(model(rotate(x), rotate(a), rotate(b), s), rotate(y), rtol=0, atol=tolerance)


def test_all_pairs_are_a_graph_with_all_edges_in_any_order_of_the_nodes():
    x, a, b, s = _inputs(jnp.float32, batch=())
    senders = np.array([[j for j in range(N) if j != i] for i in range(N)])
    edges = graph.from_edges(senders.reshape(-1), np.repeat(np.arange(N), N - 1), N, max_edges=N * N)
    padded = lambda e: jnp.concatenate([e.reshape(-1, *e.shape[2:]), jnp.full((N, *e.shape[2:]), 7, e.dtype)])
    model = jax.jit(_model())
    y = model(x, a, b, s)
    np.testing.assert_allclose(model(x, a, padded(b), padded(s), edges), y, rtol=0, atol=2e-5)
    order = np.array([3, 0, 4, 1, 2])
    place = {(i, j): k for i in range(N) for k, j in enumerate(senders[i])}
    turned = [[(order[i], order[j]) for j in range(N) if j != i] for i in range(N)]
    pick = lambda e: jnp.stack([jnp.stack([e[pair[0], place[pair]] for pair in row]) for row in turned])
    np.testing.assert_allclose(model(x[order], a[order], pick(b), pick(s)), y[order], rtol=0, atol=2e-5)


def test_a_message_is_the_published_one_written_with_e3nn():
    """Concatenate, tensor product, mix, bias, gate: from the same weights, by e3nn-jax, in float64."""
    layer = _model().messages[0]
    C = layer.inside.channels
    _, _, b, s = _inputs(jnp.float64, batch=())
    h = jax.random.normal(jax.random.key(5), (N, 4, C), jnp.float64)
    ours = layer(h, s, b[..., 0, :, 0], segnn.all_pairs())
    with jax.numpy_dtype_promotion("standard"):
        to = lambda h: features.to_irreps(h[..., None, :, :], f"{C}x0e + {C}x1o")
        others = segnn.all_pairs().senders(h)
        attribute = features.to_irreps(b, "0e + 1o")
        here = to(jnp.broadcast_to(h[:, None], others.shape))
        parts = [here, to(others), e3nn_jax.IrrepsArray("2x0e", s)]
        total: Any = 0
        for part, matrices in zip(parts, (layer.receiver, layer.sender, layer.scalar), strict=True):
            product = e3nn_jax.tensor_product(part, attribute, filter_ir_out=["0e", "1o"])
            chunks, k = [], 0
            for chunk in product.chunks:
                paths = 2 if part is not parts[2] else 1
                pieces = jnp.split(chunk, paths, axis=-2)
                chunks.append(
                    sum(
                        jnp.einsum("...ui,uw->...wi", p, jnp.asarray(m[...]))
                        for p, m in zip(pieces, matrices[k:], strict=False)
                    )
                )
                k += paths
            total = total + e3nn_jax.from_chunks(f"{2 * C}x0e + {C}x1o", chunks, chunks[0].shape[:-2]).array
        scalars = total[..., : 2 * C] + jnp.asarray(layer.bias[...])
        total = e3nn_jax.IrrepsArray(f"{2 * C}x0e + {C}x1o", jnp.concatenate([scalars, total[..., 2 * C :]], axis=-1))
        expected = e3nn_jax.gate(total, even_act=jax.nn.silu, even_gate_act=jax.nn.sigmoid)
    np.testing.assert_allclose(
        features.to_irreps(ours[..., None, :, :], expected.irreps).array, expected.array, rtol=0, atol=1e-4
    )


def test_sizes_are_the_published_ones():
    assert segnn.balanced_channels(1, 1, 64) == 32
    assert segnn.balanced_channels(2, 2, 64) == 20
    parameters = nnx.state(nnx.eval_shape(lambda: segnn.SEGNN(rngs=nnx.Rngs(0))), nnx.Param)
    unequal = 2 * 32 + 2 * 32  # the second scalar that comes in, the scalar that comes out
    assert sum(a.size for a in jax.tree.leaves(parameters)) == 147_424 + unequal + 1  # and that scalar's bias


def test_derivatives_are_finite_to_second_order():
    x, a, b, s = _inputs(jnp.float32, batch=())
    model = _model()
    f = lambda b: jnp.sum(model(x, a, b, s) ** 2)
    gradient, along = jax.jit(lambda b: jax.jvp(jax.grad(f), (b,), (b,)))(jnp.zeros_like(b))
    assert bool(jnp.isfinite(gradient).all() and jnp.isfinite(along).all())


@pytest.mark.parametrize("n", [0, 1])
def test_systems_of_no_or_one_particle(n):
    x, a, b, s = _inputs(jnp.float32)
    y = _model()(x[:n], a[:n], b[:n, :0], s[:n, :0])
    assert y.shape == (n, 3, 1, 4, 1)
    assert bool(jnp.isfinite(y).all())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": jnp.zeros((N, 3, 1, 4, 3), jnp.float32)}, ValueError, r"x: expected features of shape \(..., 1, 4"),
        ({"scalars": jnp.zeros((N, N - 1, 3, 1), jnp.float32)}, ValueError, r"scalars: expected shape \(5, 4, 3, 2\)"),
        (
            {"edge_attributes": jnp.zeros((N, N, 3, 1, 4, 1), jnp.float32)},
            ValueError,
            "edge_attributes: expected shape",
        ),
        ({"node_attributes": jnp.zeros((N, 3, 1, 4, 1), jnp.bfloat16)}, TypeError, "expected one dtype"),
        ({"x": jnp.full((N, 3, 1, 4, 2), jnp.nan, jnp.float32)}, ValueError, "x: expected only finite values"),
        ({"graph": graph.from_edges([0], [1], N)}, ValueError, "x: expected one row for each of the graph's 5 nodes"),
    ],
)
def test_bad_input_is_named(change, error, message, own_checks):
    names = ("x", "node_attributes", "edge_attributes", "scalars")
    with pytest.raises(error, match=message):
        _model()(**(dict(zip(names, _inputs(jnp.float32), strict=True)) | change))


def test_a_model_of_pseudotensors_is_refused():
    with pytest.raises(ValueError, match="expected true tensors only"):
        segnn.SEGNN(Layout(1, 2, 2), rngs=nnx.Rngs(0))
