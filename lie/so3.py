"""SO(3): rotations as active, right-handed matrices; tangent vectors are rotation vectors in the body frame."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from lie import check, elementwise, smooth

dimension = 3


def identity(shape: tuple[int, ...] = (), dtype: Any = jnp.float32) -> Float[Array, "..."]:
    """The rotation by 0, `shape` times: (*shape, 3, 3)."""
    return jnp.broadcast_to(jnp.eye(3, dtype=dtype), (*shape, 3, 3))


def hat(omega: Float[ArrayLike, "*batch 3"]) -> Float[Array, "*batch 3 3"]:
    """The skew matrix ω̂ with ω̂ x = ω × x."""
    omega = check.array("omega", omega, 3)
    x, y, z = omega[..., 0], omega[..., 1], omega[..., 2]
    zero = jnp.zeros_like(x)
    rows = [[zero, -z, y], [z, zero, -x], [-y, x, zero]]
    return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)


def vee(matrix: Float[ArrayLike, "*batch 3 3"]) -> Float[Array, "*batch 3"]:
    """The vector of the skew part of a matrix: vee(ω̂) = ω; a symmetric part is ignored."""
    matrix = check.array("matrix", matrix, 3, 3)
    return _vee(matrix)


def exp(omega: Float[ArrayLike, "*batch 3"]) -> Float[Array, "*batch 3 3"]:
    """Rotation by |ω| radians about ω, right-handed: exp(ω̂) = cos θ I + (sin θ/θ) ω̂ + ((1 − cos θ)/θ²) ω ωᵀ.

    By the half angle, w = cos(θ/2) and s = sin(θ/2)/(θ/2): the coefficients are w² − s² θ²/4, w s and s²/2, entire
    in θ², so all derivatives exist at ω = 0. Any θ. Source: Rodrigues' formula.
    """
    return _exp(check.array("omega", omega, 3))


def log(R: Float[ArrayLike, "*batch 3 3"]) -> Float[Array, "*batch 3"]:
    """The rotation vector of R with |ω| <= π; at |ω| = π one of the two, ω and −ω.

    By way of the quaternion, tan(θ/2) = |v|/w, so no digits are lost at 0 or π. First derivatives are those of the
    logarithm of the closest rotation, dω = J_r⁻¹(ω) vee(RᵀdR); along the group they are exact to every order, at 0 and
    at π as well. Error of value and derivative <= 2.5 eps, float32 and float64.
    """
    R = check.array("R", R, 3, 3)
    check.rotation("R", R)
    return log_unchecked(R)


def compose(R1: Float[ArrayLike, "*#batch 3 3"], R2: Float[ArrayLike, "*#batch 3 3"]) -> Float[Array, "... 3 3"]:
    """R1 R2: first R2, then R1."""
    R1, R2 = check.array("R1", R1, 3, 3), check.array("R2", R2, 3, 3)
    check.same_dtype(R1=R1, R2=R2)
    return elementwise.matmul(R1, R2)


def inverse(R: Float[ArrayLike, "*batch 3 3"]) -> Float[Array, "*batch 3 3"]:
    """Rᵀ."""
    return jnp.swapaxes(check.array("R", R, 3, 3), -1, -2)


def act(R: Float[ArrayLike, "*#batch 3 3"], x: Float[ArrayLike, "*#batch 3"]) -> Float[Array, "... 3"]:
    """R x: the rotated vector."""
    R, x = check.array("R", R, 3, 3), check.array("x", x, 3)
    check.same_dtype(R=R, x=x)
    return elementwise.matvec(R, x)


def adjoint(R: Float[ArrayLike, "*batch 3 3"]) -> Float[Array, "*batch 3 3"]:
    """Ad_R with R exp(ω) R⁻¹ = exp(Ad_R ω): R itself."""
    return check.array("R", R, 3, 3)


def left_jacobian(omega: Float[ArrayLike, "*batch 3"]) -> Float[Array, "*batch 3 3"]:
    """J_l with exp(ω + δ) = exp(J_l δ) exp(ω) to first order: (sin θ/θ) I + c₂ ω̂ + c₃ ω ωᵀ, any θ."""
    omega = check.array("omega", omega, 3)
    _, c1, c2, c3 = smooth.stumpff_family(4, elementwise.dot(omega, omega))
    return isotropic(c1, c2, c3, omega)


def right_jacobian(omega: Float[ArrayLike, "*batch 3"]) -> Float[Array, "*batch 3 3"]:
    """J_r with exp(ω + δ) = exp(ω) exp(J_r δ) to first order: J_l(−ω) = J_l(ω)ᵀ."""
    return left_jacobian(-check.array("omega", omega, 3))


def left_jacobian_inverse(omega: Float[ArrayLike, "*batch 3"]) -> Float[Array, "*batch 3 3"]:
    """J_l⁻¹ = (θ/2) cot(θ/2) I − ω̂/2 + k(θ²) ω ωᵀ, θ < 2π; k = `smooth.cotangent_coefficient`."""
    return _left_jacobian_inverse(check.array("omega", omega, 3))


def right_jacobian_inverse(omega: Float[ArrayLike, "*batch 3"]) -> Float[Array, "*batch 3 3"]:
    """J_r⁻¹ = J_l⁻¹(−ω), θ < 2π: the derivative of log, log(R exp(δ)) = log R + J_r⁻¹ δ to first order."""
    return _left_jacobian_inverse(-check.array("omega", omega, 3))


def retract(R: Float[ArrayLike, "*#batch 3 3"], omega: Float[ArrayLike, "*#batch 3"]) -> Float[Array, "... 3 3"]:
    """R exp(ω): a step from R along the body-frame tangent ω."""
    return compose(R, exp(omega))


def local(R1: Float[ArrayLike, "*#batch 3 3"], R2: Float[ArrayLike, "*#batch 3 3"]) -> Float[Array, "... 3"]:
    """log(R1⁻¹ R2): the body-frame step from R1 to R2, the inverse of `retract`; exactly 0 where R1 equals R2."""
    R1, R2 = check.array("R1", R1, 3, 3), check.array("R2", R2, 3, 3)
    check.same_dtype(R1=R1, R2=R2)
    check.rotation("R1", R1)
    check.rotation("R2", R2)
    return log_unchecked(elementwise.matmul(elementwise.transpose(R1), R2))


def distance(R1: Float[ArrayLike, "*#batch 3 3"], R2: Float[ArrayLike, "*#batch 3 3"]) -> Float[Array, "..."]:
    """The angle of R1⁻¹ R2 in radians, 0..π.

    Gradient by choice: 0 where R1 = R2 (the subgradient of least norm); at distance π that of the branch `log` takes.
    Powers of it have no second derivative at R1 = R2: use `squared_distance` there.
    """
    return smooth.norm(local(R1, R2))


def squared_distance(R1: Float[ArrayLike, "*#batch 3 3"], R2: Float[ArrayLike, "*#batch 3 3"]) -> Float[Array, "..."]:
    """The squared angle of R1⁻¹ R2: smooth at R1 = R2, where its gradient is 0 and its Hessian 2 I."""
    omega = local(R1, R2)
    return elementwise.dot(omega, omega)


def interpolate(
    R1: Float[ArrayLike, "*#batch 3 3"], R2: Float[ArrayLike, "*#batch 3 3"], t: Float[ArrayLike, "*#batch"]
) -> Float[Array, "... 3 3"]:
    """R1 exp(t log(R1⁻¹ R2)): the geodesic from R1 (t = 0) to R2 (t = 1) at constant speed; any real t."""
    omega = local(R1, R2)
    t = jnp.asarray(t, omega.dtype)
    return retract(R1, t[..., None] * omega)


def sample(shape: tuple[int, ...] = (), dtype: Any = jnp.float32, *, key: PRNGKeyArray) -> Float[Array, "..."]:
    """Rotations drawn from Haar's (the uniform) measure: (*shape, 3, 3)."""
    return _from_quaternion(jax.random.normal(key, (*shape, 4), dtype))


