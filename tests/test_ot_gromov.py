"""Gromov-Wasserstein: isometries cost nothing, the energy is the quadruple sum, descent is monotone, fused limits."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from lie import so3
from ot import costs, gromov

ORDER = np.array([4, 0, 6, 2, 7, 1, 5, 3])


def cloud(n=8, dtype=jnp.float64, dimension=3, seed=0):
    return jax.random.normal(jax.random.key(seed), (n, dimension), dtype)


def energy(C1, C2, P):
    """The defining sum, term by term."""
    return np.einsum("ijkl,ij,kl->", (np.asarray(C1)[:, None, :, None] - np.asarray(C2)[None, :, None, :]) ** 2, P, P)


def square(x):
    return costs.SquaredEuclidean()(x, x)


def probabilities(n, dtype=jnp.float64):
    row = np.arange(2.0, n + 2)
    return jnp.asarray(row / row.sum(), dtype)


def test_a_moved_and_shuffled_cloud_is_recognised(dtype):
    x = cloud(dtype=dtype)
    R = so3.sample((), dtype, key=jax.random.key(3))
    y = (so3.act(R, x) + 2)[ORDER]
    found = gromov.solve(x, y, epsilon=10.0)
    assert found.converged
    assert_array_equal(np.argmax(found.plan, axis=0), ORDER)
    scale = float(jnp.mean(square(x) ** 2))
    assert (
        abs(float(found.value)) < 0.2 * scale
    )  # entropy's share; two unrelated clouds of this size cost as much as the scale
    assert found.value.dtype == dtype


def test_value_and_error_are_those_of_the_plan(dtype):
    x, y, a, b = cloud(7, dtype), cloud(9, dtype, dimension=2, seed=1), probabilities(7, dtype), probabilities(9, dtype)
    found = gromov.solve(x, y, a, b, epsilon=20.0)
    P = np.asarray(found.plan, float)
    k = 256 * float(jnp.finfo(dtype).eps)
    assert_allclose(found.value, energy(square(x), square(y), P), rtol=k + 4 * float(found.error))
    entropy = np.sum(P * np.log(P / np.outer(a, b)))
    assert_allclose(found.objective, float(found.value) + 20 * entropy, rtol=k)
    violation = np.abs(P.sum(1) - np.asarray(a)).sum() + np.abs(P.sum(0) - np.asarray(b)).sum()
    assert violation <= 1e-3
    assert_allclose(found.error, violation, atol=k)


@pytest.mark.parametrize("kind", ["squared", "arbitrary"])
def test_the_objective_falls_in_every_step(kind):
    C1, C2 = (square(cloud(10, seed=s)) for s in (0, 1))
    if kind == "arbitrary":  # no distances, nothing concave: linearising alone would rise
        C1, C2 = (jnp.asarray((M + M.T) / 2) for M in np.random.default_rng(0).normal(size=(2, 10, 10)))
    solve = lambda steps: gromov.solve(
        None, None, cost=(costs.Precomputed(C1), costs.Precomputed(C2)), epsilon=0.02, tolerance=1e-8, max_steps=steps
    )
    objectives = [float(solve(steps).objective) for steps in (1, 2, 3, 5, 9, 17, 33)]
    assert all(after <= before + 1e-7 for before, after in itertools.pairwise(objectives))
    assert objectives[-1] < objectives[0]


def test_a_stationary_plan_solves_its_own_linearised_problem():
    C1, C2 = (np.asarray(square(cloud(6, seed=s))) for s in (0, 1))
    found = gromov.solve(cloud(6, seed=0), cloud(6, seed=1), epsilon=20.0, tolerance=1e-12, max_steps=2000)
    assert found.converged
    P = np.asarray(found.plan)
    reduced = 20.0 * np.log(36 * P) + -4 * C1 @ P @ C2  # is f_i + g_j at a stationary point
    centred = reduced - reduced.mean(0) - reduced.mean(1, keepdims=True) + reduced.mean()
    assert_allclose(centred, 0, atol=1e-7 * np.abs(reduced).max())


@pytest.mark.slow
def test_more_starts_find_the_optimum_of_a_tiny_problem():
    C1, C2 = (np.asarray(square(cloud(5, seed=s))) for s in (0, 1))
    brute = min(energy(C1, C2, np.eye(5)[list(p)] / 5) for p in itertools.permutations(range(5)))
    one = gromov.solve(cloud(5, seed=0), cloud(5, seed=1), epsilon=0.05)
    many = gromov.solve(cloud(5, seed=0), cloud(5, seed=1), epsilon=0.05, starts=12, key=jax.random.key(0))
    assert many.objective <= one.objective + 1e-9
    assert many.value <= brute + 0.05 * np.log(25)  # squared distances make E concave: permutations are the optima


def test_fused_runs_from_the_cross_cost_to_the_structure():
    x, y = cloud(8, seed=0), cloud(8, seed=1)
    M = costs.SquaredEuclidean()(x, y)
    fused = lambda alpha: gromov.solve(x, y, epsilon=4.0, fused=alpha, cross=M, tolerance=1e-6)
    C = np.asarray(M)
    K = np.exp(-C / 4.0)
    v = np.ones(8)
    for _ in range(5000):
        u = 1 / (8 * K @ v)
        v = 1 / (8 * K.T @ u)
    assert_allclose(fused(0.0).plan, u[:, None] * K * v, atol=1e-6)
    assert_allclose(fused(1.0).objective, gromov.solve(x, y, epsilon=4.0).objective, rtol=1e-3)
    half = fused(0.5)
    P = np.asarray(half.plan)
    assert_allclose(half.value, 0.5 * np.sum(P * C) + 0.5 * energy(square(x), square(y), P), rtol=1e-5)


def test_value_does_not_depend_on_pose_or_order_of_either_space():
    x, y = cloud(8, seed=0), cloud(8, seed=1)
    R = so3.sample((), jnp.float64, key=jax.random.key(5))
    plain = gromov.solve(x, y, epsilon=20.0)
    moved = gromov.solve(so3.act(R, x)[ORDER] - 3, y, epsilon=20.0)
    assert_allclose(moved.plan, plain.plan[ORDER], atol=1e-8)
    back = gromov.solve(y, x, epsilon=20.0, tolerance=1e-10)
    forth = gromov.solve(x, y, epsilon=20.0, tolerance=1e-10)
    assert_allclose(back.plan, forth.plan.T, atol=1e-6)


def test_rotations_against_a_rotated_copy():
    R = so3.sample((8,), jnp.float64, key=jax.random.key(0))
    g = so3.sample((), jnp.float64, key=jax.random.key(1))
    found = gromov.solve(R, so3.compose(g, R)[ORDER], cost=costs.Geodesic(so3, power=1.0), epsilon=0.003)
    assert_array_equal(np.argmax(found.plan, axis=0), ORDER)


def test_objective_differentiates_by_the_envelope_theorem():
    x, y = cloud(5, seed=0), cloud(6, seed=1)
    value = lambda x, epsilon: gromov.solve(x, y, epsilon=epsilon, tolerance=1e-10, max_steps=5000).objective
    of_x, of_epsilon = jax.grad(value, (0, 1))(x, 2.0)
    step, h = cloud(5, seed=7), 1e-5
    assert_allclose(jnp.sum(of_x * step), (value(x + h * step, 2.0) - value(x - h * step, 2.0)) / (2 * h), rtol=1e-5)
    assert_allclose(of_epsilon, (value(x, 2.0 + h) - value(x, 2.0 - h)) / (2 * h), rtol=1e-5)


@pytest.mark.slow
def test_each_batch_element_stops_on_its_own_and_zero_weights_are_absent():
    x, y = cloud(6, jnp.float32, seed=0), cloud(6, jnp.float32, seed=1)
    a = jnp.array([[0.2, 0.2, 0.2, 0.2, 0.2, 0.0], [1 / 6] * 6], jnp.float32)
    found = gromov.solve(x, jnp.stack([y, 2 * y, y])[:, None], a, epsilon=10.0)
    assert found.plan.shape == (3, 2, 6, 6)
    alone = gromov.solve(x[:5], 2 * y, epsilon=10.0)
    assert_allclose(found.plan[1, 0, :5], alone.plan, atol=1e-3)
    assert float(jnp.sum(found.plan[:, 0, 5])) == 0


@pytest.mark.parametrize(
    ("error", "name", "change"),
    [
        (ValueError, "epsilon", {"epsilon": 0.0}),
        (ValueError, "x", {"x": jnp.full((4, 2), jnp.nan)}),
        (ValueError, "y", {"y": None}),
        (ValueError, "a: ", {"a": jnp.ones(4)}),
        (ValueError, "fused and cross", {"fused": 0.5}),
        (ValueError, "fused", {"fused": 1.5, "cross": jnp.ones((4, 4))}),
        (ValueError, "cross", {"fused": 0.5, "cross": jnp.ones((4, 3))}),
        (ValueError, "starts", {"starts": 5}),
        (ValueError, "x", {"x": None, "cost": costs.Precomputed(jnp.arange(16.0).reshape(4, 4))}),
        (TypeError, "dtype", {"y": jnp.ones((4, 2), jnp.float32)}),
    ],
)
def test_bad_input_is_named(error, name, change, own_checks):
    arguments = {"x": jnp.eye(4, 2), "y": jnp.eye(4, 2), "epsilon": 1.0} | change
    with pytest.raises(error, match=name):
        gromov.solve(**arguments)


def test_the_name_that_pot_gives_a_module_answers_a_call():
    with pytest.raises(TypeError, match=r"ot\.gromov\.solve"):
        gromov(1, 2)  # pyright: ignore[reportCallIssue]


def test_under_jit_the_record_is_honest():
    found = jax.jit(lambda x: gromov.solve(x, x, epsilon=1.0))(jnp.full((4, 2), jnp.nan))
    assert not found.converged
