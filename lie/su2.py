"""SU(2): unit quaternions wxyz, the double cover of SO(3): q and −q turn alike. Less than half the memory of matrices.

Tangent vectors are the rotation vectors of so3, so exp(ω) turns by |ω|; as a group element it comes back after 4π.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from lie import check, elementwise, smooth, so3

dimension = 3


def identity(shape: tuple[int, ...] = (), dtype: Any = jnp.float32) -> Float[Array, "..."]:
    """The quaternion 1, `shape` times: (*shape, 4)."""
    return jnp.broadcast_to(jnp.array([1, 0, 0, 0], dtype), (*shape, 4))


def canonical(q: Float[ArrayLike, "*batch 4"]) -> Float[Array, "*batch 4"]:
    """q or −q, the one whose first nonzero entry is positive: one quaternion for each rotation, w >= 0.

    Comes first wherever q and −q mean the same rotation, for example before `log` for an angle of at most π.
    """
    q = check.array("q", q, 4)
    sign = jnp.sign(jax.lax.stop_gradient(q))
    first = sign[..., 3]
    for k in (2, 1, 0):
        first = jnp.where(sign[..., k] == 0, first, sign[..., k])
    return jnp.where((first < 0)[..., None], -q, q)


def hat(omega: Float[ArrayLike, "*batch 3"]) -> Float[Array, "*batch 4"]:
    """The pure quaternion (0, ω/2), whose quaternion exponential is `exp(ω)`."""
    omega = check.array("omega", omega, 3)
    return jnp.concatenate([jnp.zeros_like(omega[..., :1]), omega / 2], axis=-1)


def vee(quaternion: Float[ArrayLike, "*batch 4"]) -> Float[Array, "*batch 3"]:
    """Twice the vector part: vee(hat(ω)) = ω."""
    return 2 * check.array("quaternion", quaternion, 4)[..., 1:]


def exp(omega: Float[ArrayLike, "*batch 3"]) -> Float[Array, "*batch 4"]:
    """(cos θ/2, (sin θ/2)/θ ω), θ = |ω|: the quaternion that turns by θ radians about ω, right-handed; any θ."""
    omega = check.array("omega", omega, 3)
    quarter = elementwise.dot(omega, omega) / 4
    return jnp.concatenate([smooth.cos(quarter)[..., None], smooth.sinc(quarter)[..., None] / 2 * omega], axis=-1)


def log(q: Float[ArrayLike, "*batch 4"]) -> Float[Array, "*batch 3"]:
    """2 atan2(|v|, w) v/|v| of q = (w, v): the inverse of exp for |ω| <= 2π; (2π, 0, 0) at q = −1, by choice.

    For the shortest rotation vector, |ω| <= π, take `canonical` first. Derivatives, dω = J_r⁻¹(ω) 2 vec(q⁻¹ dq), are
    those of the closest unit quaternion, exact to every order below 2π, where log has a true singularity.
    """
    q = check.array("q", q, 4)
    _check_unit("q", q)
    return _log(q)


def compose(q1: Float[ArrayLike, "*#batch 4"], q2: Float[ArrayLike, "*#batch 4"]) -> Float[Array, "... 4"]:
    """q1 q2, Hamilton's product: first q2, then q1."""
    q1, q2 = check.array("q1", q1, 4), check.array("q2", q2, 4)
    check.same_dtype(q1=q1, q2=q2)
    return _multiply(q1, q2)


def inverse(q: Float[ArrayLike, "*batch 4"]) -> Float[Array, "*batch 4"]:
    """The conjugate (w, −v)."""
    q = check.array("q", q, 4)
    return q * np.array([1, -1, -1, -1], q.dtype)


def act(q: Float[ArrayLike, "*#batch 4"], x: Float[ArrayLike, "*#batch 3"]) -> Float[Array, "... 3"]:
    """q x q⁻¹ = x + w u + v × u with u = 2 v × x: the rotated vector."""
    q, x = check.array("q", q, 4), check.array("x", x, 3)
    check.same_dtype(q=q, x=x)
    w, v = q[..., :1], q[..., 1:]
    u = 2 * elementwise.cross(v, x)
    return x + w * u + elementwise.cross(v, u)


def adjoint(q: Float[ArrayLike, "*batch 4"]) -> Float[Array, "*batch 3 3"]:
    """Ad_q with q exp(ω) q⁻¹ = exp(Ad_q ω): the rotation matrix of q, (w² − |v|²) I + 2 w v̂ + 2 v vᵀ."""
    q = check.array("q", q, 4)
    w, v = q[..., 0], q[..., 1:]
    return so3.isotropic(w * w - elementwise.dot(v, v), 2 * w, jnp.full_like(w, 2), v)


left_jacobian = so3.left_jacobian
right_jacobian = so3.right_jacobian
left_jacobian_inverse = so3.left_jacobian_inverse
right_jacobian_inverse = so3.right_jacobian_inverse


