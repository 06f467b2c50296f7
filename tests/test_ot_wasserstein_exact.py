"""Exact transport: against SciPy's assignment and linear programs, its certificate, laws of a distance, derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import optimize

from lie import euclidean, se3, so3
from ot import costs, wasserstein

RNG = np.random.default_rng(0)


def cloud(n, d=3, dtype=jnp.float64, shift=0.0, seed=0):
    return jnp.asarray(np.random.default_rng([n, d, seed]).standard_normal((n, d)) + shift, dtype)


def weights(n, dtype=jnp.float64, seed=0):
    a = np.random.default_rng([n, seed]).random(n)
    return jnp.asarray(a / a.sum(), dtype)


def marginals(n, m):
    return np.concatenate([np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))])


def by_linear_program(C, a, b):
    C, a, b = (np.asarray(v, np.float64) for v in (C, a, b))
    return optimize.linprog(C.ravel(), A_eq=marginals(*C.shape), b_eq=np.concatenate([a, b])).fun


def require_proof(found, C, a, b, tolerance):
    """Feasible plan and potentials whose values agree: optimality, whatever the solver did."""
    C, a, b, P, f, g = (np.asarray(v, np.float64) for v in (C, a, b, found.plan(), found.f, found.g))
    rounding = 64 * float(jnp.finfo(found.f.dtype).eps) * np.abs(C).max()
    assert bool(found.converged)
    assert P.min() >= 0
    assert_allclose(P.sum(1), a, atol=rounding)
    assert_allclose(P.sum(0), b, atol=rounding)
    assert (C - f[:, None] - g).min() >= -rounding
    assert abs(float(found.gap)) <= tolerance
    assert_allclose(float(found.value), (P * C).sum(), rtol=1e-6)
    assert (P * C).sum() - np.sum(a * f) - np.sum(b * g) <= tolerance * abs(float(found.value)) + rounding


@pytest.mark.parametrize(("n", "d"), [(1, 2), (2, 1), (40, 1), (100, 3), (300, 8)])
def test_equally_many_points_give_the_optimal_assignment(n, d, dtype):
    x, y = cloud(n, d, dtype), cloud(n, d, dtype, shift=0.5, seed=1)
    found = wasserstein.exact(x, y)
    C = np.asarray(costs.SquaredEuclidean()(x.astype(jnp.float64), y.astype(jnp.float64)))
    i, j = optimize.linear_sum_assignment(C)
    assert found.value.dtype == found.f.dtype == dtype
    assert_allclose(float(found.value), C[i, j].mean(), rtol=4e-7 if dtype == jnp.float32 else 1e-13)
    require_proof(found, C, np.full(n, 1 / n), np.full(n, 1 / n), 1e-12)


@pytest.mark.parametrize("cost", [costs.SquaredEuclidean(), costs.Euclidean(), costs.PowerNorm(3)], ids=str)
def test_any_weights_give_the_linear_program(cost, dtype):
    x, y, a, b = cloud(12, 3, dtype), cloud(17, 3, dtype, seed=1), weights(12, dtype), weights(17, dtype)
    a = (a.at[3].set(0) / (1 - a[3])).astype(dtype)
    found = wasserstein.exact(x, y, a, b, cost=cost)
    C = cost(x, y)
    assert_allclose(float(found.value), by_linear_program(C, a, b), rtol=1e-6)
    require_proof(found, C, a, b, 1e-6)
    assert np.isfinite(found.f).all(), "a point of weight 0 has a potential too"


def test_many_points_of_any_weight_need_only_a_few_edges():
    x, y, a, b = cloud(150), cloud(120, seed=1), weights(150), weights(120)
    found = wasserstein.exact(x, y, a, b)
    require_proof(found, costs.SquaredEuclidean()(x, y), a, b, 1e-12)
    assert (np.asarray(found.mass) > 0).sum() <= 150 + 120 - 1


@pytest.mark.parametrize("n", [5, 40])
def test_under_jit_an_auction_meets_its_tolerance(n, dtype):
    x, y = cloud(n, 3, dtype), cloud(n, 3, dtype, shift=0.3, seed=1)
    found, known = jax.jit(wasserstein.exact)(x, y), wasserstein.exact(x, y)
    assert found.value.dtype == dtype
    assert_allclose(found.value, known.value, rtol=1.2e-6)
    require_proof(found, costs.SquaredEuclidean()(x, y), np.full(n, 1 / n), np.full(n, 1 / n), 1e-6)


def test_under_jit_gradients_meet_the_tolerance_for_any_weights():
    x, y, a, b = cloud(10), cloud(14, seed=1), weights(10), weights(14)
    found = jax.jit(wasserstein.exact)(x, y, a, b)
    assert_allclose(found.value, wasserstein.exact(x, y, a, b).value, rtol=1e-6)
    require_proof(found, costs.SquaredEuclidean()(x, y), a, b, 1e-6)


def test_batches_and_vmap_solve_each_problem():
    x, y = cloud(6).reshape(2, 1, 3, 3), cloud(9, seed=1).reshape(3, 3, 3)
    found = wasserstein.exact(x, y)
    assert found.value.shape == (2, 3)
    assert found.plan().shape == (2, 3, 3, 3)
    for i, j in np.ndindex(2, 3):
        assert_allclose(found.value[i, j], wasserstein.exact(x[i, 0], y[j]).value, rtol=1e-12)
    mapped = jax.vmap(lambda x: wasserstein.exact(x, y[:2]).value)(x[:, 0])
    assert_allclose(mapped, found.value[:, :2], rtol=2e-6)
    C = jnp.stack([cloud(4, 4), cloud(4, 4, seed=1)])
    assert_allclose(
        wasserstein.exact(None, None, cost=costs.Precomputed(C)).value,
        [wasserstein.exact(None, None, cost=costs.Precomputed(c)).value for c in C],
    )


@pytest.mark.parametrize("space", [so3, se3, euclidean.Space(3)], ids=["so3", "se3", "R3"])
def test_distance_between_measures_on_groups(space):
    """W_1 and W_2 are distances, unchanged by what leaves the group's distance unchanged."""
    x, y, z, g = (space.sample((n,), jnp.float64, key=jax.random.key(k)) for k, n in enumerate((12, 12, 12, 1)))
    for p in (1.0, 2.0):
        W = lambda x, y, p=p: float(wasserstein.exact(x, y, cost=costs.Geodesic(space, p)).value) ** (1 / p)
        assert_allclose(W(x, y), W(y, x), rtol=1e-12)
        assert_allclose(W(x, x), 0, atol=1e-7)
        assert W(x, z) <= W(x, y) + W(y, z) + 1e-12
        assert_allclose(W(space.compose(g, x), space.compose(g, y)), W(x, y), rtol=1e-11)
        if space is so3:
            assert_allclose(W(space.compose(x, g), space.compose(y, g)), W(x, y), rtol=1e-11)


