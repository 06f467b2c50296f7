"""SO(3) and SU(2) against 80-digit truth: values, first and second derivatives along R exp(u), from 0 to π."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import oracle_lie as oracle
import pytest

from lie import so3, su2

CHOSEN = [0.0, 1e-20, 1e-6, 1e-3, 1e-2, 0.1, 0.5, 1.0, 2.5**0.5 * (1 - 1e-6), 2.5**0.5 * (1 + 1e-6), 2.2, 2.9]
CHOSEN += [np.pi - 1e-2, np.pi - 1e-4, np.pi - 1e-6]


@pytest.fixture(autouse=True)
def _digits():
    with mpmath.workdps(oracle.DIGITS):
        yield


def truths(f, points):
    return np.array([oracle.to_array(f(oracle.vector(x))) for x in points])


def in_eps(errors, dtype):
    return float(np.max(errors) / jnp.finfo(dtype).eps)


def test_exp(dtype):
    omega = oracle.rotation_vectors(dtype, oracle.ANGLES + oracle.PAST_PI)
    true = truths(oracle.exp, omega).reshape(-1, 3, 3)
    found = np.asarray(jax.jit(so3.exp)(omega))
    absolute = np.sqrt(((found.astype(np.longdouble) - true) ** 2).sum((1, 2)))
    assert found.dtype == dtype
    assert in_eps(absolute, dtype) <= 6.5
    q = jax.jit(su2.exp)(omega)
    assert in_eps(oracle.error(q, truths(oracle.quaternion, omega)), dtype) <= 4


def test_jacobians(dtype):
    omega = oracle.rotation_vectors(dtype)
    true = truths(oracle.left_jacobian, omega)
    inverse = truths(lambda w: oracle.left_jacobian(w) ** -1, omega)
    transposed = true.reshape(-1, 3, 3).swapaxes(1, 2)
    assert in_eps(oracle.error(jax.jit(so3.left_jacobian)(omega), true), dtype) <= 4
    assert in_eps(oracle.error(jax.jit(so3.right_jacobian)(omega), transposed), dtype) <= 4
    assert in_eps(oracle.error(jax.jit(so3.left_jacobian_inverse)(omega), inverse), dtype) <= 4
    transposed = inverse.reshape(-1, 3, 3).swapaxes(1, 2)
    assert in_eps(oracle.error(jax.jit(so3.right_jacobian_inverse)(omega), transposed), dtype) <= 4


def closest_quaternion(R):
    """The unit quaternion of the rotation closest to a matrix: dominant eigenvector of Davenport's matrix."""
    m = mpmath.matrix(R.astype(float).tolist())
    K = mpmath.matrix(4)
    K[0, 0] = m[0, 0] + m[1, 1] + m[2, 2]
    for i in range(3):
        j, k = (i + 1) % 3, (i + 2) % 3
        K[0, i + 1] = K[i + 1, 0] = m[k, j] - m[j, k]
        K[i + 1, i + 1] = m[i, i] - m[j, j] - m[k, k]
        K[i + 1, j + 1] = K[j + 1, i + 1] = m[i, j] + m[j, i]
    values, vectors = mpmath.eigsy(K)
    q = [vectors[i, max(range(4), key=lambda n: values[n])] for i in range(4)]
    return q if q[0] >= 0 else [-c for c in q]


def test_log_and_distance(dtype):
    omega = oracle.rotation_vectors(dtype)
    R = np.asarray(jax.jit(so3.exp)(omega))
    found = np.asarray(jax.jit(so3.log)(R))
    assert found.dtype == dtype
    with mpmath.workdps(45):
        true = np.array([oracle.to_array(oracle.log_quaternion(closest_quaternion(M))) for M in R])
    antipodal = (true * found).sum(1) < 0  # rounding moved the matrix across the cut: both vectors name it
    assert (np.sqrt((true[antipodal] ** 2).sum(1)) > np.pi - 1e-5).all()
    true[antipodal] *= (1 - 2 * np.pi / np.sqrt((true[antipodal] ** 2).sum(1)))[:, None]
    assert in_eps(oracle.error(found, true), dtype) <= 4
    distance = jax.jit(so3.distance)(so3.identity(dtype=dtype), R)
    length = np.sqrt((true**2).sum(1))
    assert in_eps(oracle.error(distance[:, None], length[:, None]), dtype) <= 4


