"""Charts against mpmath: values, first and second derivatives, and what they do at their singular points."""

import functools
import itertools
import zlib

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from lie import charts, so3

TO_MATRIX = {
    "quaternion": (charts.matrix_from_quaternion, 4),
    "6d": (charts.matrix_from_6d, 6),
    "5d": (charts.matrix_from_5d, 5),
    "svd": (lambda x: charts.matrix_from_svd(x.reshape(*x.shape[:-1], 3, 3)), 9),
    "euler": (charts.matrix_from_euler, 3),
    "axis_angle": (lambda x: charts.matrix_from_axis_angle(x[..., :3], x[..., 3]), 4),
}
FROM_MATRIX = {
    "quaternion": charts.quaternion_from_matrix,
    "6d": charts.sixd_from_matrix,
    "5d": charts.fived_from_matrix,
    "svd": lambda R: R.reshape(*R.shape[:-2], 9),
    "euler": charts.euler_from_matrix,
    "axis_angle": lambda R: jnp.concatenate([a if a.ndim == R.ndim - 1 else a[..., None] for a in _pair(R)], axis=-1),
}
ANGLES = [0.0, 1e-12, 1e-6, 0.1, 1.0, 2.5, np.pi - 1e-3, np.pi - 1e-6, np.pi]


def _pair(R):
    return charts.axis_angle_from_matrix(R)


def eps(dtype):
    return float(jnp.finfo(dtype).eps)


def rng(name):
    return np.random.default_rng(zlib.crc32(name.encode()))


def rotations(dtype):
    """Rotations by ANGLES about three axes, correctly rounded, as an array."""
    axes = np.array([[0.6, -0.48, 0.64], [0, 0, 1], [1, 1e-4, 0]])
    with mpmath.workdps(40):
        exact = [mp_axis_angle([*axis, angle]) for axis in axes for angle in ANGLES]
    return jnp.asarray(np.array([R.tolist() for R in exact], float).reshape(-1, 3, 3), dtype)


# The definitions, in mpmath.


def mp_unit(x):
    return x / mpmath.norm(x)


def mp_cross(a, b):
    return mpmath.matrix([a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]])


def mp_columns(*columns):
    return mpmath.matrix([[column[i] for column in columns] for i in range(3)])


def mp_hat(x, y, z):
    return mpmath.matrix([[0, -z, y], [z, 0, -x], [-y, x, 0]])


def mp_quaternion(q):
    w, *v = mp_unit(mpmath.matrix(q))
    hat = mp_hat(*v)
    return mpmath.eye(3) + 2 * w * hat + 2 * hat * hat


def mp_6d(x):
    first = mp_unit(mpmath.matrix(x[:3]))
    b = mpmath.matrix(x[3:])
    second = mp_unit(b - (first.T * b)[0] * first)
    return mp_columns(first, second, mp_cross(first, second))


def mp_5d(x):
    """Literally: unproject the last three, u -> ((|u|² − 1)/2, u)/|u|, then Gram-Schmidt."""
    p = mpmath.matrix(x[2:])
    length = mpmath.norm(p)
    return mp_6d([x[0], x[1], (length**2 - 1) / (2 * length), *(p / length)])


def mp_euler(angles):
    R = mpmath.eye(3)
    for axis, angle in enumerate(angles):  # "xyz": about fixed axes, so each turn multiplies from the left
        R = mp_axis_angle([*(int(k == axis) for k in range(3)), angle]) * R
    return R


def mp_axis_angle(x):
    hat = mp_hat(*mp_unit(mpmath.matrix(x[:3])))
    return mpmath.eye(3) + mpmath.sin(x[3]) * hat + (1 - mpmath.cos(x[3])) * hat * hat