def project(M: Float[ArrayLike, "*batch 3 3"]) -> Float[Array, "*batch 3 3"]:
    """The rotation closest to M in Frobenius norm: U diag(1, 1, det UV) Vᵀ of M = U S Vᵀ.

    With signed singular values s1 >= s2 >= |s3| of M its condition number is κ = 2|M|/(√3 (s2 + s3)), 1 at a rotation,
    and the relative error <= 3.3 eps κ (Frobenius norms). Where s2 + s3 = 0 (all rotations about one axis are equally
    close) one of them is returned and the derivative, elsewhere exact, is 0 by choice along the free axis; where M is
    so small that second derivatives, ~1/|M|², could overflow (|M| < 5e-13 in float32), all derivatives are 0.
    Found as the dominant eigenvector of Davenport's symmetric 4x4 matrix, then two Newton steps.
    """
    M = check.array("M", M, 3, 3)
    return _project(M.astype(jnp.float32) if M.dtype.itemsize < 4 else M).astype(M.dtype)


def _vee(matrix: Array) -> Array:
    skew = matrix - elementwise.transpose(matrix)
    return jnp.stack([skew[..., 2, 1], skew[..., 0, 2], skew[..., 1, 0]], axis=-1) / 2


def isotropic(a: Array, b: Array, c: Array, omega: Array) -> Array:
    """a I + b ω̂ + c ω ωᵀ, for arrays a, b, c (*batch) and ω (*batch, 3).

    Written as rows: XLA then evaluates each entry alone, without recomputing the coefficients for every zero. For a
    million float32 rotations 42 ms, where one stack of nine takes 111, broadcast products 50 and a transpose 64.
    """
    x, y, z = omega[..., 0], omega[..., 1], omega[..., 2]
    bx, by, bz = b * x, b * y, b * z
    cx, cy, cz = c * x, c * y, c * z
    xy, xz, yz = cx * y, cx * z, cy * z
    rows = [[a + cx * x, xy - bz, xz + by], [xy + bz, a + cy * y, yz - bx], [xz - by, yz + bx, a + cz * z]]
    return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)


