"""SE(3): rigid motions x -> R x + t; tangent vectors xi = (v, omega), translation first, in the body frame.

se(3) is so(3) over the dual numbers: every 6x6 Jacobian is [[J, Q], [0, J]] with J that of SO(3) at ω and Q the
derivative of J along v, which is how they are computed here.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from lie import check, elementwise, smooth, so3

dimension = 6


class Pose(NamedTuple):
    """A rigid motion x -> rotation x + translation; a pytree whose leaves share their leading axes."""

    rotation: Float[Array, "*batch 3 3"]
    translation: Float[Array, "*batch 3"]


def identity(shape: tuple[int, ...] = (), dtype: Any = jnp.float32) -> Pose:
    """The motion that moves nothing, `shape` times."""
    return Pose(so3.identity(shape, dtype), jnp.zeros((*shape, 3), dtype))


def matrix_from_pose(T: Pose) -> Float[Array, "*batch 4 4"]:
    """The homogeneous matrix [[R, t], [0, 1]]."""
    R, t = _parts("T", T)
    return elementwise.bordered(R, t, 1)


def pose_from_matrix(matrix: Float[ArrayLike, "*batch 4 4"]) -> Pose:
    """The motion of a homogeneous matrix [[R, t], [0, 1]]; its last row is not read."""
    matrix = check.array("matrix", matrix, 4, 4)
    check.rotation("matrix[..., :3, :3]", matrix[..., :3, :3])
    return Pose(matrix[..., :3, :3], matrix[..., :3, 3])


def hat(xi: Float[ArrayLike, "*batch 6"]) -> Float[Array, "*batch 4 4"]:
    """The matrix [[ω̂, v], [0, 0]], whose matrix exponential is that of `exp`."""
    v, omega = _halves("xi", xi)
    return elementwise.bordered(so3.hat(omega), v, 0)


def vee(matrix: Float[ArrayLike, "*batch 4 4"]) -> Float[Array, "*batch 6"]:
    """The xi of a matrix [[ω̂, v], [0, 0]]: the inverse of `hat`."""
    matrix = check.array("matrix", matrix, 4, 4)
    return jnp.concatenate([matrix[..., :3, 3], so3.vee(matrix[..., :3, :3])], axis=-1)


def exp(xi: Float[ArrayLike, "*batch 6"]) -> Pose:
    """The screw motion of xi = (v, ω) for unit time: R = exp(ω), t = J_l(ω) v with the left Jacobian of SO(3)."""
    v, omega = _halves("xi", xi)
    return Pose(*_exp(v, omega))


def log(T: Pose) -> Float[Array, "*batch 6"]:
    """xi = (v, ω) with ω = log R, |ω| <= π, and v = J_l⁻¹(ω) t; derivatives exact at 0 and at π as those of so3.log."""
    R, t = _parts("T", T)
    check.rotation("T.rotation", R)
    return _log(R, t)


def compose(T1: Pose, T2: Pose) -> Pose:
    """T1 T2: first T2, then T1."""
    (R1, t1), (R2, t2) = _pair(T1, T2)
    return Pose(elementwise.matmul(R1, R2), elementwise.matvec(R1, t2) + t1)


def inverse(T: Pose) -> Pose:
    """(Rᵀ, −Rᵀ t)."""
    R, t = _parts("T", T)
    transposed = elementwise.transpose(R)
    return Pose(transposed, -elementwise.matvec(transposed, t))


def act(T: Pose, x: Float[ArrayLike, "*#batch 3"]) -> Float[Array, "... 3"]:
    """R x + t: the moved point."""
    R, t = _parts("T", T)
    x = check.array("x", x, 3)
    check.same_dtype(T=R, x=x)
    return elementwise.matvec(R, x) + t


def adjoint(T: Pose) -> Float[Array, "*batch 6 6"]:
    """Ad_T with T exp(xi) T⁻¹ = exp(Ad_T xi): [[R, t̂ R], [0, R]]."""
    R, t = _parts("T", T)
    return _dual(R, jnp.cross(t[..., :, None], R, axis=-2))


def left_jacobian(xi: Float[ArrayLike, "*batch 6"]) -> Float[Array, "*batch 6 6"]:
    """J_l with exp(xi + δ) = exp(J_l δ) exp(xi) to first order: [[J, Q], [0, J]], any angle."""
    v, omega = _halves("xi", xi)
    c = smooth.stumpff_family(6, elementwise.dot(omega, omega))
    return _dual(so3.isotropic(c[1], c[2], c[3], omega), so3.cross_terms(*_coupling_terms(v, omega, c)))


def right_jacobian(xi: Float[ArrayLike, "*batch 6"]) -> Float[Array, "*batch 6 6"]:
    """J_r with exp(xi + δ) = exp(xi) exp(J_r δ) to first order: J_l(−xi)."""
    return left_jacobian(-check.array("xi", xi, 6))


def left_jacobian_inverse(xi: Float[ArrayLike, "*batch 6"]) -> Float[Array, "*batch 6 6"]:
    """J_l⁻¹ = [[J⁻¹, −J⁻¹ Q J⁻¹], [0, J⁻¹]], the second block as the derivative of the first along v; |ω| < 2π."""
    v, omega = _halves("xi", xi)
    theta_squared = elementwise.dot(omega, omega)
    k, k_slope = smooth.cotangent_pair(theta_squared)
    block = so3.isotropic(1 - theta_squared * k, jnp.full_like(k, -0.5), k, omega)
    return _dual(block, so3.cross_terms(*_inverse_coupling_terms(v, omega, k, k_slope)))


def right_jacobian_inverse(xi: Float[ArrayLike, "*batch 6"]) -> Float[Array, "*batch 6 6"]:
    """J_r⁻¹ = J_l⁻¹(−xi): the derivative of log, log(T exp(δ)) = log T + J_r⁻¹ δ to first order; |ω| < 2π."""
    return left_jacobian_inverse(-check.array("xi", xi, 6))


def retract(T: Pose, xi: Float[ArrayLike, "*#batch 6"]) -> Pose:
    """T exp(xi): a step from T along the body-frame tangent xi."""
    return compose(T, exp(xi))


def local(T1: Pose, T2: Pose) -> Float[Array, "... 6"]:
    """log(T1⁻¹ T2): the body-frame step from T1 to T2, the inverse of `retract`; exactly 0 where T1 equals T2."""
    (R1, t1), (R2, t2) = _pair(T1, T2)
    check.rotation("T1.rotation", R1)
    check.rotation("T2.rotation", R2)
    transposed = elementwise.transpose(R1)
    return _log(elementwise.matmul(transposed, R2), elementwise.matvec(transposed, t2 - t1))


def distance(T1: Pose, T2: Pose, length: float = 1.0) -> Float[Array, "..."]:
    """√(|t2 − t1|²/length² + θ²), θ the angle of R1⁻¹ R2: the geodesic distance of R³ x SO(3), left-invariant.

    `length` is what one radian is worth, in the unit of the translations. At T1 = T2 the gradient is 0 by choice, at
    θ = π that of the branch `log` takes. Powers have no second derivative at T1 = T2: use `squared_distance` there.
    """
    return smooth.norm(_difference(T1, T2, length))


def squared_distance(T1: Pose, T2: Pose, length: float = 1.0) -> Float[Array, "..."]:
    """|t2 − t1|²/length² + θ²: smooth at T1 = T2, with the exact Hessian."""
    difference = _difference(T1, T2, length)
    return elementwise.dot(difference, difference)


def interpolate(T1: Pose, T2: Pose, t: Float[ArrayLike, "*#batch"]) -> Pose:
    """T1 exp(t log(T1⁻¹ T2)): the screw motion (ScLERP) from T1 (t = 0) to T2 (t = 1) at constant speed; any real t."""
    xi = local(T1, T2)
    t = jnp.asarray(t, xi.dtype)
    return retract(T1, t[..., None] * xi)


def sample(shape: tuple[int, ...] = (), dtype: Any = jnp.float32, *, key: PRNGKeyArray) -> Pose:
    """A rotation from Haar's measure and a standard normal translation (the group has no uniform probability)."""
    key_rotation, key_translation = jax.random.split(key)
    return Pose(so3.sample(shape, dtype, key=key_rotation), jax.random.normal(key_translation, (*shape, 3), dtype))


