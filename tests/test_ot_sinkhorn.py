"""Laws of entropic transport: marginals, duality, closed forms, invariances, derivatives, honesty about bad input."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.special import logsumexp

from lie import so3
from ot import _ascent, _kernel, _pairs, costs, sinkhorn


def clouds(n, m, d, dtype=jnp.float32, seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.random((n, d)), dtype), jnp.asarray(rng.random((m, d)) ** 2, dtype)


def random_weights(n, dtype, seed=0):
    a = np.random.default_rng(seed).random(n)
    return jnp.asarray(a / a.sum(), dtype)


def true_error(potentials, C, a, b, epsilon):
    """Both marginals' L1 violation, in float64 from the potentials as returned."""
    f, g, f_low, g_low = (
        np.asarray(p, np.float64) for p in (potentials.f, potentials.g, potentials.f_low, potentials.g_low)
    )
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    plan = a[:, None] * b * np.exp(((f + f_low)[:, None] + (g + g_low) - C) / float(epsilon))
    return (np.abs(plan.sum(1) - a).sum() + np.abs(plan.sum(0) - b).sum()) / plan.sum()


def squared(x, y):
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    return ((x[:, None] - y) ** 2).sum(-1)


def log_domain(C, a, b, epsilon, iterations=20_000):
    """An independent oracle: Sinkhorn's iteration in logarithms, in float64 NumPy."""
    g = np.zeros(C.shape[1])
    for _ in range(iterations):
        f = -epsilon * logsumexp((g - C) / epsilon, b=b[None], axis=1)
        before, g = g, -epsilon * logsumexp((f[:, None] - C) / epsilon, b=a[:, None], axis=0)
        if np.abs(g - before).max() < 1e-14:
            break
    return f, g


def test_converged_means_that_both_marginals_hold_in_float64(dtype):
    x, y = clouds(60, 40, 3, dtype)
    a, b = random_weights(60, dtype), random_weights(40, dtype, 1)
    C = squared(x, y)
    for tolerance in (1e-3, 1e-6):
        for relative in (0.05, 0.01, 0.001):
            epsilon = float(relative * C.mean())
            solved = sinkhorn.solve(x, y, a, b, epsilon=epsilon, tolerance=tolerance)
            assert bool(solved.converged)
            assert true_error(solved, C, a, b, epsilon) <= tolerance
            assert {leaf.dtype for leaf in (solved.f, solved.g, solved.value, solved.error)} == {jnp.dtype(dtype)}


def test_value_and_potentials_equal_those_of_an_independent_solver():
    x, y = clouds(60, 40, 3, jnp.float64)
    a, b = random_weights(60, jnp.float64), random_weights(40, jnp.float64, 1)
    C, epsilon = squared(x, y), 0.02
    f, g = log_domain(C, np.asarray(a), np.asarray(b), epsilon)
    solved = sinkhorn.solve(x, y, a, b, epsilon=epsilon, tolerance=1e-10)
    assert_allclose(solved.value, np.sum(a * f) + np.sum(b * g), rtol=1e-9)
    shift = np.mean(np.asarray(solved.f) - f)
    assert_allclose(solved.f - shift, f, atol=1e-8)
    assert_allclose(solved.g + shift, g, atol=1e-8)
    assert_allclose(solved.transport_cost(), np.sum(solved.plan() * C), rtol=1e-12)


def test_weak_duality_and_the_gap_closes():
    x, y = clouds(60, 40, 3, jnp.float64)
    epsilon = 0.05
    solved = sinkhorn.solve(x, y, epsilon=epsilon, tolerance=1e-8)
    plan = np.asarray(solved.plan())
    primal = np.sum(plan * squared(x, y)) + epsilon * np.sum(plan * np.log(plan * 2400))
    assert_allclose(solved.value, primal, rtol=1e-6)
    rough = sinkhorn.solve(x, y, epsilon=epsilon, tolerance=0.1)
    assert float(rough.value) <= primal * (1 + 1e-12)