def cross_terms(a: Array, p: Array, omega: Array, u: Array) -> Array:
    """a I + p̂ + ω uᵀ + u ωᵀ: the derivatives of `isotropic` have this form."""
    (x, y, z), (ux, uy, uz), (px, py, pz) = ([vector[..., k] for k in range(3)] for vector in (omega, u, p))
    xy, xz, yz = x * uy + y * ux, x * uz + z * ux, y * uz + z * uy
    rows = [[a + 2 * x * ux, xy - pz, xz + py], [xy + pz, a + 2 * y * uy, yz - px], [xz - py, yz + px, a + 2 * z * uz]]
    return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)


# What rules of differentiation use instead of the two functions above: broadcast products and a gather in place of
# stacks. XLA compiles each in less than half the time (45 ms, not 103), but 1e5 rotations take half as long again.
# Indices are int32: JAX keeps one type for an int64 array, and fails where jax_enable_x64 is another the next time.
_ROLE = np.array([[0, 2, 1], [2, 0, 0], [1, 0, 0]], np.int32)
_SIGN = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]])
_HAT = np.where(np.arange(3)[:, None, None] == _ROLE, _SIGN, 0)  # ω̂ = Σ_k ω_k _HAT[k]


def compact_isotropic(a: Array, b: Array | float, c: Array, omega: Array) -> Array:
    """`isotropic`, for rules."""
    b, scaled = jnp.asarray(b, omega.dtype), c[..., None] * omega
    skew = (b[..., None] * omega)[..., _ROLE] * _SIGN.astype(omega.dtype)
    return a[..., None, None] * np.eye(3, dtype=omega.dtype) + skew + scaled[..., :, None] * omega[..., None, :]


def compact_cross_terms(a: Array, p: Array, omega: Array, u: Array) -> Array:
    """`cross_terms`, for rules."""
    skew = p[..., _ROLE] * _SIGN.astype(omega.dtype)
    outer = omega[..., :, None] * u[..., None, :] + u[..., :, None] * omega[..., None, :]
    return a[..., None, None] * np.eye(3, dtype=omega.dtype) + skew + outer


def turned(R: Array, phi: Array) -> Array:
    """R φ̂, linear in φ, with a transpose that is two products."""
    skew = elementwise.einsum("...k,kij->...ij", phi, jnp.asarray(_HAT, phi.dtype))
    return elementwise.einsum("...ij,...jk->...ik", R, skew)


def _left_jacobian_inverse(omega: Array) -> Array:
    theta_squared = elementwise.dot(omega, omega)
    k = smooth.cotangent_coefficient(theta_squared)
    return isotropic(1 - theta_squared * k, jnp.full_like(k, -0.5), k, omega)