def project(T: Pose) -> Pose:
    """T with its rotation replaced by the closest one (`so3.project`)."""
    R, t = _parts("T", T)
    return Pose(so3.project(R), t)


def _parts(name: str, T: Pose) -> tuple[Array, Array]:
    if not isinstance(T, Pose):
        raise TypeError(f"{name}: expected a se3.Pose(rotation, translation), got {type(T).__name__}")
    R, t = check.array(f"{name}.rotation", T.rotation, 3, 3), check.array(f"{name}.translation", T.translation, 3)
    check.same_dtype(rotation=R, translation=t)
    return R, t


def _pair(T1: Pose, T2: Pose) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    (R1, t1), (R2, t2) = _parts("T1", T1), _parts("T2", T2)
    check.same_dtype(T1=R1, T2=R2)
    return (R1, t1), (R2, t2)


def _halves(name: str, xi: Float[ArrayLike, "*batch 6"]) -> tuple[Array, Array]:
    xi = check.array(name, xi, 6)
    return xi[..., :3], xi[..., 3:]


def _coupling_terms(v: Array, omega: Array, c: tuple[Array, ...]) -> tuple[Array, ...]:
    """Arguments of `so3.cross_terms` for Q, the derivative of J = c₁ I + c₂ ω̂ + c₃ ω ωᵀ along v.

    By c_k' = (k c_{k+2} − c_{k+1})/2.
    """
    _, _, c2, c3, c4, c5 = c
    slope = elementwise.dot(omega, v)  # half the derivative of θ²
    p = c2[..., None] * v + ((2 * c4 - c3) * slope)[..., None] * omega
    u = c3[..., None] * v + ((3 * c5 - c4) * slope / 2)[..., None] * omega
    return (c3 - c2) * slope, p, omega, u


