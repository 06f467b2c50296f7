"""The sphere against closed forms in mpmath, the laws of geodesics and transport, and its two singular distances."""

import functools

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import precisions
import pytest
from numpy.testing import assert_array_equal

from lie import so3, sphere

ANGLES = [0.0, 1e-30, 1e-8, 1e-4, 0.1, 1.0, np.pi / 3 - 1e-3, np.pi / 3 + 1e-3, 2.0, 3.0, np.pi - 1e-2, np.pi - 1e-3]


def eps(dtype):
    return float(jnp.finfo(dtype).eps)


def wide(x):
    return np.asarray(x, float)


@functools.cache
def geodesics(dimension, dtype):
    """x, v with |v| = each of ANGLES, y = exp(x, v) rounded, and the true log of the rounded y."""
    generator = np.random.default_rng(dimension)
    x = np.eye(dimension + 1)[generator.integers(0, dimension + 1, len(ANGLES))]  # exactly of unit length
    v = generator.normal(size=x.shape) * (x == 0)
    v *= np.array(ANGLES)[:, None] / np.linalg.norm(v, axis=1, keepdims=True)
    v = v.astype(dtype)
    with mpmath.workdps(50):
        exact = [mp_exp(p, w) for p, w in zip(x, v.astype(float), strict=True)]
        y = np.array([list(map(float, row)) for row in exact]).astype(dtype)
        logs = np.array([list(map(float, mp_log(p, q))) for p, q in zip(x, y.astype(float), strict=True)])
    truth = np.array([list(map(float, row)) for row in exact])
    return jnp.asarray(x, dtype), jnp.asarray(v), jnp.asarray(y), truth, logs


def mp_exp(x, v):
    x, v = mpmath.matrix(x.tolist()), mpmath.matrix(v.tolist())
    theta = mpmath.norm(v)
    return x if theta == 0 else mpmath.cos(theta) * x + mpmath.sin(theta) / theta * v


def mp_log(x, y):
    x, y = mpmath.matrix(x.tolist()), mpmath.matrix(y.tolist())
    y = y / mpmath.norm(y)
    tangent = y - (x.T * y)[0] * x
    sine = mpmath.norm(tangent)
    return 0 * x if sine == 0 else mpmath.atan2(sine, (x.T * y)[0]) / sine * tangent


@pytest.mark.parametrize("dimension", [1, 2, 4])
def test_exp_log_distance_equal_their_definition(dimension, dtype):
    x, v, y, truth, logs = geodesics(dimension, dtype)
    found = jax.jit(lambda x, v, y: (sphere.exp(x, v), sphere.log(x, y), sphere.distance(x, y)))(x, v, y)
    assert all(part.dtype == dtype for part in found)
    assert np.linalg.norm(wide(found[0]) - truth, axis=1).max() <= 4 * eps(dtype)
    length = np.linalg.norm(logs, axis=1)
    error = np.linalg.norm(wide(found[1]) - logs, axis=1)
    # y is given to eps, so far from x the direction of the logarithm is known to eps/sin θ.
    assert (error <= 4 * eps(dtype) * length * np.maximum(1, 1 / np.sinc(length / np.pi))).all()
    assert (np.abs(wide(found[2]) - length) <= 4 * eps(dtype) * length).all()


def test_log_inverts_exp_to_second_order(dtype):
    """d log(x, exp(x, v)) = identity and d² = 0 on tangent vectors, at v = 0 and on both sides of the switch."""
    x, v, *_ = geodesics(2, dtype)

    def there_and_back(v, x):
        return sphere.project(x, sphere.log(x, sphere.exp(x, sphere.project(x, v))))

    def orders(v, x):
        return jax.jacrev(there_and_back)(v, x), jax.jacfwd(jax.jacrev(there_and_back))(v, x)

    first, second = jax.jit(jax.vmap(orders))(v, x)
    tangent = np.eye(3) - wide(x)[:, :, None] * wide(x)[:, None, :]
    stretch = 1 / np.sinc(np.array(ANGLES) / np.pi)  # θ/sin θ: how much log magnifies what exp rounded
    error = np.linalg.norm(wide(first) - tangent, axis=(1, 2))
    assert (error <= 4 * eps(dtype) * stretch).all(), error / eps(dtype)
    allowed = {4: 1e-6, 8: 1e-14}[v.dtype.itemsize]
    error = np.linalg.norm(wide(second).reshape(len(v), -1), axis=1)
    assert (error <= allowed * stretch**2).all(), error


