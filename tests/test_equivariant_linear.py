"""Linear maps: the law of O(3), e3nn-jax's layer from its own weights, derivatives, bad input."""

import importlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from equivariant import features, linear
from lie import so3

e3nn_jax: Any = importlib.import_module("e3nn_jax")  # its annotations are narrower than what it takes


def _case(max_degree, parities, dtype=jnp.float32):
    key_x, key_b = jax.random.split(jax.random.key(0))
    layer = linear.Linear(max_degree, 4, 5, parities, rngs=nnx.Rngs(0))
    bias: Any = layer.bias
    bias[...] = jax.random.normal(key_b, (5,), jnp.float32)
    return layer, jax.random.normal(key_x, (2, 7, parities, (max_degree + 1) ** 2, 4), dtype)


@pytest.mark.parametrize(("max_degree", "parities"), [(0, 1), (1, 2), (3, 1)])
def test_commutes_with_rotations_and_reflections(max_degree, parities, dtype):
    layer, x = _case(max_degree, parities, dtype)
    R = so3.sample((2, 7), jnp.float64, key=jax.random.key(1)) * jnp.array([1.0, -1.0])[:, None, None, None]
    rotate = lambda x: features.rotate(x.astype(jnp.float64), R).astype(dtype)
    y = layer(rotate(x))
    assert y.dtype == dtype
    np.testing.assert_allclose(y, rotate(layer(x)), rtol=0, atol=64 * float(jnp.finfo(dtype).eps))


@pytest.mark.parametrize(
    ("irreps_in", "irreps_out"),
    [
        ("8x0e + 8x1o + 8x2e", "8x0e + 8x1o + 8x2e"),
        ("3x0e + 2x1o + 5x0e + 1x1e", "4x1o + 2x0e + 3x1e + 7x0e"),
        ("3x1o + 2x2e", "2x0e + 3x1o"),
    ],
)
def test_equals_e3nn_from_its_weights(irreps_in, irreps_out):
    """To 1e-6 of the largest value, also where irreps repeat, are out of order, or have nothing to come from."""
    x = e3nn_jax.normal(irreps_in, jax.random.key(2), (6,), dtype=jnp.float32)
    theirs = e3nn_jax.flax.Linear(irreps_out, biases=True, force_irreps_out=True)
    parameters = theirs.init(jax.random.key(3), x)
    parameters = jax.tree.map(lambda a: a + 0.1, parameters)  # biases start at 0
    expected = theirs.apply(parameters, x)
    weight, bias = linear.from_e3nn(parameters["params"], irreps_in, irreps_out, force_irreps_out=True)
    layout = features.Layout(weight.shape[1] - 1, weight.shape[2], weight.shape[0])
    ours = features.on_irreps(lambda x: linear.linear(weight, bias, x), irreps_in, irreps_out, layout=layout)(x)
    scale = float(jnp.max(jnp.abs(expected.array)))
    np.testing.assert_allclose(ours.array, expected.array, rtol=0, atol=1e-6 * scale)


def test_weights_of_another_layer_are_refused():
    good = {"w[0,0] 4x0e,2x0e": np.ones((4, 2), np.float32)}
    linear.from_e3nn(good, "4x0e", "2x0e")
    with pytest.raises(ValueError, match=r"expected one entry \[0,0\] with shape \(3, 2\)"):
        linear.from_e3nn(good, "3x0e", "2x0e")
    with pytest.raises(ValueError, match=r"no place for \['w\[1,1\]"):
        linear.from_e3nn(good | {"w[1,1] 4x1o,2x1o": np.ones((4, 2))}, "4x0e", "2x0e")


def test_keeps_unit_variance():
    layer = linear.Linear(2, 256, 256, rngs=nnx.Rngs(0))
    y = layer(jax.random.normal(jax.random.key(4), (40, 1, 9, 256), jnp.float32))
    np.testing.assert_allclose(jnp.mean(y**2, axis=(0, 1, 3)), 1, atol=0.15)


def test_derivatives_are_right_and_second_ones_finite(dtype):
    layer, x = _case(1, 2, dtype)
    weight = layer.weight[...].astype(dtype)
    by_hand = jnp.einsum("...c,cd->...d", x[..., 1, 1:, :], weight[1, 1])
    np.testing.assert_allclose(
        linear.linear(weight, None, x)[..., 1, 1:, :], by_hand, atol=16 * float(jnp.finfo(dtype).eps)
    )
    f = lambda w: jnp.sum(linear.linear(w, None, x) ** 2)
    tangent = jnp.ones_like(weight)
    gradient, along = jax.jvp(jax.grad(f), (weight,), (tangent,))
    np.testing.assert_allclose(jnp.vdot(gradient, weight), 2 * f(weight), rtol=1e-5)  # f is quadratic in w
    assert bool(jnp.isfinite(along).all())


def test_empty_batches_and_bfloat16():
    layer, x = _case(1, 1)
    assert layer(x[:, :0]).shape == (2, 0, 1, 4, 5)
    assert layer(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda layer, x: layer(x[..., :3]), ValueError, r"x: expected features of shape \(.*, 4\), got"),
        (lambda layer, x: layer(x.astype(jnp.int32)), TypeError, "x: expected a floating-point array"),
        (lambda layer, x: layer(x.at[0].set(jnp.nan)), ValueError, "x: expected only finite values"),
        (lambda layer, x: linear.linear(layer.weight[...], layer.bias[:3], x), ValueError, r"bias: expected shape"),
        (lambda layer, x: linear.linear(layer.weight[:, :1], None, x), ValueError, r"weight: expected shape"),
        (
            lambda layer, x: linear.linear(layer.weight[...], None, x.astype(jnp.bfloat16)),
            TypeError,
            "expected one dtype",
        ),
        (lambda layer, x: linear.Linear(1, 4, -1, rngs=nnx.Rngs(0)), ValueError, "channels_out: expected"),
    ],
)
def test_bad_input_is_named(call, error, message, own_checks):
    with pytest.raises(error, match=message):
        call(*_case(1, 1))


def test_bad_input_is_named_while_tracing(own_checks):
    layer, x = _case(1, 1)
    with pytest.raises(ValueError, match="x: expected features of shape"):
        jax.jit(layer)(x[..., :3])
