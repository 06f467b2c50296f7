"""Laws of the Sinkhorn divergence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from lie import so3
from ot import costs, wasserstein


def clouds(dtype=jnp.float32):
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.random((60, 3)), dtype), jnp.asarray(rng.random((40, 3)) ** 2, dtype)


def test_is_symmetric_positive_and_zero_between_equal_clouds():
    x, y = clouds()
    forth, back = (wasserstein.sinkhorn_divergence(*pair, epsilon=0.05, tolerance=1e-5) for pair in ((x, y), (y, x)))
    assert bool(forth.converged)
    assert float(forth.value) > 0
    assert_allclose(back.value, forth.value, rtol=1e-5)
    same = wasserstein.sinkhorn_divergence(x, x[::-1], epsilon=0.05, tolerance=1e-5)
    assert abs(float(same.value)) <= 1e-6


def test_lies_between_the_wasserstein_cost_and_the_difference_of_means():
    x, y = clouds(jnp.float64)
    small = wasserstein.sinkhorn_divergence(x, y[:40], epsilon=1e-3, tolerance=1e-5).value
    large = wasserstein.sinkhorn_divergence(x, y[:40], epsilon=1e3, tolerance=1e-9).value
    a, b = np.full(60, 1 / 60), np.full(40, 1 / 40)
    assert_allclose(small, wasserstein.exact(x, y, a, b).value, rtol=0.02)
    assert_allclose(large, jnp.sum((x.mean(0) - y.mean(0)) ** 2), rtol=1e-3)


@pytest.mark.slow
def test_the_gradient_vanishes_at_equality_and_agrees_with_differences():
    x, y = clouds(jnp.float64)
    value = jax.jit(lambda x: wasserstein.sinkhorn_divergence(x, y, epsilon=0.05, tolerance=1e-11).value)
    slope = jax.jit(jax.grad(lambda x: wasserstein.sinkhorn_divergence(x, y, epsilon=0.05, tolerance=1e-11).value))
    direction = jnp.asarray(np.random.default_rng(1).normal(size=x.shape))
    h = 1e-5
    difference = (value(x + h * direction) - value(x - h * direction)) / (2 * h)
    assert_allclose(jnp.vdot(slope(x), direction), difference, rtol=1e-6)
    rough = jax.grad(lambda x: wasserstein.sinkhorn_divergence(x, y, epsilon=0.05).value)(x)
    assert jnp.linalg.norm(rough - slope(x)) <= 1e-4 * jnp.linalg.norm(slope(x))
    itself = jax.grad(lambda x: wasserstein.sinkhorn_divergence(x, y, epsilon=0.05).value)(y)
    assert jnp.linalg.norm(itself) <= 1e-5


def test_multiplication_from_both_sides_leaves_it_on_rotations():
    keys = jax.random.split(jax.random.key(0), 4)
    x, y = (so3.sample((40,), jnp.float32, key=key) for key in keys[:2])
    g, h = (so3.sample((), jnp.float32, key=key) for key in keys[2:])
    both = lambda z: so3.compose(so3.compose(g, z), h)
    of = lambda x, y: wasserstein.sinkhorn_divergence(x, y, cost=costs.Geodesic(so3), epsilon=0.3, tolerance=1e-5).value
    assert_allclose(of(both(x), both(y)), of(x, y), rtol=1e-4)


def test_soft_marginals_count_a_difference_of_mass():
    x, _ = clouds()
    a = jnp.full(60, jnp.float32(1 / 60))
    of = lambda a, b: wasserstein.sinkhorn_divergence(x, x, a, b, epsilon=0.05, mass_penalty=(0.5, 0.5), tolerance=1e-5)
    assert abs(float(of(a, a).value)) <= 1e-6
    assert float(of(a, 2 * a).value) > 0.01


def test_a_matrix_alone_is_refused():
    with pytest.raises(ValueError, match="cost: a matrix between x and y lacks"):
        wasserstein.sinkhorn_divergence(None, None, cost=costs.Precomputed(jnp.ones((3, 3))), epsilon=1.0)
