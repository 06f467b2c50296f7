"""Many marginals: message passing against the dense tensor and against linear programming, marginals, derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import optimize

from ot import costs, multimarginal

SIZES = (4, 5, 3, 6)


def clouds(dtype=jnp.float64, sizes=SIZES, seed=0):
    keys = jax.random.split(jax.random.key(seed), len(sizes))
    return [jax.random.normal(key, (n, 2), dtype) for key, n in zip(keys, sizes, strict=True)]


def weights_of(sizes=SIZES, dtype=jnp.float64):
    rows = [np.arange(1, n + 1) for n in sizes]
    return [jnp.asarray(row / row.sum(), dtype) for row in rows]


def marginals(plan):
    axes = range(plan.ndim)
    return [np.sum(plan, axis=tuple(j for j in axes if j != k)) for k in axes]


def tensor_of(points, edges):
    count, total = len(points), np.zeros(())
    for i, j in edges:
        i, j = sorted((i, j))
        C = np.asarray(costs.SquaredEuclidean()(points[i], points[j]))
        shape = [1] * count
        shape[i], shape[j] = C.shape
        total = total + C.reshape(shape)
    return total


def solve(points, weights, edges, **options):
    return multimarginal.solve(points, weights, edges=edges, epsilon=0.7, tolerance=1e-11, **options)


@pytest.mark.parametrize("edges", ["chain", "star", ((1, 0), (1, 3), (2, 3))])
def test_messages_on_a_tree_give_the_plan_of_the_dense_tensor(edges):
    points, weights = clouds(), weights_of()
    tree = solve(points, weights, edges)
    assert tree.edges is not None
    pairs = {"chain": [(0, 1), (1, 2), (2, 3)], "star": [(0, 1), (0, 2), (0, 3)]}.get(edges, edges)
    C = jnp.asarray(tensor_of(points, pairs))
    index = [jnp.arange(n, dtype=jnp.float64)[:, None] for n in SIZES]
    by_index = lambda *x: C[tuple(part[0].astype(int) for part in x)]
    dense = multimarginal.solve(index, weights, joint_cost=by_index, epsilon=0.7, tolerance=1e-11)
    assert dense.edges is None
    assert tree.converged
    assert dense.converged
    assert_allclose(tree.plan(), dense.plan(), atol=1e-12)
    assert_allclose(tree.value, dense.value, rtol=1e-11)
    for i, j in [(0, 1), (0, 3), (3, 0), (2, 1)]:
        assert_allclose(tree.pair(i, j), dense.pair(i, j), atol=1e-11)


@pytest.mark.parametrize("edges", ["chain", "star", None])
def test_error_is_the_true_violation_and_the_marginals_hold(edges, dtype):
    points, weights = clouds(dtype), weights_of(dtype=dtype)
    found = multimarginal.solve(points, weights, edges=edges, epsilon=0.3, tolerance=1e-3)
    plan = np.asarray(found.plan(), float)
    violation = sum(
        np.abs(have - np.asarray(want, float)).sum() for have, want in zip(marginals(plan), weights, strict=True)
    )
    assert found.value.dtype == dtype
    assert found.converged
    assert violation <= 1.01e-3
    assert_allclose(found.error, violation, rtol=0.05, atol=64 * float(jnp.finfo(dtype).eps))


def test_small_epsilon_approaches_the_linear_programme():
    sizes = (3, 4, 3)
    points, weights = clouds(sizes=sizes), weights_of(sizes)
    C = tensor_of(points, [(0, 1), (0, 2), (1, 2)])
    rows = [
        np.moveaxis(np.eye(n)[k].reshape(-1, *[1] * 2), 0, axis) * np.ones(sizes)
        for axis, n in enumerate(sizes)
        for k in range(n)
    ]
    exact = optimize.linprog(
        C.ravel(), np.zeros((0, C.size)), [], np.stack([r.ravel() for r in rows]), np.concatenate(weights)
    )
    found = multimarginal.solve(points, weights, epsilon=0.02, tolerance=1e-9, max_steps=50_000)
    assert found.converged
    gap = float(np.sum(np.asarray(found.plan()) * C)) - exact.fun
    assert -1e-8 < gap < 0.02 * np.log(36)  # KL(P | a ⊗ b ⊗ c) <= log of the number of cells, weights being tame


def test_two_marginals_satisfy_the_optimality_of_entropic_transport():
    points, weights = clouds(sizes=(6, 7)), weights_of((6, 7))
    found = multimarginal.solve(points, weights, epsilon=0.5, tolerance=1e-12)
    P = np.asarray(found.plan())
    C = np.asarray(costs.SquaredEuclidean()(*points))
    primal = np.sum(P * C) + 0.5 * np.sum(P * np.log(P / np.multiply.outer(*map(np.asarray, weights))))
    assert_allclose(found.value, primal, rtol=1e-10)
    assert_allclose(found.pair(1, 0), P.T, rtol=1e-12)


def test_value_differentiates_by_the_envelope_theorem():
    points, weights = clouds(), weights_of()

    def value(points, weights, epsilon):
        return multimarginal.solve(points, weights, edges="chain", epsilon=epsilon, tolerance=1e-12).value

    gradients = jax.grad(value, (0, 1, 2))(points, weights, 0.5)
    h = 1e-5
    move = jax.tree.map(lambda p: jax.random.normal(jax.random.key(p.shape[0]), p.shape, p.dtype), points)
    shift = [jax.random.normal(jax.random.key(n), (n,), jnp.float64) * w for n, w in zip(SIZES, weights, strict=True)]
    shift = [s - w * jnp.sum(s) for s, w in zip(shift, weights, strict=True)]  # stays a probability
    slope = lambda f: float((f(h) - f(-h)) / (2 * h))
    plus = lambda tree, step, t: jax.tree.map(lambda p, s: p + t * s, tree, step)
    dot = lambda tree, step: float(sum(jnp.sum(p * s) for p, s in zip(tree, step, strict=True)))
    assert_allclose(dot(gradients[0], move), slope(lambda t: value(plus(points, move, t), weights, 0.5)), rtol=1e-6)
    assert_allclose(dot(gradients[1], shift), slope(lambda t: value(points, plus(weights, shift, t), 0.5)), rtol=1e-6)
    assert_allclose(gradients[2], slope(lambda t: value(points, weights, 0.5 + t)), rtol=1e-6)


def test_zero_weights_are_absent_points():
    points, weights = clouds(sizes=(4, 5, 3)), weights_of((4, 5, 3))
    padded = [jnp.concatenate([p, jnp.full((2, 2), 7.0, p.dtype)]) for p in points]
    wide = [jnp.concatenate([w, jnp.zeros(2, w.dtype)]) for w in weights]
    found, plain = solve(padded, wide, "star"), solve(points, weights, "star")
    assert_allclose(found.plan()[:4, :5, :3], plain.plan(), atol=1e-11)
    assert float(jnp.sum(found.plan()[4:])) == 0
    gradient = jax.grad(lambda p: solve(p, wide, "star").value)(padded)
    assert all(bool(jnp.isfinite(part).all()) for part in gradient)


@pytest.mark.slow
def test_each_batch_element_stops_on_its_own():
    points = clouds(jnp.float32)
    stacked = [jnp.stack([p, 3 * p, p - p]) for p in points]
    together = multimarginal.solve(stacked, edges="chain", epsilon=0.5)
    alone = [multimarginal.solve([p[k] for p in stacked], edges="chain", epsilon=0.5) for k in range(3)]
    assert together.error.shape == (3,)
    assert together.steps.tolist() == [int(one.steps) for one in alone]
    assert len(set(together.steps.tolist())) > 1
    assert_allclose(together.pair(0, 2), jnp.stack([one.pair(0, 2) for one in alone]), rtol=1e-4, atol=1e-7)


def test_two_leading_axes_of_different_length_broadcast():
    points = clouds(jnp.float32, sizes=(3, 4))
    many = [
        points[0] + jnp.zeros((5, 1, 1, 1), jnp.float32),
        points[1] * jnp.array([1.0, 2.0], jnp.float32)[:, None, None],
    ]
    found = jax.jit(lambda many: multimarginal.solve(many, epsilon=1.0))(many)
    assert found.value.shape == (5, 2)
    assert found.plan().shape == (5, 2, 3, 4)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("points", {"points": [jnp.ones((3, 2))]}),
        ("points", {"points": [jnp.full((3, 2), jnp.nan), jnp.ones((3, 2))]}),
        ("epsilon", {"epsilon": 0.0}),
        ("epsilon", {"epsilon": -1.0}),
        ("weights", {"weights": [None]}),
        (r"weights\[1\]", {"weights": [None, jnp.array([0.5, 0.6, -0.1])]}),
        (r"weights\[0\]", {"weights": [jnp.ones(3), None]}),
        ("edges", {"edges": "ring"}),
        ("edges", {"edges": [(0, 2)]}),
        ("cost", {"cost": [costs.SquaredEuclidean()] * 3}),
    ],
)
def test_bad_input_is_named(name, change, own_checks):
    arguments = {"points": [jnp.ones((3, 2)), jnp.zeros((3, 2))], "epsilon": 1.0} | change
    with pytest.raises(ValueError, match=name):
        multimarginal.solve(**arguments)


def test_under_jit_the_record_is_honest():
    found = jax.jit(lambda p: multimarginal.solve(p, epsilon=1.0))([jnp.full((3, 2), jnp.nan), jnp.ones((3, 2))])
    assert not found.converged
    short = multimarginal.solve(clouds(), weights_of(), epsilon=0.01, max_steps=10)
    assert not short.converged
    assert short.error > 1e-3