def test_gaussian_closed_form():
    # Janati et al. 2020, Theorem 1, in one dimension: OT_ε with KL(P | a b^T) between N(0, s²) and N(m, t²)
    points = jnp.linspace(-6, 6, 700)
    s, t, m, epsilon = 0.7, 1.1, 0.4, 0.8
    law = lambda mean, scale: (w := np.exp(-((points - mean) ** 2) / (2 * scale**2))) / w.sum()
    solved = sinkhorn.solve(points[:, None], points[:, None], law(0, s), law(m, t), epsilon=epsilon, tolerance=1e-6)
    sigma_squared = epsilon / 2
    D = np.sqrt(4 * s**2 * t**2 + sigma_squared**2)
    expected = m**2 + s**2 + t**2 - D + sigma_squared * (1 - np.log(2 * sigma_squared) + np.log(D + sigma_squared))
    assert_allclose(solved.value, expected, rtol=1e-4)


@pytest.mark.parametrize("move", ["translation", "rotation", "offset of 1e4"])
def test_isometries_leave_the_value(move):
    x, y = clouds(60, 40, 3)
    turn = so3.sample((), jnp.float32, key=jax.random.key(1))
    moved = {
        "translation": lambda z: z + jnp.float32(0.5),
        "rotation": lambda z: so3.act(turn, z),
        "offset of 1e4": lambda z: z + jnp.float32(8192),  # exact in the wide type, if not in float32's squares
    }[move]
    x, y = (jnp.round(z * 1024) / 1024 for z in (x, y))  # so that the translations are exact
    before = sinkhorn.solve(x, y, epsilon=0.02)
    after = sinkhorn.solve(moved(x), moved(y), epsilon=0.02)
    assert bool(after.converged)
    assert_allclose(after.value, before.value, rtol=2e-6)


def test_multiplication_from_both_sides_leaves_the_value_on_rotations():
    keys = jax.random.split(jax.random.key(0), 4)
    x, y = (so3.sample((40,), jnp.float32, key=key) for key in keys[:2])
    g, h = (so3.sample((), jnp.float32, key=key) for key in keys[2:])
    solve = partial(sinkhorn.solve, cost=costs.Geodesic(so3), epsilon=0.3, tolerance=1e-5)
    before = solve(x, y)
    both = lambda z: so3.compose(so3.compose(g, z), h)
    assert bool(before.converged)
    assert_allclose(solve(both(x), both(y)).value, before.value, rtol=1e-5)
    assert_allclose(solve(y, x).value, before.value, rtol=1e-5)


def test_a_matrix_a_function_and_a_record_agree():
    x, y = clouds(60, 40, 3)
    record = sinkhorn.solve(x, y, epsilon=0.05)
    matrix = sinkhorn.solve(None, None, cost=costs.Precomputed(costs.SquaredEuclidean()(x, y)), epsilon=0.05)
    function = sinkhorn.solve(x, y, cost=lambda p, q: jnp.sum((p - q) ** 2), epsilon=0.05)
    assert_allclose([matrix.value, function.value], record.value, rtol=1e-6)
    assert_allclose(matrix.plan(), record.plan(), atol=1e-6)


def test_points_without_weight_change_nothing_and_padding_is_free():
    x, y = clouds(50, 35, 3)
    a, b = (jnp.where(jnp.arange(n) < k, jnp.float32(1 / k), 0) for n, k in ((60, 50), (40, 35)))
    far = jnp.full((10, 3), jnp.float32(30))
    padded = sinkhorn.solve(jnp.concatenate([x, far]), jnp.concatenate([y, far[:5]]), a, b, epsilon=0.03)
    plain = sinkhorn.solve(x, y, epsilon=0.03)
    assert_allclose(padded.value, plain.value, rtol=1e-6)
    assert bool(jnp.isfinite(padded.f).all() & jnp.isfinite(padded.g).all())
    assert float(jnp.abs(padded.plan()[50:]).max()) == 0


def test_a_batch_is_its_problems_and_a_hard_one_does_not_disturb_an_easy_one():
    x, y = clouds(60, 40, 3)
    epsilon = jnp.asarray([[0.1], [0.001]], jnp.float32)
    xs = jnp.stack([x, x[::-1] * 2, x + 1])
    batch = sinkhorn.solve(xs, y, epsilon=epsilon, tolerance=1e-5)
    assert batch.value.shape == (2, 3)
    assert bool(batch.converged.all())
    for i, j in np.ndindex(2, 3):
        one = sinkhorn.solve(xs[j], y, epsilon=epsilon[i, 0], tolerance=1e-5)
        assert_allclose(batch.value[i, j], one.value, rtol=1e-5)
    assert_allclose(batch.apply(jnp.ones((2, 3, 40, 2), jnp.float32))[..., 0], jnp.full((2, 3, 60), 1 / 60), rtol=1e-3)


