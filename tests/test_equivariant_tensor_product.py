"""Tensor products: the laws of O(3), e3nn-jax's products and weights, derivatives, bad input."""

import importlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from equivariant import features, paths, tensor_product
from equivariant.features import Layout
from equivariant.tensor_product import TensorProduct
from lie import so3

e3nn_jax: Any = importlib.import_module("e3nn_jax")  # its annotations are narrower than what it takes

CASES = {  # (kind, x, y, degree, channels, parities, keywords)
    "full": ("full", Layout(1, 3, 2), Layout(2, 2), 2, 4, 2, {}),
    "full without weights": ("full", Layout(1, 2), Layout(1, 2, 2), 2, None, 2, {"weights": "none"}),
    "channelwise, summed": ("channelwise", Layout(2, 3), Layout(2, 1), 2, None, 1, {}),
    "channelwise, kept": ("channelwise", Layout(1, 3, 2), Layout(1, 1), 2, None, 2, {"keep_paths": True}),
    "elementwise": ("elementwise", Layout(2, 3), Layout(1, 3, 2), 2, None, 2, {}),
}


def _layer(case, **more):
    kind, x, y, degree, channels, parities, keywords = CASES[case]
    return TensorProduct(kind, x, y, degree, channels, parities, **keywords | more, rngs=nnx.Rngs(0))


def _normal(layout, batch, dtype=jnp.float32, seed=0):
    return jax.random.normal(jax.random.key(seed), (*batch, *layout.shape), dtype)


@pytest.mark.parametrize("case", CASES)
def test_commutes_with_rotations_and_reflections(case, dtype):
    layer = _layer(case)
    x, y = _normal(layer.x, (2, 5), dtype), _normal(layer.y, (2, 5), dtype, 1)
    R = so3.sample((2, 5), jnp.float64, key=jax.random.key(1)) * jnp.array([1.0, -1.0])[:, None, None, None]
    rotate = lambda x: features.rotate(x.astype(jnp.float64), R).astype(dtype)
    product = jax.jit(layer)
    z = product(x, y)
    assert z.shape == (2, 5, *layer.layout.shape)
    assert z.dtype == dtype
    scale = float(jnp.max(jnp.abs(z)))
    assert scale > 1
    np.testing.assert_allclose(
        product(rotate(x), rotate(y)), rotate(z), rtol=0, atol=16 * float(jnp.finfo(dtype).eps) * scale
    )


@pytest.mark.parametrize(
    ("irreps_x", "irreps_y"), [("3x0e + 3x1o + 3x2e", "1x0e + 1x1o"), ("2x0e + 2x0o", "2x0e + 2x1o")]
)
def test_full_without_weights_is_the_product_of_e3nn(irreps_x, irreps_y):
    x, y = (e3nn_jax.normal(i, jax.random.key(k), (4,), dtype=jnp.float32) for k, i in enumerate((irreps_x, irreps_y)))
    theirs = e3nn_jax.tensor_product(x, y)
    out = features.padded(theirs.irreps)
    ours = tensor_product.full(None, features.from_irreps(x), features.from_irreps(y), out.max_degree, out.parities)
    ours = features.to_irreps(ours, theirs.irreps)
    np.testing.assert_allclose(ours.array, theirs.array, rtol=0, atol=1e-6 * float(jnp.max(jnp.abs(theirs.array))))


@pytest.mark.parametrize(("l1", "l2"), [(1, 2), (2, 2)])
def test_elementwise_is_the_elementwise_product_of_e3nn(l1, l2):
    """Of two single irreps; other degrees are zero, so that the sum over paths has one term."""
    irreps = [e3nn_jax.Irreps([(5, (l, (-1) ** l))]) for l in (l1, l2)]
    x, y = (e3nn_jax.normal(i, jax.random.key(k), (4,), dtype=jnp.float32) for k, i in enumerate(irreps))
    theirs = e3nn_jax.elementwise_tensor_product(x, y)
    ours = tensor_product.elementwise(None, features.from_irreps(x), features.from_irreps(y), l1 + l2, 2)
    ours = features.to_irreps(ours, theirs.irreps)
    np.testing.assert_allclose(ours.array, theirs.array, rtol=0, atol=1e-6 * float(jnp.max(jnp.abs(theirs.array))))


def test_channelwise_is_e3nns_product_times_weights_per_edge():
    x, Y = (e3nn_jax.normal(i, jax.random.key(0), (6,), dtype=jnp.float32) for i in ("4x0e + 4x1o", "0e + 1o + 2e"))
    theirs = e3nn_jax.tensor_product(x, Y, filter_ir_out=["0e", "1o", "2e"])
    mix = jax.random.normal(jax.random.key(1), (6, theirs.irreps.num_irreps), jnp.float32)
    theirs = theirs * mix
    kept = tensor_product.channelwise(
        mix.reshape(6, -1, 4), features.from_irreps(x), features.from_irreps(Y), 2, keep_paths=True
    )
    np.testing.assert_allclose(features.to_irreps(kept, theirs.irreps).array, theirs.array, rtol=0, atol=5e-6)
    summed = tensor_product.channelwise(mix.reshape(6, -1, 4), features.from_irreps(x), features.from_irreps(Y), 2)
    np.testing.assert_allclose(summed, kept.reshape(6, 1, 9, -1, 4).sum(axis=-2), rtol=0, atol=1e-5)


