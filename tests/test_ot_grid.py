"""Transport between images, one axis at a time: what the dense solve gives, its derivatives, and no n x n array."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from ot import costs, sinkhorn, wasserstein


def image(shape, dtype, seed, empty=0):
    rng = np.random.default_rng(seed)
    weights = rng.random(shape).ravel() ** 3
    weights[rng.permutation(weights.size)[:empty]] = 0
    return jnp.asarray(weights / weights.sum(), dtype)


def coordinates(sizes, dtype, stretch=1.0):
    return [jnp.asarray(stretch * np.linspace(0, 1, n), dtype) for n in sizes]


def dense(cost):
    return costs.Precomputed(cost())


def test_a_grid_is_the_cost_between_its_points(dtype):
    x, y = coordinates((3, 4, 2), dtype), coordinates((2, 5, 3), dtype, 1.3)
    points = [jnp.stack([p.ravel() for p in jnp.meshgrid(*axes, indexing="ij")], axis=1) for axes in (x, y)]
    cost = costs.grid(x, y)
    expected = costs.SquaredEuclidean()(*points)
    assert_allclose(cost(), expected, atol=8 * float(jnp.finfo(dtype).eps))
    some = jnp.asarray([5, 0, 23])
    assert_allclose(cost(some, None), cost()[some])
    inner = tuple(jnp.arange(1, len(axis)) for axis in y)
    chosen = np.arange(30).reshape(2, 5, 3)[1:, 1:, 1:].ravel()
    assert_allclose(cost(None, inner), cost()[:, chosen])


@pytest.mark.parametrize(
    ("way", "shapes"),
    [
        ("stored", ((12, 9), (7, 11))),
        *[
            pytest.param(way, shapes, marks=pytest.mark.slow)
            for way in ("stored", "made again")
            for shapes in (((12, 9), (7, 11)), ((40,), (30,)), ((4, 5, 3), (3, 6, 4)))
        ][1:],
    ],
)
def test_equals_the_dense_solve_down_to_small_epsilon(way, shapes, monkeypatch):
    from ot import _grid, _implicit

    if way == "made again":
        monkeypatch.setattr(_grid, "_STORED_ENTRIES", 0)
        _implicit._compiled.clear_cache()  # pyright: ignore[reportAttributeAccessIssue]
    cost = costs.grid(*(coordinates(shape, jnp.float32) for shape in shapes))
    a, b = (image(shape, jnp.float32, k, empty=3) for k, shape in enumerate(shapes))
    for epsilon in (0.05, 0.0005):  # 0.0005: |f|/ε is 500 and more, past what a kernel of one factor an axis can hold
        solved = sinkhorn.solve(None, None, a, b, cost=cost, epsilon=epsilon)
        expected = sinkhorn.solve(None, None, a, b, cost=dense(cost), epsilon=epsilon)
        assert bool(solved.converged)
        plan = solved.plan()
        assert float(jnp.abs(plan.sum(1) - a).sum() + jnp.abs(plan.sum(0) - b).sum()) <= 1e-3
        assert_allclose(solved.value, expected.value, rtol=2e-4)
        v = jnp.cos(jnp.arange(len(b), dtype=jnp.float32))
        assert_allclose(solved.apply(v), jnp.dot(plan, v, precision="highest"), atol=1e-6)
        assert_allclose(solved.apply(v[:, None])[:, 0], solved.apply(v), atol=1e-7)
        assert_allclose(solved.transport_cost(), jnp.sum(plan * cost()), rtol=1e-5)
    if way == "made again":
        _implicit._compiled.clear_cache()  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.slow
def test_a_tolerance_of_1e_6_is_met_and_a_batch_of_images_is_its_images():
    cost = costs.grid(coordinates((8, 10), jnp.float32))
    a = jnp.stack([image((8, 10), jnp.float32, seed) for seed in range(3)])
    b = image((8, 10), jnp.float32, 7)
    batch = sinkhorn.solve(None, None, a, b, cost=cost, epsilon=0.01, tolerance=1e-6)
    assert bool(batch.converged.all())
    for k in range(3):
        one = sinkhorn.solve(None, None, a[k], b, cost=dense(cost), epsilon=0.01, tolerance=1e-6)
        assert_allclose(batch.value[k], one.value, rtol=1e-5)
    i, j = batch.sample_pairs(5, key=jax.random.key(0))
    assert i.shape == j.shape == (3, 5)


@pytest.mark.slow
@pytest.mark.parametrize("soft", [False, True])
def test_derivatives_equal_those_of_the_dense_solve_to_second_order(soft):
    shape = (5, 4)
    matrices = costs.grid(coordinates(shape, jnp.float64), coordinates(shape, jnp.float64, 1.2)).matrices
    a, b = image(shape, jnp.float64, 0), image(shape, jnp.float64, 1)
    rng = np.random.default_rng(3)
    point = (matrices, a, jnp.float64(0.05))
    direction = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)) * leaf, point)

    def reading(kind, point):
        matrices, a, epsilon = point
        penalty = (0.5, 0.3) if soft else None
        weights = a if soft else a / a.sum()
        cost = kind(costs.Grid(*matrices))
        solved = sinkhorn.solve(
            None, None, weights, b, cost=cost, epsilon=epsilon, tolerance=1e-11, mass_penalty=penalty
        )
        return solved.value + jnp.sum(solved.apply(jnp.cos(jnp.arange(20.0))) ** 2) + solved.transport_cost()

    def derivatives(kind):
        function = lambda point: reading(kind, point)
        return jax.jvp(jax.grad(function), (point,), (direction,))

    for found, expected in zip(*map(jax.tree.leaves, map(derivatives, (lambda c: c, dense))), strict=True):
        assert_allclose(found, expected, rtol=1e-5, atol=1e-7 * max(1.0, float(jnp.abs(expected).max())))


def test_divergence_and_exact_distance_of_images():
    cost = costs.grid(coordinates((6, 5), jnp.float32))
    a, b = image((6, 5), jnp.float32, 0), image((6, 5), jnp.float32, 1)
    divergence = lambda a, b: wasserstein.sinkhorn_divergence(None, None, a, b, cost=cost, epsilon=0.02, tolerance=1e-5)
    assert abs(float(divergence(a, a).value)) <= 1e-6
    assert_allclose(divergence(a, b).value, divergence(b, a).value, rtol=1e-4)
    assert float(divergence(a, b).value) > 0
    exact = wasserstein.exact(None, None, a, b, cost=cost)
    assert_allclose(exact.value, wasserstein.exact(None, None, a, b, cost=dense(cost)).value, rtol=1e-6)
    uneven = costs.grid(coordinates((6, 5), jnp.float32), coordinates((6, 5), jnp.float32, 1.5))
    with pytest.raises(ValueError, match=r"cost: .* one grid"):
        wasserstein.sinkhorn_divergence(None, None, a, b, cost=uneven, epsilon=0.02)


def test_bad_grids_are_refused_by_name(own_checks):
    u = jnp.linspace(0, 1, 4, dtype=jnp.float32)
    with pytest.raises(ValueError, match="matrices: expected one for each axis"):
        costs.Grid()
    with pytest.raises(ValueError, match=r"matrices\[1\]: expected a matrix"):
        costs.Grid(jnp.ones((2, 3), jnp.float32), jnp.ones((1, 2, 3), jnp.float32))
    with pytest.raises(TypeError, match="one dtype"):
        costs.Grid(jnp.ones((2, 3), jnp.float32), jnp.ones((2, 3), jnp.float64))
    with pytest.raises(ValueError, match="x and y: expected as many axes"):
        costs.grid((u, u), (u,))
    with pytest.raises(ValueError, match=r"x and y: expected None with costs\.Grid"):
        sinkhorn.solve(u[:, None], u[:, None], cost=costs.grid((u, u)), epsilon=0.1)
    with pytest.raises(ValueError, match=r"a: expected shape"):
        sinkhorn.solve(None, None, jnp.ones(15, jnp.float32), cost=costs.grid((u, u)), epsilon=0.1)
    with pytest.raises(
        ValueError, match=r"cost: expected matrices of finite numbers|matrices\[0\]: expected only finite"
    ):
        sinkhorn.solve(None, None, cost=costs.Grid(jnp.full((2, 2), jnp.inf, jnp.float32)), epsilon=0.1)


MEMORY = """
import resource, jax, jax.numpy as jnp
from ot import costs, sinkhorn
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
u = jnp.linspace(0, 1, 128, dtype=jnp.float32)
centred = lambda c: jnp.exp(-20 * ((u - c) ** 2)[:, None] - 20 * (u - c) ** 2).ravel()
a, b = (w / w.sum() for w in (centred(0.3), centred(0.6)))
before = peak()
value = lambda a: sinkhorn.solve(None, None, a, b, cost=costs.grid((u, u)), epsilon=0.02)
solved, slope = value(a), jax.grad(lambda a: value(a / a.sum()).value)(a)
assert bool(solved.converged) and bool(jnp.isfinite(slope).all())
print(float(solved.transport_cost()), peak() - before)
"""


@pytest.mark.slow
def test_images_of_128_x_128_take_no_matrix_of_16384_x_16384():
    root, environment = Path(__file__).resolve().parents[1], dict(os.environ, HAAR_CHECK="0", JAX_ENABLE_X64="0")
    ran = subprocess.run([sys.executable, "-c", MEMORY], cwd=root, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    cost, megabytes = map(float, ran.stdout.split())
    assert_allclose(cost, 2 * 0.3**2, atol=0.02)  # a shift by (0.3, 0.3)
    assert megabytes < 400  # in float32 the matrix alone would take 1 GB