def test_squared_distance_is_smooth_where_points_meet(dtype):
    x, _, y, _, logs = geodesics(2, dtype)

    def squared(v, x, y):
        return sphere.squared_distance(x, sphere.exp(y, sphere.project(y, v)))

    def orders(x, y):
        zero = jnp.zeros(3, dtype)
        return jax.grad(squared)(zero, x, y), jax.hessian(squared)(zero, x, x), jax.grad(squared)(zero, x, x)

    gradient, hessian_at_0, gradient_at_0 = (wide(part) for part in jax.jit(jax.vmap(orders))(x, y))
    # The gradient at y is −2 log(y, x), of length 2 θ.
    truth = -2 * wide(sphere.log(y, x))
    length = np.linalg.norm(logs, axis=1)
    assert (np.linalg.norm(gradient - truth, axis=1) <= 16 * eps(dtype) * length / np.sinc(length / np.pi)).all()
    tangent = np.eye(3) - wide(x)[:, :, None] * wide(x)[:, None, :]
    assert np.abs(hessian_at_0 - 2 * tangent).max() <= 4 * eps(dtype)
    assert_array_equal(gradient_at_0, 0)


@precisions.float64_is_slow
def test_everything_is_finite_at_coincident_and_antipodal_points(dtype):
    """Value, gradient and Hessian, in one batch with a regular pair that does not notice."""
    x = jnp.asarray([[1, 0, 0], [1, 0, 0], [0.6, 0.8, 0], [0.6, 0, -0.8], [0, 1, 0]], dtype)
    y = jnp.asarray([[1, 0, 0], [-1, 0, 0], [-0.6, -0.8, 0], [0.6, 0, -0.8], [0, 0.8, 0.6]], dtype)

    def everything(points):
        x, y = points
        v = sphere.log(x, y)
        middle = sphere.interpolate(x, y, 0.5)
        moved = sphere.transport(x, y, v)
        return jnp.concatenate([v, middle, moved, sphere.distance(x, y)[None], sphere.squared_distance(x, y)[None]])

    def orders(points):
        return everything(points), jax.jacrev(everything)(points), jax.jacfwd(jax.jacrev(everything))(points)

    found = jax.jit(jax.vmap(orders))((x, y))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    values = wide(found[0])
    assert np.abs(values[-1] - wide(everything((x[-1], y[-1])))).max() <= 4 * eps(dtype)
    # The choices: π along a tangent, its midpoint a quarter turn away, gradients of the distance 0.
    for k, angle in enumerate([0, np.pi, np.pi, 0]):
        v, middle = values[k, :3], values[k, 3:6]
        assert abs(np.linalg.norm(v) - angle) <= 4 * eps(dtype) * max(angle, 1) / 2
        assert abs(v @ wide(x[k])) <= 4 * eps(dtype)
        assert abs(middle @ wide(x[k]) - np.cos(angle / 2)) <= 4 * eps(dtype)
        assert all(np.abs(wide(leaf)[k, 9]).max() == 0 for leaf in found[1])


@pytest.mark.parametrize("dimension", [1, 2, 4])
def test_transport_is_an_isometry_along_the_geodesic(dimension, dtype):
    x, _v, y, _, _ = geodesics(dimension, dtype)
    w = sphere.project(x, jax.random.normal(jax.random.key(0), x.shape, dtype))
    moved = wide(jax.jit(sphere.transport)(x, y, w))
    stretch = 1 / np.abs(np.cos(np.array(ANGLES) / 2))  # of the rounding of y, as the way becomes ambiguous
    assert (np.abs(np.sum(moved * wide(y), axis=1)) <= 16 * eps(dtype) * stretch).all()
    lengths = np.linalg.norm(moved, axis=1) - np.linalg.norm(wide(w), axis=1)
    assert (np.abs(lengths) <= 16 * eps(dtype) * stretch).all()
    # The geodesic's own velocity arrives as minus the way back.
    arrived = wide(jax.jit(sphere.transport)(x, y, sphere.log(x, y)))
    error = np.linalg.norm(arrived + wide(sphere.log(y, x)), axis=1)
    assert (error <= 16 * eps(dtype) * stretch**2).all()


