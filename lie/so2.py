"""SO(2): rotations of the plane as 2x2 matrices, counter-clockwise; tangent vectors are angles (*batch, 1)."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from lie import check, elementwise, smooth

dimension = 1


def identity(shape: tuple[int, ...] = (), dtype: Any = jnp.float32) -> Float[Array, "..."]:
    """The rotation by 0, `shape` times: (*shape, 2, 2)."""
    return jnp.broadcast_to(jnp.eye(2, dtype=dtype), (*shape, 2, 2))


def hat(omega: Float[ArrayLike, "*batch 1"]) -> Float[Array, "*batch 2 2"]:
    """[[0, −ω], [ω, 0]]."""
    omega = check.array("omega", omega, 1)[..., 0]
    return _matrix(jnp.zeros_like(omega), omega)


def vee(matrix: Float[ArrayLike, "*batch 2 2"]) -> Float[Array, "*batch 1"]:
    """The angle of the skew part of a matrix: vee(ω̂) = ω; a symmetric part is ignored."""
    matrix = check.array("matrix", matrix, 2, 2)
    return (matrix[..., 1, :1] - matrix[..., 0, 1:]) / 2


def exp(omega: Float[ArrayLike, "*batch 1"]) -> Float[Array, "*batch 2 2"]:
    """[[cos ω, −sin ω], [sin ω, cos ω]]: the rotation by ω radians, counter-clockwise; any ω."""
    omega = check.array("omega", omega, 1)[..., 0]
    return _matrix(jnp.cos(omega), jnp.sin(omega))


def log(R: Float[ArrayLike, "*batch 2 2"]) -> Float[Array, "*batch 1"]:
    """The angle of R in (−π, π]; derivatives are those of the angle of the closest rotation, exact to every order."""
    R = check.array("R", R, 2, 2)
    check.rotation("R", R)
    return _log(R)


def compose(R1: Float[ArrayLike, "*#batch 2 2"], R2: Float[ArrayLike, "*#batch 2 2"]) -> Float[Array, "... 2 2"]:
    """R1 R2; the order does not matter."""
    R1, R2 = check.array("R1", R1, 2, 2), check.array("R2", R2, 2, 2)
    check.same_dtype(R1=R1, R2=R2)
    return elementwise.matmul(R1, R2)


def inverse(R: Float[ArrayLike, "*batch 2 2"]) -> Float[Array, "*batch 2 2"]:
    """Rᵀ."""
    return elementwise.transpose(check.array("R", R, 2, 2))


def act(R: Float[ArrayLike, "*#batch 2 2"], x: Float[ArrayLike, "*#batch 2"]) -> Float[Array, "... 2"]:
    """R x: the rotated vector."""
    R, x = check.array("R", R, 2, 2), check.array("x", x, 2)
    check.same_dtype(R=R, x=x)
    return elementwise.matvec(R, x)


def adjoint(R: Float[ArrayLike, "*batch 2 2"]) -> Float[Array, "*batch 1 1"]:
    """1: the group is commutative."""
    return jnp.ones_like(check.array("R", R, 2, 2)[..., :1, :1])


def left_jacobian(omega: Float[ArrayLike, "*batch 1"]) -> Float[Array, "*batch 1 1"]:
    """1: exp(ω + δ) = exp(δ) exp(ω), without a correction."""
    return jnp.ones_like(check.array("omega", omega, 1)[..., None])


right_jacobian = left_jacobian
left_jacobian_inverse = left_jacobian
right_jacobian_inverse = left_jacobian


def retract(R: Float[ArrayLike, "*#batch 2 2"], omega: Float[ArrayLike, "*#batch 1"]) -> Float[Array, "... 2 2"]:
    """R exp(ω): R turned further by ω."""
    return compose(R, exp(omega))


def local(R1: Float[ArrayLike, "*#batch 2 2"], R2: Float[ArrayLike, "*#batch 2 2"]) -> Float[Array, "... 1"]:
    """log(R1⁻¹ R2) in (−π, π]: the angle from R1 to R2; exactly 0 where R1 equals R2."""
    R1, R2 = check.array("R1", R1, 2, 2), check.array("R2", R2, 2, 2)
    check.same_dtype(R1=R1, R2=R2)
    check.rotation("R1", R1)
    check.rotation("R2", R2)
    return _log(elementwise.matmul(elementwise.transpose(R1), R2))


def distance(R1: Float[ArrayLike, "*#batch 2 2"], R2: Float[ArrayLike, "*#batch 2 2"]) -> Float[Array, "..."]:
    """|log(R1⁻¹ R2)|, 0..π. At R1 = R2 the gradient is 0 by choice, at π that of the branch `log` takes."""
    return smooth.norm(local(R1, R2))


def squared_distance(R1: Float[ArrayLike, "*#batch 2 2"], R2: Float[ArrayLike, "*#batch 2 2"]) -> Float[Array, "..."]:
    """The squared angle of R1⁻¹ R2: smooth at R1 = R2, with gradient 0 and second derivative 2."""
    omega = local(R1, R2)
    return elementwise.dot(omega, omega)


def interpolate(
    R1: Float[ArrayLike, "*#batch 2 2"], R2: Float[ArrayLike, "*#batch 2 2"], t: Float[ArrayLike, "*#batch"]
) -> Float[Array, "... 2 2"]:
    """R1 exp(t log(R1⁻¹ R2)): from R1 (t = 0) to R2 (t = 1) the short way at constant speed; any real t."""
    omega = local(R1, R2)
    t = jnp.asarray(t, omega.dtype)
    return retract(R1, t[..., None] * omega)


def sample(shape: tuple[int, ...] = (), dtype: Any = jnp.float32, *, key: PRNGKeyArray) -> Float[Array, "..."]:
    """Rotations drawn from Haar's (the uniform) measure: (*shape, 2, 2)."""
    return exp(jax.random.uniform(key, (*shape, 1), dtype, -jnp.pi, jnp.pi))


def project(M: Float[ArrayLike, "*batch 2 2"]) -> Float[Array, "*batch 2 2"]:
    """The rotation closest to M in Frobenius norm; the identity, with zero derivatives, where all are equally close."""
    M = check.array("M", M, 2, 2)
    cosine, sine = M[..., 0, 0] + M[..., 1, 1], M[..., 1, 0] - M[..., 0, 1]
    length = smooth.norm(jnp.stack([cosine, sine], axis=-1))
    return _matrix(smooth.divide(cosine, length, 1.0), smooth.divide(sine, length))


def _matrix(cosine: Array, sine: Array) -> Array:
    """[[cosine, −sine], [sine, cosine]]."""
    return jnp.stack([jnp.stack([cosine, -sine], axis=-1), jnp.stack([sine, cosine], axis=-1)], axis=-2)


def _log(R: Array) -> Array:
    return smooth.angle(R[..., 1, :1] - R[..., 0, 1:], R[..., 0, :1] + R[..., 1, 1:])