def mp_svd(x):
    """Higham's iteration A <- (A + A⁻ᵀ)/2 to the orthogonal factor, for det > 0."""
    A = mpmath.matrix(3, 3)
    for k in range(9):
        A[k // 3, k % 3] = x[k]
    for _ in range(12):
        A = (A + (A**-1).T) / 2
    return A


DEFINITIONS = {
    "quaternion": mp_quaternion,
    "6d": mp_6d,
    "5d": mp_5d,
    "svd": mp_svd,
    "euler": mp_euler,
    "axis_angle": mp_axis_angle,
}


def points(name, dtype, count=4):
    """Regular inputs of a chart, exactly representable in `dtype`."""
    x = rng(name).normal(size=(count, TO_MATRIX[name][1]))
    if name == "svd":
        x = x / 3 + np.eye(3).reshape(9)  # well away from s2 + s3 = 0
    return np.asarray(x, dtype)


def condition(name, x):
    """How much faster than its (scale-free) input the rotation may turn."""
    if name == "6d":
        a, b = x[:3], x[3:]
        return np.linalg.norm(a) * np.linalg.norm(b) / np.linalg.norm(np.cross(a, b))
    if name == "5d":
        length = np.linalg.norm(x[2:])
        return condition("6d", np.array([*x[:2], (length - 1 / length) / 2, *x[2:]]))
    if name == "svd":
        s = np.linalg.svd(x.reshape(3, 3))[1]
        return s[0] / (s[1] + s[2])
    return 1.0


@functools.cache
def all_orders(name, dtype):
    """Inputs of a chart (singular ones, then 40 regular ones) with value, gradient and Hessian: one compilation."""
    function, size = TO_MATRIX[name]
    singular = np.array(SINGULAR[name], float).reshape(-1, size)
    x = jnp.asarray(np.concatenate([singular, points(name, dtype, 40)]), dtype)

    def orders(x):
        return function(x), jax.jacrev(function)(x), jax.jacfwd(jax.jacrev(function))(x)

    return len(singular), np.asarray(x), *(np.asarray(part) for part in jax.jit(jax.vmap(orders))(x))


@pytest.mark.parametrize("name", TO_MATRIX)
def test_matrices_equal_their_definition(name, dtype):
    singular, x, R, _, _ = all_orders(name, dtype)
    with mpmath.workdps(40):
        truth = [np.array(DEFINITIONS[name](list(map(float, row))).tolist(), float) for row in x[singular:]]
    error = np.linalg.norm(R[singular:].astype(float) - np.array(truth).reshape(-1, 3, 3), axis=(1, 2))
    allowed = np.array([max(6.5, 4 * np.sqrt(3) * condition(name, row.astype(float))) for row in x[singular:]])
    assert (error <= allowed * eps(dtype)).all(), (error / eps(dtype) / allowed).max()


@pytest.mark.parametrize("name", TO_MATRIX)
def test_derivatives_equal_their_definition(name, dtype):
    """First derivatives to 4 eps and second to 1e-6 or 1e-14, times the condition, against central differences."""
    singular, x, _, first, second = all_orders(name, dtype)
    size = x.shape[1]
    for k in (singular, singular + 1):
        row = x[k].astype(float)
        slope, curvature = differences(DEFINITIONS[name], row)
        scale = condition(name, row)
        error = np.linalg.norm(first[k].reshape(9, size) - slope) / max(1, np.linalg.norm(slope))
        assert error <= 4 * scale * eps(dtype), error / eps(dtype)
        error = np.linalg.norm(second[k].reshape(9, size, size) - curvature) / max(1, np.linalg.norm(curvature))
        assert error <= scale**2 * {4: 1e-6, 8: 1e-14}[x.itemsize], error


def differences(function, x):
    """First and second derivatives of a matrix-valued mpmath function, by central differences to 25 digits."""
    with mpmath.workdps(100):
        h, n = mpmath.mpf(10) ** -25, len(x)
        exact = [mpmath.mpf(entry) for entry in x]

        def at(*steps):
            moved = list(exact)
            for axis, sign in steps:
                moved[axis] += sign * h
            return np.array(function(moved).tolist(), object).ravel()

        slope = np.stack([(at((i, 1)) - at((i, -1))) / (2 * h) for i in range(n)], axis=-1)
        curvature = np.empty((9, n, n), object)
        for i, j in itertools.combinations_with_replacement(range(n), 2):
            mixed = sum(s * t * at((i, s), (j, t)) for s in (1, -1) for t in (1, -1)) / (4 * h * h)
            curvature[:, i, j] = curvature[:, j, i] = mixed
        return slope.astype(float), curvature.astype(float)


@pytest.mark.parametrize("name", FROM_MATRIX)
def test_round_trip_of_rotations(name, dtype):
    R = rotations(dtype)
    written = jax.jit(FROM_MATRIX[name])(R)
    back = jax.jit(TO_MATRIX[name][0])(written)
    assert written.dtype == back.dtype == dtype
    # R's entries and what was written are both rounded: twice the bound of one conversion.
    error = np.linalg.norm(np.asarray(back - R, float), axis=(1, 2))
    assert error.max() <= 13 * eps(dtype), error.max() / eps(dtype)


def test_quaternions_are_exact_and_have_positive_real_part(dtype):
    q = np.asarray(jax.jit(charts.quaternion_from_matrix)(rotations(dtype)), float)
    axes = np.array([[0.6, -0.48, 0.64], [0, 0, 1], [1, 1e-4, 0]])
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    half = np.array(ANGLES) / 2
    truth = np.concatenate(
        [np.cos(half)[None, :, None] + 0 * axes[:, None, :1], np.sin(half)[:, None] * axes[:, None]], 2
    )
    truth = truth.reshape(-1, 4)
    sign = np.sign(np.sum(q * truth, axis=1, keepdims=True))
    assert (q[:, 0] >= 0).all()
    assert (sign[np.abs(truth[:, 0]) > 1e-3] > 0).all()
    assert np.linalg.norm(sign * q - truth, axis=1).max() <= 4 * eps(dtype)


def test_small_rotations_keep_their_digits(dtype):
    """Vector part and angles of a rotation by 1e-6 are right to 4 eps of themselves, not of 1."""
    omega = jnp.array([[0.6e-6, -0.48e-6, 0.64e-6]], dtype)
    R = so3.exp(omega)
    wide = np.asarray(omega, float)
    axis, angle = charts.axis_angle_from_matrix(R)
    vector = 2 * charts.quaternion_from_matrix(R)[:, 1:] * (1 + 1e-12 / 24)  # θ/2 over sin(θ/2)
    for found in (vector, axis * angle[:, None]):
        assert np.linalg.norm(np.asarray(found, float) - wide) <= 4 * eps(dtype) * 1e-6
    with mpmath.workdps(40):
        R = mp_axis_angle([*wide[0], np.linalg.norm(wide[0])])
        truth = [mpmath.atan2(R[2, 1], R[2, 2]), mpmath.asin(-R[2, 0]), mpmath.atan2(R[1, 0], R[0, 0])]
    found = np.asarray(charts.euler_from_matrix(so3.exp(omega)), float)
    assert np.linalg.norm(found - np.array(truth, float)) <= 4 * eps(dtype) * 1e-6


def test_quaternion_derivatives_along_the_group(dtype):
    """d q(R exp u) = q (0, u/2) and d²q = −|u|²/4 q, everywhere: at the identity, at π, in one batch."""
    R = rotations(dtype)

    def moved(u, R):
        return charts.quaternion_from_matrix(so3.retract(R, u))

    u = jnp.zeros((len(R), 3), dtype)
    q = np.asarray(charts.quaternion_from_matrix(R), float)
    first = np.asarray(jax.jit(jax.vmap(jax.jacrev(moved)))(u, R), float)
    second = np.asarray(jax.jit(jax.vmap(jax.jacfwd(jax.jacrev(moved))))(u, R), float)
    w, v = q[:, 0], q[:, 1:]
    hat = np.cross(np.eye(3), v[:, None, :])  # v̂
    slope = np.concatenate([-v[:, None, :], w[:, None, None] * np.eye(3) + hat], axis=1) / 2
    assert np.linalg.norm(first - slope, axis=(1, 2)).max() <= 4 * eps(dtype)
    curvature = -np.eye(3) * q[:, :, None, None] / 4
    allowed = {4: 1e-6, 8: 1e-14}[dtype(0).dtype.itemsize]
    assert np.linalg.norm((second - curvature).reshape(len(R), -1), axis=1).max() <= allowed


SINGULAR = {
    "quaternion": [[0, 0, 0, 0], [1e-30, 0, 0, 0], [0, 0, 0, 1e30], [-1, 0, 0, 0]],
    "6d": [
        [0, 0, 0, 0, 0, 0],
        [0, 0, 0, 1, 2, 3],
        [1, 2, 3, 0, 0, 0],
        [1, 2, 3, 2, 4, 6],
        [0.1, 0.2, 0.3, -0.3, -0.6, -0.9],
        [1, 0, 0, 1, 0, 0],
        [1e-30, 0, 0, 0, 1e30, 0],
        [1, 1, 1, 1, 1, 1.0000001],
    ],
    "5d": [[0, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 2], [0, 0, 0, 0, 1], [0, 0, 1e-30, 0, 0]],
    "svd": [
        np.zeros(9),
        [1, 0, 0, 0, 0, 0, 0, 0, 0],
        -np.eye(3).ravel(),
        [1, 0, 0, 0, 1, 0, 0, 0, -1],
        np.eye(3).ravel(),
    ],
    "euler": [[0, 0, 0], [0, np.pi / 2, 0], [np.pi, -np.pi / 2, np.pi]],
    "axis_angle": [[0, 0, 0, 1], [0, 0, 0, 0], [1e-30, 0, 0, 1], [1, 0, 0, np.pi], [1, 0, 0, 100]],
}


@pytest.mark.parametrize("name", TO_MATRIX)
def test_singular_inputs_give_rotations_with_finite_derivatives(name, dtype):
    """In one batch with regular inputs, which come out as they do alone."""
    singular, x, R, first, second = all_orders(name, dtype)
    assert_rotations(R, 8)
    assert np.isfinite(first).all()
    assert np.isfinite(second).all()
    alone = jax.jit(TO_MATRIX[name][0])(x[singular:])
    assert np.abs(R[singular:] - np.asarray(alone)).max() <= 8 * eps(dtype)


def assert_rotations(R, multiple):
    wide = np.asarray(R, float)
    defect = np.swapaxes(wide, -1, -2) @ wide - np.eye(3)
    assert np.abs(defect).max() <= multiple * eps(R.dtype), np.abs(defect).max() / eps(R.dtype)
    assert (np.linalg.det(wide) > 0).all()


def test_choices_at_singular_inputs():
    assert_array_equal(charts.matrix_from_quaternion(jnp.zeros(4)), np.eye(3))
    assert_array_equal(charts.matrix_from_6d(jnp.zeros(6)), np.eye(3))
    assert_array_equal(charts.matrix_from_6d(jnp.array([0, 0, 2.0, 0, 0, 1])), [[0, 1, 0], [0, 0, 1], [1, 0, 0]])
    assert_array_equal(charts.matrix_from_5d(jnp.zeros(5))[:, :2], [[0, 1], [0, 0], [-1, 0]])
    assert_array_equal(
        charts.matrix_from_axis_angle(jnp.zeros(3), jnp.asarray(0.5)), charts.matrix_from_euler(jnp.array([0.5]), "x")
    )
    axis, angle = charts.axis_angle_from_matrix(jnp.eye(3))
    assert_array_equal(axis, [1, 0, 0])
    assert angle == 0


@pytest.mark.parametrize("name", TO_MATRIX)
def test_batches_and_dtypes(name):
    to_matrix, size = TO_MATRIX[name]
    x = jnp.asarray(points(name, np.dtype(np.float32), 6).reshape(2, 3, size))
    R = to_matrix(x)
    assert R.shape == (2, 3, 3, 3)
    assert R.dtype == jnp.float32
    single = jax.vmap(jax.vmap(to_matrix))(x)
    assert np.abs(np.asarray(R - single)).max() <= 4 * eps(jnp.float32)
    written = FROM_MATRIX[name](R)
    assert written.shape == (2, 3, size)
    assert written.dtype == jnp.float32
    for narrow in (jnp.float16, jnp.bfloat16):
        R_narrow = to_matrix(x.astype(narrow))
        assert R_narrow.dtype == narrow
        assert np.abs(
            np.asarray(R_narrow, float) - np.asarray(to_matrix(x.astype(narrow).astype(jnp.float32)))
        ).max() <= 16 * eps(narrow)


def test_axis_and_angle_broadcast():
    axis, angle = jnp.ones((2, 1, 3)), jnp.ones((5,))
    assert charts.matrix_from_axis_angle(axis, angle).shape == (2, 5, 3, 3)
    assert charts.matrix_from_axis_angle(axis.astype(jnp.float32), 0.5).dtype == jnp.float32


@pytest.mark.parametrize("name", TO_MATRIX)
def test_bad_input_is_named(name, own_checks):
    to_matrix, size = TO_MATRIX[name]
    if name != "svd":
        with pytest.raises(ValueError, match=r"expected shape \(\.\.\., \d\), got \(2, "):
            to_matrix(jnp.ones((2, size + 2)) if name != "axis_angle" else jnp.ones((2, 2)))
    with pytest.raises(TypeError, match=r"expected a floating-point array"):
        to_matrix(jnp.ones((2, size), jnp.int32))
    with pytest.raises(ValueError, match="only finite values"):
        to_matrix(jnp.full((2, size), jnp.nan))
    if name != "svd":
        with pytest.raises(ValueError, match="R: expected rotation matrices"):
            FROM_MATRIX[name](2 * jnp.eye(3))
