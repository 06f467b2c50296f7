"""SE(2): rigid motions of the plane x -> R x + t; tangent vectors xi = (v, omega) in the body frame."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from lie import check, elementwise, smooth, so2

dimension = 3


class Pose(NamedTuple):
    """A rigid motion x -> rotation x + translation; a pytree whose leaves share their leading axes."""

    rotation: Float[Array, "*batch 2 2"]
    translation: Float[Array, "*batch 2"]


def identity(shape: tuple[int, ...] = (), dtype: Any = jnp.float32) -> Pose:
    """The motion that moves nothing, `shape` times."""
    return Pose(so2.identity(shape, dtype), jnp.zeros((*shape, 2), dtype))


def matrix_from_pose(T: Pose) -> Float[Array, "*batch 3 3"]:
    """The homogeneous matrix [[R, t], [0, 1]]."""
    R, t = _parts("T", T)
    return elementwise.bordered(R, t, 1)


def pose_from_matrix(matrix: Float[ArrayLike, "*batch 3 3"]) -> Pose:
    """The motion of a homogeneous matrix [[R, t], [0, 1]]; its last row is not read."""
    matrix = check.array("matrix", matrix, 3, 3)
    check.rotation("matrix[..., :2, :2]", matrix[..., :2, :2])
    return Pose(matrix[..., :2, :2], matrix[..., :2, 2])


def hat(xi: Float[ArrayLike, "*batch 3"]) -> Float[Array, "*batch 3 3"]:
    """The matrix [[ω̂, v], [0, 0]], whose matrix exponential is that of `exp`."""
    v, omega = _halves("xi", xi)
    return elementwise.bordered(so2.hat(omega), v, 0)


def vee(matrix: Float[ArrayLike, "*batch 3 3"]) -> Float[Array, "*batch 3"]:
    """The xi of a matrix [[ω̂, v], [0, 0]]: the inverse of `hat`."""
    matrix = check.array("matrix", matrix, 3, 3)
    return jnp.concatenate([matrix[..., :2, 2], so2.vee(matrix[..., :2, :2])], axis=-1)


def exp(xi: Float[ArrayLike, "*batch 3"]) -> Pose:
    """The motion of xi = (v, ω) for unit time: R = exp(ω), t = V v with V = (sin ω/ω) I + ((1 − cos ω)/ω) J; any ω.

    J is the quarter turn counter-clockwise.
    """
    v, omega = _halves("xi", xi)
    square = omega * omega
    return Pose(so2.exp(omega), smooth.sinc(square) * v + omega * smooth.cosinc(square) * _quarter_turn(v))


def log(T: Pose) -> Float[Array, "*batch 3"]:
    """xi = (v, ω) with ω = log R in (−π, π] and v = V⁻¹ t, V⁻¹ = (ω/2) cot(ω/2) I − (ω/2) J."""
    R, t = _parts("T", T)
    return _from_angle(so2.log(R), t)


def compose(T1: Pose, T2: Pose) -> Pose:
    """T1 T2: first T2, then T1."""
    (R1, t1), (R2, t2) = _pair(T1, T2)
    return Pose(elementwise.matmul(R1, R2), elementwise.matvec(R1, t2) + t1)


def inverse(T: Pose) -> Pose:
    """(Rᵀ, −Rᵀ t)."""
    R, t = _parts("T", T)
    transposed = elementwise.transpose(R)
    return Pose(transposed, -elementwise.matvec(transposed, t))


def act(T: Pose, x: Float[ArrayLike, "*#batch 2"]) -> Float[Array, "... 2"]:
    """R x + t: the moved point."""
    R, t = _parts("T", T)
    x = check.array("x", x, 2)
    check.same_dtype(T=R, x=x)
    return elementwise.matvec(R, x) + t


def adjoint(T: Pose) -> Float[Array, "*batch 3 3"]:
    """Ad_T with T exp(xi) T⁻¹ = exp(Ad_T xi): [[R, −J t], [0, 1]]."""
    R, t = _parts("T", T)
    return elementwise.bordered(R, -_quarter_turn(t), 1)


def left_jacobian(xi: Float[ArrayLike, "*batch 3"]) -> Float[Array, "*batch 3 3"]:
    """J_l with exp(xi + δ) = exp(J_l δ) exp(xi) to first order: [[V, c₃ ω v − c₂ J v], [0, 1]]; any ω."""
    v, omega = _halves("xi", xi)
    square = omega * omega
    a, b, c = smooth.sinc(square), smooth.cosinc(square), smooth.stumpff(3, square)
    return elementwise.bordered(_complex(a, omega * b), omega * c * v - b * _quarter_turn(v), 1)


def right_jacobian(xi: Float[ArrayLike, "*batch 3"]) -> Float[Array, "*batch 3 3"]:
    """J_r with exp(xi + δ) = exp(xi) exp(J_r δ) to first order: J_l(−xi)."""
    return left_jacobian(-check.array("xi", xi, 3))


def left_jacobian_inverse(xi: Float[ArrayLike, "*batch 3"]) -> Float[Array, "*batch 3 3"]:
    """J_l⁻¹ = [[V⁻¹, k ω v + J v/2], [0, 1]], k = `smooth.cotangent_coefficient`; |ω| < 2π."""
    v, omega = _halves("xi", xi)
    square = omega * omega
    a, c = smooth.half_cotangent(square), smooth.cotangent_coefficient(square)
    return elementwise.bordered(_complex(a, -omega / 2), omega * c * v + _quarter_turn(v) / 2, 1)


def right_jacobian_inverse(xi: Float[ArrayLike, "*batch 3"]) -> Float[Array, "*batch 3 3"]:
    """J_r⁻¹ = J_l⁻¹(−xi): the derivative of log, log(T exp(δ)) = log T + J_r⁻¹ δ to first order; |ω| < 2π."""
    return left_jacobian_inverse(-check.array("xi", xi, 3))


def retract(T: Pose, xi: Float[ArrayLike, "*#batch 3"]) -> Pose:
    """T exp(xi): a step from T along the body-frame tangent xi."""
    return compose(T, exp(xi))


def local(T1: Pose, T2: Pose) -> Float[Array, "... 3"]:
    """log(T1⁻¹ T2): the body-frame step from T1 to T2, the inverse of `retract`; exactly 0 where T1 equals T2."""
    (R1, t1), (R2, t2) = _pair(T1, T2)
    return _from_angle(so2.local(R1, R2), elementwise.matvec(elementwise.transpose(R1), t2 - t1))


def distance(T1: Pose, T2: Pose, length: float = 1.0) -> Float[Array, "..."]:
    """√(|t2 − t1|²/length² + θ²), θ the angle of R1⁻¹ R2: the geodesic distance of R² x SO(2), left-invariant.

    `length` is what one radian is worth, in the unit of the translations. At T1 = T2 the gradient is 0 by choice, at
    θ = π that of the branch `log` takes. Powers have no second derivative at T1 = T2: use `squared_distance` there.
    """
    return smooth.norm(_difference(T1, T2, length))


def squared_distance(T1: Pose, T2: Pose, length: float = 1.0) -> Float[Array, "..."]:
    """|t2 − t1|²/length² + θ²: smooth at T1 = T2, with the exact Hessian."""
    difference = _difference(T1, T2, length)
    return elementwise.dot(difference, difference)


def interpolate(T1: Pose, T2: Pose, t: Float[ArrayLike, "*#batch"]) -> Pose:
    """T1 exp(t log(T1⁻¹ T2)): along a circular arc from T1 (t = 0) to T2 (t = 1) at constant speed; any real t."""
    xi = local(T1, T2)
    t = jnp.asarray(t, xi.dtype)
    return retract(T1, t[..., None] * xi)


def sample(shape: tuple[int, ...] = (), dtype: Any = jnp.float32, *, key: PRNGKeyArray) -> Pose:
    """A rotation from Haar's measure and a standard normal translation (the group has no uniform probability)."""
    key_rotation, key_translation = jax.random.split(key)
    return Pose(so2.sample(shape, dtype, key=key_rotation), jax.random.normal(key_translation, (*shape, 2), dtype))


