"""Barycenters: Gaussian closed forms, the bias that debiasing removes, isometries, free points on R^n, S² and SO(3)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from lie import euclidean, se3, so3, sphere, statistics
from lie import group as groups
from ot import barycenter, costs, sinkhorn

GRID = np.linspace(-6, 6, 81)


def gaussians(means, deviations, dtype=jnp.float64):
    rows = [np.exp(-0.5 * ((GRID - m) / s) ** 2) for m, s in zip(means, deviations, strict=True)]
    return jnp.asarray(GRID[:, None], dtype), [jnp.asarray(row / row.sum(), dtype) for row in rows]


def moments(weights):
    w = np.asarray(weights, float)
    mean = w @ GRID
    return mean, np.sqrt(w @ GRID**2 - mean**2)


@pytest.mark.parametrize("epsilon", [0.1, 0.5])
def test_the_debiased_barycenter_of_equal_gaussians_has_their_width(epsilon, dtype):
    # Janati et al. 2020: exact for Gaussians of one width; the mean is the weighted mean.
    points, masses = gaussians((-1.5, 2.0), (0.8, 0.8), dtype)
    shares = jnp.array([0.25, 0.75], dtype)
    found = barycenter.solve([points] * 2, masses, shares=shares, support=points, epsilon=epsilon, tolerance=1e-4)
    assert found.converged
    assert found.weights.dtype == dtype
    assert_allclose(moments(found.weights), (1.125, 0.8), atol=2e-3)


def test_without_debiasing_the_barycenter_is_wider_by_half_of_epsilon():
    points, masses = gaussians((0.0, 0.0), (0.8, 0.8))
    blurred = barycenter.solve([points] * 2, masses, support=points, epsilon=0.5, debiased=False, tolerance=1e-8)
    # One mass a repeated: u K v = rho and a = v Kᵀu, so for Gaussians rho is a convolved with K once more:
    # entropic plans with free first marginal smear a by exp(−|x − y|²/ε), a Gaussian of variance ε/2.
    assert_allclose(moments(blurred.weights)[1], np.sqrt(0.8**2 + 0.25), rtol=1e-4)
    sharp = barycenter.solve([points] * 2, masses, support=points, epsilon=0.5, tolerance=1e-8)
    assert_allclose(sharp.weights, masses[0], atol=1e-6)
    assert_allclose(sharp.value, 0, atol=1e-6)


def test_value_is_the_weighted_sum_of_divergences():
    points, masses = gaussians((-1.0, 1.0), (0.5, 1.0))
    shares = jnp.array([0.3, 0.7])
    found = barycenter.solve([points] * 2, masses, shares=shares, support=points, epsilon=0.4, tolerance=1e-7)
    transport = lambda p, q: float(sinkhorn.solve(points, points, p, q, epsilon=0.4, tolerance=1e-7).value)
    rho = found.weights / jnp.sum(found.weights)
    divergence = lambda q: transport(rho, q) - transport(rho, rho) / 2 - transport(q, q) / 2
    expected = sum(float(s) * divergence(q) for s, q in zip(shares, masses, strict=True))
    assert_allclose(found.value, expected, atol=1e-5)
    nudged = rho * (1 + 0.05 * jnp.sin(3 * points[:, 0]))
    nudged = nudged / jnp.sum(nudged)
    worse = lambda q: transport(nudged, q) - transport(nudged, nudged) / 2 - transport(q, q) / 2
    assert sum(float(s) * worse(q) for s, q in zip(shares, masses, strict=True)) > expected


def test_error_is_the_true_violation_of_the_marginals():
    points, masses = gaussians((-1.0, 1.0), (0.5, 1.0))
    rough = barycenter.solve([points] * 2, masses, support=points, epsilon=0.05, max_steps=3)
    fine = barycenter.solve([points] * 2, masses, support=points, epsilon=0.05, tolerance=1e-6)
    assert not rough.converged
    assert rough.error > 1e-3
    assert fine.converged
    assert_allclose(jnp.sum(fine.weights), 1, atol=1e-6)


def test_given_supports_take_clouds_of_other_sizes_zero_masses_and_batches():
    support = jax.random.normal(jax.random.key(0), (12, 2), jnp.float32)
    clouds = [jax.random.normal(jax.random.key(k), (n, 2), jnp.float32) for k, n in ((1, 7), (2, 9))]
    masses = [jnp.array([[0.5, 0.5, 0, 0, 0, 0, 0], [1 / 7] * 7], jnp.float32), None]
    together = barycenter.solve(clouds, masses, support=support, epsilon=jnp.array([[1.0], [2.0], [4.0]], jnp.float32))
    assert together.weights.shape == (3, 2, 12)
    alone = barycenter.solve([clouds[0][:2], clouds[1]], support=support, epsilon=2.0)
    assert int(together.steps[1, 0]) == int(alone.steps)
    assert_allclose(together.weights[1, 0], alone.weights, atol=1e-5)


def test_free_points_of_gaussians_have_the_barycenter_s_covariance():
    # Commuting covariances: the Wasserstein barycenter's deviations are the weighted means of the deviations.
    z = jax.random.normal(jax.random.key(0), (150, 2), jnp.float64)
    z = (z - jnp.mean(z, 0)) @ jnp.linalg.inv(jnp.linalg.cholesky(jnp.cov(z.T, bias=True))).T
    clouds = [z * jnp.array([0.5, 2.0]) - 3, z[::-1] * jnp.array([1.5, 1.0]) + 1]
    found = barycenter.solve(clouds, shares=jnp.array([0.5, 0.5]), epsilon=0.3, tolerance=1e-4)
    assert found.converged
    assert_allclose(jnp.mean(found.points, 0), [-1, -1], atol=1e-3)
    assert_allclose(jnp.std(found.points, 0), [1.0, 1.5], rtol=0.03)
    blurred = barycenter.solve(clouds, epsilon=0.3, debiased=False, tolerance=1e-4)
    assert bool(jnp.all(jnp.std(blurred.points, 0) < jnp.std(found.points, 0)))


def cloud_of(space, key, centre, count=10, width=0.3):
    if space is sphere:
        return sphere.retract(centre, sphere.project(centre, width * jax.random.normal(key, (count, 3), jnp.float64)))
    return space.retract(centre, width * jax.random.normal(key, (count, space.dimension), jnp.float64))


SPACES = {"sphere": sphere, "so3": so3, "product": groups.product(so3, euclidean.Space(2))}


@pytest.mark.parametrize("name", SPACES)
def test_free_points_follow_an_isometry(name):
    space = SPACES[name]
    key = jax.random.key(0)
    g = so3.sample((), jnp.float64, key=jax.random.key(7))
    if space is sphere:
        centres, move = (jnp.array([0.0, 0.0, 1.0]), jnp.array([0.6, 0.0, 0.8])), lambda p: so3.act(g, p)
    else:
        e = space.identity((), jnp.float64)
        centres = e, space.exp(jnp.full(space.dimension, 0.5))
        h = g if space is so3 else (g, jnp.array([3.0, -2.0]))
        move = lambda p: space.compose(jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (10, *leaf.shape)), h), p)
    clouds = [cloud_of(space, k, c) for k, c in zip(jax.random.split(key), centres, strict=True)]
    plain = barycenter.solve(clouds, group=space, epsilon=0.05)
    moved = barycenter.solve([move(c) for c in clouds], group=space, epsilon=0.05)
    assert plain.converged
    jax.tree.map(lambda p, q: assert_allclose(p, q, atol=1e-9), move(plain.points), moved.points)
    assert_allclose(moved.value, plain.value, rtol=1e-8, atol=1e-12)


def test_one_free_point_is_the_frechet_mean():
    R = cloud_of(so3, jax.random.key(3), so3.exp(jnp.array([1.0, 2.0, 0.5])), count=20, width=0.5)
    found = barycenter.solve(
        [R[:8], R[8:]], shares=jnp.array([0.4, 0.6]), size=1, group=so3, epsilon=0.1, tolerance=1e-9
    )
    mean = statistics.frechet_mean(so3, R).mean
    assert_allclose(found.points[0], mean, atol=1e-8)


def test_the_debiased_barycenter_of_one_cloud_is_that_cloud():
    x = jax.random.normal(jax.random.key(0), (12, 2), jnp.float64)
    found = barycenter.solve([x, x], epsilon=0.5)
    assert_allclose(found.points, x, atol=1e-2)
    assert_allclose(found.value, 0, atol=1e-3)


@pytest.mark.slow
def test_a_cost_on_a_group_serves_a_given_support():
    R = so3.sample((30,), jnp.float32, key=jax.random.key(0))
    found = barycenter.solve([R[:10], R[10:25]], support=R, cost=costs.Geodesic(so3), epsilon=0.5)
    assert found.converged
    assert_allclose(jnp.sum(found.weights), 1, atol=1e-3)


@pytest.mark.parametrize(
    ("error", "name", "change"),
    [
        (ValueError, "clouds", {"clouds": []}),
        (ValueError, r"clouds\[1\]", {"clouds": [jnp.ones((3, 2)), jnp.full((3, 2), jnp.inf)]}),
        (ValueError, "masses", {"masses": [None]}),
        (ValueError, r"masses\[0\]", {"masses": [jnp.ones(3), None]}),
        (ValueError, "shares", {"shares": jnp.array([0.5, 0.6])}),
        (ValueError, "epsilon", {"epsilon": 0.0}),
        (ValueError, "size", {"size": 7}),
        (ValueError, "group", {"group": se3}),
        (ValueError, "support", {"support": jnp.ones((3, 2)), "size": 2}),
        (ValueError, "cost", {"cost": costs.Euclidean()}),
    ],
)
def test_bad_input_is_named(error, name, change, own_checks):
    arguments = {"clouds": [jnp.eye(3, 2), jnp.zeros((3, 2))], "epsilon": 1.0} | change
    with pytest.raises(error, match=name):
        barycenter.solve(**arguments)


def test_the_name_that_pot_gives_a_module_answers_a_call():
    with pytest.raises(TypeError, match=r"ot\.barycenter\.solve"):
        barycenter(1, 2)  # pyright: ignore[reportCallIssue]


def test_under_jit_the_record_is_honest():
    bad = jnp.full((3, 2), jnp.nan)
    assert not jax.jit(lambda x: barycenter.solve([x, x], epsilon=1.0))(bad).converged
    assert not jax.jit(lambda x: barycenter.solve([x, x], support=x, epsilon=1.0))(bad).converged
