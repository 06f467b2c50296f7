"""The generalisation gain of invariance: projections are group means, the formula is the simulation's, bounds hold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from experiments import elesedy2021_invariance as invariance
from experiments.engine import exits
from lie import so3


@pytest.mark.parametrize("name", invariance.TASKS)
def test_projection_is_an_orthogonal_projection_of_the_stated_rank(name):
    task = invariance.TASKS[name]
    size = task.inputs * task.outputs
    units = jnp.eye(size, dtype=jnp.float64).reshape(size, task.outputs, task.inputs)
    P = np.stack([np.asarray(task.project(u)).ravel() for u in units])
    assert_allclose(P, P.T, atol=1e-15)
    assert_allclose(P @ P, P, atol=1e-15)
    assert_allclose(np.trace(P), task.rank)


def test_projections_commute_with_their_groups():
    keys = jax.random.split(jax.random.key(0), 4)
    W = invariance.orthogonal(jax.random.normal(keys[0], (3, 15), jnp.float64))
    R = -so3.sample((), jnp.float64, key=keys[1])
    assert_allclose(R @ W, W @ np.kron(np.eye(5), R), atol=1e-14)
    W = invariance.shifts(jax.random.normal(keys[2], (10, 10), jnp.float64))
    assert_allclose(jnp.roll(W, 1, axis=0), jnp.roll(W, -1, axis=1), atol=1e-14)
    w = invariance.permutations(jax.random.normal(keys[3], (1, 20), jnp.float64))
    assert_allclose(w, w[:, ::-1], atol=1e-15)


def test_gain_is_the_papers_formula_in_both_regimes():
    """One group, two sides of n = d; 4 standard errors. The formula for n < d − 1 also by the paper's own writing."""
    task = invariance.TASKS["S_d"]
    simulate = jax.jit(lambda n, keys: jax.vmap(lambda key: invariance.gain(task, n, key))(keys))
    for n in (10, 40):
        values = np.asarray(simulate(jnp.int32(n), jax.random.split(jax.random.key(n), 2000)), np.float64)
        error = values.std(ddof=1) / np.sqrt(len(values))
        assert abs(values.mean() - invariance.expected_gain(task, n)) < 4 * error
    assert_allclose(invariance.expected_gain(task, 40), 0.25 * 19 / 19)
    d, n = task.inputs, 10
    papers = 0.25 * (d - 1) * n / (d * (d - n - 1)) + (d - 1) * n * (d - n) / (d * (d - 1) * (d + 2))
    assert_allclose(invariance.expected_gain(task, n), papers, rtol=1e-6)
    assert invariance.expected_gain(task, 20) == np.inf


def test_least_squares_agrees_with_numpys_for_few_and_for_many_samples():
    rng = np.random.default_rng(0)
    for n in (6, 30):
        x, y = rng.standard_normal((n, 10)).astype(np.float32), rng.standard_normal((n, 2)).astype(np.float32)
        padded = [jnp.asarray(np.concatenate([a, np.zeros((4, a.shape[1]), np.float32)])) for a in (x, y)]
        expected = np.linalg.lstsq(x.astype(np.float64), y.astype(np.float64), rcond=None)[0].T
        assert_allclose(invariance.least_squares(*padded), expected, atol=2e-5)


def test_regression_target_is_invariant():
    x, y = invariance.regression(jax.random.key(0), 50)
    R = -so3.sample((), jnp.float32, key=jax.random.key(1))
    turned = invariance.features("invariant", jnp.einsum("ij,nvj->nvi", R, x))
    assert_allclose(turned, invariance.features("invariant", x), atol=1e-5)
    assert abs(float(jnp.mean(y)) + 3.19) < 1.5  # −E|x|³/2 = −√(2/π)·4


def test_nonsense_is_refused():
    with pytest.raises(exits.Refused, match="repeats"):
        invariance.Config(repeats=0)
    with pytest.raises(exits.Refused, match="samples"):
        invariance.Config(samples=())
