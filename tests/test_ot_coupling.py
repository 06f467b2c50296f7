"""Index pairs against brute force, the marginals of what is drawn, and point sets matched up to rigid motions."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from lie import so3
from ot import costs, coupling, sinkhorn

KEY = jax.random.key(3)


def normal(seed, *shape, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def best_permutation(C):
    n = len(C)
    return min(itertools.permutations(range(n)), key=lambda p: sum(C[i, p[i]] for i in range(n)))


def kabsch(x, y):
    """The least mean of |R x_i + t − y_i|² over proper rigid motions, by NumPy's SVD."""
    x, y = x - x.mean(0), y - y.mean(0)
    U, s, Vt = np.linalg.svd(y.T @ x)
    s[-1] *= np.sign(np.linalg.det(U @ Vt))
    return (np.sum(x**2) + np.sum(y**2) - 2 * s.sum()) / len(x)


def test_small_batches_are_paired_optimally(dtype):
    x, y = normal(0, 3, 6, 2, dtype=dtype), normal(1, 6, 2, dtype=dtype)  # two leading shapes that broadcast
    pairs = coupling.pair(x, y, key=KEY)
    C = np.asarray(costs.SquaredEuclidean()(x, y))
    assert_array_equal(pairs.i, np.broadcast_to(np.arange(6), (3, 6)))
    assert [tuple(row.tolist()) for row in pairs.j] == [best_permutation(matrix) for matrix in C]
    assert bool(pairs.converged.all())
    assert pairs.error.dtype == dtype


def test_exact_pairs_on_a_group_follow_a_common_rotation():
    R, g = so3.sample((7,), jnp.float64, key=KEY), so3.sample((), jnp.float64, key=jax.random.key(9))
    Q = so3.sample((7,), jnp.float64, key=jax.random.key(8))
    cost = costs.Geodesic(so3)
    plain = coupling.pair(R, Q, cost=cost, key=KEY)
    moved = coupling.pair(so3.compose(g, R), so3.compose(g, Q), cost=cost, key=KEY)
    assert_array_equal(plain.j, moved.j)


@pytest.mark.parametrize("size", [4, 6, 20])
def test_exact_pairs_of_another_number_stay_within_the_assignment(size):
    x, y = normal(0, 6, 2), normal(1, 6, 2)
    partner = np.asarray(coupling.pair(x, y, key=KEY).j)
    pairs = coupling.pair(x, y, size=size, key=KEY)
    assert pairs.i.shape == (size,)
    assert_array_equal(pairs.j, partner[np.asarray(pairs.i)])
    assert len(set(pairs.i.tolist())) == size or size > 6


def test_entropic_pairs_follow_the_plan_and_its_marginals():
    x, y = normal(0, 6, 2), normal(1, 5, 2)
    a = jnp.array([0.3, 0.0, 0.2, 0.2, 0.2, 0.1], jnp.float32)
    count = 40_000
    pairs = jax.jit(lambda key: coupling.pair(x, y, a, epsilon=0.5, size=count, key=key))(KEY)
    assert pairs.converged
    P = np.asarray(sinkhorn.solve(x, y, a, epsilon=0.5).plan(), float)
    drawn = np.zeros((6, 5))
    np.add.at(drawn, (np.asarray(pairs.i), np.asarray(pairs.j)), 1 / count)
    assert drawn[1].sum() == 0
    assert np.abs(drawn - P).max() < 5 * np.sqrt(P.max() / count)


def test_without_epsilon_a_traced_call_draws_from_a_sharp_plan_for_every_batch_element():
    x = normal(0, 2, 8, 2)
    pairs = jax.jit(lambda x, key: coupling.pair(x, x + 5, key=key))(x, KEY)
    assert pairs.i.shape == (2, 8)
    assert pairs.error.shape == (2,)
    near = np.mean(np.asarray(pairs.i) == np.asarray(pairs.j))
    assert near > 0.5  # the identity is optimal; measured 0.94


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_alignment_recovers_a_moved_and_shuffled_molecule(dtype, noise):
    n = 12
    x = normal(5, n, 3, dtype=dtype)
    R, t = so3.sample((), dtype, key=KEY), jnp.array([1.0, -2.0, 3.0], dtype)
    order = jax.random.permutation(jax.random.key(1), n)
    y = (so3.act(R, x) + t + noise * normal(6, n, 3, dtype=dtype))[order]
    found = coupling.align(x, y)
    assert_array_equal(order[found.permutation], np.arange(n))
    assert found.converged
    assert found.rotation.dtype == dtype
    motion = np.abs(np.asarray(so3.act(found.rotation, x) + found.translation - y[found.permutation])).max()
    if noise == 0:
        assert motion < 64 * float(jnp.finfo(dtype).eps)
    assert_allclose(
        found.value,
        kabsch(np.asarray(x, float), np.asarray(y, float)[np.asarray(found.permutation)]),
        atol=64 * float(jnp.finfo(dtype).eps),
    )