def test_soft_marginals_meet_their_optimality_conditions_and_tend_to_hard_ones():
    x, y = clouds(60, 40, 3, jnp.float64)
    a, b = random_weights(60, jnp.float64), 2 * random_weights(40, jnp.float64, 1)
    epsilon, rho_a, rho_b = 0.05, 0.3, 0.5
    solved = sinkhorn.solve(x, y, a, b, epsilon=epsilon, mass_penalty=(rho_a, rho_b), tolerance=1e-9)
    plan = solved.plan()
    assert_allclose(plan.sum(1), a * jnp.exp(-solved.f / rho_a), rtol=1e-6)
    assert_allclose(plan.sum(0), b * jnp.exp(-solved.g / rho_b), rtol=1e-6)
    generalised = lambda p, q: jnp.sum(p * jnp.log(p / q)) - jnp.sum(p) + jnp.sum(q)
    primal = jnp.sum(plan * squared(x, y)) + epsilon * generalised(plan, a[:, None] * b)
    primal += rho_a * generalised(plan.sum(1), a) + rho_b * generalised(plan.sum(0), b)
    assert_allclose(solved.value, primal, rtol=1e-7)
    stiff = sinkhorn.solve(x, y, a, b / 2, epsilon=epsilon, mass_penalty=(1e5, 1e5), tolerance=1e-8)
    assert_allclose(stiff.value, sinkhorn.solve(x, y, a, b / 2, epsilon=epsilon, tolerance=1e-8).value, rtol=1e-5)


def test_a_warm_start_takes_one_sweep():
    x, y = clouds(60, 40, 3)
    cold = sinkhorn.solve(x, y, epsilon=0.01)
    again = sinkhorn.solve(x, y, epsilon=0.01, initial=cold, tolerance=2e-3)
    assert int(again.steps) == 2 < int(cold.steps)
    assert bool(again.converged)


@pytest.mark.slow
def test_recomputed_blocks_give_what_a_stored_kernel_gives(monkeypatch):
    from ot import _implicit, _kernel

    x, y = clouds(60, 40, 3, jnp.float64)
    solve = lambda x: sinkhorn.solve(x, y, epsilon=0.02, tolerance=1e-8)
    value = lambda x: solve(x).value
    stored, slope = solve(x), jax.grad(value)(x)
    applied = stored.apply(y)
    monkeypatch.setattr(_kernel, "STORED_ENTRIES", 8)
    monkeypatch.setattr(_kernel, "_TILE_ENTRIES", 40 * 8)
    monkeypatch.setattr(_implicit, "_BLOCK_ENTRIES", 40 * 16)
    _implicit._compiled.clear_cache()  # pyright: ignore[reportAttributeAccessIssue]
    tiled = solve(x)
    assert_allclose(tiled.value, stored.value, rtol=1e-12)
    assert_allclose(tiled.plan(), stored.plan(), atol=1e-9)
    assert_allclose(tiled.apply(y), applied, rtol=1e-6)
    assert_allclose(jax.grad(value)(x), slope, rtol=1e-6, atol=1e-12)
    _implicit._compiled.clear_cache()  # pyright: ignore[reportAttributeAccessIssue]


def test_sampled_pairs_follow_the_plan():
    x, y = clouds(6, 5, 2)
    solved = sinkhorn.solve(x, y, epsilon=0.1)
    count = 20_000
    i, j = solved.sample_pairs(count, key=jax.random.key(0))
    found = np.bincount(np.asarray(i) * 5 + np.asarray(j), minlength=30) / count
    expected = np.asarray(solved.plan()).ravel()
    chi_squared = count * np.sum((found - expected) ** 2 / expected)
    assert chi_squared < 29 + 5 * np.sqrt(2 * 29)


