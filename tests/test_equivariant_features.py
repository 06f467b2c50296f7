"""Features: the layout, the action of O(3), and exchange with e3nn-jax without loss."""

import importlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from equivariant import features
from lie import so3

e3nn_jax: Any = importlib.import_module("e3nn_jax")  # its annotations are narrower than what it takes

IRREPS = ["4x0e + 4x1o", "3x0e + 2x1o + 5x0e + 1x2e", "2x1e + 3x0o + 1x3o", "7x2o", "0x0e + 2x1o", "5x0e"]
REFLECTION = -np.eye(3)


def _array(irreps, dtype=jnp.float32, batch=(3,)):
    return e3nn_jax.normal(irreps, jax.random.key(0), batch, dtype=dtype)


@pytest.mark.parametrize("irreps", IRREPS)
def test_to_irreps_undoes_from_irreps_bit_by_bit(irreps, dtype):
    x = _array(irreps, dtype)
    back = features.to_irreps(features.from_irreps(x), irreps)
    assert back.irreps == e3nn_jax.Irreps(irreps)
    assert back.array.dtype == dtype
    np.testing.assert_array_equal(back.array, x.array)


def test_a_larger_layout_is_filled_with_zeros():
    x = _array("2x0e + 1x1e")
    wide = features.from_irreps(x, features.layout(3, 5, 2))
    assert wide.shape == (3, 2, 16, 5)
    assert float(jnp.sum(wide**2)) == pytest.approx(float(jnp.sum(x.array**2)))
    np.testing.assert_array_equal(features.to_irreps(wide, x.irreps).array, x.array)


def test_rows_are_degrees_and_channels_are_copies():
    x = features.from_irreps(e3nn_jax.IrrepsArray("1x1o + 1x0e + 1x1o", jnp.arange(7.0, dtype=jnp.float32)))
    expected = np.zeros((1, 4, 2), np.float32)
    expected[0, 0, 0], expected[0, 1:, 0], expected[0, 1:, 1] = 3, (0, 1, 2), (4, 5, 6)
    np.testing.assert_array_equal(x, expected)


def test_irreps_of_a_layout_are_sorted_as_e3nn_sorts():
    irreps = features.irreps(features.layout(2, 4, 2))
    assert irreps == e3nn_jax.Irreps("4x0e + 4x0o + 4x1o + 4x1e + 4x2e + 4x2o")
    assert irreps == irreps.sort().irreps
    assert features.padded(irreps) == features.layout(2, 4, 2)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("irreps", ["3x0e + 3x1o + 2x2e", "2x0o + 3x1e + 1x1o + 2x2o"])
def test_rotate_is_the_action_of_e3nn(irreps, sign, dtype):
    x, R = _array(irreps, dtype), sign * so3.sample((), dtype, key=jax.random.key(1))
    with jax.numpy_dtype_promotion("standard"):
        theirs = x.transform_by_matrix(R)
    ours = features.to_irreps(features.rotate(features.from_irreps(x), R), irreps)
    np.testing.assert_allclose(ours.array, theirs.array, rtol=0, atol=1e-12 if dtype == jnp.float64 else 3e-6)


def test_rotate_is_a_homomorphism_and_broadcasts():
    R, Q = so3.sample((2, 4), jnp.float64, key=jax.random.key(2)) * jnp.array([1.0, -1.0])[:, None, None, None]
    x = jax.random.normal(jax.random.key(3), (5, 1, 2, 9, 3), jnp.float64)
    once = features.rotate(x, R @ Q)
    assert once.shape == (5, 4, 2, 9, 3)
    np.testing.assert_allclose(once, features.rotate(features.rotate(x, Q), R), rtol=0, atol=1e-13)


def test_rotate_is_differentiable_twice_in_the_features():
    x = jax.random.normal(jax.random.key(3), (1, 2, 4, 1), jnp.float32)
    R = jnp.asarray(REFLECTION, jnp.float32)
    hessian = jax.hessian(lambda x: jnp.sum(features.rotate(x, R) ** 2))(x)
    np.testing.assert_allclose(hessian.reshape(8, 8), 2 * np.eye(8), atol=1e-6)