def test_rotations_commute_with_everything(dtype):
    keys = jax.random.split(jax.random.key(1), 4)
    R = so3.sample((), dtype, key=keys[0])
    x, y = sphere.sample((2, 50), dtype, key=keys[1])
    t = jax.random.uniform(keys[2], (50,), dtype)
    turned_x, turned_y = so3.act(R, x), so3.act(R, y)
    for before, after in [
        (so3.act(R, sphere.log(x, y)), sphere.log(turned_x, turned_y)),
        (so3.act(R, sphere.interpolate(x, y, t)), sphere.interpolate(turned_x, turned_y, t)),
        (sphere.distance(x, y), sphere.distance(turned_x, turned_y)),
    ]:
        angle = wide(sphere.distance(x, y))
        allowed = 16 * eps(dtype) / np.sinc(np.minimum(angle, 3.1) / np.pi)
        error = np.abs(wide(before) - wide(after)).reshape(50, -1).max(axis=1)
        assert (error <= allowed).all()


def test_steps_invert_each_other_and_stay_on_the_sphere(dtype):
    x, v, y, *_ = geodesics(4, dtype)
    assert np.abs(np.linalg.norm(wide(sphere.retract(x, v)), axis=1) - 1).max() <= 2 * eps(dtype)
    length = np.array(ANGLES)
    error = np.linalg.norm(wide(sphere.local(x, sphere.retract(x, v)) - v), axis=1)
    assert (error <= 8 * eps(dtype) * length / np.sinc(length / np.pi)).all()
    assert np.abs(wide(sphere.interpolate(x, y, jnp.asarray(1.0, dtype)) - y)).max() <= 8 * eps(dtype)


def test_samples_are_uniform():
    """Mean 0 and covariance I/(n + 1) to five standard errors; the height on S² is uniform (Archimedes)."""
    count = 20_000
    for dimension in (1, 2, 4):
        points = wide(sphere.sample((count,), dimension=dimension, key=jax.random.key(dimension)))
        assert np.abs(np.linalg.norm(points, axis=1) - 1).max() <= 2 * eps(jnp.float32)
        assert np.abs(points.mean(0)).max() <= 5 / np.sqrt(count * (dimension + 1))
        second = points.T @ points / count - np.eye(dimension + 1) / (dimension + 1)
        assert np.abs(second).max() <= 5 / np.sqrt(count) / np.sqrt(2 * dimension + 1)
    heights = np.sort(wide(sphere.sample((count,), key=jax.random.key(9)))[:, 2])
    assert np.abs(heights - np.linspace(-1, 1, count)).max() <= 2 * 1.95 / np.sqrt(count)  # Kolmogorov, p = 0.001


@pytest.mark.slow
def test_axes_broadcast_and_dtypes_stay():
    x, y = sphere.sample((4, 1), key=jax.random.key(0)), sphere.sample((5,), key=jax.random.key(1))
    assert sphere.log(x, y).shape == sphere.interpolate(x, y, 0.3).shape == (4, 5, 3)
    assert sphere.distance(x, y).shape == (4, 5)
    assert sphere.transport(x, y, sphere.log(x, y)).dtype == jnp.float32
    assert np.abs(sphere.log(x, y)[2, 3] - sphere.log(x[2, 0], y[3])).max() <= 4 * eps(jnp.float32)
    for narrow in (jnp.float16, jnp.bfloat16):
        a, b = sphere.sample((2, 7), narrow, key=jax.random.key(2))
        assert sphere.log(a, b).dtype == sphere.interpolate(a, b, 0.5).dtype == narrow
        exact = sphere.distance(sphere.normalize(a.astype(jnp.float32)), sphere.normalize(b.astype(jnp.float32)))
        assert np.abs(wide(sphere.distance(a, b)) - wide(exact)).max() <= 16 * eps(narrow)
    assert_array_equal(sphere.normalize(jnp.zeros((2, 3))), [[1, 0, 0], [1, 0, 0]])


def test_bad_input_is_named(own_checks):
    pole = jnp.array([0.0, 0.0, 1.0])
    with pytest.raises(ValueError, match=r"y: expected shape \(\.\.\., 3\) as x, got \(4,\)"):
        sphere.log(pole, jnp.ones(4) / 2)
    with pytest.raises(ValueError, match=r"x: expected shape \(\.\.\., n \+ 1\)"):
        sphere.normalize(jnp.ones(1))
    with pytest.raises(TypeError, match="x: expected a floating-point array"):
        sphere.log(jnp.array([0, 0, 1]), pole)
    with pytest.raises(TypeError, match="expected one dtype"):
        sphere.log(pole, pole.astype(jnp.float32))
    with pytest.raises(ValueError, match="y: expected unit vectors"):
        sphere.distance(pole, 2 * pole)
    with pytest.raises(ValueError, match="v: expected only finite values"):
        sphere.exp(pole, jnp.nan * pole)