class TestDerivatives:
    """Against central differences in float64, along one direction that moves all arguments."""

    def problem(self):
        x, y = clouds(60, 40, 3, jnp.float64)
        return x, y, random_weights(60, jnp.float64), random_weights(40, jnp.float64, 1), jnp.float64(0.05)

    def along(self, function, point, h=1e-5):
        """function, gradient and Hessian product at `point` along a fixed direction, both ways, and the differences."""
        rng = np.random.default_rng(7)
        direction = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)) * leaf, point)
        moved = lambda t: jax.tree.map(lambda p, d: p + t * d, point, direction)
        slope, dot = (
            jax.jit(jax.grad(function)),
            lambda u, v: sum(map(jnp.vdot, jax.tree.leaves(u), jax.tree.leaves(v))),
        )
        forward = jax.jit(lambda p: jax.jvp(function, (p,), (direction,))[1])
        twice = jax.jit(lambda p: jax.jvp(jax.grad(function), (p,), (direction,))[1])
        again = jax.jit(jax.grad(lambda p: dot(jax.grad(function)(p), direction)))
        value = jax.jit(function)
        assert_allclose(dot(slope(point), direction), (value(moved(h)) - value(moved(-h))) / (2 * h), rtol=1e-6)
        assert_allclose(forward(point), dot(slope(point), direction), rtol=1e-8)
        expected = jax.tree.map(lambda u, v: (u - v) / (2 * h), slope(moved(h)), slope(moved(-h)))
        scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
        for found in (twice(point), again(point)):
            jax.tree.map(lambda f, e: assert_allclose(f, e, atol=1e-5 * scale), found, expected)

    @pytest.mark.slow
    @pytest.mark.parametrize("soft", [False, True])
    def test_of_the_value_to_second_order(self, soft):
        x, y, a, b, epsilon = self.problem()

        def value(point):
            x, weights, epsilon = point
            a = weights if soft else jax.nn.softmax(weights)
            penalty = (8 * epsilon, 4 * epsilon) if soft else None
            return sinkhorn.solve(x, y, a, b, epsilon=epsilon, mass_penalty=penalty, tolerance=1e-12).value

        self.along(value, (x, a if soft else jnp.log(a), epsilon))

    @pytest.mark.slow
    def test_of_the_potentials_and_what_is_read_from_them(self):
        x, y, a, b, epsilon = self.problem()

        def reading(point):
            solved = sinkhorn.solve(point[0], y, a, b, epsilon=point[1], tolerance=1e-12)
            f = solved.f + solved.f_low
            return jnp.sum((f - f.mean()) ** 2) + jnp.sum(solved.apply(y) ** 2) + solved.transport_cost()

        self.along(reading, (x, epsilon))

    def test_products_with_the_hessian_in_float32_at_the_default_tolerance(self):
        x, y, a, b, _ = self.problem()
        direction = clouds(60, 40, 3, jnp.float64, seed=5)[0]

        def product(clouds, direction, tolerance, reverse):
            x, y, a, b = clouds
            slope = jax.grad(lambda x: sinkhorn.solve(x, y, a, b, epsilon=0.05, tolerance=tolerance).value)
            if reverse:
                return jax.grad(lambda x: jnp.vdot(slope(x), direction))(x)
            return jax.jvp(slope, (x,), (direction,))[1]

        exact = product((x, y, a, b), direction, 1e-12, False)
        *narrow, along = (z.astype(jnp.float32) for z in (x, y, a, b, direction))
        for reverse in (False, True):
            found = product(narrow, along, 1e-3, reverse).astype(jnp.float64)
            assert jnp.linalg.norm(found - exact) <= 1e-3 * jnp.linalg.norm(exact)

    @pytest.mark.parametrize("cost", [costs.SquaredEuclidean(), costs.Euclidean()], ids=["squared", "Euclidean"])
    def test_are_finite_at_coincident_points_identical_clouds_and_zero_weights(self, cost):
        x, *_ = clouds(20, 20, 2, jnp.float32)
        x, a = x.at[1].set(x[0]), random_weights(20, jnp.float32).at[:3].set(0)
        value = lambda x, a: sinkhorn.solve(x, jax.lax.stop_gradient(x), a, a, cost=cost, epsilon=0.05).value
        along = lambda x, a: jax.jvp(jax.grad(value, (0, 1)), (x, a), (jnp.ones_like(x), a))
        assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(jax.jit(along)(x, a)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(x=lambda x: x.at[0, 0].set(jnp.nan)), "x: expected finite points"),
        (dict(y=lambda y: y.at[0, 0].set(jnp.inf)), "y: expected finite points"),
        (dict(a=lambda a: a.at[0].set(-0.1)), "a: expected finite weights >= 0"),
        (dict(b=lambda b: 0 * b), "b: expected weights with a positive total"),
        (dict(a=lambda a: 2 * a), "a and b: expected equal totals"),
        (dict(epsilon=lambda e: 0.0), "epsilon: expected a finite number > 0"),
        (dict(epsilon=lambda e: -0.1), "epsilon: expected a finite number > 0"),
        (dict(x=lambda x: x[:0], a=lambda a: None), "x: expected at least one point"),
        (dict(y=lambda y: y[:, :2]), "x and y: expected points of one dimension"),
        (dict(a=lambda a: a[:-1]), "a: expected shape"),
        (dict(tolerance=lambda t: -1.0), "tolerance: expected a finite number > 0"),
    ],
)
def test_bad_input_is_refused_by_name(change, message, own_checks):
    x, y = clouds(8, 8, 3)
    good = dict(
        x=x, y=y, a=jnp.full(8, jnp.float32(1 / 8)), b=jnp.full(8, jnp.float32(1 / 8)), epsilon=0.1, tolerance=1e-3
    )
    bad: Any = good | {name: alter(good[name]) for name, alter in change.items()}
    with pytest.raises(ValueError, match=message):
        sinkhorn.solve(**bad)