@jax.custom_jvp
def _exp(omega: Array) -> Array:
    c0, c1, c2 = smooth.stumpff_family(3, elementwise.dot(omega, omega))
    return isotropic(c0, c1, c2, omega)


@_exp.defjvp
def _exp_jvp(primals, tangents):
    (omega,), (omega_dot,) = primals, tangents
    c0, c1, c2, c3 = smooth.stumpff_family(4, elementwise.dot(omega, omega))
    R, J = isotropic(c0, c1, c2, omega), compact_isotropic(c1, c2, c3, omega)
    return R, turned(R, elementwise.einsum("...ji,...j->...i", J, omega_dot))


@jax.custom_jvp
def log_unchecked(R: Array) -> Array:
    """`log` of a product of rotations, whose rounding its check need not forgive."""
    q = elementwise.stored(jnp.stack(_quaternion_direction(R)))
    v = jnp.moveaxis(q[1:], 0, -1)
    return smooth.angle_ratio(q[0], elementwise.dot(v, v))[..., None] * v


@log_unchecked.defjvp
def _log_jvp(primals, tangents):
    (R,), (R_dot,) = primals, tangents
    omega = log_unchecked(R)
    body, _ = body_rates(R, R_dot)
    theta_squared = elementwise.dot(omega, omega)
    k = smooth.cotangent_coefficient(theta_squared)
    J = compact_isotropic(1 - theta_squared * k, -0.5, k, omega)
    return omega, elementwise.einsum("...ji,...j->...i", J, body)


def body_rates(R: Array, R_dot: Array) -> tuple[Array, Array]:
    """φ with dR = R φ̂, and |columns of R|² − 1, which corrects φ = vee(Rᵀ dR) for the rounding of R.

    Without the correction the derivative of log inherits the 8 eps by which R is not orthogonal: 4.8, not 1.6 eps.
    """
    excess = jax.lax.stop_gradient(R[..., 0, :] ** 2 + R[..., 1, :] ** 2 + R[..., 2, :] ** 2 - 1)
    others = (excess[..., :1] + excess[..., 1:2] + excess[..., 2:]) - excess
    relative = elementwise.einsum("...ji,...jk->...ik", R, R_dot)
    phi = elementwise.einsum("...ij,kij->...k", relative, jnp.asarray(_HAT / 2, R.dtype))
    return phi * (1 - others / 2), excess


def _quaternion_direction(R: Array) -> tuple[Array, ...]:
    """w >= 0, x, y, z of a multiple of R's quaternion: the column of 4 q qᵀ with the largest diagonal entry."""
    m = [[R[..., i, j] for j in range(3)] for i in range(3)]
    wx, wy, wz = m[2][1] - m[1][2], m[0][2] - m[2][0], m[1][0] - m[0][1]
    xy, xz, yz = m[1][0] + m[0][1], m[0][2] + m[2][0], m[2][1] + m[1][2]
    ww = 1 + (m[0][0] + m[1][1] + m[2][2])
    xx = 1 + (m[0][0] - m[1][1] - m[2][2])
    yy = 1 + (m[1][1] - m[0][0] - m[2][2])
    zz = 1 + (m[2][2] - m[0][0] - m[1][1])
    turned_little = ww >= 1
    x_leads = (xx >= yy) & (xx >= zz)
    y_leads = yy >= zz

    def select(from_w, from_x, from_y, from_z):
        return jnp.where(turned_little, from_w, jnp.where(x_leads, from_x, jnp.where(y_leads, from_y, from_z)))

    w = select(ww, wx, wy, wz)
    v = select(wx, xx, xy, xz), select(wy, xy, yy, yz), select(wz, xz, yz, zz)
    flip = w < 0
    return jnp.abs(w), *(jnp.where(flip, -x, x) for x in v)


def _from_quaternion(q: Array) -> Array:
    """The rotation of a quaternion of any length > 0."""
    q = q / smooth.norm(q, keepdims=True)
    w, v = q[..., 0], q[..., 1:]
    return isotropic(w * w - elementwise.dot(v, v), 2 * w, jnp.full_like(w, 2), v)