def test_log_of_quaternion(dtype):
    omega = oracle.rotation_vectors(dtype, [*oracle.ANGLES, 4.0, 5.0, 6.0, 2 * np.pi - 1e-3])
    q = np.asarray(jax.jit(su2.exp)(omega))
    true = truths(oracle.log_quaternion, q)
    assert in_eps(oracle.error(jax.jit(su2.log)(q), true), dtype) <= 4
    at_minus_one = su2.log(jnp.array([-1, 0, 0, 0], dtype))
    assert float(jnp.abs(su2.exp(at_minus_one) - jnp.array([-1, 0, 0, 0], dtype)).max()) <= 2 * jnp.finfo(dtype).eps


def second_bound(dtype):
    return {np.dtype("float32"): 1e-6, np.dtype("float64"): 1e-14}[np.dtype(dtype)]


def derivatives(f, dtype, n):
    """Jitted value, Jacobian and Hessian of f(u, x) in u at 0, over a batch of x."""
    zero = jnp.zeros(n, dtype)

    def both(x):
        return f(zero, x), jax.jacrev(f)(zero, x), jax.jacfwd(jax.jacrev(f))(zero, x)

    return jax.jit(jax.vmap(both))


def test_derivatives_of_exp(dtype):
    omega = oracle.rotation_vectors(dtype, CHOSEN)[:30]
    _, one, two = derivatives(lambda u, w: so3.exp(w + u), dtype, 3)(omega)
    moved = oracle.at(lambda w, u: oracle.exp([a + b for a, b in zip(w, u, strict=True)]), omega)
    assert in_eps(oracle.error(one, np.array([oracle.first(f, 3) for f in moved]), relative=False), dtype) <= 4
    true = np.array([oracle.second(f, 3) for f in moved])
    assert oracle.error(two, true, relative=False).max() <= second_bound(dtype)


@pytest.mark.parametrize("form", ["matrix", "quaternion"])
def test_derivatives_of_log(dtype, form):
    group = so3 if form == "matrix" else su2
    omega = oracle.rotation_vectors(dtype, CHOSEN)[:30]
    value, one, two = derivatives(lambda u, w: group.log(group.retract(group.exp(w), u)), dtype, 3)(omega)
    moved = oracle.at(oracle.local_log, np.asarray(value))  # at our own log: its branch, exactly
    assert in_eps(oracle.error(one, np.array([oracle.first(f, 3) for f in moved]), relative=False), dtype) <= 4
    true = np.array([oracle.second(f, 3) for f in moved])
    assert oracle.error(two, true, relative=False).max() <= second_bound(dtype)


def test_squared_distance_is_smooth_at_coincidence(dtype):
    R = so3.exp(jnp.array([0.3, -1.2, 0.4], dtype))

    def f(u):
        return so3.squared_distance(R, so3.retract(R, u))

    zero = jnp.zeros(3, dtype)
    assert (jax.grad(f)(zero) == 0).all()
    assert float(jnp.abs(jax.jit(jax.hessian(f))(zero) - 2 * jnp.eye(3, dtype=dtype)).max()) <= 4 * jnp.finfo(dtype).eps


def test_distance_has_stated_subgradients(dtype):
    R = so3.exp(jnp.array([0.3, -1.2, 0.4], dtype))
    gradient = jax.grad(lambda u: so3.distance(R, so3.retract(R, u)))
    assert (gradient(jnp.zeros(3, dtype)) == 0).all()
    opposite = jnp.array([np.pi, 0, 0], dtype)
    at_cut = jax.grad(lambda u: so3.distance(R, so3.retract(so3.compose(R, so3.exp(opposite)), u)))(jnp.zeros(3, dtype))
    assert abs(float(jnp.linalg.norm(at_cut)) - 1) <= 8 * jnp.finfo(dtype).eps
    hessian = jax.jit(jax.hessian(lambda u: so3.distance(R, so3.retract(R, u))))
    assert jnp.isfinite(hessian(jnp.zeros(3, dtype))).all()


def singular_matrices(dtype, singular_values, seed=0):
    generator = np.random.default_rng(seed)
    U = np.asarray(so3.sample((8,), jnp.float64, key=jax.random.key(seed)))
    V = np.asarray(so3.sample((8,), jnp.float64, key=jax.random.key(seed + 1)))
    return ((U * np.array(singular_values)) @ V.swapaxes(1, 2) * generator.uniform(0.5, 2, (8, 1, 1))).astype(dtype)


