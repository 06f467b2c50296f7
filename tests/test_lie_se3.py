"""SE(3) against 80-digit truth: exp, log, 6x6 Jacobians, first and second derivatives along T exp(u), from 0 to π."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import oracle_lie as oracle
import pytest
from test_lie_so3 import derivatives, in_eps, second_bound, truths

from lie import se3, so3

CHOSEN = [0.0, 1e-20, 1e-3, 0.1, 1.0, 2.5**0.5 * (1 + 1e-6), 2.6, np.pi - 1e-2, np.pi - 1e-5]


@pytest.fixture(autouse=True)
def _digits():
    with mpmath.workdps(oracle.DIGITS):
        yield


def translation(xi):
    return oracle.left_jacobian(xi[3:]) * mpmath.matrix(xi[:3])


def coupling(J):
    return np.asarray(J)[:, :3, 3:]


def test_exp(dtype):
    xi = oracle.twists(dtype, oracle.ANGLES + oracle.PAST_PI[:3])
    T = jax.jit(se3.exp)(xi)
    assert T.rotation.dtype == T.translation.dtype == dtype
    assert in_eps(oracle.error(T.translation, truths(translation, xi)), dtype) <= 4
    true = truths(lambda x: oracle.exp(x[3:]), xi)
    assert in_eps(oracle.error(T.rotation, true) * 3**0.5, dtype) <= 6.5


def test_log_of_poses_near_a_twist(dtype):
    """log at R = round(exp ω), t: v = J_l⁻¹(ω') t with ω' our own so3.log, which its own test holds to the truth."""
    xi = oracle.twists(dtype)
    R, t = jax.jit(so3.exp)(xi[:, 3:]), xi[:, :3]
    found = np.asarray(jax.jit(lambda R, t: se3.log(se3.Pose(R, t)))(R, t))
    assert found.dtype == dtype
    assert (found[:, 3:] == np.asarray(jax.jit(so3.log)(R))).all()
    true = truths(
        lambda x: mpmath.lu_solve(oracle.left_jacobian(x[3:]), mpmath.matrix(x[:3])),
        np.concatenate([t, found[:, 3:]], axis=1),
    )
    assert in_eps(oracle.error(found[:, :3], true), dtype) <= 4


def test_jacobians(dtype):
    xi = oracle.twists(dtype)[::3]
    true = truths(oracle.left_jacobian_se3, xi).reshape(-1, 6, 6)
    inverse = truths(lambda x: oracle.left_jacobian_se3(x) ** -1, xi).reshape(-1, 6, 6)
    for f, expected, sign in (
        (se3.left_jacobian, true, 1),
        (se3.right_jacobian, true, -1),
        (se3.left_jacobian_inverse, inverse, 1),
        (se3.right_jacobian_inverse, inverse, -1),
    ):
        found = np.asarray(jax.jit(f)(sign * xi))
        assert in_eps(oracle.error(coupling(found), coupling(expected)), dtype) <= 8, f.__name__
        assert in_eps(oracle.error(found[:, :3, :3], expected[:, :3, :3]), dtype) <= 4, f.__name__
        assert (found[:, 3:, 3:] == found[:, :3, :3]).all()
        assert (found[:, 3:, :3] == 0).all()


def test_derivatives_of_exp(dtype):
    xi = oracle.twists(dtype, CHOSEN)[: len(CHOSEN)]
    _, one, two = derivatives(lambda u, x: se3.exp(x + u).translation, dtype, 6)(xi)
    moved = oracle.at(lambda x, u: translation([a + b for a, b in zip(x, u, strict=True)]), xi)
    assert in_eps(oracle.error(one, np.array([oracle.first(f, 6) for f in moved]), relative=False), dtype) <= 4
    true = np.array([oracle.second(f, 6) for f in moved])
    assert oracle.error(two, true, relative=False).max() <= second_bound(dtype)


def test_derivatives_of_log(dtype):
    xi = oracle.twists(dtype, CHOSEN)[: len(CHOSEN)]
    value, one, two = derivatives(lambda u, x: se3.log(se3.retract(se3.exp(x), u)), dtype, 6)(xi)
    moved = oracle.at(oracle.local_log_se3, np.asarray(value))
    assert in_eps(oracle.error(one, np.array([oracle.first(f, 6) for f in moved]), relative=False), dtype) <= 4
    true = np.array([oracle.second(f, 6) for f in moved])
    assert oracle.error(two, true, relative=False).max() <= second_bound(dtype)


def test_squared_distance_is_smooth_at_coincidence(dtype):
    T = se3.exp(jnp.array([0.3, -1.2, 0.4, 1.0, 0.2, -0.7], dtype))

    def f(u):
        return se3.squared_distance(T, se3.retract(T, u), length=2.0)

    zero = jnp.zeros(6, dtype)
    assert (jax.grad(f)(zero) == 0).all()
    true = np.diag([0.5, 0.5, 0.5, 2, 2, 2])
    assert np.abs(np.asarray(jax.jit(jax.hessian(f))(zero)) - true).max() <= 8 * jnp.finfo(dtype).eps
    assert (jax.grad(lambda u: se3.distance(T, se3.retract(T, u)))(zero) == 0).all()


def test_table_of_truth(truth, dtype):
    rows = truth("so3_se3_f32" if dtype == jnp.float32 else "so3_se3_f64")["rows"]
    rows = [row for row in rows if float(row["angle"]) <= np.pi and row["log_m_w"] is not None]
    keys = ("xi", "t", "Q", "matrix_in", "t_in", "log_t")
    column = {key: np.array([row[key] for row in rows], dtype=np.longdouble) for key in keys}
    xi = column["xi"].astype(dtype)
    assert in_eps(oracle.error(se3.exp(xi).translation, column["t"]), dtype) <= 4
    assert in_eps(oracle.error(coupling(se3.left_jacobian(xi)), column["Q"]), dtype) <= 8
    T = se3.Pose(jnp.asarray(column["matrix_in"].astype(dtype)), jnp.asarray(column["t_in"].astype(dtype)))
    assert in_eps(oracle.error(se3.log(T)[:, :3], column["log_t"]), dtype) <= 4
