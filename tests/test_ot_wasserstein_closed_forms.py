"""Sliced distances as their average, Gaussians against closed forms, linear programs against SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import optimize

from lie import so3, sphere
from ot import wasserstein

KEY = jax.random.key(0)


def normal(*shape, seed=0, dtype=jnp.float64):
    return jnp.asarray(np.random.default_rng([*shape, seed]).standard_normal(shape), dtype)


def covariance(d, rank=None, seed=0):
    factor = normal(d, rank or d, seed=seed)
    return factor @ factor.T


def matrix_root(S):
    values, vectors = np.linalg.eigh(S)
    return vectors * np.sqrt(values) @ vectors.T


def test_sliced_is_the_average_of_its_slices(dtype):
    x, y = normal(2, 30, 4, dtype=dtype), normal(2, 20, 4, seed=1, dtype=dtype)
    U = sphere.sample((9,), dtype, 3, key=KEY)
    value = wasserstein.sliced(x, y, directions=U, p=3)
    assert value.shape == (2,)
    assert value.dtype == dtype
    slices = [wasserstein.one_dimensional(x @ u, y @ u, p=3) for u in U]
    assert_allclose(value, np.mean(slices, axis=0), rtol=64 * float(jnp.finfo(dtype).eps))
    traced = jax.jit(lambda x: wasserstein.sliced(x, y, directions=U, p=3))(x)
    assert_allclose(traced, value, rtol=64 * float(jnp.finfo(dtype).eps))


def test_sliced_on_r_d_obeys_its_laws():
    x, y, U = normal(40, 3), normal(40, 3, seed=1), sphere.sample((64,), jnp.float64, key=KEY)
    value = wasserstein.sliced(x, y, directions=U)
    R = so3.sample((), jnp.float64, key=KEY)
    assert_allclose(wasserstein.sliced(so3.act(R, x), so3.act(R, y), directions=so3.act(R, U)), value, rtol=1e-12)
    assert_allclose(
        wasserstein.sliced(x, x + jnp.array([1.0, 2, 3]), directions=U), ((U @ np.array([1.0, 2, 3])) ** 2).mean()
    )
    assert value <= wasserstein.exact(x, y).value
    along = lambda t: wasserstein.sliced(x + t * y, y, directions=U)
    assert_allclose(jax.grad(along)(0.0), (along(1e-6) - along(-1e-6)) / 2e-6, rtol=1e-6)
    assert wasserstein.sliced(x, y, key=KEY) == wasserstein.sliced(x, y, key=KEY)


@pytest.mark.slow
def test_sliced_on_the_sphere_is_the_average_over_great_circles():
    x, y = (sphere.sample((n,), jnp.float64, key=jax.random.key(n)) for n in (15, 12))
    U = jnp.stack([jnp.eye(3)[:, :2], jnp.eye(3)[:, 1:]])
    angles = [[jnp.arctan2(v @ u[:, 1], v @ u[:, 0]) for v in (x, y)] for u in U]
    expected = np.mean([wasserstein.circle(*pair, period=2 * np.pi) for pair in angles])
    assert_allclose(wasserstein.sliced(x, y, directions=U, space=sphere), expected, rtol=1e-12)
    R = so3.sample((), jnp.float64, key=KEY)
    turned = jnp.einsum("ij,kjc->kic", R, U)
    both = so3.act(R, x), so3.act(R, y)
    assert_allclose(wasserstein.sliced(*both, directions=turned, space=sphere), expected, rtol=1e-7)
    assert_allclose(wasserstein.sliced(x, x, directions=8, space=sphere, key=KEY), 0, atol=1e-14)


def test_sliced_on_rotations_measures_turns_about_a_common_axis():
    """Rotations about z, sliced by the geodesic of all rotations about z: the circle of their angles."""
    angles = jnp.array([0.1, 2.0, -1.5, 3.0]), jnp.array([0.4, -2.9, 1.0, 2.0])
    R, S = (so3.exp(angle[:, None] * jnp.array([0, 0, 1.0])) for angle in angles)
    U = jnp.zeros((1, 4, 2)).at[0, 0, 0].set(1).at[0, 3, 1].set(1)
    value = wasserstein.sliced(R, S, directions=U, space=so3)
    assert_allclose(value, wasserstein.circle(*angles, period=2 * np.pi), rtol=1e-12)


@pytest.mark.slow
def test_sliced_on_rotations_is_invariant_on_both_sides():
    R, S, g, h = (so3.sample((n,), jnp.float64, key=jax.random.key(n)) for n in (10, 12, 1, 2))
    h = h[:1]
    value = wasserstein.sliced(R, S, directions=1000, space=so3, key=KEY)
    moved = wasserstein.sliced(g @ R @ h, g @ S @ h, directions=1000, space=so3, key=KEY)
    assert_allclose(moved, value, rtol=0.1)  # the mean of 1000 slices; another draw of them differs by 4 per cent


@pytest.mark.usefixtures("own_checks")
def test_sliced_refuses_bad_input_by_name():
    x = normal(5, 3)
    for arguments, keywords, message in [
        ((x, x), {}, "key: expected a key"),
        ((x, x[:, :2]), {"key": KEY}, "x and y: expected points of one dimension"),
        ((x.at[0].set(jnp.nan), x), {"key": KEY}, "x: expected"),
        ((x, x[:0]), {"key": KEY}, "y: expected at least one point"),
        ((x, x), {"directions": 0, "key": KEY}, "directions: expected at least one"),
        ((x, x), {"directions": x[:, :2]}, "directions: expected shape"),
        ((x, x), {"space": 3, "key": KEY}, "space: expected None"),
        ((2 * x, x), {"space": sphere, "key": KEY}, "x: expected unit vectors"),
    ]:
        with pytest.raises(ValueError, match=message):
            wasserstein.sliced(*arguments, **keywords)


def test_gaussian_closed_forms(dtype):
    m1, m2, S1, S2 = normal(5), normal(5, seed=1), covariance(5), covariance(5, seed=1)
    root = matrix_root(S1)
    expected = float(((m1 - m2) ** 2).sum() + jnp.trace(S1 + S2)) - 2 * np.trace(matrix_root(root @ S2 @ root))
    cast = lambda *v: (x.astype(dtype) for x in v)
    tolerance = 40 * float(jnp.finfo(dtype).eps) * float(jnp.trace(S1 + S2))
    assert_allclose(wasserstein.gaussian(*cast(m1, S1, m2, S2)), expected, rtol=0, atol=tolerance)
    assert_allclose(wasserstein.gaussian(*cast(m2, S2, m1, S1)), expected, rtol=0, atol=tolerance)
    s, t = jnp.array([1.0, 4, 0, 9, 2]), jnp.array([4.0, 0, 0, 1, 3])  # diagonal, singular: Σ (√s − √t)²
    diagonal = wasserstein.gaussian(*cast(m1, jnp.diag(s), m1, jnp.diag(t)))
    assert_allclose(diagonal, ((jnp.sqrt(s) - jnp.sqrt(t)) ** 2).sum(), rtol=64 * float(jnp.finfo(dtype).eps))
    batch = wasserstein.gaussian(*cast(jnp.stack([m1, m2])[:, None], S1, jnp.stack([m1, m2, m1]), S2))
    assert batch.shape == (2, 3)
    assert_allclose(batch[0, 1], expected, rtol=0, atol=tolerance)


def test_gaussian_derivatives():
    m1, m2, S1, S2, V = normal(4), normal(4, seed=1), covariance(4), covariance(4, seed=1), covariance(4, seed=2)
    along = jax.jit(lambda t: wasserstein.gaussian(m1, S1 + t * V, m2 + t * m1, S2))
    slope = jax.jit(jax.grad(along))
    assert_allclose(slope(0.0), (along(1e-5) - along(-1e-5)) / 2e-5, rtol=1e-7)
    assert_allclose(jax.grad(slope)(0.0), (slope(1e-5) - slope(-1e-5)) / 2e-5, rtol=1e-6)


@pytest.mark.parametrize("S", [jnp.eye(3), covariance(3), covariance(3, rank=1), jnp.zeros((3, 3))], ids=str)
def test_gaussian_derivatives_at_equal_covariances(S):
    m = normal(3)
    value = lambda S1: wasserstein.gaussian(m, S1, m, S)
    assert_allclose(value(S), 0, atol=1e-13 * float(1 + jnp.trace(S)))  # at rank 1 too
    gradient, hessian = jax.jit(jax.grad(value))(S), jax.jit(jax.hessian(value))(S)
    assert np.isfinite(hessian).all()
    if jnp.linalg.matrix_rank(S) == 3:
        assert_allclose(gradient, np.zeros((3, 3)), atol=1e-10)
        V = covariance(3, seed=3)  # the second derivative is tr(V L(V))/1, L the Lyapunov solution: a closed form at I
        if jnp.array_equal(S, jnp.eye(3)):
            assert_allclose(jnp.einsum("ijkl,ij,kl", hessian, V, V), (V * V).sum() / 2, rtol=1e-10)


@pytest.mark.usefixtures("own_checks")
def test_gaussian_refuses_bad_input_by_name():
    m, S = normal(3), covariance(3)
    for arguments, message in [
        ((m, S, m[:2], S), "m1 and m2: expected means of one dimension"),
        ((m, S[:2], m, S), "S1: expected shape"),
        ((m, S, m, -S), "S2: expected a positive semidefinite"),
        ((m, S.at[0, 1].add(1), m, S), "S1: expected a symmetric"),
        ((m * jnp.nan, S, m, S), "m1: expected"),
    ]:
        with pytest.raises(ValueError, match=message):
            wasserstein.gaussian(*arguments)


def test_linear_program_against_scipy():
    c, G, A = normal(8), normal(5, 8), normal(2, 8)
    h, b = G @ jnp.full(8, 0.4) - 0.2, A @ jnp.full(8, 0.5)
    found = jax.jit(lambda c: wasserstein.linear_program(c, A, b, G, h, upper=2.0))(c)
    known = optimize.linprog(c, A_ub=-G, b_ub=-h, A_eq=A, b_eq=b, bounds=(0, 2))
    assert bool(found.converged)
    assert_allclose(found.value, known.fun, rtol=1e-5)
    assert_allclose(found.x, known.x, atol=1e-4)
    reduced = c - A.T @ found.multipliers - G.T @ found.at_least_multipliers
    dual = b @ found.multipliers + h @ found.at_least_multipliers + 2 * jnp.minimum(reduced, 0).sum()
    assert (found.at_least_multipliers >= 0).all()
    assert_allclose(dual, known.fun, rtol=1e-5)
    assert float(found.error) <= 1e-6
    assert_allclose(found.error, max(found.primal_residual, found.dual_residual, found.gap))
    narrow = wasserstein.linear_program(
        c.astype(jnp.float32), G=G.astype(jnp.float32), h=h.astype(jnp.float32), upper=2.0
    )
    assert narrow.x.dtype == jnp.float32
    assert_allclose(narrow.value, optimize.linprog(c, A_ub=-G, b_ub=-h, bounds=(0, 2)).fun, rtol=1e-5)


def test_linear_program_is_honest_about_what_has_no_solution():
    c = jnp.array([1.0, -1.0])
    A, b = jnp.array([[1.0, 0.0]]), jnp.array([-1.0])
    infeasible = wasserstein.linear_program(c, A, b, upper=1.0, max_steps=2000)
    unbounded = wasserstein.linear_program(c, max_steps=2000)
    assert not bool(infeasible.converged)
    assert not bool(unbounded.converged)
    for arguments, keywords, message in [
        ((c, A), {}, "A and b: expected both or neither"),
        ((c, A[:, :1], b), {}, "A"),
        ((c, A, b * jnp.nan), {}, "b: expected"),
        ((c,), {"lower": 2.0, "upper": 1.0}, "lower and upper"),
    ]:
        with pytest.raises((ValueError, TypeError), match=message):
            wasserstein.linear_program(*arguments, **keywords)