@jax.custom_jvp
def _project(M: Array) -> Array:
    largest = jnp.max(jnp.abs(M), axis=(-2, -1), keepdims=True)
    M = M / jnp.where(largest > 0, largest, 1)
    R = _from_quaternion(_dominant_quaternion(M))
    for _ in range(2):
        R = elementwise.matmul(R, exp(_newton_step(R, M, M)))
    return R


@_project.defjvp
def _project_jvp(primals, tangents):
    (M,), (M_dot,) = primals, tangents
    R = _project(M)
    return R, elementwise.matmul(R, hat(_newton_step(R, M, M_dot)))


def _newton_step(R: Array, M: Array, M_dot: Array) -> Array:
    """ω of (tr(S) I − S) ω = 2 vee(Rᵀ M_dot), S = sym(RᵀM): Newton's step if M_dot = M, or the derivative.

    The eigenvalues of tr(S) I − S are s2 + s3, s1 + s3, s1 + s2; adj/det with a determinant that rounds to 0 gives 0.
    """
    A = elementwise.matmul(elementwise.transpose(R), M)
    scale = jax.lax.stop_gradient(jnp.max(jnp.abs(A), axis=(-2, -1)))  # ω does not depend on it
    finfo = jnp.finfo(R.dtype)
    floor = 8 * float(finfo.eps)
    scale = jnp.where(scale < 4 * float(finfo.tiny) ** 0.5 / floor, 0, scale)  # (floor scale)⁻² would overflow
    inverse_scale = smooth.divide(jnp.ones_like(scale), scale)[..., None, None]
    A = A * inverse_scale
    S = (A + elementwise.transpose(A)) / 2
    G = (S[..., 0, 0] + S[..., 1, 1] + S[..., 2, 2])[..., None, None] * np.eye(3, dtype=R.dtype) - S
    columns = G[..., 0], G[..., 1], G[..., 2]
    adjugate = [
        elementwise.cross(columns[1], columns[2]),
        elementwise.cross(columns[2], columns[0]),
        elementwise.cross(columns[0], columns[1]),
    ]
    determinant = elementwise.dot(columns[0], adjugate[0])
    damping = jnp.where(jnp.abs(determinant) < floor, floor**2, 0)
    reciprocal = smooth.divide(determinant, determinant * determinant + damping)
    body = 2 * _vee(elementwise.matmul(elementwise.transpose(R), M_dot * inverse_scale))
    return reciprocal[..., None] * jnp.stack([elementwise.dot(row, body) for row in adjugate], axis=-1)


def _dominant_quaternion(M: Array) -> Array:
    """The q that maximises tr(R(q)ᵀ M) = qᵀ K q: B ← B²/tr B from B = K + |K| I until one eigenvector is left.

    So many squarings that a relative gap of one eps between the two largest eigenvalues still separates them.
    """
    m = [[M[..., i, j] for j in range(3)] for i in range(3)]
    wx, wy, wz = m[2][1] - m[1][2], m[0][2] - m[2][0], m[1][0] - m[0][1]
    xy, xz, yz = m[1][0] + m[0][1], m[0][2] + m[2][0], m[2][1] + m[1][2]
    ww, xx = m[0][0] + m[1][1] + m[2][2], m[0][0] - m[1][1] - m[2][2]
    yy, zz = m[1][1] - m[0][0] - m[2][2], m[2][2] - m[0][0] - m[1][1]
    K = jnp.stack([ww, wx, wy, wz, wx, xx, xy, xz, wy, xy, yy, yz, wz, xz, yz, zz], axis=-1)
    size = smooth.norm(K, keepdims=True)[..., None]
    K = K.reshape(*K.shape[:-1], 4, 4)
    eye = np.eye(4, dtype=M.dtype)
    B = K + jnp.where(size > 0, size, 1) * eye

    def square(_, B):
        B = B / jnp.sum(B * eye, axis=(-2, -1), keepdims=True)
        return elementwise.matmul(B, B)

    B = jax.lax.fori_loop(0, 6 - int(np.log2(float(jnp.finfo(M.dtype).eps))), square, B)
    diagonal = jnp.sum(B * eye, axis=-1)
    largest = jax.nn.one_hot(jnp.argmax(diagonal, axis=-1), 4, dtype=M.dtype)
    return jnp.sum(B * largest[..., None, :], axis=-1)
