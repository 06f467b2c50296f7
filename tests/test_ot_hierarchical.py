"""Hierarchical one-to-one maps: always permutations, near the optimum where that is known, honest about the sweeps."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from ot import costs, hierarchical, wasserstein


def clouds(n, d, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.random((n, d)), dtype), jnp.asarray(rng.random((n, d)) ** 2, dtype)


def assert_permutation(found, n):
    np.testing.assert_array_equal(np.sort(found.permutation), np.arange(n))


def pair_costs(x, y, permutation):
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    return ((x - y[np.asarray(permutation)]) ** 2).sum(-1)


def test_up_to_one_block_it_is_the_exact_assignment():
    x, y = clouds(60, 3)
    found = hierarchical.solve(x, y)
    assert_permutation(found, 60)
    assert found.converged
    assert found.steps == 0
    assert_allclose(found.value, wasserstein.exact(x, y).value, rtol=1e-6)


@pytest.mark.parametrize(
    ("d", "cost", "excess"),
    [(3, costs.SquaredEuclidean(), 0.01), pytest.param(16, costs.Euclidean(), 0.01, marks=pytest.mark.slow)],
)
def test_the_cost_is_near_the_optimum_and_falls_with_every_sweep(d, cost, excess):
    n = 1000
    x, y = clouds(n, d)
    best = float(wasserstein.exact(x, y, cost=cost).value)
    values = []
    for sweeps in (0, 1, 6):
        found = hierarchical.solve(x, y, cost=cost, block=128, tolerance=1e-4, max_steps=sweeps)
        assert_permutation(found, n)
        values.append(float(found.value))
        assert found.steps <= sweeps
        assert found.converged == (float(found.error) <= 1e-4)
    if d == 3:
        assert_allclose(found.value, pair_costs(x, y, found.permutation).mean(), rtol=1e-5)
    assert values[0] >= values[1] >= values[2] >= best * (1 - 1e-6)
    assert values[2] <= best * (1 + excess)


@pytest.mark.slow
def test_several_levels_of_cells(monkeypatch):
    monkeypatch.setattr(hierarchical, "_LARGEST_CELL", 1500)
    monkeypatch.setattr(hierarchical, "_SAMPLE", 512)
    x, y = clouds(4099, 3)
    found = hierarchical.solve(x, y, max_steps=4)
    assert_permutation(found, 4099)
    assert float(found.value) <= 1.01 * float(wasserstein.exact(x, y).value)


def test_ties_and_translations():
    x, _ = clouds(300, 2)
    one_point = jnp.ones((300, 2), jnp.float32)
    assert_permutation(hierarchical.solve(x, one_point, block=64), 300)
    moved = hierarchical.solve(x, x + 8, block=64, max_steps=10)
    assert_permutation(moved, 300)
    assert_allclose(moved.value, 128, rtol=1e-4)  # a translation is the optimal map


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(y=lambda y: y[:-1]), ValueError, "x and y: expected two clouds of one shape"),
        (dict(x=lambda x: x.at[0, 0].set(jnp.nan)), ValueError, "x: expected"),
        (dict(x=lambda x: x.astype(jnp.int32)), TypeError, "x: expected a floating-point array"),
        (dict(block=lambda b: 1), ValueError, "block and max_steps"),
        (dict(cost=lambda c: costs.Precomputed(jnp.ones((8, 8), jnp.float32))), ValueError, "cost: expected one"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_by_name(change, error, message, own_checks):
    x, y = clouds(8, 3)
    good = dict(x=x, y=y, block=4, cost=costs.SquaredEuclidean())
    bad: Any = good | {name: alter(good[name]) for name, alter in change.items()}
    with pytest.raises(error, match=message):
        hierarchical.solve(**bad)


def test_under_jit_it_says_that_it_cannot_run(own_checks):
    x, y = clouds(8, 3)
    with pytest.raises(TypeError, match=r"hierarchical\.solve: its assignments run on the host"):
        jax.jit(lambda x: hierarchical.solve(x, y))(x)