def test_translations_and_rotations_of_space():
    x, y, R, t = (
        cloud(20),
        cloud(20, seed=1),
        so3.sample((), jnp.float64, key=jax.random.key(0)),
        jnp.array([3.0, 1, -2]),
    )
    value = wasserstein.exact(x, y).value
    assert_allclose(wasserstein.exact(so3.act(R, x) + t, so3.act(R, y) + t).value, value, rtol=1e-12)
    centred = lambda v: v - v.mean(0)
    apart = jnp.sum((x.mean(0) - y.mean(0)) ** 2)  # W_2² splits into the means and the rest
    assert_allclose(wasserstein.exact(centred(x), centred(y)).value + apart, value, rtol=1e-12)


@pytest.mark.parametrize("traced", [False, True], ids=["host", "jit"])
def test_derivatives_are_those_of_finite_differences(traced):
    x, y, a, b = cloud(7), cloud(8, seed=1), weights(7), weights(8)
    dx, da = cloud(7, seed=2), weights(7, seed=2) - weights(7, seed=3)
    options = {"tolerance": 1e-9, "max_steps": 200_000} if traced else {}
    along = lambda t: wasserstein.exact(x + t * dx, y, a + t * da, b, **options).value
    slope = jax.jit(jax.grad(along)) if traced else jax.grad(along)
    by_difference = lambda h: (float(wasserstein.exact(x + h * dx, y, a + h * da, b).value) for h in (h, -h))
    plus, minus = by_difference(1e-6)
    assert_allclose(slope(0.0), (plus - minus) / 2e-6, rtol=1e-6)
    C = costs.SquaredEuclidean()(x, y)
    value = lambda C: wasserstein.exact(None, None, a, b, cost=costs.Precomputed(C)).value
    assert_allclose(jax.grad(value)(C), wasserstein.exact(x, y, a, b).plan(), atol=1e-15)
    curvature = jax.hessian(lambda t: wasserstein.exact(x + t * dx, y).value)(0.0) if not traced else None
    if curvature is not None:
        assert_allclose(curvature, 2 * jnp.mean(jnp.sum(dx * dx, -1)), rtol=1e-12)