@pytest.mark.parametrize("irreps", ["4x0e + 4x1o", "3x0e + 2x1o"])
def test_full_with_weights_is_e3nns_product_and_linear(irreps):
    x = e3nn_jax.normal(irreps, jax.random.key(0), (6,), dtype=jnp.float32)
    Y = e3nn_jax.normal("1x0e + 1x1o", jax.random.key(1), (6,), dtype=jnp.float32)
    theirs = e3nn_jax.flax.Linear("5x0e + 5x1o")
    product = e3nn_jax.tensor_product(x, Y)
    parameters = theirs.init(jax.random.key(2), product)
    expected = theirs.apply(parameters, product)
    weight = tensor_product.from_e3nn(parameters["params"], irreps, Y.irreps, "5x0e + 5x1o")
    ours = features.on_irreps(
        lambda x, y: tensor_product.full(weight, x, y, 1), (irreps, "1x0e + 1x1o"), "5x0e + 5x1o"
    )(x, Y)
    np.testing.assert_allclose(ours.array, expected.array, rtol=0, atol=1e-6 * float(jnp.max(jnp.abs(expected.array))))


@pytest.mark.parametrize("case", ["full", "channelwise, kept"])
def test_weights_per_edge_are_used_edge_by_edge(case):
    layer = _layer(case, weights="given")
    x, y = _normal(layer.x, (3,)), _normal(layer.y, (3,), seed=1)
    weight = jax.random.normal(jax.random.key(2), (3, *layer.weight_shape), jnp.float32)
    alone = jnp.stack([layer(x[k], y[k], weight[k]) for k in range(3)])
    np.testing.assert_allclose(layer(x, y, weight), alone, rtol=0, atol=2e-5)


@pytest.mark.parametrize("case", ["full", "channelwise, summed", "elementwise"])
def test_keeps_unit_variance(case):
    layer = _layer(case)
    x, y = _normal(layer.x, (4000,)), _normal(layer.y, (4000,), seed=1)
    assert 0.3 < float(jnp.mean(layer(x, y) ** 2)) < 2


def test_second_derivatives_are_those_of_a_bilinear_map(dtype):
    layer = _layer("full")
    x, y = _normal(layer.x, (), dtype), _normal(layer.y, (), dtype, 1)
    value, along = jax.jvp(lambda x: jax.jvp(lambda y: layer(x, y), (y,), (y,))[1], (x,), (x,))
    np.testing.assert_allclose(along, value, rtol=0, atol=64 * float(jnp.finfo(dtype).eps))
    gradient = jax.grad(lambda x: jnp.sum(layer(x, y) ** 2))
    curvature = jax.jvp(gradient, (x,), (x,))
    np.testing.assert_allclose(*curvature, rtol=0, atol=1e3 * float(jnp.finfo(dtype).eps))


def test_leading_axes_broadcast():
    layer = _layer("channelwise, summed")
    x, y = _normal(layer.x, (3, 1)), _normal(layer.y, (5,), seed=1)
    z = layer(x, y)
    assert z.shape == (3, 5, *layer.layout.shape)
    np.testing.assert_allclose(z[2, 4], layer(x[2, 0], y[4]), rtol=0, atol=1e-5)


def test_paths_of_three_degrees_are_the_published_number():
    assert len(paths.between(Layout(3, 1), Layout(3, 1), 3)) == 23
    assert tensor_product.slots(paths.between(Layout(3, 1), Layout(3, 1), 3)) == 7


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda f, x, y: f(x[..., :2], y), ValueError, r"x: expected features of shape \(..., 1, 9 = .*, 3\), got"),
        (lambda f, x, y: f(x, y[..., :1, :]), ValueError, "y: expected features of shape"),
        (lambda f, x, y: f(x, y[:2]), ValueError, "y: expected leading axes that broadcast with x"),
        (lambda f, x, y: f(x, y.astype(jnp.bfloat16)), TypeError, "expected one dtype"),
        (lambda f, x, y: f(x, y, f.weight[...]), ValueError, "weight: the layer was made with weights='shared'"),
        (
            lambda f, x, y: tensor_product.channelwise(f.weight[:3], x, y, 2),
            ValueError,
            r"weight: expected shape \(..., 11, 3\), got \(3, 3\)",
        ),
        (
            lambda f, x, y: TensorProduct("uvw", f.x, f.y, 2),  # pyright: ignore[reportArgumentType]
            ValueError,
            "kind: expected 'full'",
        ),
        (lambda f, x, y: TensorProduct("full", f.x, f.y, 2, rngs=nnx.Rngs(0)), ValueError, "channels: expected"),
        (lambda f, x, y: TensorProduct("elementwise", f.x, f.y, 2), ValueError, "y: expected 3 channels"),
        (lambda f, x, y: TensorProduct("channelwise", f.x, f.y, 2, 4), ValueError, "channels: a channelwise"),
        (lambda f, x, y: TensorProduct("channelwise", f.x, f.y, 2), ValueError, "rngs: expected nnx.Rngs"),
    ],
)
def test_bad_input_is_named(call, error, message, own_checks):
    layer = _layer("channelwise, summed")
    with pytest.raises(error, match=message):
        call(layer, _normal(layer.x, (4,)), _normal(layer.y, (4,)))
    with pytest.raises(error, match=message):
        jax.jit(lambda x, y: call(layer, x, y))(_normal(layer.x, (4,)), _normal(layer.y, (4,)))