class _Scale(nnx.Module):
    """Twice the channels, the second half times a power of a parameter."""

    def __init__(self):
        self.factor = nnx.Param(jnp.full((), 2, jnp.float32))

    def __call__(self, x, power):
        return jnp.concatenate([x, x * self.factor[...] ** power], axis=-1)


def test_on_irreps_wraps_functions_and_keeps_parameters_of_modules():
    x = _array("2x0e + 3x1o")
    module = features.on_irreps(_Scale(), "2x0e + 3x1o", "2x0e + 6x1o")
    assert isinstance(module, nnx.Module)
    graph, state = nnx.split(module)
    assert len(jax.tree.leaves(state)) == 1
    result = nnx.merge(graph, state)(x, 3)
    np.testing.assert_array_equal(result.chunks[1], jnp.concatenate([x.chunks[1], 8 * x.chunks[1]], axis=-2))
    gradient = jax.grad(lambda state: jnp.sum(nnx.merge(graph, state)(x, 1).array))(state)
    expected = float(jnp.sum(x.chunks[1]))
    assert float(jax.tree.leaves(gradient)[0]) == pytest.approx(expected, rel=1e-5)
    function = features.on_irreps(_Scale(), "3x1o + 2x0e", "6x1o")  # any order of the terms is the same features
    np.testing.assert_array_equal(function(x, 3).chunks[0], result.chunks[1])


def test_on_irreps_takes_and_returns_several():
    x, y = _array("2x0e + 2x1o"), _array("2x0e + 1x1e")
    both = features.on_irreps(
        lambda a, b: (a + b[..., :1, :, :], b), (x.irreps, y.irreps), ("2x0e", "1x1e"), layout=features.layout(1, 2, 2)
    )
    first, second = both(x, y)
    np.testing.assert_array_equal(first.array, x.array[:, :2] + y.array[:, :2])
    np.testing.assert_array_equal(second.array, y.array[:, 2:])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda x: features.array("x", jnp.zeros((3, 1, 5, 2), jnp.float32)),
            ValueError,
            r"x: expected features of sh",
        ),
        (lambda x: features.array("x", jnp.zeros((3, 3, 4, 2), jnp.float32)), ValueError, "1 or 2 parities"),
        (lambda x: features.array("x", jnp.zeros((4,), jnp.float32)), ValueError, r"got \(4,\)"),
        (
            lambda x: features.array("x", jnp.zeros((1, 4, 2), jnp.float32), channels=3, max_degree=2),
            ValueError,
            r"\(..., 1 or 2 parities, 9 = \(2 \+ 1\)\*\*2, 3\), got \(1, 4, 2\)",
        ),
        (lambda x: features.array("x", jnp.zeros((1, 4, 2), jnp.int32)), TypeError, "x: expected a floating-point"),
        (lambda x: features.array("x", jnp.full((1, 4, 2), jnp.nan, jnp.float32)), ValueError, "only finite values"),
        (lambda x: features.layout(1, 4, 3), ValueError, "parities: expected 1"),
        (lambda x: features.layout(1.0, 4), TypeError, "max_degree: expected an int"),  # type: ignore[arg-type]
        (lambda x: features.from_irreps(x.array), TypeError, "x: expected an e3nn_jax.IrrepsArray, got"),
        (lambda x: features.from_irreps(x, features.layout(1, 1)), ValueError, "layout: 2x0e.* needs channels = 3"),
        (lambda x: features.to_irreps(features.from_irreps(x), "1x2e"), ValueError, "1x2e needs max_degree = 2"),
        (lambda x: features.to_irreps(features.from_irreps(x), "1x1e"), ValueError, "1x1e needs parities = 2"),
        (lambda x: features.to_irreps(features.from_irreps(x), "1x1z"), ValueError, "irreps: expected e3nn irreps"),
        (lambda x: features.on_irreps(jnp.sin, "2x0e", "2x0e")(x), ValueError, "argument 0: expected irreps 2x0e, got"),
        (lambda x: features.on_irreps(jnp.sin, "2x0e", "2x0e")(x.array), TypeError, "argument 0: expected an e3nn_jax"),
        (lambda x: features.rotate(features.from_irreps(x), jnp.eye(3)), TypeError, "expected one dtype"),
    ],
)
def test_bad_input_is_named(call, error, message, own_checks):
    with pytest.raises(error, match=message):
        call(_array("2x0e + 3x1o"))