def retract(q: Float[ArrayLike, "*#batch 4"], omega: Float[ArrayLike, "*#batch 3"]) -> Float[Array, "... 4"]:
    """q exp(ω): a step from q along the body-frame tangent ω."""
    return compose(q, exp(omega))


def local(q1: Float[ArrayLike, "*#batch 4"], q2: Float[ArrayLike, "*#batch 4"]) -> Float[Array, "... 3"]:
    """log(q1⁻¹ q2), |ω| <= 2π: the step from q1 to q2, the inverse of `retract`; exactly 0 where q1 equals q2."""
    q1, q2 = check.array("q1", q1, 4), check.array("q2", q2, 4)
    check.same_dtype(q1=q1, q2=q2)
    _check_unit("q1", q1)
    _check_unit("q2", q2)
    # 1 + q1⁻¹ (q2 − q1): exactly 1 where q1 = q2, which q1⁻¹ q2 is not once the compiler fuses multiply and add.
    return _log(_multiply(inverse(q1), q2 - q1) + np.array([1, 0, 0, 0], q1.dtype))


def distance(q1: Float[ArrayLike, "*#batch 4"], q2: Float[ArrayLike, "*#batch 4"]) -> Float[Array, "..."]:
    """|log(q1⁻¹ q2)|, 0..2π: the double cover's own distance, in which q and −q are 2π apart.

    At q1 = q2 the gradient is 0 by choice, at 2π that of the branch `log` takes. Powers of it have no second derivative
    at q1 = q2: use `squared_distance` there. For the angle between rotations use `so3.distance` or `canonical`.
    """
    return smooth.norm(local(q1, q2))


def squared_distance(q1: Float[ArrayLike, "*#batch 4"], q2: Float[ArrayLike, "*#batch 4"]) -> Float[Array, "..."]:
    """|log(q1⁻¹ q2)|²: smooth at q1 = q2, where its gradient is 0 and its Hessian 2 I."""
    omega = local(q1, q2)
    return elementwise.dot(omega, omega)


def interpolate(
    q1: Float[ArrayLike, "*#batch 4"], q2: Float[ArrayLike, "*#batch 4"], t: Float[ArrayLike, "*#batch"]
) -> Float[Array, "... 4"]:
    """q1 exp(t log(q1⁻¹ q2)): slerp from q1 (t = 0) to q2 (t = 1), the way that q2's sign asks for; any t.

    For the short way between rotations replace q2 by −q2 where q1·q2 < 0.
    """
    omega = local(q1, q2)
    t = jnp.asarray(t, omega.dtype)
    return retract(q1, t[..., None] * omega)


def sample(shape: tuple[int, ...] = (), dtype: Any = jnp.float32, *, key: PRNGKeyArray) -> Float[Array, "..."]:
    """Quaternions drawn from Haar's (the uniform) measure: (*shape, 4)."""
    return _project(jax.random.normal(key, (*shape, 4), dtype))


def project(q: Float[ArrayLike, "*batch 4"]) -> Float[Array, "*batch 4"]:
    """q/|q|, the closest unit quaternion; 1 at q = 0, with zero derivatives there by choice."""
    return _project(check.array("q", q, 4))


def _check_unit(name: str, q: Array) -> None:
    if check.values_are_checked():
        allowed = 32 * float(jnp.finfo(q.dtype).eps)
        check.require(name, jnp.abs(smooth.norm(q) - 1) <= allowed, f"unit quaternions (to {allowed:.3g})")


def _multiply(q1: Array, q2: Array) -> Array:
    w1, x1, y1, z1 = (q1[..., k] for k in range(4))
    w2, x2, y2, z2 = (q2[..., k] for k in range(4))
    return jnp.stack(
        [
            w1 * w2 - x1 * x2 - y1 * y2 - z1 * z2,
            w1 * x2 + x1 * w2 + y1 * z2 - z1 * y2,
            w1 * y2 - x1 * z2 + y1 * w2 + z1 * x2,
            w1 * z2 + x1 * y2 - y1 * x2 + z1 * w2,
        ],
        axis=-1,
    )


def _project(q: Array) -> Array:
    length = smooth.norm(q, keepdims=True)
    return jnp.where(length == 0, identity((), q.dtype), q / jnp.where(length == 0, 1, length))


@jax.custom_jvp
def _log(q: Array) -> Array:
    w, v = q[..., 0], q[..., 1:]
    short = smooth.angle_ratio(jnp.abs(w), elementwise.dot(v, v))
    length = smooth.norm(v)
    opposite = (w < 0) & (length == 0)
    ratio = jnp.where(w < 0, smooth.divide(jnp.full_like(w, 2 * jnp.pi), length) - short, short)
    x_axis = np.array([2 * np.pi, 0, 0], q.dtype)
    return jnp.where(opposite[..., None], x_axis, ratio[..., None] * v)


@_log.defjvp
def _log_jvp(primals, tangents):
    (q,), (q_dot,) = primals, tangents
    omega = _log(q)
    body = 2 * _multiply(inverse(q), q_dot)[..., 1:]
    return omega, elementwise.matvec(so3.left_jacobian_inverse(-omega), body)