def test_identical_and_coincident_points_have_finite_derivatives(dtype):
    x = jnp.concatenate([cloud(5, 3, dtype)] * 2)
    for cost in (costs.SquaredEuclidean(), costs.Euclidean()):
        found, gradient = jax.value_and_grad(lambda x, cost=cost: wasserstein.exact(x, x[::-1], cost=cost).value)(x)
        assert found == 0
        assert_allclose(gradient, np.zeros_like(x))
    assert bool(wasserstein.exact(x, x).converged)


def test_a_distant_pair_and_a_huge_cost_are_solved(dtype):
    x, y = cloud(30, 2, dtype, shift=1e4), cloud(30, 2, dtype, shift=1e4, seed=1)
    near = wasserstein.exact(x - 1e4, y - 1e4)
    assert_allclose(wasserstein.exact(x, y).value, near.value, rtol=1e-6)
    C = jnp.asarray(RNG.random((20, 20)) * 1e20, dtype)
    i, j = optimize.linear_sum_assignment(np.asarray(C, np.float64))
    found = wasserstein.exact(None, None, cost=costs.Precomputed(C))
    assert_allclose(float(found.value), np.asarray(C, np.float64)[i, j].mean(), rtol=1e-6)


@pytest.mark.usefixtures("own_checks")
def test_bad_input_is_refused_by_name():
    x, y, a = cloud(4), cloud(4, seed=1), weights(4)
    bad = [
        ((x.at[0, 0].set(jnp.nan), y), {}, "x: expected finite points"),
        ((x, y.at[0, 0].set(jnp.inf)), {}, "y: expected finite points"),
        ((x, y, a.at[0].set(-0.1)), {}, "a: expected finite weights >= 0"),
        ((x, y, a, 0 * a), {}, "b: expected weights with a positive total"),
        ((x, y, 2 * a, a), {}, "a and b: expected equal totals"),
        ((x[:0], y), {}, "x: expected at least one point"),
        ((x, y[:, :2]), {}, "x and y: expected points of one dimension"),
        ((x * 1e200, y), {}, "cost: expected finite costs"),
    ]
    for arguments, keywords, message in bad:
        with pytest.raises(ValueError, match=message):
            wasserstein.exact(*arguments, **keywords)
    with pytest.raises(TypeError, match="x"):
        wasserstein.exact(jnp.ones((4, 3), jnp.int32), y)


def test_under_jit_bad_input_does_not_converge():
    x, y, a = cloud(4), cloud(4, seed=1), weights(4)
    solve = jax.jit(wasserstein.exact)
    for arguments in (
        (x.at[0, 0].set(jnp.nan), y),
        (x, y, 2 * a, a),
        (x, y, a.at[0].add(-1), a),
        (x, y, a, a * jnp.nan),
    ):
        assert not bool(solve(*arguments).converged)
    assert not bool(jax.jit(lambda x: wasserstein.exact(x, y, max_steps=1))(x).converged)


@pytest.mark.slow
def test_a_thousand_points_are_certified():
    x, y = cloud(1024), cloud(1024, shift=0.5, seed=1)
    found = wasserstein.exact(x, y)
    C = np.asarray(costs.SquaredEuclidean()(x, y))
    i, j = optimize.linear_sum_assignment(C)
    assert_allclose(float(found.value), C[i, j].mean(), rtol=1e-12)
    assert float(found.gap) <= 1e-12
