"""Displacement interpolation: its ends, constant speed on every space, and that it is a geodesic of W_2."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import optimize

from lie import euclidean, group, se3, so2, so3, sphere, su2
from ot import costs, coupling, paths, sinkhorn

PRODUCT = group.product(so3, euclidean.Space(2))
SPACES = {"R^n": None, "so2": so2, "so3": so3, "su2": su2, "se3": se3, "product": PRODUCT, "sphere": sphere}
TIMES = np.linspace(-0.5, 1.5, 5)


def samples(space, seed, shape, dtype=jnp.float64):
    key = jax.random.key(seed)
    return jax.random.normal(key, (*shape, 3), dtype) if space is None else space.sample(shape, dtype, key=key)


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_path_runs_from_x_to_y_with_its_velocity(space, dtype):
    x, y = samples(space, 0, (6,), dtype), samples(space, 1, (6,), dtype)
    at = lambda t: paths.interpolate(x, y, jnp.asarray(t, dtype), group=space)
    close = lambda p, q, k: jax.tree.map(
        lambda a, b: assert_allclose(a, b, atol=k * float(jnp.finfo(dtype).eps), rtol=0), p, q
    )
    close(at(0.0), x, 32)
    close(at(1.0), y, 256)
    assert {leaf.dtype for leaf in jax.tree.leaves(at(0.3))} == {jnp.dtype(dtype)}
    speed = paths.velocity(x, y, jnp.asarray(0.3, dtype), group=space)
    # A step of velocity from time t arrives at time t + s: for all s, as velocities of geodesics are constant.
    stepped = (euclidean if space is None else space).retract(at(0.3), 0.4 * speed)
    close(stepped, at(0.7), 256)


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_times_broadcast_against_the_batch(space):
    x, y, t = samples(space, 0, (5, 1)), samples(space, 1, (4,)), jnp.linspace(0.0, 1.0, 5)[:, None]
    path = jax.jit(lambda x, y: paths.interpolate(x, y, t, group=space))(x, y)
    whole = jax.tree.map(lambda part: part[2, 3], path)
    one = paths.interpolate(jax.tree.map(lambda p: p[2, 0], x), jax.tree.map(lambda p: p[3], y), 0.5, group=space)
    jax.tree.map(lambda a, b: assert_allclose(a, b, atol=1e-14), whole, one)
    assert paths.velocity(x, y, t, group=space).shape[:-1] == (5, 4)


@pytest.mark.parametrize(
    ("space", "cost"), [(None, costs.SquaredEuclidean()), (sphere, costs.Sphere()), (so3, costs.Geodesic(so3))]
)
def test_optimal_pairs_travel_along_a_geodesic_of_the_transport_distance(space, cost):
    x, y = samples(space, 0, (30,)), samples(space, 1, (30,))
    pairs = coupling.pair(x, y, cost=cost, key=jax.random.key(0))
    at = lambda t: paths.interpolate(x[pairs.i], y[pairs.j], t, group=space)

    def distance(p, q):
        C = np.asarray(cost(p, q))
        return np.sqrt(C[optimize.linear_sum_assignment(C)].mean())

    whole = distance(x, y)
    for s, t in [(0.0, 0.3), (0.3, 0.8), (0.8, 1.0)]:
        assert_allclose(distance(at(s), at(t)), (t - s) * whole, rtol=1e-7)


@pytest.mark.parametrize("space", [None, so3, sphere])
def test_a_pair_that_stays_has_no_velocity(space):
    x = samples(space, 4, (3,))
    assert_allclose(paths.velocity(x, x, 0.5, group=space), 0, atol=1e-15)
    assert jax.grad(lambda t: jnp.sum(paths.velocity(x, x, t, group=space) ** 2))(0.5) == 0


@pytest.mark.slow
def test_displacement_draws_from_the_interpolated_plan():
    x, y = samples(None, 0, (5,)), samples(None, 1, (4,)) + 3
    plan = sinkhorn.solve(x, y, epsilon=1.0, tolerance=1e-8)
    z = paths.displacement(plan, 0.25, size=20_000, key=jax.random.key(2))
    P = np.asarray(plan.plan())
    points = 0.75 * np.asarray(x)[:, None] + 0.25 * np.asarray(y)
    mean, second = np.einsum("ij,ijd->d", P, points), np.einsum("ij,ijd->d", P, points**2)
    deviation = np.sqrt(second - mean**2)
    assert np.all(np.abs(np.mean(z, 0) - mean) < 5 * deviation / np.sqrt(20_000))
    with pytest.raises(ValueError, match="potentials"):
        paths.displacement(sinkhorn.solve(x[None], y, epsilon=1.0), 0.5, size=2, key=jax.random.key(0))


def test_bad_input_is_named(own_checks):
    with pytest.raises(TypeError, match="group"):
        paths.interpolate(jnp.ones(3), jnp.ones(3), 0.5, group="so3")
    with pytest.raises(TypeError, match="t: expected"):
        paths.interpolate(jnp.ones(3), jnp.ones(3), "half")  # pyright: ignore[reportArgumentType]