@pytest.mark.parametrize(
    "singular_values", [(1, 1, 1), (3, 2, 1), (1, 1, -0.9), (2, 0.5, -0.4), (1, 1e-2, 0), (1, 1e-3, 0), (1e-9, 1e-9, 0)]
)
def test_project_is_as_exact_as_its_condition_allows(dtype, singular_values):
    M = singular_matrices(dtype, singular_values)
    condition = 2 * np.linalg.norm(singular_values) / (np.sqrt(3) * (singular_values[1] + singular_values[2]))
    found = np.asarray(jax.jit(so3.project)(M)).astype(np.longdouble)
    with mpmath.workdps(45):
        q = [closest_quaternion(m) for m in M]
        true = np.array([oracle.to_array(oracle.exp(oracle.log_quaternion(x))) for x in q]).reshape(-1, 3, 3)
    assert in_eps(np.sqrt(((found - true) ** 2).sum((1, 2)) / 3) / condition, dtype) <= 4


def test_derivative_of_projection(dtype):
    """dR = R ω̂ with the ω of R exp(εω) closest to M + ε dM, by differences of the float64 projection."""
    M = jnp.asarray(singular_matrices(dtype, (3, 2, -1)))
    M_dot = jnp.asarray(singular_matrices(dtype, (1, 0.7, 0.1), seed=5))
    _, found = jax.jvp(so3.project, (M,), (M_dot,))
    wide, step = jnp.asarray(M, jnp.float64), 1e-5 * jnp.asarray(M_dot, jnp.float64)
    true = (so3.project(wide + step) - so3.project(wide - step)) / 2e-5
    assert np.abs(np.asarray(found) - np.asarray(true)).max() <= 1e-9 + 16 * jnp.finfo(dtype).eps

    @jax.jit
    def first_and_second(M):
        (R, slope), (_, curvature) = jax.jvp(lambda M: jax.jvp(so3.project, (M,), (M_dot,)), (M,), (M_dot,))
        return R, slope, curvature

    free = singular_matrices(dtype, (1, 0.5, -0.5))  # all rotations about one axis are equally close
    for M in (free, jnp.zeros((8, 3, 3), dtype), np.broadcast_to(np.diag([1.0, 0, 0]), (8, 3, 3)).astype(dtype)):
        R, slope = first_and_second(M)[:2]
        assert np.abs(jnp.einsum("nij,nik->njk", R, R) - jnp.eye(3, dtype=dtype)).max() <= 16 * jnp.finfo(dtype).eps
        assert jnp.isfinite(slope).all()
        assert jnp.isfinite(first_and_second(M)[2]).all()


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1.0, 1e30])
def test_hessian_of_projection_is_finite_at_any_size(dtype, size):
    """float32 holds no 1/size² for size = 1e-30: derivatives are 0 there, and exact where they can be held."""
    spectra = [(1, 1, 1), (3, 2, -1), (1, 0.5, -0.5), (1, 0, 0)]
    M = size * jnp.asarray(np.stack([np.diag(spectrum) for spectrum in spectra]), dtype)

    @jax.jit
    @jax.vmap
    def both(M):
        return jax.jacrev(so3.project)(M), jax.jacfwd(jax.jacrev(so3.project))(M)

    first, second = both(M)
    assert jnp.isfinite(first).all()
    assert jnp.isfinite(second).all()
    if dtype == jnp.float32 and size == 1e-30:
        assert (first == 0).all()
    else:  # dR/dM_21 of the identity: half a turn about z per unit of M
        turned = np.asarray(first, np.float64)[0, :, :, 1, 0] * size
        np.testing.assert_allclose(turned, [[0, -0.5, 0], [0.5, 0, 0], [0, 0, 0]], atol=4 * float(jnp.finfo(dtype).eps))


def test_table_of_truth(truth, dtype):
    rows = truth("so3_se3_f32" if dtype == jnp.float32 else "so3_se3_f64")["rows"]
    rows = [row for row in rows if float(row["angle"]) <= np.pi and row["log_m_w"] is not None]
    column = {key: np.array([row[key] for row in rows], dtype=np.longdouble) for key in ("xi", "matrix", "jl", "jlinv")}
    column |= {key: np.array([row[key] for row in rows], dtype=np.longdouble) for key in ("matrix_in", "log_m_w")}
    omega = column["xi"][:, 3:].astype(dtype)
    absolute = np.sqrt(((np.asarray(so3.exp(omega)) - column["matrix"]) ** 2).sum((1, 2)))
    assert in_eps(absolute, dtype) <= 6.5
    for f, key in ((so3.left_jacobian, "jl"), (so3.left_jacobian_inverse, "jlinv")):
        assert in_eps(oracle.error(f(omega), column[key]), dtype) <= 4, key
    assert in_eps(oracle.error(so3.log(column["matrix_in"].astype(dtype)), column["log_m_w"]), dtype) <= 4