def _inverse_coupling_terms(v: Array, omega: Array, k: Array, k_slope: Array) -> tuple[Array, ...]:
    """The same for −J⁻¹ Q J⁻¹, the derivative of J⁻¹ = (1 − θ² k) I − ω̂/2 + k ω ωᵀ along v."""
    theta_squared, slope = elementwise.dot(omega, omega), elementwise.dot(omega, v)
    k_dot = k_slope * slope  # half the derivative of k
    u = k[..., None] * v + k_dot[..., None] * omega
    return -2 * (slope * k + theta_squared * k_dot), -v / 2, omega, u


@jax.custom_jvp
def _exp(v: Array, omega: Array) -> tuple[Array, Array]:
    c = smooth.stumpff_family(4, elementwise.dot(omega, omega))
    along = (c[3] * elementwise.dot(omega, v))[..., None]
    t = c[1][..., None] * v + c[2][..., None] * elementwise.cross(omega, v) + along * omega
    return so3.isotropic(c[0], c[1], c[2], omega), t


# The derivatives of _exp and _log are those of the group: with the body twist (ρ, φ), dR = R φ̂ and dt = R ρ. Right
# Jacobians are the transposes of the left ones, block by block, so "ji,j->i" applies them. Differentiating the formulas
# instead costs three times the code to compile, and sums over axes of three, which XLA does slowly.
#
# What the gradient of a pose loss compiles to counts in kernels, 15 to 35 ms each: 72 in the first version, 44 now, and
# 2.6 times faster than jaxlie's 139. That took matrices by `so3.compact_isotropic`, translations as J v by a dot with
# the matrix that the rule has anyway, and fewer roots and divisions, each of which ends a kernel. Tried and left out:
# cross products by gathers (no faster to compile, twice as slow to run), both columns of J [v ω] in one dot (the stacks
# cost what the dot saves), and, by reasoning alone, vectors in place of matrices for J and Q (their transposes pad and
# add).
@_exp.defjvp
def _exp_jvp(primals, tangents):
    (v, omega), (v_dot, omega_dot) = primals, tangents
    c = smooth.stumpff_family(6, elementwise.dot(omega, omega))
    J = so3.compact_isotropic(c[1], c[2], c[3], omega)
    Q = so3.compact_cross_terms(*_coupling_terms(v, omega, c))
    R, t = so3.compact_isotropic(c[0], c[1], c[2], omega), elementwise.einsum("...ij,...j->...i", J, v)
    phi = elementwise.einsum("...ji,...j->...i", J, omega_dot)
    rho = elementwise.einsum("...ji,...j->...i", J, v_dot) + elementwise.einsum("...ji,...j->...i", Q, omega_dot)
    return (R, t), (so3.turned(R, phi), elementwise.einsum("...ij,...j->...i", R, rho))