def test_alignment_of_a_few_points_is_the_global_optimum():
    x, y = np.asarray(normal(0, 4, 5, 3, dtype=jnp.float64)), np.asarray(normal(1, 4, 5, 3, dtype=jnp.float64))
    found = coupling.align(x, y, starts=64)
    brute = [min(kabsch(a, b[list(p)]) for p in itertools.permutations(range(5))) for a, b in zip(x, y, strict=True)]
    assert found.rotation.shape == (4, 3, 3)
    assert_allclose(found.value, brute, rtol=1e-10)


def test_alignment_does_not_depend_on_pose_or_order():
    x, y = normal(0, 7, 3, dtype=jnp.float64), normal(1, 7, 3, dtype=jnp.float64)
    R, order = so3.sample((), jnp.float64, key=KEY), jnp.array([3, 1, 6, 0, 2, 5, 4])
    plain = coupling.align(x, y, starts=64)
    moved = coupling.align(so3.act(R, x)[order] + 5, y, starts=64)
    assert_allclose(moved.value, plain.value, rtol=1e-10)
    assert_allclose(so3.compose(moved.rotation, R), plain.rotation, atol=1e-10)


def test_reflections_are_found_only_where_asked_for():
    x = normal(2, 8, 3, dtype=jnp.float64)
    mirrored = x * jnp.array([1.0, 1.0, -1.0])
    proper, any_motion = coupling.align(x, mirrored), coupling.align(x, mirrored, reflections=True)
    assert_allclose(np.linalg.det(proper.rotation), 1, atol=1e-12)
    assert proper.value > 0.01
    assert_allclose(np.linalg.det(any_motion.rotation), -1, atol=1e-12)
    assert_allclose(any_motion.value, 0, atol=1e-20)


def test_only_points_of_one_type_are_matched():
    x = normal(0, 2, 6, 3, dtype=jnp.float64)
    y = x[:, ::-1]
    types_x = np.array([0, 0, 1, 1, 2, 2])
    found = coupling.align(x, y, types=(types_x, types_x))
    assert_array_equal(types_x[found.permutation], np.broadcast_to(types_x, (2, 6)))
    free = coupling.align(x, y, types=(types_x, types_x[::-1]))
    assert_array_equal(free.permutation, np.broadcast_to(np.arange(6)[::-1], (2, 6)))
    assert_allclose(free.value, 0, atol=1e-20)


def test_one_point_and_coinciding_points_align():
    one = coupling.align(jnp.ones((1, 3)), jnp.zeros((1, 3)))
    assert_allclose(one.rotation @ jnp.ones(3) + one.translation, 0, atol=1e-6)
    same = coupling.align(jnp.ones((4, 3)), jnp.ones((4, 3)))
    assert same.value == 0
    assert bool(jnp.isfinite(same.rotation).all())


@pytest.mark.parametrize(
    ("error", "name", "call"),
    [
        (ValueError, "y", lambda: coupling.align(jnp.ones((3, 3)), jnp.ones((4, 3)))),
        (ValueError, "x", lambda: coupling.align(jnp.ones((3, 2)), jnp.ones((3, 2)))),
        (ValueError, "x", lambda: coupling.align(jnp.full((3, 3), jnp.inf), jnp.ones((3, 3)))),
        (
            ValueError,
            "types",
            lambda: coupling.align(jnp.ones((2, 3)), jnp.ones((2, 3)), types=(np.array([0, 0]), np.array([0, 1]))),
        ),
        (
            TypeError,
            "types of x",
            lambda: coupling.align(jnp.ones((2, 3)), jnp.ones((2, 3)), types=np.array([0.0, 1.0])),
        ),
        (TypeError, "jit", lambda: jax.jit(coupling.align)(jnp.ones((2, 3)), jnp.ones((2, 3)))),
        (ValueError, "size", lambda: coupling.pair(jnp.ones((2, 3)), jnp.ones((2, 3)), size=0, key=KEY)),
        (ValueError, "y", lambda: coupling.pair(jnp.ones((2, 3)), jnp.full((2, 3), jnp.nan), key=KEY)),
        (TypeError, "cost", lambda: coupling.pair(jnp.ones((2, 3)), jnp.ones((2, 3)), cost="far", key=KEY)),
    ],
)
def test_bad_input_is_named(error, name, call, own_checks):
    with pytest.raises(error, match=name):
        call()
