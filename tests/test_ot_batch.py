"""Solving the elements of a batch one after the other changes nothing but the time it takes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from ot import _batch, sinkhorn


def halved(x, shared):
    """x until its norm is below that of `shared`: a loop whose length differs between elements."""
    return jax.lax.while_loop(lambda x: jnp.sum(x * x) > jnp.sum(shared**2), lambda x: x / 2, x), jnp.sum(x) * shared


@pytest.mark.parametrize(("compiled", "devices"), [(False, 1), (True, 1), (True, 4)])
def test_each_is_vmap(compiled, devices, monkeypatch):
    monkeypatch.setattr(_batch, "_LOOPS_ARE_COMPILED", compiled)
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3, 2)) * 100, jnp.float32)
    shared = jnp.ones(2, jnp.float32)
    once = _batch.each(halved, (True, False))
    twice = _batch.each(once, (True, False))
    for run in (twice, jax.jit(twice)):
        small, sums = run(x, shared)
        expected, expected_sums = jax.vmap(jax.vmap(halved, (0, None)), (0, None))(x, shared)
        np.testing.assert_array_equal(small, expected)
        assert_allclose(sums, expected_sums, rtol=1e-6)
    assert ("platform" in str(jax.make_jaxpr(twice)(x, shared))) == (compiled and devices == 1)
    gradient = jax.grad(lambda x: jnp.sum(twice(x, shared)[1] ** 2))(x)
    assert_allclose(gradient, 4 * jnp.sum(x, axis=-1, keepdims=True) * jnp.ones_like(x), rtol=1e-6)


@pytest.mark.parametrize("axes", [1, 2])
def test_an_element_is_solved_as_if_it_were_alone(axes):
    draws, tolerance = np.random.default_rng(1), 1e-3
    xs = jnp.asarray(draws.normal(size=(*(2, 3)[-axes:], 20, 3)) * np.linspace(0.5, 2, 20)[:, None], jnp.float32)
    y = jnp.asarray(draws.normal(size=(30, 3)), jnp.float32)
    solve = lambda x: sinkhorn.solve(x, y, epsilon=0.1, tolerance=tolerance)
    over = solve
    for _ in range(axes):
        over = jax.vmap(over)
    for batch in (solve(xs), over(xs), jax.jit(over)(xs)):
        for index in np.ndindex(xs.shape[:-2]):
            one = solve(xs[index])
            assert int(batch.steps[index]) <= 1.5 * int(one.steps), "counted with the steps of a harder one"
            assert batch.error[index] <= tolerance
            assert_allclose(batch.value[index], one.value, rtol=tolerance)


def test_an_element_knows_whether_others_keep_step():
    alone = lambda x: jnp.where(_batch.is_alone(x), x, -x)
    x = jnp.arange(1.0, 7).reshape(2, 3)
    np.testing.assert_array_equal(jax.jit(alone)(x), x)
    np.testing.assert_array_equal(jax.lax.map(alone, x), x)
    np.testing.assert_array_equal(jax.vmap(alone)(x), -x)
    np.testing.assert_array_equal(jax.jit(jax.vmap(jax.vmap(alone)))(x), -x)
