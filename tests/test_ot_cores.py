"""What shares a loop out to the cores, or keeps it in one function, changes nothing that the loop computes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ot import _cores


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_it_is_the_identity_in_value_and_derivative(dtype):
    x = jnp.asarray([[np.nan, 1, 2], [-0.0, np.inf, 3], [5, -np.inf, 4]], dtype)
    assert jax.vmap(_cores.shared_out)(x).tobytes() == x.tobytes()
    assert _cores.shared_out(x).tobytes() == x.tobytes()
    assert _cores.shared_out(x[2, 0]) == 5
    jacobian = jax.jacobian(_cores.shared_out)
    np.testing.assert_array_equal(jacobian(x[1]), np.eye(3))
    np.testing.assert_array_equal(jax.hessian(lambda x: jnp.sum(_cores.shared_out(x) ** 2))(x[2]), 2 * np.eye(3))


def test_xla_keeps_what_stands_in_for_it():
    def loop(x):
        return jax.lax.fori_loop(0, 10, lambda _, x: _cores.shared_out(2 * x), x)

    compiled = jax.jit(loop).lower(jnp.ones(4)).compile().as_text() or ""
    assert ("sort(" in compiled) == (jax.default_backend() == "cpu")
    np.testing.assert_array_equal(jax.jit(loop)(jnp.ones(4)), np.full(4, 1024))


@pytest.mark.parametrize("shape", [(5, 7), (400, 300)])
@pytest.mark.parametrize("axis", [0, 1])
def test_reductions_of_any_size_are_maxima_and_sums(shape, axis):
    x = jnp.asarray(np.random.default_rng(2).normal(size=shape), jnp.float32).at[0].set(-jnp.inf)
    np.testing.assert_array_equal(_cores.largest(x, axis), jnp.max(x, axis=axis))
    y, eps = jnp.exp(x), np.finfo(np.float32).eps
    exact = np.sum(np.asarray(y, np.float64), axis=axis)
    np.testing.assert_allclose(_cores.total(y, axis), exact, rtol=eps * shape[axis])