@pytest.mark.parametrize("kind", [dict(x=jnp.arange(6).reshape(2, 3)), dict(y=np.ones((4, 3)))])
def test_other_types_are_refused_by_name(kind, own_checks):
    x, y = clouds(4, 4, 3)
    with pytest.raises(TypeError, match=r"expected floating-point|expected one dtype"):
        sinkhorn.solve(**(dict(x=x, y=y) | kind), epsilon=0.1)


def test_under_jit_bad_values_give_an_honest_record():
    x, y = clouds(8, 8, 3)
    solve = jax.jit(lambda x, a, e: sinkhorn.solve(x, y, a, epsilon=e))
    a, e = jnp.full(8, jnp.float32(1 / 8)), jnp.float32(0.1)
    assert bool(solve(x, a, e).converged)
    for bad in [(x * jnp.nan, a, e), (x * jnp.inf, a, e), (x, 2 * a, e), (x, -a, e), (x, a, -e), (x, a, 0 * e)]:
        solved = solve(*bad)
        assert not bool(solved.converged)


def test_far_outliers_and_huge_costs_converge():
    x, y = clouds(60, 40, 3)
    for scale, epsilon in ((1e10, 1e18), (1.0, 0.01)):
        solved = sinkhorn.solve(scale * x.at[0].set(50.0), scale * y, epsilon=epsilon)
        assert bool(solved.converged)
        C = squared(scale * x.at[0].set(50.0), scale * y)
        assert true_error(solved, C, np.full(60, 1 / 60), np.full(40, 1 / 40), epsilon) <= 1e-3


