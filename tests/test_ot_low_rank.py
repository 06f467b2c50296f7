"""Low-rank plans: their marginals and rank, exact cases, the approach to the full problem, linear memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import optimize

from lie import smooth
from ot import costs, low_rank


def clouds(n, m, dtype=jnp.float32, dimension=2, shift=1.0):
    key_x, key_y = jax.random.split(jax.random.key(n + m))
    x = jax.random.normal(key_x, (n, dimension), dtype)
    return x, 0.7 * jax.random.normal(key_y, (m, dimension), dtype) + jnp.asarray(shift, dtype)


def weights(n, dtype=jnp.float32):
    row = np.arange(1.0, n + 1)
    return jnp.asarray(row / row.sum(), dtype)


def test_plan_is_feasible_of_the_stated_rank_and_value(dtype):
    (x, y), a, b = clouds(40, 30, dtype), weights(40, dtype), weights(30, dtype)[::-1]
    found = low_rank.solve(x, y, a, b, rank=5)
    plan, C = np.asarray(found.plan(), float), np.asarray(costs.SquaredEuclidean()(x, y), float)
    violation = np.abs(plan.sum(1) - np.asarray(a)).sum() + np.abs(plan.sum(0) - np.asarray(b)).sum()
    eps = float(jnp.finfo(dtype).eps)
    assert found.converged
    assert violation <= 1e-3
    assert_allclose(found.error, violation, atol=64 * eps)
    assert_allclose(found.value, np.sum(plan * C), rtol=64 * eps)
    assert np.linalg.matrix_rank(plan, tol=1e-5) == 5
    assert found.value.dtype == dtype
    v = jax.random.normal(jax.random.key(0), (30,), dtype)
    assert_allclose(found.apply(v), plan @ np.asarray(v, float), atol=64 * eps)
    mapped = plan @ np.asarray(y, float) / plan.sum(1)[:, None]
    assert_allclose(found.barycentric_map(y), mapped, atol=256 * eps)


def test_rank_one_is_the_independent_coupling():
    x, y = clouds(20, 25, jnp.float64)
    found = low_rank.solve(x, y, rank=1)
    assert_allclose(found.plan(), np.full((20, 25), 1 / 500), rtol=1e-12)
    assert_allclose(found.value, np.mean(costs.SquaredEuclidean()(x, y)), rtol=1e-12)


def test_separated_clusters_are_matched_exactly():
    # Four clusters of x, each far from the others, and y their shifted copy: the optimal plan has rank 4 in effect.
    corners = jnp.array([[0.0, 0.0], [40.0, 0.0], [0.0, 40.0], [40.0, 40.0]])
    x = (corners[:, None] + jax.random.normal(jax.random.key(0), (4, 8, 2), jnp.float64)).reshape(32, 2)
    found = low_rank.solve(x, x + 3.0, rank=4, tolerance=1e-6)
    blocks = np.asarray(found.plan()).reshape(4, 8, 4, 8).sum((1, 3))
    assert_allclose(blocks, np.eye(4) / 4, atol=1e-6)
    assert_allclose(found.g, 0.25, atol=1e-6)


@pytest.mark.slow
def test_value_falls_towards_the_exact_one_as_the_rank_grows():
    x, y = clouds(64, 64)
    C = np.asarray(costs.SquaredEuclidean()(x, y), float)
    exact = C[optimize.linear_sum_assignment(C)].mean()
    values = [float(low_rank.solve(x, y, rank=rank).value) for rank in (1, 4, 16, 48)]
    assert values == sorted(values, reverse=True)
    assert exact - 1e-3 * C.max() <= values[-1] <= 1.1 * exact  # measured: 1.04


def test_value_does_not_depend_on_pose_or_scale_of_the_clouds():
    x, y = clouds(30, 30, jnp.float64)
    turn = jnp.array([[0.6, -0.8], [0.8, 0.6]])
    plain = low_rank.solve(x, y, rank=3)
    moved = low_rank.solve(x @ turn.T + 1000.0, y @ turn.T + 1000.0, rank=3)
    scaled = low_rank.solve(100 * x, 100 * y, rank=3)
    assert_allclose(moved.value, plain.value, rtol=1e-8)
    assert_allclose(scaled.value, 1e4 * plain.value, rtol=1e-8)


def test_far_from_the_origin_float32_keeps_its_digits():
    x, y = clouds(30, 30)
    x, y = jnp.round(x * 64) / 64, jnp.round(y * 64) / 64  # so that moving the clouds rounds nothing
    assert_allclose(low_rank.solve(x + 1e4, y + 1e4, rank=3).value, low_rank.solve(x, y, rank=3).value, rtol=1e-4)


def test_factors_stand_for_any_cost():
    x, y = clouds(20, 24, jnp.float64)
    A = jnp.concatenate([jnp.sum(x**2, -1, keepdims=True), jnp.ones((20, 1)), -2 * x], axis=-1)
    B = jnp.concatenate([jnp.ones((24, 1)), jnp.sum(y**2, -1, keepdims=True), y], axis=-1)
    by_points, by_factors = low_rank.solve(x, y, rank=4), low_rank.solve(None, None, factors=(A, B), rank=4)
    assert_allclose(by_factors.value, by_points.value, rtol=1e-5)


def test_entropy_smooths_the_plan():
    x, y = clouds(30, 30)
    sharp, soft = low_rank.solve(x, y, rank=4), low_rank.solve(x, y, rank=4, epsilon=5.0)
    entropy = lambda p: -float(jnp.sum(smooth.xlogx(p)))
    assert entropy(soft.plan()) > entropy(sharp.plan()) + 0.1
    assert soft.value > sharp.value


@pytest.mark.slow
def test_value_differentiates_with_the_plan_held_fixed():
    x, y = clouds(12, 15, jnp.float64)
    gradient = jax.grad(lambda x: low_rank.solve(x, y, rank=3).value)(x)
    plan = low_rank.solve(x, y, rank=3).plan()
    assert_allclose(gradient, 2 * (jnp.sum(plan, 1)[:, None] * x - plan @ y), atol=1e-12)


def test_zero_weights_and_duplicate_points_are_finite():
    x, y = jnp.concatenate([jnp.ones((5, 2)), jnp.zeros((5, 2))]), jnp.ones((10, 2))
    a = jnp.array([0.2] * 5 + [0.0] * 5)
    found = low_rank.solve(x, y, a, rank=3)
    assert_allclose(found.value, 0, atol=1e-6)
    assert float(jnp.sum(found.plan()[5:])) == 0
    assert bool(jnp.isfinite(jax.grad(lambda x: low_rank.solve(x, y, a, rank=3).value)(x)).all())


@pytest.mark.slow
def test_each_batch_element_stops_on_its_own():
    x, y = clouds(16, 16, jnp.float64)
    scales = jnp.array([[1.0], [3.0]], jnp.float64)[..., None, None] * jnp.ones((2, 3, 1, 1), jnp.float64)
    shifts = jnp.arange(3, dtype=jnp.float64)[:, None, None]
    together = low_rank.solve(scales * x, y + shifts, rank=3)
    assert together.value.shape == (2, 3)
    alone = low_rank.solve(3 * x, y + 2, rank=3)
    assert int(together.steps[1, 2]) == int(alone.steps)
    assert_allclose(together.value[1, 2], alone.value, rtol=1e-9)


def test_nothing_as_large_as_the_plan_is_stored():
    n = 20_000
    shape = jax.ShapeDtypeStruct((n, 3), jnp.float32)
    compiled = jax.jit(lambda x, y: low_rank.solve(x, y, rank=8).value).lower(shape, shape).compile()
    analysis = compiled.memory_analysis()
    assert analysis is not None
    assert analysis.temp_size_in_bytes < 60 * 4 * n * 8  # 38 MB; one n x n array takes 1600 MB


@pytest.mark.parametrize(
    ("error", "name", "change"),
    [
        (ValueError, "rank", {"rank": 0}),
        (ValueError, "rank", {"rank": 6}),
        (ValueError, "rank", {"rank": 2.0}),
        (ValueError, "epsilon", {"epsilon": -1.0}),
        (ValueError, "epsilon", {"epsilon": float("nan")}),
        (ValueError, "a: ", {"a": jnp.full(5, 0.3)}),
        (ValueError, "b: ", {"b": jnp.ones(4) / 4}),
        (ValueError, "x", {"x": jnp.full((5, 2), jnp.nan)}),
        (ValueError, "y", {"y": jnp.ones((5, 3))}),
        (TypeError, "dtype", {"y": jnp.ones((5, 2), jnp.float32)}),
        (TypeError, "factors", {"factors": jnp.ones((5, 2))}),
    ],
)
def test_bad_input_is_named(error, name, change, own_checks):
    arguments = {"x": jnp.ones((5, 2)), "y": jnp.zeros((5, 2)), "rank": 2} | change
    with pytest.raises(error, match=name):
        low_rank.solve(**arguments)


def test_under_jit_the_record_is_honest():
    found = jax.jit(lambda x, y: low_rank.solve(x, y, rank=2))(jnp.full((5, 2), jnp.nan), jnp.ones((5, 2)))
    assert not found.converged
    assert not low_rank.solve(*clouds(20, 20), rank=3, max_steps=2).converged