def project(T: Pose) -> Pose:
    """T with its rotation replaced by the closest one (`so2.project`)."""
    R, t = _parts("T", T)
    return Pose(so2.project(R), t)


def _parts(name: str, T: Pose) -> tuple[Array, Array]:
    if not isinstance(T, Pose):
        raise TypeError(f"{name}: expected a se2.Pose(rotation, translation), got {type(T).__name__}")
    R, t = check.array(f"{name}.rotation", T.rotation, 2, 2), check.array(f"{name}.translation", T.translation, 2)
    check.same_dtype(rotation=R, translation=t)
    return R, t


def _pair(T1: Pose, T2: Pose) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    (R1, t1), (R2, t2) = _parts("T1", T1), _parts("T2", T2)
    check.same_dtype(T1=R1, T2=R2)
    return (R1, t1), (R2, t2)


def _halves(name: str, xi: Float[ArrayLike, "*batch 3"]) -> tuple[Array, Array]:
    xi = check.array(name, xi, 3)
    return xi[..., :2], xi[..., 2:]


def _quarter_turn(x: Array) -> Array:
    """J x = (−x₁, x₀)."""
    return jnp.stack([-x[..., 1], x[..., 0]], axis=-1)


def _complex(real: Array, imaginary: Array) -> Array:
    """real I + imaginary J, of arrays (..., 1)."""
    columns = jnp.concatenate([real, imaginary], axis=-1), jnp.concatenate([-imaginary, real], axis=-1)
    return jnp.stack(columns, axis=-1)


def _from_angle(omega: Array, t: Array) -> Array:
    """(V⁻¹ t, ω)."""
    v = smooth.half_cotangent(omega * omega) * t - omega / 2 * _quarter_turn(t)
    return jnp.concatenate([v, jnp.broadcast_to(omega, (*v.shape[:-1], 1))], axis=-1)


def _difference(T1: Pose, T2: Pose, length: float) -> Array:
    (R1, t1), (R2, t2) = _pair(T1, T2)
    omega = so2.local(R1, R2)
    apart = (t2 - t1) / jnp.asarray(length, omega.dtype)
    batch = jnp.broadcast_shapes(apart.shape[:-1], omega.shape[:-1])
    return jnp.concatenate([jnp.broadcast_to(apart, (*batch, 2)), jnp.broadcast_to(omega, (*batch, 1))], axis=-1)
