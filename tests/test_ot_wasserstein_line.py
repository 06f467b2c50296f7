"""Transport on the line and the circle: against sorting, SciPy, linear programs and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import optimize, stats

from ot import costs, wasserstein


def points(n, seed=0, dtype=jnp.float64):
    return jnp.asarray(np.random.default_rng([n, seed]).standard_normal(n), dtype)


def weights(n, seed=0, dtype=jnp.float64):
    a = np.random.default_rng([n, 7, seed]).random(n)
    return jnp.asarray(a / a.sum(), dtype)


def by_linear_program(C, a, b):
    n, m = C.shape
    K = np.concatenate([np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))])
    return optimize.linprog(np.ravel(C), A_eq=K, b_eq=np.concatenate([a, b])).fun


def arcs(x, y):
    apart = np.abs(np.asarray(x)[:, None] - np.asarray(y)) % 1
    return np.minimum(apart, 1 - apart)


def eps(dtype):
    return float(jnp.finfo(dtype).eps)


@pytest.mark.parametrize("p", [1, 1.5, 2, 3])
def test_equally_many_points_are_matched_in_order(p, dtype):
    x, y = points(50, 0, dtype), points(50, 1, dtype)
    wide = np.sort(np.asarray(x, np.float64)) - np.sort(np.asarray(y, np.float64))
    for value in (wasserstein.one_dimensional(x, y, p=p), jax.jit(lambda x: wasserstein.one_dimensional(x, y, p=p))(x)):
        assert value.dtype == dtype
        assert_allclose(float(value), np.mean(np.abs(wide) ** p), rtol=16 * eps(dtype))


@pytest.mark.parametrize("p", [1, 2, 2.5])
def test_any_weights_agree_with_the_linear_program(p):
    x, y, a, b = points(9), points(13, 1), weights(9), weights(13, 1)
    a = a.at[2].set(0) / (1 - a[2])
    host = wasserstein.one_dimensional(x, y, a, b, p=p)
    traced = jax.jit(lambda *v: wasserstein.one_dimensional(*v, p=p))(x, y, a, b)
    expected = by_linear_program(np.abs(np.asarray(x)[:, None] - np.asarray(y)) ** p, a, b)
    assert_allclose(host, expected, rtol=1e-9)
    assert_allclose(traced, host, rtol=1e-13)
    if p == 1:
        assert_allclose(host, stats.wasserstein_distance(x, y, a, b), rtol=1e-13)
    exact = wasserstein.exact(x[:, None], y[:, None], a, b, cost=costs.PowerNorm(p)).value
    assert_allclose(host, exact, rtol=1e-12)


def test_different_numbers_of_points_and_batches_broadcast():
    x, y = points(24).reshape(2, 1, 12), points(27, 1).reshape(3, 9)
    a = jnp.stack([weights(12, k) for k in range(2)])[:, None]
    value = wasserstein.one_dimensional(x, y, a, p=2)
    assert value.shape == (2, 3)
    traced = jax.jit(lambda x: wasserstein.one_dimensional(x, y, a, p=2))(x)
    for i, j in np.ndindex(2, 3):
        one = by_linear_program((np.asarray(x[i, 0])[:, None] - np.asarray(y[j])) ** 2, a[i, 0], np.full(9, 1 / 9))
        assert_allclose(value[i, j], one, rtol=1e-9)
        assert_allclose(traced[i, j], one, rtol=1e-9)


def test_laws_of_the_line():
    x, y, z = points(20), points(31, 1), points(25, 2)
    W = lambda x, y, p: wasserstein.one_dimensional(x, y, p=p) ** (1 / p)
    for p in (1, 2, 3):
        assert_allclose(W(x, y, p), W(y, x, p), rtol=1e-13)
        assert W(x, z, p) <= W(x, y, p) + W(y, z, p)
        assert_allclose(W(3 * x + 2, 3 * y + 2, p), 3 * W(x, y, p), rtol=1e-12)
        assert_allclose(W(x, x + 0.7, p), 0.7, rtol=1e-12)
        assert W(x, x, p) == 0


@pytest.mark.parametrize("p", [1, 2, 3])
@pytest.mark.slow
def test_derivatives_on_the_line(p):
    x, y, a, b = points(9), points(13, 1), weights(9), weights(13, 1)
    dx, da = points(9, 2), weights(9, 3) - weights(9, 4)
    along = lambda t: wasserstein.one_dimensional(x + t * dx, y, a + t * da, b, p=p)
    expected = (along(1e-6) - along(-1e-6)) / 2e-6
    assert_allclose(jax.grad(along)(0.0), expected, rtol=1e-6)
    assert_allclose(jax.jit(jax.grad(along))(0.0), expected, rtol=1e-6)
    assert np.isfinite(jax.hessian(along)(0.0))
    same = jax.grad(lambda x: wasserstein.one_dimensional(x, jax.lax.stop_gradient(x), p=p))(x)
    assert_allclose(same, np.zeros(9))


@pytest.mark.parametrize("p", [1, 1.5, 2, 3])
def test_circle_against_brute_force(p):
    for seed in range(3):
        x, y, a, b = points(7, seed), points(9, seed + 5), weights(7, seed), weights(9, seed + 1)
        expected = by_linear_program(arcs(x, y) ** p, a, b)
        assert_allclose(wasserstein.circle(x, y, a, b, p=p), expected, rtol=1e-9)
    traced = jax.jit(lambda *v: wasserstein.circle(*v, p=p, period=3.0))(3 * x, 3 * y, a, b)
    assert_allclose(traced, 3**p * expected, rtol=1e-9)
    wide = wasserstein.circle(*(v.astype(jnp.float32) for v in (x, y, a, b)), p=p)
    assert wide.dtype == jnp.float32
    assert_allclose(wide, expected, rtol=2e-5)


@pytest.mark.parametrize("p", [1, 2])
def test_circle_turns_and_differentiates(p):
    x, y, a, b = points(7), points(9, 1), weights(7), weights(9, 1)
    value = wasserstein.circle(x, y, a, b, p=p)
    assert_allclose(wasserstein.circle(x + 0.37, y + 0.37, a, b, p=p), value, rtol=1e-8)
    assert_allclose(wasserstein.circle(x + 5, y - 3, a, b, p=p), value, rtol=1e-8)
    assert_allclose(wasserstein.circle(y, x, b, a, p=p), value, rtol=1e-8)
    assert wasserstein.circle(x, x + 0.2, a, a, p=p) <= 0.2**p
    assert_allclose(wasserstein.circle(x, x + 0.01, a, a, p=p), 0.01**p, rtol=1e-7)  # too little to pay for a swap
    dx, da = points(7, 2), weights(7, 3) - weights(7, 4)
    along = lambda t: wasserstein.circle(x + t * dx, y, a + t * da, b, p=p)
    assert_allclose(jax.grad(along)(0.0), (along(1e-5) - along(-1e-5)) / 2e-5, rtol=1e-4)


@pytest.mark.usefixtures("own_checks")
@pytest.mark.parametrize("distance", [wasserstein.one_dimensional, wasserstein.circle])
def test_bad_input_is_refused_by_name(distance):
    x, y, a = points(4), points(4, 1), weights(4)
    for arguments, message in [
        ((x.at[1].set(jnp.nan), y), "x: expected"),
        ((x, y[:0]), "y: expected at least one point"),
        ((x, y, -a), "a: expected finite weights >= 0"),
        ((x, y, a, 2 * a), "a and b: expected equal totals"),
        ((x, y, a[:3]), "a: expected shape"),
    ]:
        with pytest.raises(ValueError, match=message):
            distance(*arguments)
    with pytest.raises(ValueError, match="p: expected a finite number >= 1"):
        distance(x, y, p=0.5)
    with pytest.raises(TypeError, match="y: expected a floating-point array"):
        distance(x, jnp.arange(4))
