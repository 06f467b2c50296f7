"""Least squares on groups: closed-form problems, order of convergence, robust losses, sparse against dense, jit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from numpy.testing import assert_allclose
from scipy.spatial.transform import Rotation

from lie import optimizers, se3, so3
from lie.optimizers import Factor, robust

METHODS = {"marquardt": optimizers.levenberg_marquardt, "dogleg": optimizers.trust_region}
LOSSES = [robust.Huber, robust.Cauchy, robust.GemanMcClure, robust.Tukey]


def eps_of(dtype):
    return float(jnp.finfo(dtype).eps)


@pytest.fixture(params=list(METHODS.values()), ids=list(METHODS))
def minimise(request):
    return request.param


def rotate(R, a):
    return jnp.sum(R[..., None, :, :] * a[:, None, :], axis=-1)


def vectors(dtype, noise=0.1, count=8):
    rng = np.random.default_rng(0)
    a = rng.standard_normal((count, 3))
    b = a @ Rotation.random(rng=np.random.default_rng(1)).as_matrix().T + noise * rng.standard_normal((count, 3))
    return jnp.asarray(a, dtype), jnp.asarray(b, dtype)


def kabsch(a, b):
    """The rotation that minimises Σ |R a − b|², by SVD."""
    U, _, Vt = np.linalg.svd(np.asarray(b, np.float64).T @ np.asarray(a, np.float64))
    return U @ np.diag([1, 1, np.linalg.det(U @ Vt)]) @ Vt


def test_wahba_is_the_polar_factor(minimise, dtype):
    a, b = vectors(dtype)
    found = minimise(lambda R: rotate(R, a) - b, so3.identity((), dtype), so3)
    assert bool(found.converged)
    assert (found.x.dtype, found.value.dtype) == (dtype, dtype)
    expected = kabsch(a, b)
    assert_allclose(found.x, expected, rtol=0, atol=eps_of(dtype) ** 0.5)  # default tolerance: eps of value
    assert_allclose(found.value, np.sum((np.asarray(a) @ expected.T - np.asarray(b)) ** 2), rtol=32 * eps_of(dtype))


def test_a_tight_tolerance_reaches_the_optimum_to_rounding(minimise):
    a, b = vectors(jnp.float64)
    found = minimise(lambda R: rotate(R, a) - b, so3.identity((), jnp.float64), so3, tolerance=1e-26)
    assert bool(found.converged)
    assert_allclose(
        found.x, kabsch(a, b), rtol=0, atol=2e-13
    )  # error of the distance: the root of tolerance times value


def test_frechet_mean_has_zero_mean_logarithm():
    R = so3.sample((), jnp.float64, key=jax.random.key(0))
    points = so3.retract(
        jnp.broadcast_to(R, (20, 3, 3)), 0.5 * jax.random.normal(jax.random.key(1), (20, 3), jnp.float64)
    )
    factor = Factor(so3.local, (jnp.zeros(20, jnp.int32),), (points,))
    found = optimizers.levenberg_marquardt([factor], points[:1], so3, tolerance=1e-26)
    assert bool(found.converged)
    assert_allclose(jnp.mean(so3.local(jnp.broadcast_to(found.x, points.shape), points), axis=0), 0, atol=1e-12)


def relative(first, second, measured):
    return se3.local(measured, se3.compose(se3.inverse(first), second))


def loop_graph(dtype, count=12, noise=0.0):
    """Poses on a loop with two chords, the factors of their relative poses, and a start 0.3 away."""
    poses = se3.sample((count,), dtype, key=jax.random.key(0))
    i = np.concatenate([np.arange(count), [0, 3]]).astype(np.int32)
    j = np.concatenate([np.roll(np.arange(count), -1), [5, 9]]).astype(np.int32)
    take = lambda nodes: jax.tree.map(lambda leaf: leaf[nodes], poses)
    measured = se3.compose(se3.inverse(take(i)), take(j))
    measured = se3.retract(measured, noise * jax.random.normal(jax.random.key(1), (count + 2, 6), dtype))
    start = se3.retract(poses, 0.3 * jax.random.normal(jax.random.key(2), (count, 6), dtype))
    return [Factor(relative, (i, j), (measured,))], start


def test_convergence_is_quadratic_where_the_residual_vanishes(minimise):
    factors, start = loop_graph(jnp.float64)
    values = np.array([minimise(factors, start, se3, max_steps=k).value for k in range(9)])
    roots = np.sqrt(values[(values < 0.1) & (values > 1e-22)])  # |r| is proportional to the distance from the optimum
    assert len(roots) >= 2
    assert (roots[1:] <= 3 * roots[:-1] ** 2 + 1e-10).all()
    assert values[-1] < 1e-24


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_conjugate_gradients_and_factorisation_agree(minimise, noise):
    factors, start = loop_graph(jnp.float64, noise=noise)
    direct = minimise(factors, start, se3)
    iterative = minimise(factors, start, se3, linear_solver="cg")
    assert bool(direct.converged)
    assert bool(iterative.converged)
    assert_allclose(iterative.value, direct.value, rtol=1e-12, atol=1e-20)


@pytest.mark.slow
def test_sparse_agrees_with_dense():
    factors, start = loop_graph(jnp.float64, count=10, noise=0.05)
    (factor,) = factors
    take = lambda x, nodes: jax.tree.map(lambda leaf: leaf[nodes], x)
    dense = optimizers.levenberg_marquardt(
        lambda x: relative(take(x, factor.nodes[0]), take(x, factor.nodes[1]), *factor.data), start, se3
    )
    assert_allclose(optimizers.levenberg_marquardt(factors, start, se3).value, dense.value, rtol=1e-12)


def test_variables_of_several_kinds():
    """Poses see landmarks: bearings in the body frame, and a prior that pins the first pose."""
    poses = se3.sample((4,), jnp.float64, key=jax.random.key(0))
    points = jax.random.normal(jax.random.key(1), (6, 3), jnp.float64)
    which_pose, which_point = (m.ravel().astype(np.int32) for m in np.meshgrid(np.arange(4), np.arange(6)))

    def seen(pose, point):
        return jnp.sum(pose.rotation * (point - pose.translation)[..., :, None], axis=-2)

    data = jax.vmap(seen)(jax.tree.map(lambda leaf: leaf[which_pose], poses), points[which_point])
    view = Factor(lambda T, p, y: seen(T, p) - y, (which_pose, which_point), (data,), variables=("pose", "point"))
    first = jax.tree.map(lambda leaf: leaf[:1], poses)
    prior = Factor(lambda T, T0: se3.local(T0, T), (np.zeros(1, np.int32),), (first,), variables=("pose",))
    start = {
        "pose": se3.retract(poses, 0.2 * jax.random.normal(jax.random.key(2), (4, 6), jnp.float64)),
        "point": points + 0.2,
    }
    for solver in ("direct", "cg"):
        found = optimizers.levenberg_marquardt([view, prior], start, {"pose": se3, "point": None}, linear_solver=solver)
        assert bool(found.converged)
        assert_allclose(found.x["point"], points, atol=1e-7)
        assert_allclose(found.x["pose"].rotation, poses.rotation, atol=1e-7)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_weight_is_the_slope_of_the_loss(loss, dtype):
    squared = jnp.asarray([1e-6, 0.01, 0.5, 3.9, 4.1, 30.0, 1e6], dtype)
    ours, eps = loss(2.0), eps_of(dtype)
    assert_allclose(jax.vmap(jax.grad(ours.value))(squared), ours.weight(squared), rtol=64 * eps, atol=4 * eps)
    assert ours.value(squared).dtype == dtype
    assert (ours.value(squared) <= squared * (1 + 4 * eps)).all()
    assert_allclose(ours.weight(jnp.zeros((), dtype)), 1)
    small = jnp.asarray(1e-4, dtype)
    assert_allclose(ours.value(small), small, rtol=3e-5)  # ρ = s + O(s²/k²)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_robust_loss_ignores_outliers(loss):
    a, b = vectors(jnp.float64, noise=0.01, count=30)
    inliers = kabsch(a, b)
    wrong = b.at[:6].set(3 * jax.random.normal(jax.random.key(5), (6, 3), jnp.float64))

    def residual(R):
        return rotate(R, a) - wrong

    def off(R):
        return float(so3.distance(R, jnp.asarray(inliers)))

    plain = optimizers.levenberg_marquardt(residual, jnp.asarray(kabsch(a, wrong)), so3)
    start = optimizers.levenberg_marquardt(
        residual, plain.x, so3, loss=robust.Huber(0.1)
    ).x  # convex in r, so it finds the basin of the others
    found = optimizers.levenberg_marquardt(residual, start, so3, loss=loss(0.1))
    assert bool(found.converged)
    assert off(found.x) < 0.02 < 2 * off(plain.x)
    gradient = optimizers.value_and_grad(lambda R: jnp.sum(loss(0.1).value(jnp.sum(residual(R) ** 2, axis=-1))), so3)(
        found.x
    )[1]
    assert_allclose(gradient, 0, atol=1e-5)  # a stationary point of the loss itself, not of a surrogate


def test_batches_do_not_see_each_other():
    a, b = vectors(jnp.float64)
    starts = so3.sample((4,), jnp.float64, key=jax.random.key(3))
    starts = starts.at[0].set(jnp.asarray(kabsch(a, b)))  # one is already there
    solve = lambda R: optimizers.levenberg_marquardt(lambda R: rotate(R, a) - b, R, so3)
    together = jax.jit(jax.vmap(solve))(starts)
    alone = [solve(R) for R in starts]
    assert together.converged.all()
    assert len(set(together.steps.tolist())) > 1
    for k, one in enumerate(alone):
        assert_allclose(together.x[k], one.x, rtol=0, atol=1e-12)
        assert int(together.steps[k]) == int(one.steps)


@pytest.mark.slow
def test_under_jit_and_export():
    factors, start = loop_graph(jnp.float32)
    solve = lambda x: optimizers.levenberg_marquardt(factors, x, se3)
    found = jax.jit(solve)(start)
    assert found.x.rotation.dtype == jnp.float32
    assert float(found.value) < 1e-9
    for function in (solve, lambda x: optimizers.trust_region(lambda T: se3.log(T), x, se3)):
        exported = export.export(jax.jit(function), platforms=["cpu", "cuda", "tpu"])(start)
        assert exported.platforms == ("cpu", "cuda", "tpu")


def test_not_converged_is_said_and_nan_stops():
    factors, start = loop_graph(jnp.float64, noise=0.05)
    stopped = optimizers.levenberg_marquardt(factors, start, se3, max_steps=1)
    assert not stopped.converged
    assert float(stopped.error) > 1e-3
    assert int(stopped.steps) == 1
    nowhere = optimizers.trust_region(lambda x: jnp.log(x), jnp.asarray([-1.0]), None)
    assert not nowhere.converged
    assert int(nowhere.steps) == 0


def test_a_step_out_of_the_domain_is_refused(minimise):
    found = minimise(lambda x: jnp.log(x) + 3, jnp.asarray([2.0], jnp.float64), None)
    assert bool(found.converged)
    assert_allclose(found.x, np.exp(-3), rtol=1e-10)


def test_bad_input_is_named():
    factors, start = loop_graph(jnp.float64)
    (factor,) = factors
    i, j = factor.nodes
    with pytest.raises(ValueError, match=r"nodes: expected numbers in 0..11, got 1..12"):
        optimizers.levenberg_marquardt([Factor(relative, (i + 1, j), factor.data)], start, se3)
    with pytest.raises(TypeError, match="nodes: expected integers"):
        optimizers.levenberg_marquardt([Factor(relative, (i.astype(float), j), factor.data)], start, se3)
    with pytest.raises(ValueError, match="variables: expected 2 names"):
        optimizers.levenberg_marquardt([Factor(relative, (i, j), factor.data, variables=("a", "b"))], start, se3)
    with pytest.raises(ValueError, match="groups: expected a dict"):
        optimizers.levenberg_marquardt(factors, {"pose": start}, se3)
    with pytest.raises(ValueError, match="linear_solver"):
        optimizers.levenberg_marquardt(factors, start, se3, linear_solver="qr")
    with pytest.raises(ValueError, match="cannot be traced"):
        jax.jit(lambda x: optimizers.levenberg_marquardt(factors, x, se3, linear_solver="direct"))(start)
    with pytest.raises(ValueError, match="one vector per edge"):
        optimizers.levenberg_marquardt([Factor(lambda T: T.rotation, (i,))], start, se3)
    with pytest.raises(TypeError, match="x: expected a floating-point"):
        optimizers.levenberg_marquardt(lambda x: x, jnp.arange(3), None)
    with pytest.raises(ValueError, match="scale: expected a positive"):
        robust.Huber(0.0)