@jax.custom_jvp
def _log(R: Array, t: Array) -> Array:
    omega = so3.log_unchecked(R)
    theta_squared = elementwise.dot(omega, omega)
    k = smooth.cotangent_coefficient(theta_squared)
    along = (k * elementwise.dot(omega, t))[..., None]
    v = (1 - theta_squared * k)[..., None] * t - elementwise.cross(omega, t) / 2 + along * omega
    return jnp.concatenate([v, jnp.broadcast_to(omega, v.shape)], axis=-1)


@_log.defjvp
def _log_jvp(primals, tangents):
    (R, t), (R_dot, t_dot) = primals, tangents
    omega = so3.log_unchecked(R)
    theta_squared = elementwise.dot(omega, omega)
    k, k_slope = smooth.cotangent_pair(theta_squared)
    J = so3.compact_isotropic(1 - theta_squared * k, -0.5, k, omega)
    v = elementwise.einsum("...ij,...j->...i", J, t)
    Q = so3.compact_cross_terms(*_inverse_coupling_terms(v, omega, k, k_slope))
    phi, excess = so3.body_rates(R, R_dot)
    rho = elementwise.einsum("...ji,...j->...i", R, t_dot) * (1 - excess)
    v_dot = elementwise.einsum("...ji,...j->...i", J, rho) + elementwise.einsum("...ji,...j->...i", Q, phi)
    omega_dot = elementwise.einsum("...ji,...j->...i", J, phi)
    xi = jnp.concatenate([v, jnp.broadcast_to(omega, v.shape)], axis=-1)
    return xi, jnp.concatenate([v_dot, jnp.broadcast_to(omega_dot, v_dot.shape)], axis=-1)


def _difference(T1: Pose, T2: Pose, length: float) -> Array:
    (R1, t1), (R2, t2) = _pair(T1, T2)
    omega = so3.local(R1, R2)
    apart = (t2 - t1) / jnp.asarray(length, omega.dtype)
    shape = jnp.broadcast_shapes(apart.shape, omega.shape)
    return jnp.concatenate([jnp.broadcast_to(apart, shape), jnp.broadcast_to(omega, shape)], axis=-1)


def _dual(block: Array, coupling: Array) -> Array:
    """[[block, coupling], [0, block]]."""
    shape = jnp.broadcast_shapes(block.shape, coupling.shape)
    block, coupling = jnp.broadcast_to(block, shape), jnp.broadcast_to(coupling, shape)
    top = jnp.concatenate([block, coupling], axis=-1)
    bottom = jnp.concatenate([jnp.zeros_like(block), block], axis=-1)
    return jnp.concatenate([top, bottom], axis=-2)