def test_sampled_rows_give_the_direction_of_all_where_each_is_repeated(monkeypatch):
    # rows that come four at a time: a sample of every fourth loses nothing, and each of its products counts a quarter
    x, y = clouds(60, 200, 2)
    x = jnp.repeat(x, 4, axis=0)
    epsilon, n, m = 0.02, len(x), len(y)
    f, g = (jnp.zeros(size, x.dtype) for size in (n, m))
    problem = _pairs.Pairs(
        x, y, f + 1 / n, g + 1 / m, costs.SquaredEuclidean(), jnp.float32(epsilon), jnp.float32(0), None, None
    )
    kernel, marginals = (
        _kernel.Stored(problem, f, g, problem.epsilon, x.dtype),
        _ascent.marginals(problem, f, g, x.dtype),
    )
    monkeypatch.setattr(_kernel, "_SAMPLED_FROM", 0)
    monkeypatch.setattr(_kernel, "_SAMPLED_ROWS", 60)
    sample = _kernel.sample(problem, f, g, problem.epsilon, x.dtype, True)
    point = _ascent.visit(kernel, marginals, g)
    direction, products = _ascent.newton_direction(kernel, marginals, point, 1e-2, jnp.int32(50))
    sampled, sweeps = _ascent.newton_direction(kernel, marginals, point, 1e-2, jnp.int32(50), sample=sample)
    assert_allclose(sampled, direction, rtol=0, atol=1e-4 * np.abs(direction).max())
    assert int(sweeps) == -(-int(products) // 4)
    few = _kernel.Sample(_kernel.Tiled(problem, f - 1e3, g, problem.epsilon, x.dtype), 1)  # no such rows: not believed
    unused, sweeps = _ascent.newton_direction(kernel, marginals, point, 1e-2, jnp.int32(50), sample=few)
    assert int(sweeps) == int(products)
    assert_allclose(unused, direction, rtol=0, atol=1e-5 * np.abs(direction).max())


def test_close_points_in_many_dimensions_keep_their_digits():
    # |x|² + |y|² − 2 x·y in float32 loses 3e-7 |x|², more than such a plan allows for
    x = jnp.asarray(np.random.default_rng(0).normal(size=(80, 64)), jnp.float32)
    y = x + jnp.float32(0.01)
    C = squared(x, y)
    epsilon = float(1e-4 * C.mean())
    solved = sinkhorn.solve(x, y, epsilon=epsilon)
    uniform = np.full(80, 1 / 80)
    assert bool(solved.converged)
    assert true_error(solved, C, uniform, uniform, epsilon) <= 1e-3


@pytest.mark.parametrize("relative", [0.05, 0.01])
def test_many_coordinates_far_from_the_origin_are_right_in_float32(relative):
    rng = np.random.default_rng(0)
    x, y = (jnp.asarray(rng.normal(size=(n, 64)) + 100, jnp.float32) for n in (150, 120))
    C = squared(x, y)
    epsilon = float(np.float32(relative * C.mean()))
    solved = sinkhorn.solve(x, y, epsilon=epsilon)
    assert bool(solved.converged)
    assert true_error(solved, C, np.full(150, 1 / 150), np.full(120, 1 / 120), epsilon) <= 1e-3


def test_float64_points_may_lie_where_float32_overflows():
    x, y = clouds(60, 40, 3, jnp.float64)
    near = sinkhorn.solve(x, y, epsilon=0.05)
    far = sinkhorn.solve(1e25 * x, 1e25 * y, epsilon=0.05e50)
    assert bool(far.converged)
    assert_allclose(far.value, near.value * 1e50, rtol=1e-4)


def test_half_precision_comes_back_as_float32_potentials():
    x, y = (z.astype(jnp.bfloat16) for z in clouds(60, 40, 3))
    solved = sinkhorn.solve(x, y, epsilon=0.1)
    assert bool(solved.converged)
    assert solved.f.dtype == jnp.float32


WITHOUT_X64 = """
import jax, jax.numpy as jnp
from ot import sinkhorn, wasserstein
x = jax.random.uniform(jax.random.key(0), (2, 12, 2))
value = lambda x: sinkhorn.solve(x, x[::-1] ** 2, epsilon=0.05, tolerance=1e-6).value
product = lambda x: jax.jvp(jax.grad(value), (x,), (x,))[1]
for f in (jax.vmap(value), jax.jit(jax.vmap(jax.grad(value))), jax.grad(lambda x: jax.vmap(value)(x).sum()),
          jax.jit(jax.vmap(product))):
    found = f(x)
    assert found.dtype == jnp.float32 and bool(jnp.isfinite(found).all())
again = jax.checkpoint(value)
whole = jax.checkpoint(lambda x: jax.vmap(value)(x).sum())
for f in (jax.vmap(jax.grad(again)), jax.jit(jax.grad(whole))):
    assert bool(jnp.allclose(f(x), jax.vmap(jax.grad(value))(x), atol=1e-6))
assert bool(jax.jit(jax.vmap(lambda x: sinkhorn.solve(x, x[:5], epsilon=0.05, tolerance=1e-6)))(x).converged.all())
"""


@pytest.mark.slow
def test_transformations_compose_where_float64_is_off():
    # float64 is used inside all the same; a transformation that applies its rules outside would mix the two
    root, environment = Path(__file__).resolve().parents[1], dict(os.environ, HAAR_CHECK="0", JAX_ENABLE_X64="0")
    ran = subprocess.run([sys.executable, "-c", WITHOUT_X64], cwd=root, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
